"""What releases cost together whose privacy parameters were chosen after looking at earlier ones.

The accountant adds up releases whose noise and sampling were fixed beforehand, whatever else is chosen as one goes.
Where these are chosen too, epsilon is no longer a number to add up but a budget to keep, by a filter: a rule that
refuses what would pass it. Three are used here, and which of them holds must not be chosen by looking either:

- One run, or runs whose releases all cost the same: their parameters are fixed. How many there are may be decided by
  looking, for fewer of the same are a part of more of the same. So the accountant's tight price is a filter.
- Gaussians that saw every unit: the accountant's exact price is a filter as well (Smith & Thakurta 2022, arXiv
  2210.17520: fully adaptive Gaussian composition costs no more than the fixed one).
- Anything else: a Renyi filter at one order (Feldman & Zrnic 2021, arXiv 2008.11193, theorem 4.3; Lecuyer 2021, arXiv
  2103.01379). The order is fixed by budget and delta and by what the first run releases, before anybody has looked;
  the best of all orders in hindsight, which is what the accountant takes, is not covered by the theorem.

Whoever does let results decide between them (run 2 repeats run 1, or turns to other noise) has the same epsilon at
three times delta at most: delta sums over outcomes, and those that end under one of the three are some of those that
its filter allows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from privacy.accountant import Neighbours, upper_bound
from privacy.checks import open_unit, positive
from privacy.events import Composed, Event, Repeated
from privacy.terms import history_of

FILTER = "filter"


class BudgetSpent(Exception):
    """The next release would pass the budget; nothing of it was asked or charged."""


class RenyiFilter:
    """A budget for releases whose parameters may be chosen as one goes.

    Args:
        budget: epsilon that all of them together may cost.
        delta: in (0, 1).
        order: the Renyi order, > 1, fixed before anything is released; see `order_for`.
        neighbours: as in `privacy.accountant.epsilon`.

    >>> from privacy.events import Gaussian
    >>> kept = RenyiFilter(2.0, 1e-5, 10.2)
    >>> kept.spend(Gaussian(10.0), 20)  # A divergence of 20 * 10.2 / (2 * 10^2) = 1.02, of the 1.10 there are.
    >>> kept.affords(Gaussian(10.0)), kept.affords(Gaussian(10.0), 2)
    (True, False)
    """

    def __init__(self, budget: float, delta: float, order: float, neighbours: Neighbours = "add_remove") -> None:
        from privacy import rdp

        positive(budget=budget)
        open_unit(delta=delta)
        if order not in rdp.ORDERS:
            raise ValueError(f"order must be one of privacy.rdp.ORDERS, got {order!r}")
        self.budget, self.delta, self.order = float(budget), float(delta), float(order)
        self.neighbours: Neighbours = neighbours
        self.allowance = float(rdp.allowances(budget, delta)[order == rdp.ORDERS][0])
        """The Renyi divergence that the budget comes to; negative where it is too small for this order."""
        self.spent = 0.0
        """The Renyi divergence of what was released."""

    def affords(self, event: Event, times: int = 1) -> bool:
        """Whether so many releases keep the budget; written so that NaN does not."""
        return self.spent + self._cost(event, times) <= self.allowance

    def spend(self, event: Event, times: int = 1) -> None:
        """Charges releases, before they are done.

        Raises:
            BudgetSpent: they would pass the budget; nothing was charged.
            Unpriceable: they have no price under the relation.
        """
        if not self.affords(event, times):
            raise BudgetSpent(f"{times} more would pass the budget of epsilon {self.budget:g} at order {self.order:g}")
        self.charge(event, times)

    def charge(self, event: Event, times: int = 1) -> None:
        """Charges what was released whatever the budget says."""
        self.spent += self._cost(event, times)

    def upper(self) -> float:
        """Epsilon of what was charged, at the one order: at most `budget` exactly where the filter was kept."""
        return max(0.0, self.spent + self.budget - self.allowance)

    def _cost(self, event: Event, times: int) -> float:
        from privacy import rdp

        return float(rdp.curve(Repeated(event, times), self.neighbours)[self.order == rdp.ORDERS][0])


def order_for(first: Iterable[Event], budget: float, delta: float, neighbours: Neighbours = "add_remove") -> float:
    """The Renyi order at which a budget lasts longest for rounds of all of `first`, which must be known beforehand."""
    from privacy import rdp

    allowed, curve = rdp.allowances(budget, delta), rdp.curve(Composed(tuple(first)), neighbours)
    # Divided, where that means how long it lasts; a budget too small for one round is met by no order.
    scores = allowed / curve if ((allowed > 0) & (curve > 0)).any() else allowed - curve
    return float(rdp.ORDERS[int(scores.argmax())])


def several(
    spent: Mapping[Event, int],
    *,
    runs: Collection[str],
    first: Iterable[Event],
    budget: float,
    delta: float,
    neighbours: Neighbours = "add_remove",
) -> tuple[float, str]:
    """Epsilon of releases by runs of which each may have been planned after looking at the ones before, and the method.

    Args:
        spent: how often each event was released.
        runs: who released them.
        first: the events that were released before the second run came.
        budget: that was to be kept, and fixes the filter's order.
        delta: in (0, 1).
        neighbours: as in `privacy.accountant.epsilon`.

    Raises:
        Unpriceable: something has no price under the relation.
    """
    if len(runs) < 2 or fixed(spent):
        history = Composed(tuple(Repeated(event, times) for event, times in spent.items()))
        return upper_bound(history, delta, neighbours=neighbours)
    kept = RenyiFilter(budget, delta, order_for(first, budget, delta, neighbours), neighbours)
    for event, times in sorted(spent.items(), key=repr):  # A sum in one order, whatever the order of the charges.
        kept.charge(event, times)
    return (kept.upper(), FILTER) if math.isfinite(kept.spent) else (math.inf, "none")


def fixed(events: Collection[Event]) -> bool:
    """Whether releases of these cost the same whoever decided on them, and when: one event, or unsampled Gaussians."""
    return len(set(events)) < 2 or all(history_of(event).samplers <= {type(None)} for event in events)
