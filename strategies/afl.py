"""Agnostic federated learning: the least loss of the worst mixture of groups.

Source: Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, arXiv 1902.00146, with groups of rows as the
domains: descent in the silos on the mixture, projected ascent of the mixture on the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from privacy.queries import NoisyQuery
from privacy.release import Release
from strategies import duals
from strategies.base import Instruction, Reported, Silo, State, Strategy, Update
from strategies.groups import CHANNEL, Groups
from strategies.layout import Layout
from strategies.registry import strategy
from strategies.schema import key

if TYPE_CHECKING:
    from strategies.experiment import Experiment


@strategy("afl")
@dataclass(frozen=True)
class AFL(Strategy):
    """Minimises sum_a lam_a L_a, where the mixture lam climbs towards the groups that lose most."""

    dual_rate: float = key(0.1, above=0, help="step size of the mixture")
    groups: Groups = key(Groups(), help="the groups, and how their losses are asked for")

    @property
    def heaviest(self) -> float:
        """See `Groups.heaviest`."""
        return self.groups.heaviest

    def problems(self, *, private: bool) -> list[str]:
        """See `Groups.problems`."""
        return list(self.groups.problems())

    def misfits(self, experiment: Experiment, silos: int) -> list[str]:
        """See `Groups.misfits`."""
        return list(self.groups.misfits(experiment))

    def group_problems(self, names: Sequence[str]) -> list[str]:
        """The data must have these groups."""
        return list(self.groups.unknown(names))

    def grouped(self, groups: Tensor | None, targets: Tensor) -> Tensor | None:
        """With labels, of group and class."""
        return self.groups.of(groups, targets)

    @property
    def queries(self) -> Mapping[str, NoisyQuery]:
        """The sums of losses."""
        return {CHANNEL: self.groups.query}

    def channels(self, size: int) -> Mapping[str, int]:
        """The change, and the sums of losses."""
        return {"delta": size, CHANNEL: self.groups.size}

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """An even mixture."""
        return self.groups.start() | {"model": model, "lam": torch.full((self.groups.size,), 1.0 / self.groups.size)}

    def instruct(self, state: State, round_: int, tier: int = 0) -> Instruction:
        """The model, and what a row of each group weighs; in round 1, in which that is unknown, all weigh 1."""
        return Instruction(round_, {"model": state["model"], "pull": self.groups.pull(state, state["lam"])}, tier)

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Sums losses at the model as it came, and trains on the mixture."""
        start, sums = instruction["model"], self.groups.sums(silo, instruction)
        after = silo.fit(start, reweight=self.groups.weights(silo, instruction, base=0.0))
        return self.groups.update(silo, after - start, sums)

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """The mean change, and a step of the mixture."""
        after = {name: value.clone() for name, value in state.items()} | self.groups.seen(state, release)
        after["model"] = state["model"] + release.mean("delta")
        if self.groups.knows(after):
            after["lam"] = duals.simplex(state["lam"] + self.dual_rate * after["losses"], 1.0)
        return after

    def report(self, state: State) -> Mapping[str, Reported]:
        """The mixture, and what its groups lose."""
        return {"lam": state["lam"].tolist(), "group_losses": state["losses"].tolist()}
