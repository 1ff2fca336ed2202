"""What a torn last line may have reserved: the dearest that is known, and never nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from privacy.events import Capped, Event, FixedSize, Gaussian, NonPrivate, Poisson, Repeated, Sampled, Turn


@dataclass(frozen=True)
class Charge:
    """What a reserve costs, and whom.

    Attributes:
        unit: whose privacy it is.
        neighbours: the relation that its price is for.
        event: what is released.
    """

    unit: str
    neighbours: str
    event: Event


def worst(known: Iterable[Charge]) -> list[Charge]:
    """The charges that together cost at least as much as any of the known ones, for every unit and relation.

    Which of two events is dearer can depend on delta and on what else was released. So a charge is left out only where
    another one surely costs as much; the others are charged together. A turn counts as one that pays.

    >>> silo = lambda noise: Charge("silo", "add_remove", Gaussian(noise))
    >>> [charge.event.noise_multiplier for charge in worst([silo(2.0), silo(1.0), silo(2.0)])]
    [1.0]
    """
    charges = list(dict.fromkeys(map(_paying, known)))
    return [charge for charge in charges if not any(_covers(other, charge) for other in charges if other != charge)]


def _paying(charge: Charge) -> Charge:
    event = charge.event
    return replace(charge, event=replace(event, charged=True)) if isinstance(event, Turn) else charge


def _covers(charge: Charge, other: Charge) -> bool:
    same = (charge.unit, charge.neighbours) == (other.unit, other.neighbours)
    return same and _at_least(charge.event, other.event)


def _at_least(event: Event, other: Event) -> bool:
    """Whether an event surely costs as much as another, different one."""
    match event, other:
        case NonPrivate(), NonPrivate():
            return event.reason < other.reason  # Both infinite: one of them is enough.
        case NonPrivate(), _:
            return True
        case Turn(one, _), Turn(two, _):
            return _at_least(one, two)
        case Gaussian(less), Gaussian(more):
            return less <= more
        case Repeated(dear, often), Repeated(cheap, seldom):
            return often >= seldom and (dear == cheap or _at_least(dear, cheap))
        case Sampled(Poisson(high), Gaussian(less)), Sampled(Poisson(low), Gaussian(more)):
            return high >= low and less <= more
        case Sampled(FixedSize() as one, Gaussian(less)), Sampled(FixedSize() as two, Gaussian(more)):
            return one == two and less <= more
        case Sampled(Capped() as one, Gaussian(less)), Sampled(Capped() as two, Gaussian(more)):
            return one == two and less <= more
        case _:
            return False
