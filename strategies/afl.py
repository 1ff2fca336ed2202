"""Agnostic federated learning: the least loss of the worst mixture of groups.

Source: Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, arXiv 1902.00146, with groups of rows as the
domains: descent in the silos on the mixture, projected ascent of the mixture on the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from privacy.release import Release
from strategies import duals
from strategies.base import Instruction, Reported, Silo, State, Update
from strategies.groups import Groups, GroupStrategy
from strategies.layout import Layout
from strategies.registry import strategy
from strategies.schema import key


@strategy("afl")
@dataclass(frozen=True)
class AFL(GroupStrategy):
    """Minimises sum_a lam_a L_a, where the mixture lam climbs towards the groups that lose most."""

    dual_rate: float = key(0.1, above=0, help="step size of the mixture")
    groups: Groups = key(Groups(), help="the groups, and how their losses are asked for")

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
