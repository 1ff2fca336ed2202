"""What a silo says of its rows of some labels: what a model makes of them, and how many are right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Look:
    """Each row counts for its own label, and adds zeros to the others.

    Attributes:
        labels: the labels.
        width: numbers a row shows.
    """

    labels: tuple[int, ...]
    width: int

    def shown(self, inside: Tensor, outputs: Tensor, classes: Tensor) -> Tensor:
        """The first model's representation and outputs, `(rows, labels * width)`; see `Silo.represent`."""
        return self._each(sketch(torch.cat([inside[:, 0], outputs[:, 0]], dim=-1), self.width), classes)

    def counted(self, inside: Tensor, outputs: Tensor, classes: Tensor) -> Tensor:
        """Right by the first model, by the last, and 1 for the row, `(rows, labels * 3)`."""
        said = outputs.argmax(-1)
        right = (said[:, [0, -1]] == classes.unsqueeze(-1)).float()
        return self._each(torch.cat([right, torch.ones(len(right), 1)], dim=-1), classes)

    def by_label(self, total: Tensor) -> Tensor:
        """Sums of such rows, `(..., labels * numbers)`, label by label, `(..., labels, numbers)`."""
        return total.view(*total.shape[:-1], len(self.labels), total.shape[-1] // len(self.labels))

    def _each(self, numbers: Tensor, classes: Tensor) -> Tensor:
        own = (classes.unsqueeze(-1) == torch.tensor(self.labels)).float()
        return (own.unsqueeze(-1) * numbers.unsqueeze(1)).flatten(1)


def sketch(seen: Tensor, width: int) -> Tensor:
    """Vectors `(rows, size)` as `width` numbers: with zeros behind them, or projected at random where they are longer.

    A random projection keeps distances up to about 1 / sqrt(width) (Johnson and Lindenstrauss 1984); it is public.
    """
    size = seen.shape[-1]
    if size <= width:
        return functional.pad(seen, (0, width - size))
    return seen @ torch.randn(size, width, generator=torch.Generator().manual_seed(0)) / math.sqrt(width)
