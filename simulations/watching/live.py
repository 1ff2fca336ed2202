"""Following a run: a live view in a terminal, a line a round elsewhere, or one frame."""

from __future__ import annotations

import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from simulations.commands.progress import said as score_of
from simulations.metrics.tail import Tail
from simulations.watching.bars import Glyphs
from simulations.watching.course import Course
from simulations.watching.frame import Frame, clean, said
from simulations.watching.pricing import Pricer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

HINT = "q leaves; the run goes on"


class Left(Exception):
    """Whoever watched has seen enough."""


@dataclass
class Watched:
    """A run's folder, whatever becomes of it.

    Attributes:
        folder: of the run.
        course: what it says; None before it holds a run.
        pricer: of what it costs.
    """

    folder: Path
    course: Course | None = None
    pricer: Pricer = field(default_factory=Pricer)

    def refresh(self, *, wait: bool = False) -> Course | None:
        """Reads what is new; begins anew where the folder holds another run."""
        if self.course is not None and self.course.replaced:
            self.course, self.pricer = None, Pricer()
        if self.course is None:
            if not (self.folder / "experiment.yaml").exists():  # Not there yet, or gone.
                return None
            self.course = Course(self.folder)
        self.course.refresh()
        self.pricer.refresh(self.course, wait=wait)
        return self.course


def once(watched: Watched, console: Console, glyphs: Glyphs, *, wait: bool = True) -> None:
    """Prints one frame; `wait`: until it is priced."""
    course = watched.refresh(wait=wait)
    if course is None:
        console.print(_waiting(watched))
        return
    for line in Frame(console.width, glyphs).lines(course, watched.pricer.found):
        console.print(line, no_wrap=True, crop=True)


def lines(watched: Watched, show: Callable[[str], None], *, every_s: float) -> None:
    """Shows a line for every round, those that are done included, until the run has ended."""
    shown, course = 0, None
    tail = Tail(watched.folder / "rounds.jsonl")
    while True:
        now = watched.refresh()
        if now is not course:
            shown, course = 0, now
        ended = course is not None and course.ended  # Before the rows: what is written after it is shown next time.
        tail.fresh()
        for row in tail.lines():
            if course is not None and row["round"] > shown:  # After a resume the file comes again.
                shown = row["round"]
                show(line_of(row, course.rounds))
        if ended:
            return
        time.sleep(every_s)


def line_of(row: Any, rounds: int) -> str:
    """A round in a line."""
    why = "".join(f"  {times} x {clean(str(reason))}" for reason, times in row["failure_reasons"].items())
    parts = [f"round {row['round']:>{len(str(rounds))}}/{rounds}", *score_of(row)]
    seconds = sum(row["seconds"].values())
    return "  ".join([*parts, f"{row['arrived']} of {row['cohort']} silos", f"{seconds:.3g} s"]) + why


def live(watched: Watched, console: Console, glyphs: Glyphs, *, every_s: float) -> None:
    """Draws frame after frame over the whole terminal until the run has ended or whoever watches leaves.

    Raises:
        Left: by a key or a signal.
    """
    from rich.live import Live

    with _left_on_signals(), _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as view:
        while True:
            course = watched.refresh()
            view.update(_drawn(watched, course, console.width, glyphs), refresh=True)
            if course is not None and course.ended:
                return
            if pressed(every_s):
                raise Left


def _drawn(watched: Watched, course: Course | None, width: int, glyphs: Glyphs) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    if course is None:
        return _waiting(watched)
    hint = Text(HINT, style="dim", no_wrap=True)
    return Group(*Frame(width, glyphs).lines(course, watched.pricer.found), hint)


def _waiting(watched: Watched) -> RenderableType:
    from rich.text import Text

    return Text(f"{watched.folder}: waiting for a run to begin", no_wrap=True, overflow="crop")


def outcome(course: Course) -> str:
    """How a run ended, in a line."""
    parts = [said(course)[0], *score_of({**course.scores, "epsilon": course.last.get("epsilon")})]
    return f"{clean(str(course.folder))}: {', '.join(parts)}"


@contextmanager
def _left_on_signals() -> Iterator[None]:
    """A signal leaves as a key does, so that the terminal is as it was."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Left

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Gives a function that waits so many seconds for a q; keys are read one by one while it is open."""
    if not sys.stdin.isatty():

        def sleep(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        yield sleep
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> bool:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return bool(ready) and sys.stdin.read(1) in ("q", "Q", "")

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
