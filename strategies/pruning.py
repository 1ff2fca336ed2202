"""Pruning the server's model, as centralized methods do: what FLASC is compared with.

Here a number that is not in the mask is zero for everybody from then on, and no silo trains it. `fixed_mask` takes the
mask once, after a round of dense training (as SparseAdapter, He et al. 2022, arXiv 2210.04284, does before training);
`pruning` shrinks it step by step (as the lottery tickets of Frankle & Carbin 2019, arXiv 1803.03635, without going back
to the first values). Both are baselines of Kuo et al. 2024 (arXiv 2406.05233, section 4).
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


class Masked(Strategy):
    """A model with a mask that never grows, the same for silos and server; round 1 is dense.

    Where a number of the model is zero it is not in the mask: the message says which, so that no mask travels beside
    it. A mask of all numbers is none, since LoRA's B starts from zero.
    """

    server: Optimizer

    def count(self, size: int, round_: int) -> int:
        """How many of `size` numbers are trained in a round."""
        raise TypeError(f"strategy {self.name!r} defines no count(size, round_)")

    def kept(self, layout: Layout, round_: int, tier: int) -> Mapping[str, int]:
        """An update has the mask of the model."""
        return {"delta": self.count(layout.size, round_)}

    def instruct(self, state: State, round_: int, tier: int = 0) -> Instruction:
        """The model, already pruned to this round's mask."""
        model, count = state["model"], self.count(state["model"].numel(), round_)
        return Instruction(round_, {"model": largest(model, count)}, tier, {"model": count})

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Trains what is in the mask."""
        start = instruction["model"]
        if self.count(start.numel(), instruction.round) == start.numel():
            return Update({"delta": silo.fit(start) - start})
        mask = (start != 0).to(start.dtype)
        return Update({"delta": silo.fit(start, correct=lambda w, g: g * mask) - start})

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """One step of the server optimizer, then the next round's mask, a part of this one."""
        round_, size = int(state["round"]) + 1, state["model"].numel()
        now, after = (self.count(size, at) for at in (round_, round_ + 1))
        start = largest(state["model"], now)
        stepped = step(self.server, {**state, "model": start}, release.mean("delta"))
        model = stepped["model"]
        if now < size:  # Momentum would bring back what was pruned.
            model = torch.where(start != 0, model, 0.0)
        return {**stepped, "model": largest(model, after), "round": state["round"] + 1}

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """The initial model, whole."""
        return {"model": model, "round": torch.zeros((), dtype=torch.int64)}


@strategy("fixed_mask")
@dataclass(frozen=True)
class FixedMask(Masked):
    """One dense round, then the mask of its largest numbers for good."""

    density: float = key(0.25, above=0, at_most=1, help="fraction of the model that is trained after round 1")
    server: Optimizer = key(SGD(), variants=lambda: OPTIMIZERS, help="optimizer of the server's step")

    def count(self, size: int, round_: int) -> int:
        """All in round 1."""
        return size if round_ == 1 else portion(size, self.density)


@strategy("pruning")
@dataclass(frozen=True)
class Pruning(Masked):
    """The mask shrinks by a factor every so many rounds, down to a floor; what was pruned stays out."""

    decay: float = key(0.9, above=0, at_most=1, help="the density is multiplied by this")
    every: int = key(5, at_least=1, help="rounds from one multiplication to the next")
    density: float = key(0.05, above=0, at_most=1, help="the density is never below this")
    server: Optimizer = key(SGD(), variants=lambda: OPTIMIZERS, help="optimizer of the server's step")

    def count(self, size: int, round_: int) -> int:
        """All in round 1 and until the first multiplication."""
        return portion(size, max(self.density, self.decay ** ((round_ - 1) // self.every)))
