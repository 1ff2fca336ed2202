"""Ditto: a federated model, and beside it a model of each silo's own that is pulled towards the federated one.

Source: Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, arXiv
2012.04221. Both are trained on the silo's rows, so under example-level privacy a round costs twice the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from privacy.release import Release
from strategies.base import Instruction, Silo, State, Strategy, Update
from strategies.registry import strategy
from strategies.schema import key


@strategy("ditto")
@dataclass(frozen=True)
class Ditto(Strategy):
    """The server half is FedAvg's; the personal model never leaves the silo."""

    lam: float = key(0.1, at_least=0.0, help="pull of a silo's own model towards the federated one")

    fits: ClassVar[int] = 2

    def personal(self, size: int) -> Mapping[str, int]:
        """The silo's model."""
        return {"model": size}

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Trains the federated model, and then the silo's own towards the federated one as it came."""
        shared = instruction["model"]
        delta = silo.fit(shared) - shared
        own = silo.state.get("model", shared)
        silo.state["model"] = silo.fit(own, correct=lambda weights, g: g + self.lam * (weights - shared))
        return Update({"delta": delta})

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """The mean delta is the step."""
        return {"model": state["model"] + release.mean("delta")}

    def evaluate(self, silo: Silo, instruction: Instruction) -> Mapping[str, Tensor]:
        """A silo is served its own model."""
        return silo.evaluate(silo.state.get("model", instruction["model"]))
