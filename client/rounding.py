"""What crossing the link does to numbers, and what a silo remembers of it.

Source of the feedback: Seide et al. 2014, "1-Bit Stochastic Gradient Descent"; Karimireddy et al. 2019, "Error Feedback
Fixes SignSGD", arXiv 1901.09847. What a silo sends, summed over rounds, stays within one rounding of what it would have
sent unrounded; without feedback each round's error adds up.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from strategies.base import Instruction
from strategies.wire import Values, rounded

RESIDUAL = "wire.residual."  # No strategy's: its personal vectors are named like variables.


@dataclass(frozen=True)
class Rounding:
    """Rounds what silos receive and send, as encoding and decoding it would.

    Both happen where a silo's half of a round begins and ends, so that silos train from what they received and the
    server clips and sums what it received, whatever the link.

    Attributes:
        values: the type that numbers travel as.
        feedback: a silo adds what rounding took from its update to the next one; kept with its personal vectors, and
            forgotten when its update is refused.
    """

    values: Values = "float32"
    feedback: bool = False

    def personal(self, channels: Mapping[str, int]) -> dict[str, int]:
        """The residuals that a silo keeps, with their lengths, for channels of given lengths."""
        return {RESIDUAL + name: size for name, size in channels.items()} if self.feedback else {}

    def received(self, instruction: Instruction) -> Instruction:
        """An instruction as silos read it; vectors of whole numbers are not rounded."""
        if self.values == "float32":
            return instruction
        vectors = {
            name: rounded(vector, self.values) if vector.is_floating_point() else vector
            for name, vector in instruction.items()
        }
        return replace(instruction, vectors=vectors)

    def sent(
        self, channels: Mapping[str, Tensor], state: MutableMapping[str, Tensor], sizes: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """An update as the server reads it, before it is clipped.

        A number that is zero is not sent, and its residual waits until it is: added to it, the residual would make more
        numbers travel than the strategy chose.

        Args:
            channels: of the strategy's update, `(N,)` or `(silos, N)` each.
            state: personal vectors of the same silos, which residuals are staged in.
            sizes: channel to N. Whatever has another shape is passed on as it is, to be refused with its reason.
        """
        sent = {name: _rounded(vector, self.values) for name, vector in channels.items()}
        if self.feedback and channels.keys() == sizes.keys():
            for name, size in sizes.items():
                residual = state.get(RESIDUAL + name, torch.zeros(size))
                if _fits(channels[name], residual):
                    sent[name], state[RESIDUAL + name] = self._corrected(channels[name], residual)
        return sent

    def _corrected(self, vector: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """What is sent, and what is left of it and of numbers that are not sent."""
        vector, before = vector.detach(), residual.reshape(vector.shape)
        total = torch.where(vector != 0, vector + before, 0.0)
        sent = rounded(total, self.values)
        return sent, torch.where(vector != 0, total - sent, before).float().reshape(residual.shape)


def _rounded(vector: Tensor, values: Values) -> Tensor:
    return rounded(vector, values) if isinstance(vector, Tensor) and vector.is_floating_point() else vector


def _fits(vector: object, residual: Tensor) -> bool:
    """Whether a channel has a number for each of the residual's; a single silo's may have a dimension more or less."""
    if not (isinstance(vector, Tensor) and vector.is_floating_point() and vector.dim() in (1, 2)):
        return False
    return vector.shape[-1] == residual.shape[-1] and vector.numel() == residual.numel()
