"""Federated averaging, with FedProx's pull and adaptive server optimizers.

Sources: McMahan et al. 2017 (FedAvg, arXiv 1602.05629); Li et al. 2020 (FedProx, arXiv 1812.06127); Reddi et al. 2021
(server optimizers, arXiv 2003.00295); McMahan et al. 2018 (silo-level DP, arXiv 1710.06963).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from privacy.release import Release
from strategies.base import MOST_ROWS, Instruction, Silo, State, Strategy, Update
from strategies.optimizers import OPTIMIZERS, SGD, Optimizer, step
from strategies.registry import strategy
from strategies.schema import key


@strategy("fedavg")
@dataclass(frozen=True)
class FedAvg(Strategy):
    """Silos train from the server's model; the mean of their deltas is the server optimizer's step."""

    proximal: float = key(0.0, at_least=0.0, help="FedProx's mu: pull towards the server's model while training")
    weighting: Literal["uniform", "examples"] = key(
        "uniform", help="a silo counts once, or by its training rows (never under privacy)"
    )
    server: Optimizer = key(SGD(), variants=lambda: OPTIMIZERS, help="optimizer of the server's step")

    @property
    def heaviest(self) -> float:
        """Who weighs by rows takes a silo's word for them, up to a billion."""
        return 1.0 if self.weighting == "uniform" else MOST_ROWS

    def problems(self, *, private: bool) -> list[str]:
        """Row counts are private, and weights by them would let one silo move the sum by more than the clip norm."""
        if private and self.weighting == "examples":
            return ["strategy.weighting: 'examples' counts private rows; under privacy use 'uniform'"]
        return []

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Trains from the server's model and sends what changed."""
        start = instruction["model"]
        pull = None if self.proximal == 0 else lambda w, g: g + self.proximal * (w - start)
        after = silo.fit(start, correct=pull)
        return Update({"delta": after - start}, weight=1.0 if self.weighting == "uniform" else silo.examples)

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """One step of the server optimizer along the mean delta."""
        return step(self.server, state, release.mean("delta"))
