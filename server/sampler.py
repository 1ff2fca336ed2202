"""Who is asked in a round, and what being asked by chance is worth to the accountant.

The draw and the event come from one object, so a run cannot draw one way and account another. `draw` follows from the
seed, which is for simulations; amplification by sampling holds only against those who cannot know the cohort, so what
must be secret is drawn by `draw_secretly`, from the operating system.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from privacy import checks, streams
from privacy.capped import crowding
from privacy.events import Capped, Event, FixedSize, Poisson, Sampled, Turn


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
        return self._heads(coins)

    def draw_secretly(self) -> list[int]:
        """A cohort that nobody can draw again, in rising order; may be empty."""
        return self._heads(_secret_keys(self.population))

    def _heads(self, coins: streams.Keys) -> list[int]:
        return np.flatnonzero(streams.uniforms(coins, 1)[:, 0] < self.rate).tolist()

    def event(self, inner: Event) -> Event:
        """The price of a round for a silo, asked or not."""
        return inner if self.rate == 1 else Sampled(Poisson(self.rate), inner)


@dataclass(frozen=True)
class CappedCohort:
    """The silos of a `PoissonCohort`; of more than `cap`, a uniformly random `cap` of them."""

    rate: float
    cap: int
    population: int

    def __post_init__(self) -> None:
        checks.probability(rate=self.rate)
        if not self.cap >= 1:
            raise ValueError(f"cohort.cap: must be >= 1, got {self.cap}")

    @property
    def expected(self) -> float:
        """The constant expected cohort, after the cap: what a private mean divides by."""
        return crowding(self._sampler).rate * self.population

    def draw(self, seed: int, round_: int) -> list[int]:
        """The cohort of a round, in rising order; may be empty."""
        return self._lowest(streams.keys(streams.derive(seed, "cohort", round_), np.arange(self.population)))

    def draw_secretly(self) -> list[int]:
        """A cohort that nobody can draw again, in rising order; may be empty."""
        return self._lowest(_secret_keys(self.population))

    def _lowest(self, coins: streams.Keys) -> list[int]:
        """Below the rate, coins are as likely in any order: those of the `cap` lowest are a uniformly random choice."""
        values = streams.uniforms(coins, 1)[:, 0]
        drawn = np.flatnonzero(values < self.rate)
        cohort: list[int] = np.sort(drawn[np.argsort(values[drawn], kind="stable")[: self.cap]]).tolist()
        return cohort

    def event(self, inner: Event) -> Event:
        """The price of a round for a silo, asked or not."""
        return Sampled(self._sampler, inner)

    @property
    def _sampler(self) -> Capped:
        return Capped(self.rate, self.cap, self.population)


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
        return self._first(streams.keys(streams.derive(seed, "cohort", round_), np.arange(self.population)))

    def draw_secretly(self) -> list[int]:
        """A cohort that nobody can draw again, in rising order."""
        return self._first(_secret_keys(self.population))

    def _first(self, draws: streams.Keys) -> list[int]:
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

    def draw_secretly(self) -> list[int]:
        """All silos: there is nothing to keep secret."""
        return list(range(self.population))

    def event(self, inner: Event) -> Event:
        """The price of the release itself."""
        return inner


@dataclass(frozen=True)
class CyclicCohort:
    """Silos take turns: `separation` groups of near equal size, one after the other. Nothing of it is secret.

    Of every `separation` silos in the order of their numbers one goes to each group, by the seed. So a silo's group
    depends on the seed and its number alone: one silo more, or one that sends nothing, moves no other silo's turns.
    """

    separation: int
    population: int

    def __post_init__(self) -> None:
        if not 1 <= self.separation <= self.population:
            raise ValueError(
                f"cohort.separation: {self.separation} groups of {self.population} silos; give 1 to {self.population}"
            )

    @property
    def expected(self) -> float:
        """Silos in a round, on average over a cycle: a constant."""
        return self.population / self.separation

    def draw(self, seed: int, round_: int) -> list[int]:
        """The group of a round, in rising order."""
        blocks = -(-self.population // self.separation)
        keys = streams.keys(streams.derive(seed, "groups"), np.arange(blocks))
        groups = streams.permutations(keys, np.full(blocks, self.separation), self.separation).reshape(-1)
        return np.flatnonzero(groups[: self.population] == (round_ - 1) % self.separation).tolist()

    def event(self, inner: Event) -> Event:
        """The price of a round that pays for its cycle; see `server.turns` for those that need not."""
        return Turn(inner, charged=True)


Sampler = PoissonCohort | CappedCohort | FixedCohort | FullCohort | CyclicCohort


def _secret_keys(silos: int) -> streams.Keys:
    """A key for every silo from the operating system's entropy."""
    return np.frombuffer(os.urandom(8 * silos), dtype=np.uint64)
