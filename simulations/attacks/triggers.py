"""What a poisoned row looks like, and which rows are attacked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.attacks import Attack, DistributedPatch, EdgeCase, LabelFlip, PeriodicSignal, PixelPatch, Poison


@dataclass(frozen=True)
class Tail:
    """The unusual rows of a class.

    Attributes:
        mean: of the class's rows, `(numbers,)`.
        radius: distance from it beyond which a row is unusual.
    """

    mean: Tensor
    radius: float

    @classmethod
    def of(cls, features: Tensor, fraction: float) -> Tail:
        """The `fraction` of rows `(rows, ...)` that lies farthest from their mean."""
        flat = features.flatten(1).double()
        mean = flat.mean(0)
        return cls(mean, float((flat - mean).norm(dim=1).quantile(1.0 - fraction)))

    def holds(self, features: Tensor) -> Tensor:
        """Which rows are unusual, `(rows,)` bool."""
        far: Tensor = (features.flatten(1).double() - self.mean).norm(dim=1) >= self.radius
        return far


def attacked(attack: Poison, features: Tensor, targets: Tensor, tail: Tail | None) -> Tensor:
    """Which rows an attack would have taken for its target, `(rows,)` bool."""
    chosen = targets != attack.target
    if attack.source is not None:
        chosen &= targets == attack.source
    return chosen if tail is None else chosen & tail.holds(features)


def triggered(attack: Poison, features: Tensor, *, piece: int | None = None) -> Tensor:
    """Rows `(rows, ...)` with the trigger, as copies; `piece` of a trigger that is cut up, or None for all of it."""
    match attack:
        case DistributedPatch():
            lines = range(attack.size)
            if piece is not None:
                cut = torch.tensor_split(torch.arange(attack.size), attack.parts)
                lines = range(int(cut[piece][0]), int(cut[piece][-1]) + 1)
            return _patched(attack, features, lines)
        case PixelPatch():
            return _patched(attack, features, range(attack.size))
        case PeriodicSignal():
            width = features.shape[-1]
            phase = 2.0 * math.pi * attack.frequency / width * torch.arange(1, width + 1, dtype=torch.float64)
            return features + (attack.amplitude * phase.sin()).to(features.dtype)
        case LabelFlip() | EdgeCase():
            return features.clone()
        case _:
            raise TypeError(f"no trigger is known for {attack!r}")


def needs_images(attack: Attack) -> bool:
    """Whether a trigger is drawn on images `(channels, height, width)`."""
    return isinstance(attack, PixelPatch | PeriodicSignal)


def _patched(attack: PixelPatch, features: Tensor, lines: range) -> Tensor:
    marked = features.clone()
    rows = slice(attack.row + lines.start, attack.row + lines.stop)
    marked[..., rows, attack.column : attack.column + attack.size] = attack.value
    return marked
