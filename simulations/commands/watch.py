"""`confide watch`: a run as it goes, from its folder alone."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.commands import OK
from strategies.schema import ConfigError

if TYPE_CHECKING:
    from simulations.watching.bars import Glyphs
    from simulations.watching.live import Watched

NAME = "watch"
HELP = "the live view of a run: rounds, epsilon, cohorts, failures; from its folder, without touching it"
STORE = Path("runs")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "run",
        metavar="RUN",
        type=Path,
        nargs="?",
        default=STORE,
        help=f"the folder of a run, or a folder of those, whose newest it is; default: {STORE}",
    )
    parser.add_argument("--wait", action="store_true", help="wait for a run that has not begun")
    parser.add_argument("--once", action="store_true", help="print one frame and leave")
    parser.add_argument("--every", metavar="S", type=float, default=0.5, help="seconds between looks; default: 0.5")
    parser.add_argument("--ascii", action="store_true", help="no block characters; of itself where the locale is C")


def execute(args: argparse.Namespace) -> int:
    """Shows the run until it has ended or whoever watches leaves."""
    if not 0.05 <= args.every <= 3600:
        raise ConfigError([f"--every: must be 0.05 to 3600 seconds, found {args.every:g}"])
    from simulations.watching.bars import Glyphs, needs_ascii
    from simulations.watching.live import Watched

    glyphs = Glyphs(ascii=args.ascii or needs_ascii())
    try:
        watched = Watched(_resolved(args))
        _show(args, watched, glyphs)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # Behind the ^C of the terminal.
    return OK


def _show(args: argparse.Namespace, watched: Watched, glyphs: Glyphs) -> None:
    from rich.console import Console

    from simulations.watching import live

    console = Console(highlight=False, markup=False)
    if args.once:
        live.once(watched, console, glyphs)
        return
    if not console.is_terminal or console.is_dumb_terminal:
        live.lines(watched, lambda line: print(line, flush=True), every_s=args.every)
    else:
        with suppress(live.Left):
            live.live(watched, console, glyphs, every_s=args.every)
        live.once(watched, console, glyphs, wait=False)
    if watched.course is not None and watched.course.ended:
        print(live.outcome(watched.course), flush=True)


def _resolved(args: argparse.Namespace) -> Path:
    """The run's folder; of a folder of runs, the newest one."""
    from simulations.commands.runs import RunError
    from simulations.metrics.exporter import found

    folder: Path = args.run
    if args.wait and not (folder / "experiment.yaml").exists():
        print(f"confide: {folder}: waiting for a run to begin", file=sys.stderr, flush=True)
    while not (folder / "experiment.yaml").exists():
        runs = found(folder) if folder.is_dir() else []
        if args.wait:  # Then one that has ended is not what is waited for.
            runs = [run for run in runs[:1] if not _ended(run)]
        if runs:
            return runs[0]
        if not args.wait:
            raise RunError(f"{folder}: holds no run; give the folder of a run, or wait for one: confide watch --wait")
        time.sleep(args.every)
    return folder


def _ended(run: Path) -> bool:
    from simulations.watching.course import Course

    course = Course(run)
    course.refresh()
    return course.ended
