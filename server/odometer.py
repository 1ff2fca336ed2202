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
        curve: upper epsilon after 1, 2, ... charges, once it was asked for.
    """

    event: Event
    neighbours: Neighbours
    delta: float | None
    rounds: int
    budget: float | None = None
    before: tuple[Event, ...] = ()
    curve: list[float] = field(default_factory=list)

    def after(self, charges: int) -> float | None:
        """Upper epsilon after `charges` rounds; None without privacy."""
        if self.delta is None or isinstance(self.event, NonPrivate):
            return None
        if self.before:  # The curve is of equal rounds; a history with something before them is priced as it grows.
            return self._price(charges, self.delta) if charges >= self.rounds else self._grown(charges, self.delta)
        if not self.curve:
            self.curve = epsilon_curve(self.event, self._horizon(self.delta), self.delta, neighbours=self.neighbours)
        if charges <= len(self.curve):
            return self.curve[charges - 1] if charges else 0.0
        return self._price(charges, self.delta)

    def affords(self, charges: int) -> bool:
        """Whether `charges` rounds keep the budget; nothing without a price does."""
        if self.budget is None:
            return True
        after = self.after(charges)
        return after is not None and after <= self.budget

    def _horizon(self, delta: float) -> int:
        """The last round that the budget affords.

        The curve is tight at its end and loose before it: drawn to the end of the run, it would pass the budget up to
        a fifth too early.
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
