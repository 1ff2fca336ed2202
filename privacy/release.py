"""From the chunks' sums to a round's answers: add, noise, divide.

The chunks' sums (`privacy.contributions`) are added in the order of the chunks whoever computed them (`Collector`),
noise goes on once, at the end, and a `Release` shows nothing but the noised sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privacy.adaptive import AdaptiveSum
from privacy.contributions import Failure, Partial, no_votes
from privacy.mechanism import Mechanism
from privacy.noise import NoiseSource
from privacy.revealed import Revealed


@dataclass(frozen=True)
class Release:
    """One round's answers, as the server may read them.

    Attributes:
        sums: channel to its released sum, `(N,)` float64.
        divisors: channel to what a mean divides by.
        population: all silos of the federation, also those not asked.
        votes: channel to its released votes on the clip norm, where it adapts.
        revealed: the updates one by one, for a strategy that declares `reveals`.
        rate: expected part of the population in a round; a sum over the cohort, divided by it, errs for all to no side.
    """

    sums: Mapping[str, Tensor]
    divisors: Mapping[str, float]
    population: int
    votes: Mapping[str, float] = field(default_factory=dict)
    revealed: Revealed | None = None
    rate: float = 1.0

    def sum(self, channel: str) -> Tensor:
        """The released sum of a channel, `(N,)` float32."""
        return self.sums[channel].float()

    def mean(self, channel: str) -> Tensor:
        """The released mean, `(N,)` float32.

        Under privacy the divisor is the constant expected cohort: dividing by arrivals would make one silo's absence
        move every other silo's share, which the noise does not cover. Without privacy it is the weight that arrived.
        """
        return (self.sums[channel] / self.divisors[channel]).float()

    def reveal(self) -> Revealed:
        """The single updates of the round, in the order of the cohort.

        Raises:
            ValueError: the strategy did not say that it would look, so nobody charged for it.
        """
        if self.revealed is None:
            raise ValueError("single updates are for a strategy that declares `reveals = True`; use sum or mean")
        return self.revealed


class Collector:
    """Takes the chunks of one round, in any order, and makes them a `Release`.

    Sums are added in the order of the chunks, as soon as the order allows, so neither the bits of the result nor the
    memory held depend on who computed what.

    Args:
        mechanisms: how each channel is noised.
        sizes: channel to the length of its vectors.
        expected: the constant expected number of contributions (canaries included).
        population: silos of the federation.
        reveals: the release shows the updates one by one, too.
        rate: expected part of the population in a round.
    """

    def __init__(
        self,
        mechanisms: Mapping[str, Mechanism],
        sizes: Mapping[str, int],
        *,
        expected: float,
        population: int,
        reveals: bool = False,
        rate: float = 1.0,
    ) -> None:
        self.rate = rate
        self.mechanisms, self.expected, self.population, self.reveals = mechanisms, expected, population, reveals
        self.sums = {name: torch.zeros(sizes[name], dtype=torch.float64) for name in mechanisms}
        self.votes = no_votes(mechanisms)
        self.tally = Tally()
        self._next = 0
        self._waiting: dict[int, Partial] = {}
        self._seen: list[Revealed] = []

    def add(self, partial: Partial) -> None:
        """Takes the sums of one chunk; a chunk that came already is refused, so nothing counts twice."""
        if partial.chunk < self._next or partial.chunk in self._waiting:
            raise ValueError(f"chunk {partial.chunk} was added twice")
        self._waiting[partial.chunk] = partial
        while (ready := self._waiting.pop(self._next, None)) is not None:
            for name, total in self.sums.items():
                total += ready.sums[name]
            for name, votes in ready.votes.items():
                self.votes[name] += votes  # Halves: every order of adding them gives the same number.
            self.tally.add(ready)
            if ready.revealed is not None:
                self._seen.append(ready.revealed)
            self._next += 1

    def release(self, source: NoiseSource, *, stream: Sequence[int | str]) -> Release:
        """Noises each channel once, and shows it; an empty cohort is noised too.

        Args:
            source: of the noise.
            stream: names this release (purpose, round); every channel adds its own name.
        """
        if self._waiting:
            raise ValueError(f"chunk {self._next} is missing; chunks {sorted(self._waiting)} came")
        sums, divisors, votes = {}, {}, {}
        for name, mechanism in self.mechanisms.items():
            sums[name] = mechanism.privatize(self.sums[name], source, stream=(*stream, name))
            if isinstance(mechanism, AdaptiveSum):
                votes[name] = mechanism.count(self.votes[name], source, stream=(*stream, name, "votes"))
            exact = not mechanism.private and self.tally.weight > 0
            divisors[name] = self.tally.weight if exact else self.expected
        revealed = None
        if self.reveals:
            sizes = {name: total.numel() for name, total in self.sums.items()}
            revealed = Revealed.join([Revealed.nobody(sizes), *self._seen])
        return Release(sums, divisors, self.population, votes, revealed, self.rate)


@dataclass
class Tally:
    """What the chunks of a round add up to besides their sums; see `Partial` for the fields."""

    weight: float = 0.0
    arrived: int = 0
    clipped: int = 0
    payload: int = 0
    bytes: int = 0
    failures: list[Failure] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, partial: Partial) -> None:
        """Counts one chunk."""
        self.weight += partial.weight
        self.arrived += partial.arrived
        self.clipped += partial.clipped
        self.payload += partial.payload
        self.bytes += partial.bytes
        self.failures += partial.failures
        self.losses += partial.losses
        self.seconds += partial.seconds
