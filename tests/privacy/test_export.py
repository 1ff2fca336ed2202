"""What is exported is what dp-accounting itself reads back, at the price of the ledger."""

from __future__ import annotations

import json
from collections import namedtuple
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from privacy.accountant import epsilon
from privacy.chain import Entry
from privacy.events import Capped, Composed, Event, FixedSize, Gaussian, NonPrivate, Poisson, Repeated, Sampled
from privacy.export import as_json, dp_event

EVENT = Sampled(Poisson(0.1), Gaussian(2.0))


def entries(*events: Event, neighbours: str = "add_remove") -> list[Entry]:
    return [Entry(seq, "reserve", seq, "silo", neighbours, event, None) for seq, event in enumerate(events, 1)]


def read_back(data: Any) -> Any:
    """JSON to a named tuple, as the library's `from_named_tuple` takes it."""
    if isinstance(data, dict):
        return namedtuple("Read", data)(**{name: read_back(value) for name, value in data.items()})
    return [read_back(item) for item in data] if isinstance(data, list) else data


def through_json(*events: Event) -> Any:
    (unit,) = json.loads(json.dumps(as_json(entries(*events))))
    assert (unit["unit"], unit["neighbours"]) == ("silo", "add_remove")
    return dp_accounting.DpEvent.from_named_tuple(read_back(unit["event"]))


def test_every_kind_comes_back_as_the_librarys_own_event() -> None:
    both = Sampled(FixedSize(2, 9), Composed((Gaussian(3.0), Gaussian(4.0))))
    found = through_json(NonPrivate("x"), Gaussian(2.0), EVENT, EVENT, Repeated(both, 3))
    dp = dp_accounting
    inner = dp.ComposedDpEvent([dp.GaussianDpEvent(3.0), dp.GaussianDpEvent(4.0)])
    assert found == dp.ComposedDpEvent(
        [
            dp.SelfComposedDpEvent(dp.NonPrivateDpEvent(), 1),
            dp.SelfComposedDpEvent(dp.GaussianDpEvent(2.0), 1),
            dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(2.0)), 2),
            dp.SelfComposedDpEvent(dp.SelfComposedDpEvent(dp.SampledWithoutReplacementDpEvent(9, 2, inner), 3), 1),
        ]
    )


def test_a_cap_comes_back_as_the_librarys_own_event_of_one_gaussian() -> None:
    both = Sampled(Capped(0.1, 5, 40), Composed((Gaussian(3.0), Gaussian(4.0))))
    found = through_json(both).events[0].event
    assert found == dp_accounting.TruncatedSubsampledGaussianDpEvent(40, 0.1, 5, pytest.approx(2.4))
    with pytest.raises(ValueError, match="dp-accounting has Gaussians only there"):
        dp_event(Sampled(Capped(0.1, 5, 40), NonPrivate("x")))


@pytest.mark.parametrize("relation", ["add_remove", "replace"])
def test_the_library_prices_the_export_as_the_ledger_is_priced(relation: Any) -> None:
    """The library's grid of 1e-4 and ours differ by far less than 1%."""
    of = dp_accounting.NeighboringRelation
    accountant = PLDAccountant(of.REPLACE_ONE if relation == "replace" else of.ADD_OR_REMOVE_ONE)
    capped = Sampled(Capped(0.1, 5, 40), Gaussian(2.0))
    accountant.compose(through_json(Gaussian(8.0), *[EVENT] * 20, capped))
    bracket = epsilon(Composed((Gaussian(8.0), Repeated(EVENT, 20), capped)), 1e-5, neighbours=relation)
    assert accountant.get_epsilon(1e-5) == pytest.approx(bracket.upper, rel=0.01)


def test_units_and_relations_stay_apart() -> None:
    lines = [*entries(EVENT), *entries(EVENT, neighbours="replace")]
    assert [unit["neighbours"] for unit in as_json(lines)] == ["add_remove", "replace"]
    assert as_json([]) == []


def test_an_event_without_a_word_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot export"):
        dp_event(object())  # type: ignore[arg-type]
