"""A budget that belongs to the data: one ledger per data set, in which every run with a budget reserves first.

Two runs on one data set add up, and of two that race for the last round one gets it: what is spent is read, the price
is looked at and the reserve is written under one lock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from privacy import filters
from privacy.accountant import Neighbours
from privacy.chain import Entry
from privacy.checks import open_unit, positive
from privacy.events import Event
from privacy.filters import BudgetSpent
from privacy.ledger import TORN, Ledger, LedgerError

__all__ = ["Account", "BudgetSpent", "Cumulative"]

_AHEAD = 64  # Rounds that one price answers for, where the budget is far; near its end fewer.


@dataclass(frozen=True)
class Cumulative:
    """What all runs with a budget have spent on a data set.

    Attributes:
        epsilon_upper: what is proved; infinite where something unprotected was released.
        delta: at which it holds.
        runs: how many runs there were.
        charges: how many reserves.
        method: how it was found: as the accountant's, or `filter` where runs differ in noise or sampling.
        budget: that the filter keeps.
    """

    epsilon_upper: float
    delta: float
    runs: int
    charges: int
    method: str
    budget: float


@dataclass(frozen=True)
class Spent:
    """All that counts in a data set's ledger.

    Attributes:
        counts: how often each event was reserved.
        runs: by whom; a torn line was reserved by nobody who went on.
        first: the events that were reserved before the second run came.
    """

    counts: Counter[Event]
    runs: frozenset[str]
    first: frozenset[Event]

    def more(self, run: str, event: Event, times: int) -> Spent:
        """With further reserves of a run."""
        first = self.first | {event} if self.runs <= {run} else self.first
        return Spent(self.counts + Counter({event: times}), self.runs | {run}, first)


class Account:
    """The ledger of a data set, as one run sees it; the lock is held for a reserve, not for the run.

    Args:
        path: the data set's ledger; made when missing.
        run: what tells this run from all others, the same when it is resumed.
        dataset: fingerprint of the data set.
        unit: whose budget it is; reserves of other units pass by.
        neighbours: the relation that the budget is for.
        delta: of the budget.
        budget: epsilon that all runs together may spend.
        ledger: the data set's, where the account of another unit has opened it already.

    Raises:
        LedgerError: the file cannot be used, or holds charges for another relation.
    """

    def __init__(
        self,
        path: Path,
        *,
        run: str,
        dataset: str,
        unit: str,
        neighbours: Neighbours,
        delta: float,
        budget: float,
        ledger: Ledger | None = None,
    ) -> None:
        positive(budget=budget)
        open_unit(delta=delta)
        self.run, self.unit, self.neighbours, self.delta, self.budget = run, unit, neighbours, delta, budget
        self._affordable = Spent(Counter(), frozenset(), frozenset())
        self._ledger = Ledger(path, run=run, dataset=dataset, shared=True) if ledger is None else ledger
        try:
            with self._ledger.locked():
                self._spent()
        except LedgerError:
            self.close()
            raise

    @property
    def ledger(self) -> Ledger:
        """The data set's, to be shared with the account of another unit."""
        return self._ledger

    def reserve(self, round_: int, event: Event, /, *, unit: str, neighbours: str) -> None:
        """Charges a round to the data set; returns only when it is on the disk.

        Raises:
            BudgetSpent: all runs together would pass the budget; nothing was charged.
            LedgerError: the ledger cannot be used.
        """
        if unit != self.unit:
            return
        with self._ledger.locked():
            self.require(round_, event)
            self._ledger.reserve(round_, event, unit=unit, neighbours=neighbours)

    def require(self, round_: int, event: Event) -> None:
        """Looks at what a round would cost, and charges nothing.

        Raises:
            BudgetSpent: all runs together would pass the budget.
        """
        with self._ledger.locked():
            spent = self._spent()
            if not self._affords(spent, event):
                raise BudgetSpent(self._refusal(round_, spent, event))

    def settle(self, own: Sequence[Event]) -> None:
        """Charges what this run's own ledger holds and the data set's does not.

        So a run counts in full that goes on with another, or a lost, ledger of its data set. What was released is
        charged whatever the budget; what is charged already is not charged again.
        """
        with self._ledger.locked():
            self._spent()
            mine = Counter(entry.event for entry in self._ledger.counted() if self._is_mine(entry.run, entry.unit))
            for event, times in Counter(own).items():
                for _ in range(times - mine[event]):
                    self._ledger.reserve(0, event, unit=self.unit, neighbours=self.neighbours)

    def total(self) -> Cumulative:
        """What all runs have spent up to now."""
        with self._ledger.locked():
            spent = self._spent()
        return _cumulative(spent, delta=self.delta, budget=self.budget, neighbours=self.neighbours)

    def close(self) -> None:
        """Lets the file go."""
        self._ledger.close()

    def _is_mine(self, run: str, unit: str) -> bool:
        return run == self.run and unit == self.unit

    def _spent(self) -> Spent:
        """All that counts.

        Raises:
            LedgerError: a charge is for another relation; no epsilon covers both.
        """
        own = [entry for entry in self._ledger.counted() if entry.unit == self.unit and entry.event is not None]
        for entry in own:
            if entry.neighbours != self.neighbours:
                raise LedgerError(
                    f"{self._ledger.path}: {entry.run} spent from this data set's budget for neighbours: "
                    f"{entry.neighbours}, which does not add up with {self.neighbours}; set privacy.silo.neighbours: "
                    f"{entry.neighbours}, or remove budget"
                )
        return _all(own)

    def _affords(self, spent: Spent, event: Event) -> bool:
        """Whether one more `event` keeps the budget; one price answers for many rounds, as fewer cost less."""
        wanted, known = spent.more(self.run, event, 1), self._affordable
        if wanted.counts <= known.counts and (wanted.runs, wanted.first) == (known.runs, known.first):
            return True
        ahead = _AHEAD
        while ahead:
            history = spent.more(self.run, event, ahead)
            if self._price(history)[0] <= self.budget:
                self._affordable = history
                return True
            ahead //= 2
        return False

    def _price(self, spent: Spent) -> tuple[float, str]:
        """Epsilon, and how it was found; see `privacy.filters` for when which."""
        return _price(spent, delta=self.delta, budget=self.budget, neighbours=self.neighbours)

    def _refusal(self, round_: int, spent: Spent, event: Event) -> str:
        after, method = self._price(spent.more(self.run, event, 1))
        how = ", by a filter as they differ in noise or sampling" if method == filters.FILTER else ""
        return (
            f"round {round_} would bring epsilon of all runs on this data to "
            f"{'infinity' if math.isinf(after) else round(after, 4)}, above the budget of {self.budget}{how}; "
            f"stopped after round {max(round_ - 1, 0)}{by_others(self._ledger, self.unit, self.run)}"
        )


def total(
    entries: Iterable[Entry], *, unit: str, delta: float, budget: float, neighbours: Neighbours = "add_remove"
) -> Cumulative:
    """What the counted entries of a data set's ledger have spent, for who only looks: no lock, no file.

    Args:
        entries: that count, of all units.
        unit: whose budget it is.
        delta: of the budget.
        budget: epsilon that all runs together may spend.
        neighbours: the relation; charges for another have no price beside it, and make epsilon infinite.
    """
    own = [entry for entry in entries if entry.unit == unit and entry.event is not None]
    spent = _all(own)
    if any(entry.neighbours != neighbours for entry in own):
        return Cumulative(math.inf, delta, len(spent.runs), spent.counts.total(), "none", budget)
    return _cumulative(spent, delta=delta, budget=budget, neighbours=neighbours)


def _all(entries: Iterable[Entry]) -> Spent:
    counts: Counter[Event] = Counter()
    runs: dict[str, None] = {}
    first: set[Event] = set()
    for entry in entries:
        assert entry.event is not None  # Only reserves count.
        counts[entry.event] += 1
        if not entry.torn:
            runs[entry.run] = None
        if len(runs) < 2:
            first.add(entry.event)
    return Spent(counts, frozenset(runs), frozenset(first))


def _price(spent: Spent, *, delta: float, budget: float, neighbours: Neighbours) -> tuple[float, str]:
    return filters.several(
        spent.counts, runs=spent.runs, first=spent.first, budget=budget, delta=delta, neighbours=neighbours
    )


def _cumulative(spent: Spent, *, delta: float, budget: float, neighbours: Neighbours) -> Cumulative:
    found, method = _price(spent, delta=delta, budget=budget, neighbours=neighbours)
    return Cumulative(found, delta, len(spent.runs), spent.counts.total(), method, budget)


def by_others(ledger: Ledger, unit: str, run: str) -> str:
    """The end of a refusal that names the other runs; empty where there are none."""
    others = Counter(entry.run for entry in ledger.counted() if entry.unit == unit and entry.run != run)
    named = ", ".join(f"{'a torn line' if name == TORN else name} ({times})" for name, times in others.most_common(5))
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return f"; charged to this data set by other runs: {named}{more}" if others else ""
