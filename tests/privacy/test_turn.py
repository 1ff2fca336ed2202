"""Turns in a ledger: a cycle is paid by its first round, and whatever is not sure is paid once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from privacy import verify
from privacy.accountant import Unpriceable, epsilon
from privacy.events import Composed, Event, Gaussian, NonPrivate, Poisson, Repeated, Sampled, Turn, from_json, to_json
from privacy.export import as_json, dp_event
from privacy.ledger import Ledger, load
from privacy.torn import Charge, worst

DELTA = 1e-5
PAYS, PAID = Turn(Gaussian(2.0), charged=True), Turn(Gaussian(2.0), charged=False)


def price(*events: Event, neighbours: Any = "add_remove") -> float:
    return epsilon(Composed(events), DELTA, neighbours=neighbours).upper


@pytest.mark.parametrize("neighbours", ["add_remove", "zero_out", "replace"])
def test_a_cycle_costs_what_one_of_its_rounds_does(neighbours: Any) -> None:
    """Two cycles of five rounds: two Gaussians; under `replace` a silo moves each sum by two clip norms."""
    cycles = price(*2 * (PAYS, *4 * (PAID,)), neighbours=neighbours)
    half = 2 if neighbours == "replace" else 1
    assert cycles == price(Repeated(Gaussian(2.0 / half), 2))


def test_turns_that_pay_nothing_cost_nothing_and_add_up_with_other_events() -> None:
    assert price(Repeated(PAID, 100)) == 0
    assert price(PAYS, PAID, Gaussian(3.0)) == price(Gaussian(2.0), Gaussian(3.0))
    two = Composed((Gaussian(3.0), Gaussian(4.0)))
    assert price(Turn(two, charged=True)) == pytest.approx(price(Gaussian(2.4)), rel=1e-12)


@pytest.mark.parametrize("turn", [PAYS, PAID])
@pytest.mark.parametrize("nest", [lambda e: e, lambda e: Composed((Gaussian(1.0), e)), lambda e: Repeated(e, 3)])
def test_nothing_amplifies_turns(turn: Turn, nest: Any) -> None:
    with pytest.raises(Unpriceable, match=r"cannot price a sample of silos that take turns: .* leave Sampled out"):
        epsilon(Sampled(Poisson(0.1), nest(turn)), DELTA)


@pytest.mark.parametrize("charged", [True, False])
@pytest.mark.parametrize("inner", [Sampled(Poisson(0.1), Gaussian(2.0)), PAYS, Repeated(PAID, 2)])
def test_turns_of_a_sample_or_of_turns_are_refused_even_where_they_pay_nothing(inner: Event, charged: bool) -> None:
    with pytest.raises(Unpriceable, match="cannot price turns of a sample or of other turns"):
        epsilon(Turn(inner, charged=charged), DELTA)


@pytest.mark.parametrize("charged", [True, False])
def test_a_turn_without_noise_is_infinite_even_where_it_pays_nothing(charged: bool) -> None:
    assert price(Turn(NonPrivate("seen"), charged=charged)) == float("inf")


@pytest.mark.parametrize("turn", [PAYS, PAID])
def test_json_gives_the_same_turn_back(turn: Turn) -> None:
    assert from_json(json.loads(json.dumps(to_json(turn)))) == turn


@pytest.mark.parametrize("charged", [0, 1, "true", None])
def test_whether_a_turn_pays_is_true_or_false(charged: Any) -> None:
    with pytest.raises(ValueError, match=r"event\.charged: expected true or false"):
        from_json(to_json(PAYS) | {"charged": charged})
    with pytest.raises(ValueError, match="charged must be true or false"):
        Turn(Gaussian(2.0), charged=charged)


def test_a_torn_line_counts_as_a_turn_that_pays() -> None:
    def charges(*events: Event) -> list[Event]:
        return [charge.event for charge in worst([Charge("silo", "add_remove", event) for event in events])]

    assert charges(PAID) == charges(PAID, PAYS) == charges(PAYS, PAID) == [PAYS]
    assert charges(PAID, Turn(Gaussian(1.0), charged=False)) == [Turn(Gaussian(1.0), charged=True)]
    assert set(charges(PAID, Gaussian(3.0))) == {PAYS, Gaussian(3.0)}


def ledger_of(path: Path, *events: Event) -> Path:
    ledger = Ledger(path, run="r", dataset="d")
    for round_, event in enumerate(events, 1):
        ledger.commit(ledger.reserve(round_, event, unit="silo", neighbours="add_remove"))
    ledger.close()
    return path


def test_the_ledger_s_own_verifier_prices_turns(tmp_path: Path) -> None:
    """By another library's distributions: at least the exact price, and 0.1% more at most."""
    path = ledger_of(tmp_path / "ledger.jsonl", PAYS, PAID, PAID, PAYS)
    found, _ = verify.reserves(path.read_bytes().split(b"\n")[:-1])
    events = verify.Counter(json.dumps(record["event"], sort_keys=True) for record in found)
    spent = verify.epsilon(events, "add_remove", DELTA)
    exact = price(Repeated(Gaussian(2.0), 2))
    assert exact * (1 - 1e-3) < spent < exact * (1 + 1e-3)


@pytest.mark.parametrize(
    "event",
    [
        Turn(Sampled(Poisson(0.5), Gaussian(2.0)), charged=False),
        Turn(NonPrivate("seen"), charged=False),
        Turn(PAID, charged=True),
        Sampled(Poisson(0.5), PAYS),
        Sampled(Poisson(0.5), Composed((Gaussian(1.0), PAID))),
    ],
)
def test_the_verifier_refuses_turns_that_have_no_price(event: Event) -> None:
    with pytest.raises(ValueError, match=r"inside a sample or a turn only Gaussians|unknown event"):
        verify.dp_event(to_json(event), 1.0)


def test_turns_are_exported_as_what_they_cost(tmp_path: Path) -> None:
    import dp_accounting as dp

    assert dp_event(PAYS) == dp.GaussianDpEvent(2.0)
    assert dp_event(PAID) == dp.NoOpDpEvent()
    path = ledger_of(tmp_path / "ledger.jsonl", PAYS, PAID, PAID)
    [unit] = as_json(load(path).chain.counted())
    names = [(each["event"]["class_name"], each["count"]) for each in unit["event"]["events"]]
    assert names == [("GaussianDpEvent", 1), ("NoOpDpEvent", 2)]
