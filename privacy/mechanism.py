"""Mechanisms: how a channel's sum over silos is bounded, noised and priced.

The noise and its price come from the same two fields, so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privacy import checks
from privacy.events import Composed, Event, Gaussian, NonPrivate
from privacy.noise import LIMIT, NoiseSource, grid, noised


@dataclass(frozen=True)
class GaussianSum:
    """A sum of vectors of norm at most `clip_norm`, plus Gaussian noise of std `noise_multiplier * clip_norm`.

    Attributes:
        clip_norm: largest L2 norm one silo may contribute.
        noise_multiplier: std of the noise on the SUM, in units of `clip_norm`.
    """

    clip_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        checks.positive(clip_norm=self.clip_norm, noise_multiplier=self.noise_multiplier)
        checks.finite(clip_norm=self.clip_norm, noise_multiplier=self.noise_multiplier)
        checks.positive(**{"noise_multiplier * clip_norm": self.std})  # Underflow to 0: a price without noise.
        checks.finite(**{"noise_multiplier * clip_norm": self.std})
        checks.positive(**{"the grid of noise_multiplier * clip_norm": grid(self.std)})
        checks.finite(**{"the range of noise_multiplier * clip_norm": grid(self.std) * LIMIT})

    private = True

    @property
    def std(self) -> float:
        """Standard deviation of the noise on the sum."""
        return self.noise_multiplier * self.clip_norm

    @property
    def event(self) -> Event:
        """What one release of the sum costs a silo that is in it."""
        return Gaussian(self.noise_multiplier)

    def factors(self, norms: Tensor) -> Tensor:
        """What each vector is multiplied with so that no norm exceeds `clip_norm`; shape of `norms`.

        A norm of 0 keeps factor 1: an all-zero update is fine.
        """
        return torch.where(norms > self.clip_norm, self.clip_norm / norms, 1.0)

    def privatize(self, total: Tensor, source: NoiseSource, *, stream: Sequence[int | str]) -> Tensor:
        """The sum with its noise on EVERY coordinate, on a grid, `(N,)` float64; also when nobody contributed.

        `stream` names this release and no other (purpose, round, channel): the same noise on two sums hides neither.
        """
        return noised(total, self.std, source.normals(total.numel(), *stream))


@dataclass(frozen=True)
class ExactSum:
    """A plain sum: no bound, no noise, and a price of infinity."""

    private = False

    @property
    def event(self) -> Event:
        """Nothing protects an exact sum."""
        return NonPrivate("the sum is released without noise")

    def factors(self, norms: Tensor) -> Tensor:
        """Ones: nothing is clipped."""
        return torch.ones_like(norms)

    def privatize(self, total: Tensor, source: NoiseSource, *, stream: Sequence[int | str]) -> Tensor:
        """The sum as it is."""
        return total


Mechanism = GaussianSum | ExactSum


def joint_event(mechanisms: Mapping[str, Mechanism]) -> Event:
    """What all channels of one round cost together, before sampling: they are computed on one and the same cohort."""
    events = tuple(event for _, mechanism in sorted(mechanisms.items()) for event in _parts(mechanism.event))
    return events[0] if len(events) == 1 else Composed(events)


def _parts(event: Event) -> tuple[Event, ...]:
    """What a channel releases, one by one: a flat list is what any reader of a ledger understands."""
    return event.events if isinstance(event, Composed) else (event,)
