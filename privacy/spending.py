"""What the examples of every silo have spent: an example pays for what its own silo was asked, and for nothing else.

Rows may be dealt to silos in more than one way, and a silo's number means something under one deal only. An example of
a silo may have been in any silo of another deal: it is charged the most that one of those was, event by event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from privacy.accountant import Bracket, Neighbours, epsilon
from privacy.chain import Entry
from privacy.events import Composed, Event, Repeated

History = frozenset[tuple[Event, int]]
UNNAMED = -1  # Stands for the silos that no charge names.


class Spending:
    """Charges of one unit by deal and silo; a charge that names no silo counts for all of its deal.

    Args:
        entries: reserves that count; those without an event are passed over.

    >>> from privacy.events import Gaussian
    >>> one, two = (Entry(1, "reserve", 1, "example", "add_remove", Gaussian(z), None, silos=(0,)) for z in (1.0, 2.0))
    >>> sorted(Spending([one, one, two]).of(0).values()), Spending([one]).of(1)
    ([1, 2], Counter())
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._named: dict[str, dict[int, Counter[Event]]] = {}
        self._all: dict[str, Counter[Event]] = {}
        self._most: dict[str, Counter[Event]] = {}
        for entry in entries:
            self.add(entry)

    @property
    def silos(self) -> dict[str, list[int]]:
        """Every deal that was charged, and the silos that its charges name."""
        return {deal: sorted(silos) for deal, silos in self._named.items()}

    def add(self, entry: Entry) -> None:
        """Takes a reserve that counts."""
        if entry.event is None:
            return
        everyone = self._all.setdefault(entry.deal, Counter())
        named = self._named.setdefault(entry.deal, {})
        most = self._most.setdefault(entry.deal, Counter())
        if entry.silos is None:
            everyone[entry.event] += 1
        for silo in set(entry.silos or ()):
            own = named.setdefault(silo, Counter())
            own[entry.event] += 1
            most[entry.event] = max(most[entry.event], own[entry.event])

    def within(self, silo: int, deal: str = "") -> Counter[Event]:
        """What a silo was charged under its own deal."""
        return self._named.get(deal, {}).get(silo, Counter()) + self._all.get(deal, Counter())

    def elsewhere(self, deal: str = "") -> Counter[Event]:
        """The most that an example can have been charged under all other deals."""
        others = [name for name in self._all if name != deal]
        return sum((self._all[name] + self._most[name] for name in others), Counter[Event]())

    def of(self, silo: int, deal: str = "") -> Counter[Event]:
        """All that may have been charged to an example that is in this silo under this deal."""
        return self.within(silo, deal) + self.elsewhere(deal)

    def histories(self) -> list[tuple[Counter[Event], list[tuple[str, int]]]]:
        """What the silos that charges name have spent, each with the silos (deal and number) that spent just that.

        Where a charge names none there is one more history under its deal, that of the silos UNNAMED.
        """
        found: dict[History, tuple[Counter[Event], list[tuple[str, int]]]] = {}
        for deal, silos in self.silos.items():
            for silo in [*silos, *([UNNAMED] if self._all[deal] else [])]:
                spent = self.of(silo, deal)
                found.setdefault(history(spent), (spent, []))[1].append((deal, silo))
        return list(found.values())


def history(spent: Mapping[Event, int]) -> History:
    """Events and how often, whatever their order."""
    return frozenset(spent.items())


def event_of(spent: Iterable[tuple[Event, int]]) -> Event:
    """Events, and how often each, as one event."""
    return Composed(tuple(Repeated(event, times) for event, times in spent))


def worst(spending: Spending, delta: float, *, neighbours: Neighbours) -> Bracket:
    """The price of the silo that spent most; that of nothing where nothing was charged.

    Raises:
        Unpriceable: what some silo spent has no price.
    """
    prices = [epsilon(event_of(spent.items()), delta, neighbours=neighbours) for spent, _ in spending.histories()]
    return max(prices, key=lambda found: found.upper, default=epsilon(Composed(()), delta, neighbours=neighbours))
