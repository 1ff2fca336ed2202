"""Epsilon after every round of a run, at the price of a look-up."""

from __future__ import annotations

from dataclasses import dataclass, field

from privacy.accountant import Neighbours, Spend, epsilon, epsilon_curve
from privacy.events import Composed, Event, NonPrivate, Repeated


@dataclass
class Odometer:
    """Epsilon after so many charges of the run's event; the curve is priced once.

    Attributes:
        event: what one round costs a silo.
        neighbours: the relation that epsilon is for.
        delta: of epsilon; None without privacy.
        rounds: of the whole run.
        budget: epsilon that no round may pass, or None.
        before: what was released before round 1.
        end: the last round that the budget affords, once it was asked for.
        curve: upper epsilon after 1, 2, ... charges, likewise.
    """

    event: Event
    neighbours: Neighbours
    delta: float | None
    rounds: int
    budget: float | None = None
    before: tuple[Event, ...] = ()
    end: int = 0
    curve: list[float] = field(default_factory=list)

    def after(self, charges: int) -> float | None:
        """Upper epsilon after `charges` rounds, never falling; None without privacy."""
        if self.delta is None or isinstance(self.event, NonPrivate):
            return None
        self.end = self.end or self._horizon(self.delta)
        if charges >= self.end:
            return self._price(charges, self.delta)
        if self.before:  # The curve is of equal rounds; a history with something before them is priced as it grows.
            return min(self._grown(charges, self.delta), self._price(self.end, self.delta))
        if not self.curve:
            self.curve = epsilon_curve(self.event, self.end, self.delta, neighbours=self.neighbours)
        return self.curve[charges - 1] if charges else 0.0

    def affords(self, charges: int) -> bool:
        """Whether `charges` rounds keep the budget; nothing without a price does."""
        if self.budget is None:
            return True
        after = self.after(charges)
        return after is not None and after <= self.budget

    def _horizon(self, delta: float) -> int:
        """The last round that the budget affords.

        Bounds are tight there and loose before it: drawn to the end of the run, they would pass the budget too early.
        """
        if self.budget is None or self._price(self.rounds, delta) <= self.budget:
            return self.rounds
        within, beyond = 0, self.rounds
        while beyond - within > 1:
            middle = (within + beyond) // 2
            within, beyond = (middle, beyond) if self._price(middle, delta) <= self.budget else (within, middle)
        return max(within, 1)

    def _price(self, charges: int, delta: float) -> float:
        history = Composed((*self.before, Repeated(self.event, charges)))
        return epsilon(history, delta, neighbours=self.neighbours).upper

    def _grown(self, charges: int, delta: float) -> float:
        spend = Spend(delta, self.neighbours)
        for event in self.before:
            spend.add(event)
        spend.add(self.event, charges)
        return spend.upper()
