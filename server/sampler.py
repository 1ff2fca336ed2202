"""Who is asked in a round, and what being asked by chance is worth to the accountant.

The draw and the event come from one object, so a run cannot draw one way and account another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from privacy import checks, streams
from privacy.events import Event, FixedSize, Poisson, Sampled


@dataclass(frozen=True)
class PoissonCohort:
    """Every silo flips its own coin of probability `rate`, every round."""

    rate: float
    population: int

    def __post_init__(self) -> None:
        checks.probability(rate=self.rate)

    @property
    def expected(self) -> float:
        """The constant expected cohort: what a private mean divides by."""
        return self.rate * self.population

    def draw(self, seed: int, round_: int) -> list[int]:
        """The cohort of a round, in rising order; may be empty."""
        coins = streams.keys(streams.derive(seed, "cohort", round_), np.arange(self.population))
        return np.flatnonzero(streams.uniforms(coins, 1)[:, 0] < self.rate).tolist()

    def event(self, inner: Event) -> Event:
        """The price of a round for a silo, asked or not."""
        return inner if self.rate == 1 else Sampled(Poisson(self.rate), inner)


@dataclass(frozen=True)
class FixedCohort:
    """`size` of the silos, without replacement, every round afresh."""

    size: int
    population: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.population:
            raise ValueError(f"cohort.size: {self.size} of {self.population} silos; give 1 to {self.population}")

    @property
    def expected(self) -> float:
        """The size itself."""
        return float(self.size)

    def draw(self, seed: int, round_: int) -> list[int]:
        """The cohort of a round, in rising order."""
        draws = streams.keys(streams.derive(seed, "cohort", round_), np.arange(self.population))
        cohort: list[int] = np.sort(np.argsort(draws, kind="stable")[: self.size]).tolist()
        return cohort

    def event(self, inner: Event) -> Event:
        """The price of a round; only replace-one has one."""
        return Sampled(FixedSize(self.size, self.population), inner)


@dataclass(frozen=True)
class FullCohort:
    """Every silo, every round: no amplification."""

    population: int

    @property
    def expected(self) -> float:
        """All of them."""
        return float(self.population)

    def draw(self, seed: int, round_: int) -> list[int]:
        """All silos."""
        return list(range(self.population))

    def event(self, inner: Event) -> Event:
        """The price of the release itself."""
        return inner


Sampler = PoissonCohort | FixedCohort | FullCohort
