"""FLASC: federated LoRA with sparse communication.

Source: Kuo, Raje, Rajesh, Smith, "Federated LoRA with Sparse Communication", arXiv 2406.05233 (2024), algorithm 1. Both
ways of the wire carry the largest numbers only, chosen anew in every round: the server's model is never pruned, and
silos train all of it, so what did not travel today may travel tomorrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from privacy.release import Release
from strategies.base import Instruction, Silo, State, Strategy, Update
from strategies.layout import Layout
from strategies.optimizers import OPTIMIZERS, SGD, Optimizer, step
from strategies.registry import strategy
from strategies.schema import key
from strategies.sparse import largest, portion


@dataclass(frozen=True, kw_only=True)
class Tier:
    """How much the links of some silos carry."""

    down: float = key(above=0, at_most=1, help="fraction of the model that these silos are sent")
    up: float = key(above=0, at_most=1, help="fraction of the update that these silos send")


@strategy("flasc")
@dataclass(frozen=True)
class FLASC(Strategy):
    """Silos train all of the model from its largest numbers, and send the largest numbers of what changed."""

    density_down: float = key(0.25, above=0, at_most=1, help="fraction of the model that travels down; 1: all")
    density_up: float = key(0.25, above=0, at_most=1, help="fraction of an update that travels up; 1: all")
    decay_down: float = key(1.0, above=0, at_most=1, help="the density down is multiplied by this")
    decay_up: float = key(1.0, above=0, at_most=1, help="the density up is multiplied by this")
    every: int = key(1, at_least=1, help="rounds from one multiplication to the next")
    tiers: tuple[Tier, ...] = key((), help="links of several kinds, in place of the two densities: down and up of each")
    tier_of: tuple[int, ...] = key((), at_least=0, help="the tier of every silo, from 0; left out, they take turns")
    server: Optimizer = key(SGD(), variants=lambda: OPTIMIZERS, help="optimizer of the server's step")

    def problems(self, *, private: bool) -> list[str]:
        """Tiers that are not there, or that nobody is in."""
        if self.tier_of and max(self.tier_of) >= max(1, len(self.tiers)):
            found = f"found tier {max(self.tier_of)}, but there are {len(self.tiers)}, numbered from 0"
            return [f"strategy.tier_of: {found}; list them in tiers"]
        return []

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """The initial model, whole."""
        return {"model": model, "round": torch.zeros((), dtype=torch.int64)}

    def tier(self, silo: int) -> int:
        """As listed, else silos take turns; a silo beyond the list is in the first tier."""
        if self.tier_of:
            return self.tier_of[silo] if silo < len(self.tier_of) else 0
        return silo % len(self.tiers) if self.tiers else 0

    def kept(self, layout: Layout, round_: int, tier: int) -> Mapping[str, int]:
        """The numbers of an update that travel."""
        return {"delta": self._count(layout.size, round_, tier, up=True)}

    def instruct(self, state: State, round_: int, tier: int = 0) -> Instruction:
        """The largest numbers of the model; the server's own copy keeps the others."""
        count = self._count(state["model"].numel(), round_, tier, up=False)
        return Instruction(round_, {"model": largest(state["model"], count)}, tier, {"model": count})

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Trains every number from the sparse model; the delta is taken from there, not from what the server holds."""
        start = instruction["model"]
        delta = silo.fit(start) - start
        count = self._count(start.numel(), instruction.round, instruction.tier, up=True)
        return Update({"delta": largest(delta, count)})

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """One step of the server optimizer along the mean delta; with momentum it moves also what nobody sent."""
        return {**step(self.server, state, release.mean("delta")), "round": state["round"] + 1}

    def predictor(self, state: State) -> Tensor:
        """The model as the silos with the best links will get it.

        Only what travels is trained together: the server's optimizer moves the other numbers, too, but nobody has seen
        what the model does with them.
        """
        best = max(range(len(self.tiers) or 1), key=lambda tier: self.tiers[tier].down if self.tiers else 1.0)
        return self.instruct(state, int(state["round"]) + 1, best)["model"]

    def audited(self, state: State) -> Tensor:
        """All that the server holds: what did not travel today may travel tomorrow."""
        return state["model"]

    def variants(self, state: State, round_: int) -> Mapping[str, Tensor]:
        """All that the server holds, where that is more than what it serves."""
        served = self.predictor(state)
        return {} if torch.equal(served, state["model"]) else {"dense": state["model"]}

    def _count(self, size: int, round_: int, tier: int, *, up: bool) -> int:
        """How many of `size` numbers travel: floor(size * density), and one at least."""
        own = self.tiers[tier] if self.tiers else Tier(down=self.density_down, up=self.density_up)
        density, decay = (own.up, self.decay_up) if up else (own.down, self.decay_down)
        return portion(size, density * decay ** ((round_ - 1) // self.every))
