"""The silo's own ledger of what its rows have spent in all runs, and the budgets of its policy.

It lies with the silo, is written by the silo, and knows prices that the silo computed. A round is charged, on the disk,
before its first step; budgets are looked at for all units before any is charged. A unit that a run does not protect is
charged once for it, as a release without guarantee: whoever asks for that protection later will find it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from client.policy import UNITS, Policy, Price
from privacy.account import Account
from privacy.chain import Entry, Head
from privacy.events import Composed, Event, NonPrivate, Repeated
from privacy.ledger import Charge, Ledger
from privacy.terms import Neighbours

PAID = Composed(())  # A round of a run that was charged as a whole.
Due = tuple[str, Neighbours, Event]


class Purse:
    """What a run may spend of a data set.

    Args:
        folder: of the silo's ledgers, one a data set; made when missing.
        run: id of the run, on every line.
        dataset: fingerprint of the rows.
        prices: of the units that the run protects.
        policy: of the data holder.

    Raises:
        LedgerError: the ledger cannot be used, or holds charges for another relation.
    """

    def __init__(self, folder: Path, *, run: str, dataset: str, prices: Sequence[Price], policy: Policy) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.run, self.prices, self.path = run, tuple(prices), folder / f"{dataset}.jsonl"
        told = [Charge(unit, neighbours, event) for unit, neighbours, event in self._possible()]
        with ExitStack() as opened:
            self._ledger = opened.enter_context(
                closing(Ledger(self.path, run=run, dataset=dataset, told=told, shared=True))
            )
            self._accounts = {
                price.unit: Account(
                    self.path,
                    run=run,
                    dataset=dataset,
                    unit=price.unit,
                    neighbours=price.neighbours,
                    delta=allowance.delta,
                    budget=allowance.epsilon,
                    ledger=self._ledger,
                )
                for price in prices
                if (allowance := policy.allowance(price.unit)) is not None
            }
            with self._ledger.locked():
                pass  # What is on the disk is known from here on, and mended where a crash tore it.
            opened.pop_all()

    @property
    def head(self) -> Head:
        """The last line that was read or written."""
        return self._ledger.head

    def require(self, round_: int, attempt: int) -> None:
        """Looks whether an attempt at a round could be paid, and charges nothing.

        Raises:
            BudgetSpent: a unit would pass its budget.
            LedgerError: the ledger cannot be used.
        """
        with self._ledger.locked():
            due = self._due(round_, attempt)
            for unit, account in self._accounts.items():
                account.require(round_, _joint([event for whose, _, event in due if whose == unit]))

    def charge(self, round_: int, attempt: int) -> list[Entry]:
        """Charges an attempt at a round to every unit; when this returns, all lines are on the disk.

        Raises:
            BudgetSpent: a unit would pass its budget; nothing was charged.
            LedgerError: the ledger cannot be used.
        """
        with self._ledger.locked():
            due = self._due(round_, attempt)
            self.require(round_, attempt)
            return [
                self._ledger.reserve(round_, event, unit=unit, neighbours=neighbours) for unit, neighbours, event in due
            ]

    def commit(self, entries: Sequence[Entry]) -> None:
        """Says that a round came to its end; changes nothing of what counts."""
        with self._ledger.locked():
            for entry in entries:
                self._ledger.commit(entry)

    def waited(self) -> list[float]:
        """Seconds of each wait for the disk since the last call."""
        return self._ledger.waited()

    def close(self) -> None:
        """Lets the file go."""
        self._ledger.close()

    def _due(self, round_: int, attempt: int) -> list[Due]:
        mine = [entry for entry in self._ledger.counted() if entry.run == self.run]
        due: list[Due] = []
        for price in self.prices:
            lines = [entry for entry in mine if entry.unit == price.unit]
            due += [(price.unit, price.neighbours, event) for event in _next(price, round_, attempt, lines)]
        bare = set(UNITS) - {price.unit for price in self.prices} - {entry.unit for entry in mine}
        return due + [_unprotected(unit) for unit in UNITS if unit in bare]

    def _possible(self) -> Iterator[Due]:
        """All that a line of this run can have reserved, for one that a crash tore."""
        for price in self.prices:
            for event in (price.event, price.whole):
                if event is not None:
                    yield price.unit, price.neighbours, event
        for unit in UNITS:
            if unit not in {price.unit for price in self.prices}:
                yield _unprotected(unit)


def _joint(events: Sequence[Event]) -> Event:
    """One event for all; a single one stays as it is, so that a budget knows equal rounds of two runs as equal."""
    return events[0] if len(events) == 1 else Composed(tuple(events))


def _next(price: Price, round_: int, attempt: int, lines: Sequence[Entry]) -> list[Event]:
    """What an attempt at a round costs, where a run was charged `lines` before.

    Where a silo pays for rounds that it is not asked in, it pays for the attempts that it was not asked in, too: their
    number tells of them. Whatever is asked again is paid again, as its batches or its noise are others.
    """
    if price.whole is None:
        return [price.event]
    here = [entry.event for entry in lines if entry.round == round_]
    if here:
        known = 1 + sum(event.times for event in here if isinstance(event, Repeated))
        return [Repeated(price.event, max(attempt - known, 1))]
    first = PAID if lines else price.whole
    return [first] if attempt == 1 else [first, Repeated(price.event, attempt - 1)]


def _unprotected(unit: str) -> Due:
    return unit, "add_remove", NonPrivate(f"the run does not protect the unit {unit}")
