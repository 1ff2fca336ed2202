"""What the silos of one chunk add to a round: each update checked, clipped, weighed and summed, next to the silo.

The order is the guarantee: clipping is the last thing that happens to a vector before it is summed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from privacy.adaptive import AdaptiveSum
from privacy.mechanism import Mechanism
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


@dataclass(frozen=True)
class Judged:
    """Updates of the right form.

    Attributes:
        rows: channel to vectors `(silos, N)`, as they came.
        norms: channel to their lengths `(silos,)` float64.
        weights: `(silos,)` float64.
        good: which of them can be used, `(silos,)` bool.
    """

    rows: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    weights: Tensor
    good: Tensor


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
        self.votes = no_votes(self.mechanisms)
        self._answered: set[int] = set()
        self._seen: list[Revealed] = [Revealed.nobody(self.sizes)] if self.reveals else []

    @cached_property
    def sums(self) -> dict[str, Tensor]:
        """Channel to `(N,)` float64; made once there is something to sum, since a judge needs none."""
        return {name: torch.zeros(size, dtype=torch.float64) for name, size in self.sizes.items()}

    def judge(
        self,
        channels: Mapping[str, Tensor],
        weight: Tensor | float,
        silos: Sequence[int],
        *,
        refused: Mapping[int, str] = MappingProxyType({}),
    ) -> Judged | None:
        """What `add` makes of updates before it sums them: those that it would leave out are in `failures` after.

        None where their form is wrong.
        """
        problem = self._malformed(channels, len(silos)) or _malformed_weight(weight, len(silos))
        if problem is not None:
            self.failures += [Failure(silo, problem) for silo in silos]
            return None
        rows = {name: channels[name].detach().reshape(len(silos), size) for name, size in self.sizes.items()}
        norms = {name: torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64) for name, vectors in rows.items()}
        weights = torch.as_tensor(weight, dtype=torch.float64).reshape(-1).expand(len(silos))
        return Judged(rows, norms, weights, self._usable(norms, weights, silos, refused))

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
        judged = self.judge(channels, weight, silos, refused=refused)
        if judged is None:
            return
        good, weights = judged.good, judged.weights
        clipped = torch.zeros(len(silos), dtype=torch.bool)
        seen: dict[str, Tensor] = {}
        for name, mechanism in self.mechanisms.items():
            vectors, norm = judged.rows[name], judged.norms[name]
            if not bool(good.all()):  # A zero factor would turn inf into NaN: bad rows leave the matrix.
                vectors, norm = vectors[good], norm[good]
            factors = mechanism.factors(norm)
            weighted = factors * weights[good]
            if len(vectors) == 1:  # One update may be so large that there is no room for another of it, in float64.
                self.sums[name].add_(vectors[0], alpha=float(weighted))
            else:
                self.sums[name] += weighted @ vectors.double()
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


def no_votes(mechanisms: Mapping[str, Mechanism]) -> dict[str, float]:
    """A zero for each channel whose clip norm the silos vote on."""
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
