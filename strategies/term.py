"""Tilted losses: groups weigh by the exponential of what they lose.

Source: Li, Beirami, Sanjabi, Smith, "Tilted Empirical Risk Minimization", ICLR 2021, arXiv 2007.01162, group-level
tilting (section 2.2 and equation 4, with no tilt of single rows): minimise 1/t log sum_a (n_a / n) exp(t L_a), whose
gradient is that of sum_a (n_a / n) exp(t (L_a - R)) L_a at the tilted loss R.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from privacy.release import Release
from strategies.base import Instruction, Reported, Silo, State, Update
from strategies.groups import Groups, GroupStrategy
from strategies.layout import Layout
from strategies.registry import strategy
from strategies.schema import key


@strategy("term")
@dataclass(frozen=True)
class TERM(GroupStrategy):
    """A tilt of 0 is the mean over rows; the larger it is, the more the worst group decides."""

    tilt: float = key(1.0, at_least=0.0, help="t: 0 is the mean loss, infinity would be the worst group's")
    groups: Groups = key(Groups(), help="the groups, and how their losses are asked for")

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """No group has lost anything yet, so none is tilted to."""
        return self.groups.start() | {"model": model}

    def instruct(self, state: State, round_: int, tier: int = 0) -> Instruction:
        """The model, and what a row of each group weighs, from the losses of the round before."""
        pull = (
            self.groups.pull(state, self._mixture(state))
            if self.groups.knows(state)
            else torch.zeros_like(state["counts"])
        )
        return Instruction(round_, {"model": state["model"], "pull": pull}, tier)

    def _mixture(self, state: State) -> Tensor:
        """(n_a / n) exp(t (L_a - R)), which adds up to 1."""
        shares = state["counts"] / state["counts"].sum()
        return torch.softmax(shares.log() + self.tilt * state["losses"], 0)

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Sums losses at the model as it came, and trains on tilted rows."""
        start, sums = instruction["model"], self.groups.sums(silo, instruction)
        after = silo.fit(start, reweight=self.groups.weights(silo, instruction, base=0.0))
        return self.groups.update(silo, after - start, sums)

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """The mean change; the losses tilt the next round."""
        after = {name: value.clone() for name, value in state.items()} | self.groups.seen(state, release)
        return after | {"model": state["model"] + release.mean("delta")}

    def report(self, state: State) -> Mapping[str, Reported]:
        """What groups lose, and the tilted loss R."""
        found: dict[str, Reported] = {"group_losses": state["losses"].tolist()}
        if not self.groups.knows(state) or not self.tilt > 0:
            return found
        shares = state["counts"] / state["counts"].sum()
        tilted = float(torch.logsumexp(shares.log() + self.tilt * state["losses"], 0)) / self.tilt
        return found | ({"tilted_loss": tilted} if math.isfinite(tilted) else {})
