"""q-FedAvg: silos that lose more weigh more.

Source: Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv 1905.10497,
algorithm 2. It is fair between silos, and knows no groups of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from privacy.queries import NoisyQuery
from privacy.release import Release
from strategies.base import Instruction, Silo, State, Strategy, Update
from strategies.registry import strategy
from strategies.schema import key

LOSS, SCALE = "loss", "scale"
TINY = 1e-10  # As in the authors' code: a loss of 0 has a power, too.


@strategy("q_fedavg")
@dataclass(frozen=True)
class QFedAvg(Strategy):
    """Steps along the sum of F_k^q L (w_k - w), divided by the sum of q F_k^(q-1) |L (w_k - w)|^2 + L F_k^q.

    F_k is the silo's loss at the model as it came, and L is 1 / train.learning_rate. A q of 0 is FedAvg.
    """

    q: float = key(1.0, at_least=0.0, help="how much more silos weigh that lose more; 0: all alike")

    local_loss: ClassVar[NoisyQuery] = NoisyQuery(1, 1.0, 1.0)

    def problems(self, *, private: bool) -> list[str]:
        """Its step is a ratio of two sums."""
        if private:
            return [
                "strategy: q_fedavg divides by a sum that noise can bring to 0; under privacy use term, or "
                "bounded_group_loss"
            ]
        return []

    @property
    def queries(self) -> Mapping[str, NoisyQuery]:
        """The silo's loss."""
        return {LOSS: self.local_loss}

    def channels(self, size: int) -> Mapping[str, int]:
        """The weighed change, and what its sum is divided by."""
        return {"delta": size, SCALE: 1}

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Trains, and weighs the change by the loss before."""
        start = instruction["model"]
        total = silo.query(LOSS, start.unsqueeze(0), rows=lambda losses, _: losses)
        loss = total / silo.examples.clamp(min=1.0).unsqueeze(-1) + TINY
        steep = 1.0 / silo.train.learning_rate
        moved = steep * (silo.fit(start) - start)
        weight = loss**self.q
        square = moved.square().sum(-1, keepdim=True)
        return Update({"delta": weight * moved, SCALE: self.q * weight / loss * square + steep * weight})

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """The ratio is the step; a round that nobody joined makes none."""
        scale: Tensor = release.sum(SCALE)
        step = release.sum("delta") / scale if bool(scale > 0) else torch.zeros_like(state["model"])
        return {"model": state["model"] + step}
