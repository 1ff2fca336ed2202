"""Events in dp-accounting's own words, for other accountants.

The library has no JSON; it offers `DpEvent.to_named_tuple`, made for passing events on without depending on it. We
write that tuple as JSON objects. Noise multipliers stay as the ledger has them, noise over one clip norm: so
`PLDAccountant` prices Gaussians and Poisson samples under add/remove and replace-one as they are, and `RdpAccountant`
under replace-one needs half of each, since it takes the sensitivity for one clip norm (its issue 378).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from privacy.chain import Entry
from privacy.events import Capped, Composed, Event, FixedSize, Gaussian, NonPrivate, Poisson, Repeated, Sampled, Turn
from privacy.spending import UNNAMED, Spending, event_of
from privacy.terms import History, Unpriceable, history_of


def dp_event(event: Event) -> Any:
    """An event as dp-accounting's `DpEvent`.

    Raises:
        Unpriceable: an event that the library has no word for.
    """
    import dp_accounting as dp

    match event:
        case NonPrivate():
            return dp.NonPrivateDpEvent()
        case Gaussian(noise):
            return dp.GaussianDpEvent(noise)
        case Repeated(inner, times):
            return dp.SelfComposedDpEvent(dp_event(inner), times)
        case Composed(events):
            return dp.ComposedDpEvent([dp_event(inner) for inner in events])
        case Sampled(Poisson(rate), inner):
            return dp.PoissonSampledDpEvent(rate, dp_event(inner))
        case Sampled(FixedSize(size, population), inner):
            return dp.SampledWithoutReplacementDpEvent(population, size, dp_event(inner))
        case Turn(inner, charged):  # What its cycle has paid for is no cost of its own.
            return dp_event(inner) if charged else dp.NoOpDpEvent()
        case Sampled(Capped(rate, cap, population), inner):
            return dp.TruncatedSubsampledGaussianDpEvent(population, rate, cap, _one_noise(inner))
        case _:
            raise Unpriceable(f"cannot export {event!r}: dp-accounting has no event for it")


def _one_noise(event: Event) -> float:
    """The noise of the one Gaussian that several on one sample are: the library has no word for them under a cap."""
    match history_of(Sampled(Poisson(0.5), event)):
        case History(((Poisson(), noise, 1),), None):
            return noise
        case _:
            raise Unpriceable(f"cannot export {event!r} on a sample with a cap: dp-accounting has Gaussians only there")


def as_json(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """All that counts, a mapping for every unit and relation: `unit`, `neighbours`, and `event` as a named tuple.

    Where charges name silos, a mapping for all silos that spent the same, with their numbers in `silos` (and `deal`, if
    charges name it); null stands for all silos that no charge names.
    """
    groups: dict[tuple[str, str], Spending] = {}
    for entry in entries:
        if entry.event is not None:
            groups.setdefault((entry.unit, entry.neighbours), Spending()).add(entry)
    return [
        {
            "unit": unit,
            "neighbours": neighbours,
            **whose,
            "event": _plain(dp_event(event_of(spent.items())).to_named_tuple()),
        }
        for (unit, neighbours), spending in groups.items()
        for spent, silos in spending.histories()
        for whose in _whose(silos)
    ]


def _whose(silos: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    if list(silos) == [("", UNNAMED)]:
        return [{}]
    deals: dict[str, list[int]] = {}
    for deal, silo in silos:
        deals.setdefault(deal, []).append(silo)
    return [
        {"silos": None if numbers == [UNNAMED] else [each for each in numbers if each != UNNAMED]}
        | ({"deal": deal} if deal else {})
        for deal, numbers in deals.items()
    ]


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, Mapping) or not isinstance(value, Sequence) or isinstance(value, str):
        return value
    return [_plain(item) for item in value]
