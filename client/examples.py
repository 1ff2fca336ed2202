"""Examples held by silos, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Rows of one data holder, or of a public set.

    Attributes:
        features: `(rows, ...)`, float32, or int64 for tokens.
        targets: `(rows,)` int64 classes, `(rows,)` float32 for regression, `(rows, length)` int64 for sequences.
        groups: `(rows,)` int64 group of each row, or None.
    """

    features: Tensor
    targets: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.features) != len(self.targets):
            raise ValueError(f"features has {len(self.features)} rows, targets {len(self.targets)}")
        if self.groups is not None and len(self.groups) != len(self.targets):
            raise ValueError(f"groups has {len(self.groups)} rows, targets {len(self.targets)}")

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, index: Tensor | slice) -> Examples:
        """The rows at `index`, in that order."""
        groups = None if self.groups is None else self.groups[index]
        return Examples(self.features[index], self.targets[index], groups)


@dataclass(frozen=True)
class Shards:
    """The rows of many silos, silo after silo: silo k holds rows `offsets[k]` up to `offsets[k + 1]`.

    Attributes:
        rows: all silos' rows, concatenated.
        offsets: `(silos + 1,)` int64, from 0 to `len(rows)`, never falling.
    """

    rows: Examples
    offsets: Tensor

    def __post_init__(self) -> None:
        ends = (int(self.offsets[0]), int(self.offsets[-1])) if self.offsets.dim() == 1 and len(self.offsets) else None
        if ends != (0, len(self.rows)) or not bool((self.offsets.diff() >= 0).all()):
            raise ValueError(f"offsets must rise from 0 to {len(self.rows)}, the number of rows, and never fall")

    @classmethod
    def gather(cls, rows: Examples, parts: Sequence[Tensor]) -> Shards:
        """Collects each silo's rows, given as one index tensor per silo."""
        sizes = torch.tensor([0, *map(len, parts)], dtype=torch.int64)
        index = torch.cat([part.to(torch.int64) for part in parts]) if parts else torch.empty(0, dtype=torch.int64)
        return cls(rows.select(index), sizes.cumsum(0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Tensor:
        """Rows per silo, `(silos,)` int64."""
        return self.offsets.diff()

    def silo(self, index: int) -> Examples:
        """The rows of one silo; views, not copies."""
        return self.rows.select(slice(int(self.offsets[index]), int(self.offsets[index + 1])))
