"""From the silos' updates to a round's answers: clip, sum, noise, divide.

The order is the guarantee. Every update is checked and clipped as it is summed (`contribute`, next to the silo), the
chunks' sums are added in the order of the chunks whoever computed them (`Collector`), noise goes on once, at the end,
and a `Release` shows nothing but the noised sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from privacy.adaptive import AdaptiveSum
from privacy.mechanism import Mechanism
from privacy.noise import NoiseSource
from privacy.revealed import Revealed


@dataclass(frozen=True)
class Failure:
    """A silo whose update was not used in a round, and why."""

    silo: int
    reason: str


@dataclass(frozen=True)
class Message:
    """How much one silo's update is on its way: a public size, whatever it holds.

    Attributes:
        numbers: that travel.
        bytes: of the encoded message.
    """

    numbers: int
    bytes: int


@dataclass(frozen=True)
class Partial:
    """The clipped sums of one chunk of silos.

    Attributes:
        chunk: position of the chunk in the cohort; sums are added in this order.
        sums: channel to `(N,)` float64.
        weight: sum of the weights of the updates that arrived.
        arrived: updates summed.
        clipped: updates that were longer than the clip norm, a private count.
        payload: numbers sent up by the silos of this chunk.
        bytes: sent up by the silos of this chunk.
        failures: updates refused.
        losses: mean training loss of each silo that reports one; private.
        votes: sums of the votes on clip norms, of the channels that have them; private.
        revealed: the updates one by one, where the strategy must see them.
        seconds: that each silo took, for monitoring.
    """

    chunk: int
    sums: Mapping[str, Tensor]
    weight: float = 0.0
    arrived: int = 0
    clipped: int = 0
    payload: int = 0
    bytes: int = 0
    failures: tuple[Failure, ...] = ()
    losses: tuple[float, ...] = ()
    votes: Mapping[str, float] = field(default_factory=dict)
    revealed: Revealed | None = None
    seconds: tuple[float, ...] = field(default=(), compare=False)


@dataclass
class Contributions:
    """Sums the updates of one chunk: refuses what is malformed, clips each vector, weighs it, adds it.

    Attributes:
        mechanisms: how each channel is bounded.
        sizes: channel to the length of its vectors.
        reveals: keep the updates one by one, too.
        heaviest: the largest weight of an update where sums are exact; under privacy that is 1.
    """

    mechanisms: Mapping[str, Mechanism]
    sizes: Mapping[str, int]
    reveals: bool = False
    heaviest: float = math.inf
    weight: float = 0.0
    arrived: int = 0
    clipped: int = 0
    payload: int = 0
    bytes: int = 0
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sums = {name: torch.zeros(size, dtype=torch.float64) for name, size in self.sizes.items()}
        self.votes = _no_votes(self.mechanisms)
        self._answered: set[int] = set()
        self._seen: list[Revealed] = [Revealed.nobody(self.sizes)] if self.reveals else []

    def add(
        self,
        channels: Mapping[str, Tensor],
        weight: Tensor | float,
        silos: Sequence[int],
        message: Message | None = None,
        *,
        refused: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Adds the updates of `silos`: vectors `(N,)` for one silo or `(silos, N)` for several.

        `message` is how long each of them was on its way; left out, its vectors are as they are, in float32. `refused`
        are silos that were found wanting before, with the reason.

        A silo whose vectors are of a wrong length or not finite, whose weight is not allowed, or that answered before,
        is left out with a reason; it can neither stop the round nor change what the others contribute. No silos at all
        add nothing.
        """
        problem = self._malformed(channels, len(silos)) or _malformed_weight(weight, len(silos))
        if problem is not None:
            self.failures += [Failure(silo, problem) for silo in silos]
            return
        rows = {name: channels[name].detach().reshape(len(silos), size).double() for name, size in self.sizes.items()}
        norms = {name: torch.linalg.vector_norm(vectors, dim=-1) for name, vectors in rows.items()}
        weights = torch.as_tensor(weight, dtype=torch.float64).reshape(-1).expand(len(silos))
        good = self._usable(norms, weights, silos, refused)
        clipped = torch.zeros(len(silos), dtype=torch.bool)
        seen: dict[str, Tensor] = {}
        for name, mechanism in self.mechanisms.items():
            vectors, norm = rows[name], norms[name]
            if not bool(good.all()):  # A zero factor would turn inf into NaN: bad rows leave the matrix.
                vectors, norm = vectors[good], norm[good]
            factors = mechanism.factors(norm)
            self.sums[name] += (factors * weights[good]) @ vectors
            clipped[good] |= factors < 1.0
            if self.reveals:
                seen[name] = (factors.unsqueeze(-1) * vectors).float()
            if isinstance(mechanism, AdaptiveSum):  # Of whole updates: a weight makes none shorter.
                self.votes[name] += float(mechanism.votes(norm).sum())
        if self.reveals:
            whose = tuple(silo for silo, usable in zip(silos, good.tolist()) if usable)
            self._seen.append(Revealed(whose, weights[good], seen))
        self.weight += float(weights[good].sum())
        self.arrived += int(good.sum())
        self.clipped += int(clipped.sum())
        numbers = sum(self.sizes.values())
        message = message if message is not None else Message(numbers, 4 * numbers)
        self.payload += int(good.sum()) * (message.numbers + len(self.votes))
        self.bytes += int(good.sum()) * (message.bytes + 4 * len(self.votes))

    def _malformed(self, channels: Mapping[str, Tensor], silos: int) -> str | None:
        if set(channels) != set(self.sizes):
            return f"channels {sorted(channels)} where {sorted(self.sizes)} were asked"
        for name, size in self.sizes.items():
            if not isinstance(channels[name], Tensor):
                return f"channel {name!r} holds {type(channels[name]).__name__}, not a tensor"
            shape = tuple(channels[name].shape)
            if shape != (silos, size) and not (silos == 1 and shape == (size,)):
                return f"channel {name!r} has shape {shape} where {size} numbers per silo were asked"
            if not channels[name].dtype.is_floating_point:
                return f"channel {name!r} holds {channels[name].dtype}, not floating point numbers"
        return None

    def _usable(
        self, norms: Mapping[str, Tensor], weights: Tensor, silos: Sequence[int], refused: Mapping[int, str]
    ) -> Tensor:
        finite = torch.ones(len(silos), dtype=torch.bool)
        for norm in norms.values():
            finite &= torch.isfinite(norm)
        private = any(mechanism.private for mechanism in self.mechanisms.values())
        # Under privacy a larger weight would move the sum by more than the clip norm.
        heaviest = 1.0 if private else self.heaviest
        allowed = torch.isfinite(weights) & (weights >= 0) & (weights <= heaviest)
        good = finite & allowed
        for place, (silo, usable) in enumerate(zip(silos, good.tolist())):
            reason = refused.get(silo)
            if reason is None and not usable:
                reason = _unusable(bool(finite[place]), heaviest)
            elif reason is None and silo in self._answered:
                reason = "silo answered before in this round"
            if reason is None:
                self._answered.add(silo)
            else:
                good[place] = False
                self.failures.append(Failure(silo, reason))
        return good

    def partial(self, chunk: int, losses: Sequence[float] = ()) -> Partial:
        """The chunk's sums, done."""
        return Partial(
            chunk=chunk,
            sums=self.sums,
            weight=self.weight,
            arrived=self.arrived,
            clipped=self.clipped,
            payload=self.payload,
            bytes=self.bytes,
            failures=tuple(self.failures),
            losses=tuple(losses),
            votes=self.votes,
            revealed=Revealed.join(self._seen) if self.reveals else None,
        )


def _no_votes(mechanisms: Mapping[str, Mechanism]) -> dict[str, float]:
    return {name: 0.0 for name, mechanism in mechanisms.items() if isinstance(mechanism, AdaptiveSum)}


def _unusable(finite: bool, heaviest: float) -> str:
    """Why an update is of no use, in words that are shown to all: a weight may follow from private rows."""
    if not finite:
        return "update is not finite"
    return f"weight is not in [0, {heaviest:g}]" if math.isfinite(heaviest) else "weight is not a finite number >= 0"


def _malformed_weight(weight: object, silos: int) -> str | None:
    """What is wrong with the form of a weight; its value is judged silo by silo."""
    if isinstance(weight, Tensor):
        if weight.dtype == torch.bool or weight.is_complex():
            return f"weight holds {weight.dtype}, not real numbers"
        if weight.numel() != 1 and tuple(weight.shape) != (silos,):
            return f"weight has shape {tuple(weight.shape)} where {silos} were asked"
        return None
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        return f"weight is {type(weight).__name__}, not a number"
    return None


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
        self.votes = _no_votes(mechanisms)
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
