"""Standardisation of features: with public constants, each silo's own rows, released moments, or not at all.

Statistics over all silos' rows are a release like any other: `private` clips, noises and prices them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from strategies.named import enter
from strategies.schema import key

if TYPE_CHECKING:  # torch is imported where it is used: the experiment schema must load at once.
    from torch import Tensor


class Standardize:
    """A way to centre and scale features."""

    name: ClassVar[str]
    note: ClassVar[str | None]

    def apply(self, features: Tensor, *, reference: Tensor) -> Tensor:
        """Centred and scaled features; `features` itself is not changed.

        Args:
            features: `(rows, features)` or `(rows, channels, height, width)`, float32.
            reference: training rows of the same silo, whose statistics may be used.

        Raises:
            ValueError: the constants do not fit the features.
        """
        raise NotImplementedError


Kind = TypeVar("Kind", bound=type[Standardize])
STANDARDIZE: dict[str, type[Standardize]] = {}


def standardization(name: str) -> Callable[[Kind], Kind]:
    """Registers a frozen dataclass as the way to standardise that a config calls `name`.

    Raises:
        ValueError: the name is taken by another class.
    """

    def register(cls: Kind) -> Kind:
        enter(STANDARDIZE, cls, what="way to standardise", name=name)
        return cls

    return register


@standardization("none")
@dataclass(frozen=True)
class Unchanged(Standardize):
    """Features as they come."""

    note: ClassVar[str | None] = None

    def apply(self, features: Tensor, *, reference: Tensor) -> Tensor:
        """The features themselves."""
        return features


@standardization("constants")
@dataclass(frozen=True)
class Constants(Standardize):
    """(features - mean) / std with public constants, one for all features or one per feature (images: per channel)."""

    note: ClassVar[str | None] = "features standardised with the constants of the experiment, taken to be public"
    mean: tuple[float, ...] = key(help="public mean, one number or one per feature (images: per channel)")
    std: tuple[float, ...] = key(help="public standard deviation, likewise", above=0)

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not values or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} must be one or more finite numbers, got {values!r}")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be > 0, got {self.std!r}")

    def apply(self, features: Tensor, *, reference: Tensor) -> Tensor:
        """The same map for every silo and for the public test."""
        return (features - spread("mean", self.mean, features)) / spread("std", self.std, features)


@standardization("own")
@dataclass(frozen=True)
class OwnSilo(Standardize):
    """(features - mean) / std with the statistics of the silo's own training rows."""

    note: ClassVar[str | None] = (
        "features standardised with each silo's own training rows (public test rows with their own): "
        "covered by silo-level privacy, not by example-level privacy"
    )

    def apply(self, features: Tensor, *, reference: Tensor) -> Tensor:
        """A feature that is constant in the reference is centred only."""
        dims = [0, *range(2, features.dim())]
        rows = reference.double()
        mean, std = rows.mean(dims, keepdim=True), rows.std(dims, correction=0, keepdim=True)
        varies = std > 1e-7 * rows.abs().amax(dims, keepdim=True)  # Less is the rounding of a float32 constant.
        return ((features - mean) / std.where(varies, 1.0)).to(features.dtype)


@standardization("private")
@dataclass(frozen=True)
class Private(Standardize):
    """(features - mean) / std with moments that all silos release once, before round 1, with noise and at a price."""

    note: ClassVar[str | None] = (
        "features clipped to public bounds and standardised with privately released moments, charged as round 0"
    )
    low: tuple[float, ...] = key(help="public lower bound, one number or one per feature (images: per channel)")
    high: tuple[float, ...] = key(help="public upper bound, likewise")
    noise_multiplier: float = key(above=0, help="noise std / sensitivity of the released moments")

    def __post_init__(self) -> None:
        for name, values in (("low", self.low), ("high", self.high)):
            if not values or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} must be one or more finite numbers, got {values!r}")
        if len(self.low) != len(self.high) or not all(low < high for low, high in zip(self.low, self.high)):
            raise ValueError(f"low must be below high, one for one, got {self.low!r} and {self.high!r}")

    def apply(self, features: Tensor, *, reference: Tensor) -> Tensor:
        """Features within the bounds; the released moments scale them once the run has paid for them."""
        return features.clamp(spread("low", self.low, features), spread("high", self.high, features))


def spread(name: str, values: tuple[float, ...], features: Tensor) -> Tensor:
    """Constants shaped to broadcast over dimension 1 of the features."""
    if len(values) not in (1, features.shape[1]):
        raise ValueError(
            f"standardize.{name}: {len(values)} numbers for {features.shape[1]} features; give 1 or as many"
        )
    return features.new_tensor(values).view(1, -1, *[1] * (features.dim() - 2))
