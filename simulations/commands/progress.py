"""Progress on stderr: a live bar in a terminal, a line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from simulations.commands import output

if TYPE_CHECKING:
    from server.loop import RoundResult

LINES = 15  # About so many lines for a whole run, however long.

OnRound = Callable[["RoundResult"], None]


@contextmanager
def watch(rounds: int, *, done: int = 0, quiet: bool = False) -> Iterator[OnRound | None]:
    """Gives the function to call after every round.

    Args:
        rounds: of the whole run.
        done: rounds that an earlier process did.
        quiet: show nothing.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar(rounds, done) as show:
            yield show
    else:
        yield Lines(rounds, done).show


class Lines:
    """A line every few rounds, the first and the last always."""

    def __init__(self, rounds: int, done: int) -> None:
        self._rounds, self._every = rounds, max(1, -(-(rounds - done) // LINES))
        self._pace = Pace()

    def show(self, result: RoundResult) -> None:
        """Prints the round's line where one is due."""
        rate = self._pace.rate(result.round)
        if rate is None or result.round % self._every == 0 or result.round == self._rounds:
            parts = [f"round {result.round:>{len(str(self._rounds))}}/{self._rounds}", *said(result.row)]
            if rate is not None:
                parts.append(f"{rate:.1f} rounds/s")
            if rate is not None and result.round < self._rounds:
                parts.append(f"{output.span((self._rounds - result.round) / rate)} left")
            print("  ".join(parts), file=sys.stderr, flush=True)


class Pace:
    """Rounds per second, counted from the end of the first: that one also loads code and prices the whole run."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def rate(self, round_: int) -> float | None:
        """The rate at the end of a round; None at the first."""
        now = time.monotonic()
        if self._first is None:
            self._first = (round_, now)
            return None
        return (round_ - self._first[0]) / max(now - self._first[1], 1e-9)


def said(row: Mapping[str, Any]) -> list[str]:
    """Score and epsilon of a round's line, where it has them."""
    parts = [f"{name} {output.score(row[name])}" for name in ("accuracy", "mse") if row.get(name) is not None]
    if row.get("epsilon") is not None:
        parts.append(f"epsilon {output.at_most(row['epsilon'])}")
    return parts


@contextmanager
def _bar(rounds: int, done: int) -> Iterator[OnRound]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("round {task.completed}/{task.total}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[said]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    pace, last = Pace(), ""
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=rounds, completed=done, said="", rate="")

        def show(result: RoundResult) -> None:
            nonlocal last
            last = "  ".join(said(result.row)) or last
            rate = pace.rate(result.round)
            progress.update(task, completed=result.round, said=last, rate="" if rate is None else f"{rate:.1f}/s")

        yield show
