"""Events in dp-accounting's own words, for other accountants.

The library has no JSON; it offers `DpEvent.to_named_tuple`, made for passing events on without depending on it. We
write that tuple as JSON objects. Noise multipliers stay as the ledger has them, noise over one clip norm: so
`PLDAccountant` prices Gaussians and Poisson samples under add/remove and replace-one as they are, and `RdpAccountant`
under replace-one needs half of each, since it takes the sensitivity for one clip norm (its issue 378).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from privacy.chain import Entry
from privacy.events import Capped, Composed, Event, FixedSize, Gaussian, NonPrivate, Poisson, Repeated, Sampled
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
    """All that counts, a mapping for every unit and relation: `unit`, `neighbours`, and `event` as a named tuple."""
    groups: dict[tuple[str, str], Counter[Event]] = {}
    for entry in entries:
        if entry.event is not None:
            groups.setdefault((entry.unit, entry.neighbours), Counter())[entry.event] += 1
    return [
        {
            "unit": unit,
            "neighbours": neighbours,
            "event": _plain(dp_event(Composed(tuple(Repeated(*item) for item in counts.items()))).to_named_tuple()),
        }
        for (unit, neighbours), counts in groups.items()
    ]


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, Mapping) or not isinstance(value, Sequence) or isinstance(value, str):
        return value
    return [_plain(item) for item in value]
