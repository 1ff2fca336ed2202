"""Brings an event into normal form: a bag of Gaussian releases, each with the law of its sample.

Composition does not mind the order, so Repeated and Composed become counts, and Gaussians on one sample become one.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypeAlias

from privacy.capped import crowding
from privacy.events import (
    Capped,
    Composed,
    Event,
    FixedSize,
    Gaussian,
    NonPrivate,
    Poisson,
    Repeated,
    Sampled,
    Sampler,
    Turn,
)

Neighbours: TypeAlias = Literal["add_remove", "zero_out", "replace"]
"""What may differ between two neighbouring data sets: a unit more or less, a unit's values all zero, other values."""

MOST_NOISE = 1e6  # Releases of more noise differ by less than double precision resolves.
LEAST_NOISE = 1e-6  # Epsilon is beyond 1e11 there; the formulas overflow further down.

Law: TypeAlias = Literal["all", "poisson", "poisson_replace", "fixed_size", "capped", "capped_replace"]


class Unpriceable(ValueError):
    """No proof exists here of what this event costs under this relation; the message says what would fit."""


@dataclass(frozen=True)
class Part:
    """Equal releases of a Gaussian under one law of sampling.

    Attributes:
        law: which units took part: all, a Poisson sample (told apart by a unit's presence, or by its values under
            `replace`), a sample of fixed size, or a Poisson sample with a cap (again by presence or by values).
        rate: probability that a given unit takes part; where there is a cap, that it is drawn.
        noise: standard deviation / the most that one unit can move the sum, 2 clip norms where it may be replaced. For
            `poisson_replace` it is counted in one clip norm, because the law itself has both positions of the unit;
            so it is under a cap.
        times: how many such releases.
        spill: probability that the cap is reached, see `privacy.capped`; 0 without one.
        kept: probability that the unit takes part then.
    """

    law: Law
    rate: float
    noise: float
    times: int
    spill: float = 0.0
    kept: float = 0.0


@dataclass(frozen=True)
class History:
    """An event in normal form; equal histories cost the same, so this is the key of every cache.

    Attributes:
        terms: `(sampler, noise multiplier, times)`, sorted; the sampler None means that all units took part.
        non_private: why there is no guarantee, or None.
    """

    terms: tuple[tuple[Sampler | None, float, int], ...] = ()
    non_private: str | None = None

    @property
    def samplers(self) -> set[type]:
        """The types of sampler that occur; `NoneType` where all units took part."""
        return {type(sampler) for sampler, _, _ in self.terms}


def history_of(event: Event) -> History:
    """The normal form of an event.

    Raises:
        Unpriceable: an event or a nesting that is not known; unknown is refused, never taken for free.
    """
    terms: Counter[tuple[Sampler | None, float]] = Counter()
    reasons: list[str] = []
    _collect(event, 1, terms, reasons)
    ordered = sorted((key for key in terms if terms[key]), key=repr)
    return History(tuple((*key, terms[key]) for key in ordered), reasons[0] if reasons else None)


def _collect(event: Event, times: int, terms: Counter[tuple[Sampler | None, float]], reasons: list[str]) -> None:
    if times == 0:
        return
    match event:
        case NonPrivate(reason):
            reasons.append(reason or "a release without noise")
        case Gaussian(noise):
            terms[None, float(noise)] += times
        case Repeated(inner, count):
            _collect(inner, times * count, terms, reasons)
        case Composed(events):
            for inner in events:
                _collect(inner, times, terms, reasons)
        case Sampled(sampler, inner):
            _collect_sampled(sampler, inner, times, terms, reasons)
        case Turn(inner, charged):
            _collect_turn(inner, times if charged else 0, terms, reasons)
        case _:
            raise Unpriceable(f"cannot price {event!r}: unknown event; use the events of privacy.events")


def _collect_sampled(
    sampler: Sampler, event: Event, times: int, terms: Counter[tuple[Sampler | None, float]], reasons: list[str]
) -> None:
    if _takes_turns(event):
        raise Unpriceable("cannot price a sample of silos that take turns: nothing amplifies turns, leave Sampled out")
    inside = history_of(event)
    if inside.samplers - {type(None)}:
        raise Unpriceable("cannot price a sample of a sample: give the probability of both together as one rate")
    if inside.non_private is not None:
        reasons.append(inside.non_private)
    if inside.terms:
        terms[_plain(sampler), _together(inside)] += times


def _collect_turn(event: Event, times: int, terms: Counter[tuple[Sampler | None, float]], reasons: list[str]) -> None:
    """A turn that pays nothing is refused as one that pays is: what it holds must have a price."""
    inside = history_of(event)
    if _takes_turns(event) or inside.samplers - {type(None)}:
        raise Unpriceable("cannot price turns of a sample or of other turns: put the releases of the round into Turn")
    if inside.non_private is not None:
        reasons.append(inside.non_private)
    for sampler, noise, count in inside.terms:
        terms[sampler, noise] += times * count


def _takes_turns(event: Event) -> bool:
    match event:
        case Turn():
            return True
        case Sampled(_, inner) | Repeated(inner, _):
            return _takes_turns(inner)
        case Composed(events):
            return any(map(_takes_turns, events))
    return False


def _plain(sampler: Sampler) -> Sampler | None:
    """The sampler by its simplest name; None where it takes everybody."""
    match sampler:
        case Poisson(rate):
            return None if rate == 1 else sampler
        case FixedSize(size, population):
            return None if size == population else sampler
        case Capped(rate, cap, population) if cap < population and rate == 1:
            return FixedSize(cap, population)
        case Capped(rate):
            return sampler if crowding(sampler).spill > 0 else _plain(Poisson(rate))
        case _:
            raise Unpriceable(f"cannot price sampler {sampler!r}: use Poisson, FixedSize or Capped")


def _together(history: History) -> float:
    """One noise multiplier for all releases that saw every unit; hypot neither over- nor underflows."""
    return 1 / math.hypot(*(math.sqrt(times) / noise for sampler, noise, times in history.terms if sampler is None))


def upper_parts(history: History, neighbours: Neighbours) -> tuple[Part, ...]:
    """What to charge for an upper bound.

    Under `replace` one unit's clipped vector may become its opposite, so the sum moves by 2 clip norms (half the noise
    per unit of sensitivity). Zeroing out is one way of replacing, so a sample of fixed size is charged as replaced.

    Raises:
        Unpriceable: a pairing of sampler and relation that has no price.
    """
    if neighbours == "add_remove" and FixedSize in history.samplers:
        raise Unpriceable("fixed-size cohorts have no add/remove price; use neighbours: replace")
    replaced = neighbours == "replace"
    parts = _all_units(history, 0.5 if replaced else 1.0)
    for sampler, noise, times in history.terms:
        match sampler:
            case Poisson(rate):
                parts.append(Part("poisson_replace" if replaced else "poisson", rate, noise, times))
            case Capped(rate):
                full = crowding(sampler)
                law: Law = "capped_replace" if replaced else "capped"
                parts.append(Part(law, rate, noise, times, full.spill, full.kept))
            case FixedSize(size, population):
                parts.append(Part("fixed_size", size / population, noise / 2, times))
    for part in parts:
        if not part.noise <= MOST_NOISE:
            raise Unpriceable(f"cannot price a noise multiplier of {part.noise:g}: use one up to {MOST_NOISE:g}")
    return tuple(parts)


def lower_parts(history: History, neighbours: Neighbours) -> tuple[Part, ...]:
    """What one pair of neighbours surely costs; differs from `upper_parts` in samples of fixed size and with a cap.

    Of fixed size, the pair is: all others send -C and the unit turns from -C to C (`replace`), or all others send 0 and
    the unit turns from 0 to C (`zero_out`). The sum then is a Gaussian that moves with probability `rate`: a Poisson
    sample. With a cap all others send 0, so only the unit's own chance to take part matters: a Poisson sample as well.
    """
    return tuple(_lower(part, neighbours) for part in upper_parts(history, neighbours))


def _lower(part: Part, neighbours: Neighbours) -> Part:
    alone = part.rate * (1 - part.spill) + part.spill * part.kept  # As `privacy.capped` has it.
    match part.law:
        case "fixed_size":
            return Part("poisson", part.rate, part.noise * (1 if neighbours == "replace" else 2), part.times)
        case "capped":
            return Part("poisson", alone, part.noise, part.times)
        case "capped_replace":
            return Part("poisson_replace", alone, part.noise, part.times)
        case _:
            return part


def merged(parts: tuple[Part, ...], most: int) -> tuple[Part, ...]:
    """At most `most` parts that together cost no less, but a little more: similar Poisson samples are taken for one.

    The one has the highest rate and the least noise of a group. A rarer or noisier release is that one with the output
    replaced by mere noise at times, or with noise added: post-processing. Other laws are left alone, and may be more.
    """
    same = [part for part in parts if part.law not in ("poisson", "poisson_replace")]
    rest = sorted((part for part in parts if part not in same), key=lambda part: (part.noise, part.rate))
    groups = max(1, most - len(same))
    if len(parts) <= most or not rest:
        return parts
    ends = [len(rest) * index // groups for index in range(groups + 1)]
    return (*same, *(_dearest(rest[start:end]) for start, end in itertools.pairwise(ends) if end > start))


def _dearest(group: list[Part]) -> Part:
    rate, noise = max(part.rate for part in group), min(part.noise for part in group)
    return Part(group[0].law, rate, noise, sum(part.times for part in group))


def _all_units(history: History, half: float) -> list[Part]:
    if type(None) not in history.samplers:
        return []
    return [Part("all", 1.0, _together(history) * half, 1)]
