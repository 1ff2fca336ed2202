"""A data set's budget: runs add up, races have one winner, a resumed run is not charged twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from privacy.account import Account, BudgetSpent
from privacy.accountant import epsilon
from privacy.events import Composed, Event, Gaussian, NonPrivate, Poisson, Repeated, Sampled
from privacy.filters import RenyiFilter, order_for
from privacy.ledger import Ledger, LedgerError

DELTA = 1e-5
EVENT = Gaussian(10.0)


def price(*events: Event) -> float:
    return epsilon(Composed(events), DELTA).upper


def account(path: Path, run: str = "a", **changes: Any) -> Account:
    options: dict[str, Any] = {"neighbours": "add_remove", "delta": DELTA, "budget": price(Repeated(EVENT, 5))}
    return Account(path, run=run, dataset="d", unit="silo", **options | changes)


def take(found: Account, round_: int = 1, event: Event = EVENT) -> None:
    found.reserve(round_, event, unit="silo", neighbours="add_remove")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def test_two_runs_on_one_data_set_add_up(path: Path) -> None:
    first, second = account(path, "first"), account(path, "second")
    for round_, who in enumerate([first, second, first, second, first], 1):
        take(who, round_)
    for who in (first, second):
        with pytest.raises(BudgetSpent, match="round 6 would bring epsilon of all runs on this data to"):
            take(who, 6)
    total = first.total()
    assert (total.runs, total.charges, total.delta) == (2, 5, DELTA)
    assert total.epsilon_upper == price(Repeated(EVENT, 5)) == first.budget
    first.close()
    second.close()


SAMPLED, QUIETER = (Sampled(Poisson(0.1), Gaussian(noise)) for noise in (2.0, 2.5))


def test_runs_that_differ_in_noise_are_charged_by_a_filter_from_the_second_on(path: Path) -> None:
    """Alone a run has the tight price; a second one of other noise was chosen after looking, and all is priced anew."""
    first, second = (account(path, run, budget=3.0) for run in ("first", "second"))
    for round_ in range(60):
        take(first, round_, SAMPLED)
    alone = first.total()
    assert (alone.method, alone.epsilon_upper) == ("PLD", price(Repeated(SAMPLED, 60)))
    kept = RenyiFilter(3.0, DELTA, order_for([SAMPLED], 3.0, DELTA))
    kept.spend(SAMPLED, 60)
    granted = 0
    with pytest.raises(
        BudgetSpent, match=r"by a filter as they differ in noise or sampling; .* other runs: first \(60\)"
    ):
        while True:
            take(second, granted + 1, QUIETER)
            granted += 1
            kept.spend(QUIETER)
    assert granted > 0
    assert not kept.affords(QUIETER)
    total = second.total()
    assert (total.method, total.runs, total.budget) == ("filter", 2, 3.0)
    assert price(Repeated(SAMPLED, 60), Repeated(QUIETER, granted)) < total.epsilon_upper <= 3.0
    assert total.epsilon_upper == pytest.approx(kept.upper(), rel=1e-12)
    with pytest.raises(BudgetSpent):
        take(first, 61, SAMPLED)  # What it once looked ahead to was priced as a run alone.
    first.close()
    second.close()


def test_the_order_is_fixed_by_what_came_before_the_second_run(path: Path) -> None:
    first, second = (account(path, run, budget=3.0) for run in ("first", "second"))
    take(first, 0, Gaussian(50.0))
    take(first, 1, SAMPLED)
    take(second, 1, QUIETER)
    order = order_for([Gaussian(50.0), SAMPLED], 3.0, DELTA)
    for _ in range(3):
        take(first, 2, Gaussian(60.0))
        kept = RenyiFilter(3.0, DELTA, order)
        for event, times in first._spent().counts.items():
            kept.spend(event, times)
        assert second.total().epsilon_upper == pytest.approx(kept.upper(), rel=1e-12)
    first.close()
    second.close()


def test_runs_of_the_same_noise_and_sampling_need_no_filter(path: Path) -> None:
    first, second = (account(path, run, budget=3.0) for run in ("first", "second"))
    for round_ in range(30):
        take(first, round_, SAMPLED)
        take(second, round_, SAMPLED)
    assert (second.total().method, second.total().epsilon_upper) == ("PLD", price(Repeated(SAMPLED, 60)))
    first.close()
    second.close()


def test_what_a_run_alone_looked_ahead_to_is_looked_at_again_when_another_comes(path: Path) -> None:
    """The same rounds, but moments before only the first: 12 are within the tight price, and not within the filter."""
    budget = price(Gaussian(50.0), Repeated(SAMPLED, 12)) * (1 + 1e-9)
    first, second = (account(path, run, budget=budget) for run in ("first", "second"))
    for round_ in range(5):
        take(first, round_, Gaussian(50.0) if round_ == 0 else SAMPLED)
    kept = RenyiFilter(budget, DELTA, order_for([Gaussian(50.0), SAMPLED], budget, DELTA))
    kept.spend(Gaussian(50.0))
    kept.spend(SAMPLED, 5)
    take(second, 1, SAMPLED)
    with pytest.raises(BudgetSpent, match="by a filter"):
        while True:
            take(first, 6, SAMPLED)
            kept.spend(SAMPLED)
    assert not kept.affords(SAMPLED)
    first.close()
    second.close()


def test_a_torn_line_is_no_run_of_its_own(path: Path) -> None:
    first = account(path, "first", budget=3.0)
    take(first, 0, Gaussian(50.0))
    take(first, 1, SAMPLED)
    with open(path, "ab") as file:
        file.write(b'{"check": "')
    take(first, 2, SAMPLED)
    assert (first.total().runs, first.total().method) == (1, "PLD")
    first.close()


def test_a_refusal_names_the_other_runs_in_one_line_and_charges_nothing(path: Path) -> None:
    first, second = account(path, "first"), account(path, "second")
    for round_ in range(5):
        take(first, round_)
    before = path.read_bytes()
    with pytest.raises(BudgetSpent) as caught:
        take(second, 3)
    assert path.read_bytes() == before
    assert str(caught.value).endswith("stopped after round 2; charged to this data set by other runs: first (5)")
    assert "\n" not in str(caught.value)
    with pytest.raises(BudgetSpent) as caught:
        take(first, 6)
    assert "other runs" not in str(caught.value)
    first.close()
    second.close()


@pytest.mark.parametrize("count", [1, 2, 64, 66])
def test_a_budget_lasts_exactly_as_long_as_its_price(path: Path, count: int) -> None:
    """One price answers for up to 64 rounds; the last affordable one must be found all the same."""
    event = Sampled(Poisson(0.1), Gaussian(2.0))
    found = account(path, budget=price(Repeated(event, count)) * (1 + 1e-9))
    for round_ in range(count):
        take(found, round_, event)
    with pytest.raises(BudgetSpent):
        take(found, count, event)
    assert found.total().charges == count
    found.close()


def test_dearer_rounds_of_another_run_leave_fewer(path: Path) -> None:
    first = account(path, "first")
    take(first)  # Has looked ahead, and thinks that five are within the budget.
    second = account(path, "second")
    take(second, 1, Gaussian(5.1))  # Costs almost as much as four.
    with pytest.raises(BudgetSpent):
        take(first, 2)
    assert first.total().epsilon_upper <= first.budget
    first.close()
    second.close()


def test_what_has_no_price_passes_no_budget(path: Path) -> None:
    found = account(path, budget=1e9)
    with pytest.raises(BudgetSpent, match="to infinity"):
        take(found, 1, NonPrivate("all is seen"))
    found.close()


def test_a_run_that_goes_on_is_charged_for_what_is_missing_and_no_more(path: Path, tmp_path: Path) -> None:
    first = account(path, "first")
    for _ in range(3):
        take(first)
    first.settle([EVENT] * 3)
    first.settle([EVENT] * 2)  # A reserve here may precede the run's own by a crash; it stays charged.
    assert first.total().charges == 3
    first.settle([EVENT] * 4)
    assert first.total().charges == 4
    first.close()
    elsewhere = account(tmp_path / "other", "first")  # Another machine, or the ledger was lost.
    elsewhere.settle([EVENT] * 9)  # Released is released, whatever the budget says.
    assert elsewhere.total().charges == 9
    with pytest.raises(BudgetSpent):
        take(elsewhere)
    elsewhere.close()


def test_other_relations_are_refused_and_other_deltas_are_priced_anew(path: Path) -> None:
    first = account(path, "first")
    take(first)
    with pytest.raises(
        LedgerError, match=r"first spent .* for neighbours: add_remove, which does not add up"
    ) as caught:
        account(path, "second", neighbours="replace")
    assert "\n" not in str(caught.value)
    other = account(path, "third", delta=1e-7)
    assert other.total().epsilon_upper == epsilon(EVENT, 1e-7).upper
    first.close()
    other.close()


def test_reserves_of_other_units_pass_by(path: Path) -> None:
    found = account(path)
    found.reserve(1, Gaussian(0.1), unit="example", neighbours="replace")
    assert found.total().charges == 0
    found.close()


def test_the_data_set_pays_before_the_run(path: Path, tmp_path: Path) -> None:
    found = account(path, budget=price(EVENT))
    own = Ledger(tmp_path / "own", run="a", dataset="d", first=found.reserve)
    order: list[int] = []
    put = Ledger._put

    def noted(self: Ledger, data: bytes) -> None:
        order.append(1 if self is own else 0)
        put(self, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "_put", noted)
        own.reserve(1, EVENT, unit="silo", neighbours="add_remove")
    assert order == [0, 1]
    with pytest.raises(BudgetSpent):
        own.reserve(2, EVENT, unit="silo", neighbours="add_remove")
    assert own.charges("silo") == found.total().charges == 1
    own.close()
    found.close()


def test_a_torn_line_of_a_dead_run_is_charged_by_the_next(path: Path) -> None:
    first, second = account(path, "first"), account(path, "second")
    take(first)
    with open(path, "ab") as file:
        file.write(b'{"check": "')
    take(second)
    total = first.total()
    assert (total.charges, total.runs) == (3, 2)
    first.close()
    second.close()


@pytest.mark.parametrize("change", ["replaced", "removed", "cut", "edited"])
def test_a_ledger_that_changes_under_a_run_stops_it(path: Path, change: str) -> None:
    found = account(path)
    take(found)
    take(found)
    whole = path.read_bytes()
    if change == "cut":
        path.write_bytes(whole[: whole.index(b"\n") + 1])
    elif change == "edited":
        path.write_bytes(whole + b"{}\n")
    else:
        path.unlink()
        if change == "replaced":
            path.write_bytes(whole)
    with pytest.raises(LedgerError) as caught:
        take(found)
    assert "\n" not in str(caught.value)
    found.close()


RACES, RACERS, LAST = 100, 2, 3
RACE = """
import json, os, sys
from pathlib import Path

from privacy.account import Account, BudgetSpent
from privacy.events import Gaussian

folder, races, racers, budget = Path(sys.argv[1]), *map(int, sys.argv[2:4]), float(sys.argv[4])
event = Gaussian(10.0)


def race(path, name, gun):
    account = Account(
        path, run=name, dataset="d", unit="silo", neighbours="add_remove", delta=1e-5, budget=budget
    )
    os.read(gun, 1)
    granted = 0
    try:
        while True:
            account.reserve(granted + 1, event, unit="silo", neighbours="add_remove")
            granted += 1
    except BudgetSpent:
        os._exit(granted)


warm = Account(folder / "warm", run="w", dataset="d", unit="silo", neighbours="add_remove", delta=1e-5, budget=budget)
warm.reserve(1, event, unit="silo", neighbours="add_remove")
for number in range(races):
    gun, fire = os.pipe()
    children = []
    for racer in range(racers):
        child = os.fork()
        if child == 0:
            os.close(fire)
            try:
                race(folder / f"{number}", f"run-{racer}", gun)
            finally:
                os._exit(99)
        children.append(child)
    os.close(gun)
    os.close(fire)  # All who wait for a byte now go at once.
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


def test_of_two_racing_runs_one_gets_the_last_round_in_a_hundred_races(tmp_path: Path) -> None:
    """Real processes, each race on a data set of its own: of a budget of three rounds three are granted, never four."""
    budget = price(Repeated(EVENT, LAST)) * (1 + 1e-9)
    (tmp_path / "race.py").write_text(RACE)
    command = [sys.executable, str(tmp_path / "race.py"), str(tmp_path), str(RACES), str(RACERS), repr(budget)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    granted = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sum(each) for each in granted] == [LAST] * RACES, done.stderr
    for number in range(RACES):
        ledger = Ledger(tmp_path / str(number), run="look", dataset="d")
        assert ledger.charges("silo") == LAST
        ledger.close()
