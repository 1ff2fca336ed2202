"""What a run has cost so far, and will have cost at its end: priced from its ledgers, beside the view and seldom.

The lines of a round hold the epsilon of whole silos; that of a row, and that against the server, are in the ledgers
alone while a run goes on. Pricing loads the accountant and may take seconds, so a thread does it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privacy.chain import Entry
    from simulations.watching.course import Course

LEAST_S, SHARE = 5.0, 0.05  # Between two pricings, and the most of the time that goes into them.


@dataclass(frozen=True)
class Prices:
    """Upper bounds on epsilon.

    Attributes:
        spent: by unit; of rows and of silos that noise their own updates, what the worst silo spent.
        end: of whole silos once all rounds are done, if none is done again; None where that is not known.
    """

    spent: Mapping[str, float] = field(default_factory=dict)
    end: float | None = None


def appraise(folder: Path, rounds: int, separation: int) -> Prices:
    """Prices the ledgers of a run.

    Args:
        folder: of the run.
        rounds: of the whole run.
        separation: rounds from a silo's turn to its next, of which one is paid; 1 where silos take no turns.

    Raises:
        ValueError: a ledger that cannot be read, or has no price; `confide ledger verify` says more.
    """
    from privacy.chain import load
    from simulations import ledgers
    from simulations.ledger_claims import groups, price

    spent: dict[str, float] = {}
    end = None
    for place in ledgers.find(folder):
        deltas = ledgers.deltas_of(place)
        for (unit, neighbours), entries in groups(load(place.ledger).chain.counted()).items():
            if unit not in deltas:
                continue
            upper = price(entries, deltas[unit], neighbours=neighbours).upper
            spent[unit] = max(spent.get(unit, 0.0), upper)
            if unit == "silo":
                end = _at_the_end(entries, deltas[unit], neighbours, rounds, separation)
    return Prices(spent, end)


def _at_the_end(entries: Sequence[Entry], delta: float, neighbours: Any, rounds: int, separation: int) -> float | None:
    """As `simulations.results` prices a run that was stopped had it gone on."""
    from privacy.accountant import upper_epsilon
    from privacy.events import Composed, Repeated, Turn

    last = max(entries, key=lambda entry: entry.round)
    if last.event is None or not last.round:
        return None
    event = replace(last.event, charged=True) if isinstance(last.event, Turn) else last.event
    rest = -(-rounds // separation) - -(-last.round // separation)
    counts = Counter(entry.event for entry in entries if entry.event is not None)
    history = [Repeated(each, times) for each, times in counts.items()]
    return upper_epsilon(Composed((*history, Repeated(event, max(rest, 0)))), delta, neighbours=neighbours)


class Pricer:
    """Keeps the prices of a run about up to date."""

    def __init__(self) -> None:
        self.found = Prices()
        self._thread: threading.Thread | None = None
        self._due = 0.0

    def refresh(self, course: Course, *, wait: bool = False) -> None:
        """Begins a pricing where one is due.

        Args:
            course: of the run.
            wait: price now, and come back with the price.
        """
        if not course.private or course.state != "open" or course.touched("ledger.jsonl") is None:
            return  # Nothing to price, or a result that says it.
        if wait:
            self._price(course.folder, course.rounds, _separation(course))
        elif time.monotonic() >= self._due and (self._thread is None or not self._thread.is_alive()):
            args = (course.folder, course.rounds, _separation(course))
            self._thread = threading.Thread(target=self._price, args=args, daemon=True)
            self._thread.start()

    def _price(self, folder: Path, rounds: int, separation: int) -> None:
        begun = time.monotonic()
        try:
            self.found = appraise(folder, rounds, separation)
        except (ValueError, OSError):
            self.found = Prices()  # The view goes on without; confide ledger says what is wrong.
        took = time.monotonic() - begun
        self._due = time.monotonic() + max(LEAST_S, took / SHARE)


def _separation(course: Course) -> int:
    cohort = course.section("cohort")
    return int(cohort.get("separation") or 1) if cohort.get("sampling") == "cyclic" else 1
