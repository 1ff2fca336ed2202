"""Single updates, for a strategy that must see them. What is shown here has no silo-level price but infinity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Revealed:
    """Updates as they entered the sums: checked and clipped, not weighed, without noise.

    Attributes:
        silos: whose they are.
        weights: how much each counts, `(updates,)` float64.
        channels: channel to one row an update, `(updates, N)` float32.
    """

    silos: tuple[int, ...]
    weights: Tensor
    channels: Mapping[str, Tensor]

    @classmethod
    def nobody(cls, sizes: Mapping[str, int]) -> Revealed:
        """No updates."""
        none = {name: torch.zeros(0, size) for name, size in sizes.items()}
        return cls((), torch.zeros(0, dtype=torch.float64), none)

    @classmethod
    def join(cls, parts: Sequence[Revealed]) -> Revealed:
        """Some updates after the others; `parts` holds one at least."""
        return cls(
            tuple(silo for part in parts for silo in part.silos),
            torch.cat([part.weights for part in parts]),
            {name: torch.cat([part.channels[name] for part in parts]) for name in parts[0].channels},
        )
