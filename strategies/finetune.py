"""Federated averaging, and after that each silo goes on alone from what all have learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from privacy.release import Release
from strategies.base import Instruction, Silo, State, Strategy, Update
from strategies.layout import Layout
from strategies.registry import strategy
from strategies.schema import key

if TYPE_CHECKING:
    from strategies.experiment import Experiment


@strategy("finetune")
@dataclass(frozen=True)
class FineTune(Strategy):
    """The first rounds are FedAvg's; in the others a silo trains a model of its own, and sends zeros.

    Under example-level privacy both share the silo's epsilon: a step is a step.
    """

    shared: int = key(10, at_least=1, help="rounds of federated averaging; those after them are each silo's own")

    def misfits(self, experiment: Experiment, silos: int) -> list[str]:
        """There must be rounds of both kinds."""
        if not self.shared < experiment.rounds:
            return [
                f"strategy.shared: must be < rounds = {experiment.rounds}, got {self.shared}; "
                "lower it, or use strategy: fedavg"
            ]
        return []

    def personal(self, size: int) -> Mapping[str, int]:
        """The silo's model."""
        return {"model": size}

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """Counts rounds, beside the model."""
        return {"model": model, "round": torch.zeros(1, dtype=torch.int64)}

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """A round of FedAvg, or one of the silo's own, of which nothing leaves."""
        start = instruction["model"]
        if instruction.round <= self.shared:
            return Update({"delta": silo.fit(start) - start})
        after = silo.fit(silo.state.get("model", start))
        silo.state["model"] = after
        return Update({"delta": torch.zeros_like(after)})

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """Takes the mean delta, as long as silos send one; noise on zeros is nothing to learn from."""
        shared = int(state["round"]) < self.shared
        model = state["model"] + release.mean("delta") if shared else state["model"].clone()
        return {"model": model, "round": state["round"] + 1}

    def evaluate(self, silo: Silo, instruction: Instruction) -> Mapping[str, Tensor]:
        """A silo is served its own model once it has one."""
        return silo.evaluate(silo.state.get("model", instruction["model"]))
