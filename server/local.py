"""What being asked costs a silo against the server: charged before it is asked, and no more often than it may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from privacy.account import BudgetSpent
from privacy.accountant import Neighbours, upper_epsilon
from privacy.events import Event, Repeated
from privacy.ledger import Entry, Ledger
from privacy.local import LOCAL, counts
from server.store import StoreError


@dataclass(frozen=True)
class LocalCharge:
    """The price of one update, seen by the server.

    Attributes:
        event: of an update.
        neighbours: the relation that it is priced for.
        delta: of the budget.
        budget: epsilon that no silo may pass, or None.
    """

    event: Event
    neighbours: Neighbours
    delta: float
    budget: float | None

    def reserve(self, ledger: Ledger, round_: int, cohort: Sequence[int]) -> Entry:
        """Charges the silos that are about to be asked; returns when it is on the disk."""
        return ledger.reserve(round_, self.event, unit=LOCAL, neighbours=self.neighbours, silos=tuple(cohort))

    def unchanged(self, ledger: Ledger) -> None:
        """Refuses a ledger that charged another price.

        Raises:
            StoreError: it did.
        """
        if not {self.event}.issuperset(ledger.spent(LOCAL)):
            raise StoreError(f"{ledger.path}: cannot go on, since the price of an update changed after it was started")

    @cached_property
    def limit(self) -> float:
        """How often a silo may be asked; infinite without a budget."""
        if self.budget is None:
            return math.inf
        within, beyond = 0, 1
        while self._price(beyond) <= self.budget:
            within, beyond = beyond, 2 * beyond
        while beyond - within > 1:
            middle = (within + beyond) // 2
            within, beyond = (middle, beyond) if self._price(middle) <= self.budget else (within, middle)
        return within

    def afford(self, ledger: Ledger, round_: int, cohort: Sequence[int], population: int) -> None:
        """Looks whether every silo of a cohort can pay for being asked once more.

        Raises:
            BudgetSpent: one cannot; nothing was asked or charged, and the run ends for all.
        """
        if not cohort or ledger.charges(LOCAL) < self.limit:  # Nobody was asked more often than all lines say.
            return
        spent = counts((entry for entry in ledger.counted() if entry.unit == LOCAL), population)
        times = 1 + max(spent[silo] for silo in cohort)
        if not times <= self.limit:
            raise BudgetSpent(
                f"round {round_} would ask a silo for the {times}th time and bring its epsilon against the server to "
                f"{round(self._price(times), 4)}, above privacy.local.budget of {self.budget}; "
                f"stopped after round {round_ - 1}"
            )

    def _price(self, times: int) -> float:
        return upper_epsilon(Repeated(self.event, times), self.delta, neighbours=self.neighbours)
