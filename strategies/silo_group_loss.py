"""Bounds on group losses kept by every silo for itself: the baseline that bounded group loss has to beat.

Each silo bounds the loss of each group on its own rows, with multipliers of its own; a group that it lacks has none.
What is averaged are models that are fair in their silos, which is not fair in the federation (Hu, Wu, Smith 2022, arXiv
2203.10190, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from privacy.queries import NoisyQuery
from privacy.release import Release
from strategies import duals
from strategies.base import Instruction, Silo, State, Update
from strategies.groups import CHANNEL, Groups, GroupStrategy, by_group, zeta_problems
from strategies.registry import strategy
from strategies.schema import key

if TYPE_CHECKING:
    from strategies.experiment import Experiment


@strategy("silo_group_loss")
@dataclass(frozen=True)
class SiloGroupLoss(GroupStrategy):
    """The server half is FedAvg's; no number about groups leaves a silo."""

    zeta: tuple[float, ...] = key((0.5,), above=0, help="largest mean loss of a group: one for all, or one per group")
    bound: float = key(5.0, at_least=0, help="largest sum of a silo's multipliers; 0: FedAvg")
    dual_rate: float = key(0.5, above=0, help="step size of the multipliers")
    groups: Groups = key(Groups(), help="the groups; counts and smooth are not used")

    def problems(self, *, private: bool) -> list[str]:
        """A bound for all groups or one for each."""
        return list(zeta_problems(self.zeta, self.groups))

    def misfits(self, experiment: Experiment, silos: int) -> list[str]:
        """Row counts as weights are for silos that are not private."""
        privacy = experiment.privacy
        if self.groups.weighting == "examples" and (privacy.silo is not None or privacy.local is not None):
            return ["strategy.groups.weighting: 'examples' counts private rows; use 'uniform'"]
        return []

    @property
    def queries(self) -> Mapping[str, NoisyQuery]:
        """The sums of losses, and the counts beside them in the same units: a row is in one of each."""
        one = self.groups
        return {CHANNEL: NoisyQuery(2 * one.size, 2**0.5 * one.loss_clip, one.noise_multiplier)}

    def channels(self, size: int) -> Mapping[str, int]:
        """The change alone."""
        return {"delta": size}

    def personal(self, size: int) -> Mapping[str, int]:
        """The silo's multipliers."""
        return {"lam": self.groups.size}

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """A step of the silo's multipliers, and training on rows weighed by them."""
        start = instruction["model"]
        means, counts = self._own(silo, start)
        lam = silo.state.get("lam", torch.zeros_like(means))
        violations = means - torch.tensor(self.zeta)
        lam = duals.below(torch.where(counts < 1.0, 0.0, lam + self.dual_rate * violations), self.bound)
        silo.state["lam"] = lam
        table = 1.0 + lam * silo.examples.unsqueeze(-1) / counts.clamp(min=1.0)
        after = silo.fit(start, reweight=by_group(table) if self.bound else None)
        return Update({"delta": after - start}, weight=1.0 if self.groups.weighting == "uniform" else silo.examples)

    def _own(self, silo: Silo, model: Tensor) -> tuple[Tensor, Tensor]:
        """The silo's mean losses and counts, `(groups,)` or `(silos, groups)` each."""
        size, clip = self.groups.size, self.groups.loss_clip

        def rows(losses: Tensor, groups: Tensor | None) -> Tensor:
            if groups is None:
                raise ValueError("data.group: missing, and the strategy weighs groups")
            own = one_hot(groups, size).to(losses.dtype)
            return torch.cat([own * losses, own * clip], dim=-1)

        sums = silo.query(CHANNEL, model.unsqueeze(0), rows=rows)
        counts = sums[..., size:] / clip
        return sums[..., :size] / counts.clamp(min=1.0), counts

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """The mean delta is the step."""
        return {"model": state["model"] + release.mean("delta")}
