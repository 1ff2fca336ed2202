"""Budgets of silos' examples over all runs: silos add up one by one, both units or neither, races have one winner."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from privacy.account import Account, BudgetSpent
from privacy.accountant import epsilon
from privacy.events import Composed, Event, Gaussian, NonPrivate, Poisson, Repeated, Sampled
from privacy.ledger import Ledger, LedgerError, load
from privacy.silo_accounts import SiloAccounts

DELTA = 1e-5
EVENT = Gaussian(10.0)
SILOS = 4


def price(*events: Event) -> float:
    return epsilon(Composed(events), DELTA).upper


def within(rounds: int, event: Event = EVENT) -> float:
    """A budget that lasts for just so many rounds."""
    return price(Repeated(event, rounds)) * (1 + 1e-9)


class Run:
    """A run on the data set of a ledger's file, which is closed when the test ends."""

    opened: ClassVar[list[Ledger]] = []

    def __init__(self, path: Path, run: str = "a", **changes: Any) -> None:
        self.ledger = Ledger(path, run=run, dataset="d", shared=True)
        self.opened.append(self.ledger)
        options: dict[str, Any] = {
            "neighbours": "add_remove",
            "delta": DELTA,
            "deal": "x",
            "budgets": [within(3)] * SILOS,
        }
        self.accounts = SiloAccounts(self.ledger, run=run, unit="example", **options | changes)

    def take(self, silos: Sequence[int], round_: int = 1, event: Event = EVENT) -> None:
        with self.accounts.admit(round_, [(event, silos)]):
            pass


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "ledger"
    while Run.opened:
        Run.opened.pop().close()


def test_silos_of_two_runs_add_up_one_by_one(path: Path) -> None:
    first, second = Run(path, "first"), Run(path, "second")
    first.take([0, 1], 1)
    second.take([0, 2], 1)
    first.take([0], 2)  # Silo 0's third, of two runs.
    with pytest.raises(BudgetSpent, match="round 2 would bring epsilon"):
        second.take([2, 0], 2)
    second.take([2, 1, 3], 2)
    second.take([2, 1], 3)
    for silo in (0, 1, 2):
        with pytest.raises(BudgetSpent):
            first.take([silo], 9)
    first.take([3], 9)
    total = first.accounts.total()
    assert (total.epsilon_upper, total.runs, total.charges, total.delta) == (price(Repeated(EVENT, 3)), 2, 3, DELTA)


def test_a_refusal_charges_nothing_and_names_a_silo_only_where_it_may(path: Path) -> None:
    names = ["north", "south", "east", "west"]
    told, secret = Run(path, "told", names=names), Run(path, "secret")
    for round_ in (1, 2, 3):
        told.take([1], round_)
    before = path.read_bytes()
    with pytest.raises(BudgetSpent) as caught:
        told.take([0, 1], 4)
    after = f"to {price(Repeated(EVENT, 4)):.4f}".rstrip("0")
    assert f"an example of silo 'south' over all runs on this data {after}, above its budget of" in str(caught.value)
    assert str(caught.value).endswith("; stopped after round 3")
    with pytest.raises(BudgetSpent) as caught:
        secret.take([0, 1, 2, 3], 1)
    assert "an example, every silo counted as asked, over all runs" in str(caught.value)
    assert not any(name in str(caught.value) for name in names)
    assert str(caught.value).endswith("stopped after round 0; charged to this data set by other runs: told (3)")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("count", [1, 2, 64, 66])
def test_a_budget_lasts_exactly_as_long_as_its_price(path: Path, count: int) -> None:
    event = Sampled(Poisson(0.1), Gaussian(2.0))
    run = Run(path, budgets=[within(count, event)] * SILOS)
    for round_ in range(count):
        run.take(range(SILOS), round_, event)
    with pytest.raises(BudgetSpent):
        run.take([0], count, event)
    assert run.accounts.total().charges == count


def test_each_silo_has_its_own_budget(path: Path) -> None:
    run = Run(path, budgets=[within(1), within(2), within(3), within(1)])
    run.take(range(SILOS), 1)
    run.take([1, 2], 2)
    run.take([2], 3)
    for silo in range(SILOS):
        with pytest.raises(BudgetSpent):
            run.take([silo], 4)


def test_two_charges_of_a_silo_in_one_round_are_one_price(path: Path) -> None:
    run = Run(path, budgets=[within(1)] * SILOS)
    with pytest.raises(BudgetSpent), run.accounts.admit(1, [(EVENT, [0]), (EVENT, [0, 1])]):
        pass


def test_another_deal_of_the_same_rows_does_not_start_afresh(path: Path) -> None:
    first = Run(path, "first", deal="x")
    first.take([0], 1)
    first.take([1], 2)
    first.take([1], 3)
    second = Run(path, "second", deal="y", budgets=[within(3)] * 2)
    second.take([0, 1], 1)  # Either may hold silo 1's rows, which were charged twice.
    for silo in (0, 1):
        with pytest.raises(BudgetSpent):
            second.take([silo], 2)
    assert second.accounts.total().charges == 3
    with pytest.raises(BudgetSpent):  # And back: silo 1 has two of its own and one from there.
        first.take([1], 4)
    first.take([0], 4)


def test_a_round_is_charged_to_both_units_or_to_neither(path: Path) -> None:
    whole = Account(
        path, run="a", dataset="d", unit="silo", neighbours="add_remove", delta=DELTA, budget=within(2)
    )  # fmt: skip
    examples = SiloAccounts(
        whole.ledger, run="a", unit="example", neighbours="add_remove", delta=DELTA, deal="x", budgets=[within(3)] * 2
    )

    def both(round_: int, silos: Sequence[int]) -> None:
        with examples.admit(round_, [(EVENT, silos)]):
            whole.reserve(round_, EVENT, unit="silo", neighbours="add_remove")

    both(1, [0, 1])
    examples.settle({0: Counter({EVENT: 3})})
    before = path.read_bytes()
    with pytest.raises(BudgetSpent, match="an example"):
        both(2, [0])
    assert path.read_bytes() == before
    both(2, [1])
    before = path.read_bytes()
    with pytest.raises(BudgetSpent, match="epsilon of all runs on this data"):
        both(3, [1])
    assert path.read_bytes() == before
    assert (whole.total().charges, examples.total().charges) == (2, 3)
    whole.close()


def test_the_lock_is_held_until_the_silos_are_charged(path: Path) -> None:
    """The inner reserve of whole silos must not let the file go: another run would look before the silos are in it."""
    whole = Account(path, run="a", dataset="d", unit="silo", neighbours="add_remove", delta=DELTA, budget=within(9))
    examples = SiloAccounts(
        whole.ledger, run="a", unit="example", neighbours="add_remove", delta=DELTA, deal="x", budgets=[within(3)]
    )
    with examples.admit(1, [(EVENT, [0])]):
        whole.reserve(1, EVENT, unit="silo", neighbours="add_remove")
        with open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    whole.close()


def test_what_fails_inside_is_not_charged(path: Path) -> None:
    run = Run(path)
    with pytest.raises(LedgerError, match="full"), run.accounts.admit(1, [(EVENT, [0])]):
        raise LedgerError("the disk is full")
    assert run.accounts.total().charges == 0


def test_what_has_no_price_passes_no_budget(path: Path) -> None:
    with pytest.raises(BudgetSpent, match="to infinity"):
        Run(path, budgets=[1e9]).take([0], 1, NonPrivate("all is seen"))


def test_a_run_that_goes_on_is_charged_silo_by_silo_for_what_is_missing(path: Path, tmp_path: Path) -> None:
    run, dear = Run(path, "first"), Gaussian(4.0)
    run.take([0, 1], 1)
    own = {0: Counter({EVENT: 1}), 1: Counter({EVENT: 3, dear: 1}), 2: Counter({EVENT: 1})}
    run.accounts.settle(own)
    lines = len(path.read_bytes().splitlines())
    run.accounts.settle(own)  # Nothing counts twice.
    assert len(path.read_bytes().splitlines()) == lines
    assert load(path).chain.spent_by("example", range(3)) == own
    elsewhere = Run(tmp_path / "other", "first")  # Another machine, or the ledger was lost.
    elsewhere.accounts.settle({silo: Counter({EVENT: 9}) for silo in range(SILOS)})  # Released is released.
    (first, *_) = map(json.loads, (tmp_path / "other").read_text().splitlines())
    assert "silos" not in first  # All of them.
    with pytest.raises(BudgetSpent):
        elsewhere.take([3])


def test_what_another_run_or_deal_paid_does_not_settle_a_runs_debt(path: Path) -> None:
    Run(path, "other").take([0])
    Run(path, "mine", deal="old").take([0])
    run = Run(path, "mine")
    run.accounts.settle({0: Counter({EVENT: 1})})
    assert run.accounts.total().charges == 3


@pytest.mark.parametrize("event", [EVENT, Gaussian(7.0)])
def test_a_torn_line_counts_for_all_silos(path: Path, event: Event) -> None:
    first, second = Run(path, "first"), Run(path, "second")
    first.take([2], 1, event)
    with open(path, "ab") as file:
        file.write(b'{"check": "')
    second.take([0], 1, event if event == EVENT else Gaussian(100.0))
    assert second.accounts.total().epsilon_upper >= price(Repeated(event, 2))  # Silo 2: its own, and the torn one.


def test_other_relations_are_refused_and_other_units_pass_by(path: Path) -> None:
    run = Run(path, "first")
    run.ledger.reserve(1, Gaussian(0.1), unit="silo", neighbours="replace")
    run.take([0])
    assert run.accounts.total().charges == 1
    run.ledger.reserve(1, EVENT, unit="example", neighbours="replace")
    with pytest.raises(LedgerError, match=r"first spent .* of examples for neighbours: replace") as caught:
        Run(path, "second")
    assert "\n" not in str(caught.value)


def test_a_void_gives_back(path: Path) -> None:
    run = Run(path)
    for round_ in (1, 2, 3):
        run.take([0], round_)
    with run.ledger.locked():
        run.ledger.void(run.ledger.open_reserves()[0])
    run.take([0], 4)
    with pytest.raises(BudgetSpent):
        run.take([0], 5)


@pytest.mark.parametrize("change", [{"budgets": [0.0]}, {"budgets": [float("nan")]}, {"delta": 1.0}])
def test_budgets_that_are_none_are_refused(path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Run(path, **change)


RACES, LAST = 50, 3
RACE = """
import json, os, sys
from pathlib import Path

from privacy.account import BudgetSpent
from privacy.events import Gaussian
from privacy.ledger import Ledger
from privacy.silo_accounts import SiloAccounts

folder, races, budget = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
event = Gaussian(10.0)


def opened(path, name):
    ledger = Ledger(path, run=name, dataset="d", shared=True)
    return SiloAccounts(
        ledger, run=name, unit="example", neighbours="add_remove", delta=1e-5, deal="x", budgets=[budget] * 2
    )


def race(path, name, gun):
    accounts, granted = opened(path, name), 0
    os.read(gun, 1)
    try:
        while True:
            with accounts.admit(granted + 1, [(event, [0, 1])]):
                granted += 1
    except BudgetSpent:
        os._exit(granted)


with opened(folder / "warm", "w").admit(1, [(event, [0])]):
    pass
for number in range(races):
    gun, fire = os.pipe()
    children = []
    for racer in range(2):
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


def test_of_two_racing_runs_one_gets_the_last_round(tmp_path: Path) -> None:
    """Real processes, each race on a data set of its own: of a budget of three rounds three are granted, never four."""
    (tmp_path / "race.py").write_text(RACE)
    command = [sys.executable, str(tmp_path / "race.py"), str(tmp_path), str(RACES), repr(within(LAST))]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    granted = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sum(each) for each in granted] == [LAST] * RACES, done.stderr
    for number in range(RACES):
        assert load(tmp_path / str(number)).chain.charges("example") == LAST
