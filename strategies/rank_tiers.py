"""Rank tiers: silos with weak links train LoRA of a lower rank. The baseline for FLASC's tiers.

As Kuo et al. 2024 (arXiv 2406.05233, section 4.4) describe it after HetLoRA (Cho et al. 2024, arXiv 2401.06432),
without HetLoRA's own pruning: rows r.. of A and columns r.. of B are zero for a tier of rank r, its updates are padded
by zeros, and the mean is over the cohort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from privacy.release import Release
from strategies.base import Instruction, Silo, State, Strategy, Update
from strategies.layout import Layout
from strategies.optimizers import OPTIMIZERS, SGD, Optimizer, step
from strategies.registry import strategy
from strategies.schema import key
from strategies.suits import told_by_length

RANK_AXIS = {"lora_A": 0, "lora_B": 1}
"""Which axis of a parameter is the rank: A is (rank, in, ...), B is (out, rank, ...)."""

if TYPE_CHECKING:
    from strategies.experiment import Experiment


@strategy("rank_tiers")
@dataclass(frozen=True)
class RankTiers(Strategy):
    """Every tier trains the first ranks of each adapter, and the whole head."""

    ranks: tuple[int, ...] = key((1, 4, 16), at_least=1, help="the rank of every tier")
    tier_of: tuple[int, ...] = key((), at_least=0, help="the tier of every silo, from 0; left out, they take turns")
    server: Optimizer = key(SGD(), variants=lambda: OPTIMIZERS, help="optimizer of the server's step")

    def problems(self, *, private: bool) -> list[str]:
        """No tiers, or silos in a tier that is not there."""
        if not self.ranks:
            return ["strategy.ranks: is empty; give the rank of each tier"]
        if self.tier_of and max(self.tier_of) >= len(self.ranks):
            found = f"found tier {max(self.tier_of)}, but there are {len(self.ranks)}, numbered from 0"
            return [f"strategy.tier_of: {found}; list them in ranks"]
        return []

    def misfits(self, experiment: Experiment, silos: int) -> list[str]:
        """Cohorts that lengths of messages would give away."""
        return told_by_length(experiment, len(self.ranks))

    def tier(self, silo: int) -> int:
        """As listed, else silos take turns; a silo beyond the list is in the first tier."""
        if self.tier_of:
            return self.tier_of[silo] if silo < len(self.tier_of) else 0
        return silo % len(self.ranks)

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """The initial model, and for every tier where it is not zero."""
        if not any(axis in name for name in layout.names for axis in RANK_AXIS):
            raise ValueError("strategy.name: rank_tiers needs LoRA adapters, and the model has none; use task: lora")
        return {"model": model} | {f"mask{tier}": first_ranks(layout, rank) for tier, rank in enumerate(self.ranks)}

    def kept(self, layout: Layout, round_: int, tier: int) -> Mapping[str, int]:
        """What is in the tier's ranks."""
        return {"delta": int(first_ranks(layout, self.ranks[tier]).sum())}

    def instruct(self, state: State, round_: int, tier: int = 0) -> Instruction:
        """The first ranks of the model."""
        mask = state[f"mask{tier}"]
        return Instruction(
            round_, {"model": torch.where(mask != 0, state["model"], 0.0)}, tier, {"model": int(mask.sum())}
        )

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Trains the first ranks; noise of examples must not fill the others."""
        start, mask = instruction["model"], first_ranks(silo.layout, self.ranks[instruction.tier])
        after = silo.fit(start, correct=None if bool(mask.all()) else lambda w, g: g * mask)
        return Update({"delta": after - start})

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """One step of the server optimizer along the mean of the padded deltas."""
        return step(self.server, state, release.mean("delta"))


def first_ranks(layout: Layout, rank: int) -> Tensor:
    """1 where a number of the model is in the first ranks of an adapter, or in no adapter; `(N,)` float32."""
    mask = torch.ones(layout.size)
    for name, part in layout.unflatten(mask).items():
        for adapter, axis in RANK_AXIS.items():
            if adapter in name and part.shape[axis] > rank:
                part.narrow(axis, rank, part.shape[axis] - rank).zero_()
    return mask
