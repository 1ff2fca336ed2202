"""Budgets of examples that belong to the data: what every silo's examples have spent in all runs with such a budget.

The charges lie in the same ledger as those of whole silos (`privacy.account`) and are written under the same lock, so
that a round is charged to both units or to neither. Each charge names its silos and the deal under which their numbers
mean something; what silos spent under another deal counts for every silo (`privacy.spending`).
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set

from privacy import filters
from privacy.account import BudgetSpent, Cumulative, by_others
from privacy.accountant import Neighbours
from privacy.checks import open_unit, positive
from privacy.events import Event
from privacy.ledger import Ledger, LedgerError
from privacy.spending import Spending

_AHEAD = 64  # Rounds that one price answers for, where a budget is far; near its end fewer.

Charges = Sequence[tuple[Event, Sequence[int]]]


class SiloAccounts:
    """The accounts of silos' examples in the ledger of a data set, as one run sees them.

    Args:
        ledger: the data set's, shared; whoever opened it closes it.
        run: what tells this run from all others, the same when it is resumed.
        unit: whose budget it is; charges of other units pass by.
        neighbours: the relation that the budgets are for.
        delta: of the budgets.
        deal: what says which rows each silo holds.
        budgets: epsilon that the examples of each silo may spend in all runs together.
        names: of the silos, for messages; None where nobody may learn which silo was asked.

    Raises:
        LedgerError: the file cannot be used, or holds charges for another relation.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        run: str,
        unit: str,
        neighbours: Neighbours,
        delta: float,
        deal: str,
        budgets: Sequence[float],
        names: Sequence[str] | None = None,
    ) -> None:
        for budget in budgets:
            positive(budget=budget)
        open_unit(delta=delta)
        self.run, self.unit, self.neighbours, self.delta, self.deal = run, unit, neighbours, delta, deal
        self.budgets, self.names = tuple(budgets), names
        self._affordable: dict[float, list[Counter[Event]]] = {}
        self._ledger, self._read, self._spending = ledger, 0, Spending()
        self._runs: set[str] = set()
        self._first: set[Event] = set()  # What was reserved before the second run came: it fixes a filter's order.
        with self._ledger.locked():
            self._catch_up()

    @contextlib.contextmanager
    def admit(self, round_: int, charges: Charges) -> Iterator[None]:
        """Looks at a round's price, lets all else of the round be charged inside, and then charges the silos.

        Whatever is raised inside, nothing is charged here; when this ends, the charges are on the disk.

        Args:
            round_: which round.
            charges: events, and the numbers of the silos whose examples each is charged to.

        Raises:
            BudgetSpent: a silo would pass its budget; nothing was charged.
            LedgerError: the ledger cannot be used.
        """
        with self._ledger.locked():
            self._catch_up()
            self._require(round_, charges)
            yield
            self._reserve(round_, charges)

    def settle(self, own: Mapping[int, Counter[Event]]) -> None:
        """Charges what this run's own ledger holds of each silo and the data set's does not, whatever the budget.

        So a run counts in full that goes on with another, or a lost, ledger of its data set; nothing counts twice.
        """
        with self._ledger.locked():
            self._catch_up()
            mine = Spending(each for each in self._ledger.counted() if (each.run, each.unit) == (self.run, self.unit))
            missing: dict[tuple[Event, int], list[int]] = {}
            for silo, spent in own.items():
                for event, times in (spent - mine.within(silo, self.deal)).items():
                    for attempt in range(times):
                        missing.setdefault((event, attempt), []).append(silo)
            self._reserve(0, [(event, silos) for (event, _), silos in missing.items()])

    def total(self) -> Cumulative:
        """What all runs have spent up to now, for the silo that spent most."""
        with self._ledger.locked():
            self._catch_up()
            histories = [self._spending.of(silo, self.deal) for silo in range(len(self.budgets))]
        prices = [self._price(spent, budget, self._runs) for spent, budget in zip(histories, self.budgets)]
        worst = max(range(len(prices)), key=lambda silo: prices[silo][0])
        found, method = prices[worst]
        charges = histories[worst].total()
        return Cumulative(found, self.delta, len(self._runs), charges, method, self.budgets[worst])

    def _catch_up(self) -> None:
        """Takes in what was added to the ledger since the last look."""
        new = self._ledger.entries[self._read :]
        if any(entry.kind == "void" for entry in new):
            self._spending, new = Spending(), self._ledger.counted()
            self._runs, self._first = set(), set()
        before = (len(self._runs), len(self._first))
        for entry in new:
            if entry.unit != self.unit or entry.event is None:
                continue
            if entry.neighbours != self.neighbours:
                raise LedgerError(
                    f"{self._ledger.path}: {entry.run} spent from this data set's budget of examples for neighbours: "
                    f"{entry.neighbours}, which does not add up with {self.neighbours}; remove budget.example"
                )
            self._spending.add(entry)
            self._runs |= set() if entry.torn else {entry.run}
            self._first |= {entry.event} if len(self._runs) < 2 else set()
        self._read = len(self._ledger.entries)
        if before != (len(self._runs), len(self._first)):
            self._affordable = {}  # Another rule may hold now.

    def _reserve(self, round_: int, charges: Charges) -> None:
        everyone = len(self.budgets)
        named = [(event, None if len(set(silos)) == everyone else silos) for event, silos in charges if silos]
        if named:
            self._ledger.reserve_each(round_, named, unit=self.unit, neighbours=self.neighbours, deal=self.deal)

    def _require(self, round_: int, charges: Charges) -> None:
        coming: dict[int, Counter[Event]] = {}
        for event, silos in charges:
            for silo in silos:
                coming.setdefault(silo, Counter())[event] += 1
        elsewhere = self._spending.elsewhere(self.deal)
        for silo, events in coming.items():
            spent = self._spending.within(silo, self.deal) + elsewhere
            if not self._affords(spent, events, self.budgets[silo]):
                raise BudgetSpent(self._refusal(round_, silo, spent + events))

    def _affords(self, spent: Counter[Event], coming: Counter[Event], budget: float) -> bool:
        """Whether one more round keeps a budget; one price answers for many rounds and silos, as fewer cost less."""
        wanted, known = spent + coming, self._affordable.get(budget, [])
        if any(wanted <= history for history in known):
            return True
        ahead = _AHEAD
        while ahead:
            history = spent + Counter({event: ahead * times for event, times in coming.items()})
            if self._price(history, budget, self._runs | {self.run})[0] <= budget:
                self._affordable[budget] = [other for other in known if not other <= history] + [history]
                return True
            ahead //= 2
        return False

    def _price(self, spent: Counter[Event], budget: float, runs: Set[str]) -> tuple[float, str]:
        """Epsilon of what one silo's examples spent in so many runs, and how it was found; see `privacy.filters`."""
        return filters.several(
            spent, runs=runs, first=self._first, budget=budget, delta=self.delta, neighbours=self.neighbours
        )

    def _refusal(self, round_: int, silo: int, after: Counter[Event]) -> str:
        price, _ = self._price(after, self.budgets[silo], self._runs | {self.run})
        whose = f"an example of silo {self.names[silo]!r}" if self.names else "an example, every silo counted as asked,"
        return (
            f"round {round_} would bring epsilon of {whose} over all runs on this data to "
            f"{'infinity' if math.isinf(price) else round(price, 4)}, above its budget of {self.budgets[silo]}; "
            f"stopped after round {max(round_ - 1, 0)}{by_others(self._ledger, self.unit, self.run)}"
        )
