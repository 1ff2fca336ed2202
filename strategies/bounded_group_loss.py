"""Bounded group loss: the least mean loss under a bound on the loss of every group of rows across all silos.

Source: Hu, Wu, Smith, "Fair Federated Learning via Bounded Group Loss", SaTML 2024, arXiv 2203.10190; the notion is of
Agarwal, Dudik, Wu, "Fair Regression", ICML 2019. The saddle point of F(w) + lam'r(w), r_a = loss of group a - zeta_a,
is sought by descent in the silos and ascent on the server, on group losses at the model that it sent.

Deviations: without privacy the mean of changes divides by the weight that arrived, as FedAvg's does; a round of counts
and the first round have lam = 0; the tail average is Shamir & Zhang's (2013, arXiv 1212.1824), which asks for no end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from privacy.release import Release
from strategies import duals
from strategies.base import Instruction, Reported, Silo, State, Update
from strategies.groups import Groups, GroupStrategy, zeta_problems
from strategies.layout import Layout
from strategies.registry import strategy
from strategies.schema import key

SATURATED = 0.95  # Of the bound: multipliers that reach so far would go on if they could.
DECAY = 3  # Of the tail average: round t weighs as t^3 does.
UNBOUNDED = 1e30  # A zeta of infinity, in numbers that can be subtracted.


@strategy("bounded_group_loss")
@dataclass(frozen=True)
class BoundedGroupLoss(GroupStrategy):
    """Rows of a group that loses more than zeta weigh more, by a multiplier that rises as long as it does.

    With `bound: 0`, or while no group has passed its zeta, this is FedAvg.
    """

    zeta: tuple[float, ...] = key((0.5,), above=0, help="largest mean loss of a group: one for all, or one per group")
    bound: float = key(5.0, at_least=0, help="largest sum of the groups' multipliers; 0: FedAvg")
    dual: Literal["projected", "exponentiated"] = key(
        "projected", help="how multipliers rise: by a projected step (faster), or by exponentiated gradient"
    )
    dual_rate: float = key(0.5, above=0, help="step size of the multipliers")
    groups: Groups = key(Groups(), help="the groups, and how their losses are asked for")

    def problems(self, *, private: bool) -> list[str]:
        """A bound for all groups or one for each."""
        return [*super().problems(private=private), *zeta_problems(self.zeta, self.groups)]

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """Multipliers of 0; the exponentiated ones start in the middle."""
        zeros = torch.zeros(self.groups.size)
        lam = zeros if self.dual == "projected" else duals.exponentiated(zeros, self.bound)
        return self.groups.start() | {
            "model": model,
            "average": model.clone(),
            "lam": lam,
            "lam_average": lam.clone(),
            "theta": zeros.clone(),
            "shift": torch.full((1,), UNBOUNDED),
        }

    def instruct(self, state: State, round_: int, tier: int = 0) -> Instruction:
        """The model, and what a row of each group weighs above 1."""
        return Instruction(round_, {"model": state["model"], "pull": self.groups.pull(state, state["lam"])}, tier)

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Sums losses at the model as it came, and trains on weighed rows."""
        start, sums = instruction["model"], self.groups.sums(silo, instruction)
        after = silo.fit(start, reweight=self.groups.weights(silo, instruction, base=1.0))
        return self.groups.update(silo, after - start, sums)

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """The mean change, and a step of the multipliers along the violations of the model that was sent."""
        after = {name: value.clone() for name, value in state.items()} | self.groups.seen(state, release)
        after["model"] = state["model"] + release.mean("delta")
        if self.groups.knows(after):
            after |= self._ascent(state, self._violations(after))
        part = (DECAY + 1.0) / (int(after["round"]) + DECAY)
        for mean, last in (("average", "model"), ("lam_average", "lam")):
            after[mean] = torch.lerp(state[mean], after[last], part)
        return after

    def _ascent(self, state: State, violations: Tensor) -> dict[str, Tensor]:
        shift = torch.minimum(state["shift"], violations.max().reshape(1))
        step = self.dual_rate * violations
        if self.dual == "projected":
            return {"lam": duals.below(state["lam"] + step, self.bound), "shift": shift}
        theta = (state["theta"] + step).clamp(min=-UNBOUNDED)
        return {"theta": theta, "lam": duals.exponentiated(theta, self.bound), "shift": shift}

    def bounds(self) -> Tensor:
        """Zeta of each group, `(groups,)`; one that is infinite as a number so large that none passes it."""
        return torch.tensor(self.zeta).clamp(max=UNBOUNDED).expand(self.groups.size)

    def _violations(self, state: State) -> Tensor:
        return state["losses"] - self.bounds()

    def variants(self, state: State, round_: int) -> Mapping[str, Tensor]:
        """The tail average, which the convex theory is about; of a net it may mean little."""
        return {"average": state["average"]}

    def report(self, state: State) -> Mapping[str, Reported]:
        """Multipliers, and whether the bounds can be kept: else they end at their limit, and no model kept them."""
        found: dict[str, Reported] = {
            "lam": state["lam"].tolist(),
            "lam_average": state["lam_average"].tolist(),
            "zeta": [*self.zeta],
        }
        if not self.groups.knows(state):
            return found
        shift = float(state["shift"])
        infeasible = shift > 0 and float(state["lam"].sum()) >= SATURATED * self.bound > 0
        found |= {
            "group_losses": state["losses"].tolist(),
            "violations": self._violations(state).tolist(),
            "infeasible": infeasible,
        }
        return found | ({"smallest_zeta_found": [zeta + shift for zeta in self.zeta]} if infeasible else {})
