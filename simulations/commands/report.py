"""`confide report`: writes a run's report.html again, or puts several runs on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from simulations.commands import OK
from simulations.commands.runs import expand, read_result
from strategies.schema import ConfigError

NAME = "report"
HELP = "write a run's report.html again, or several runs on one page"
PAGE, COMPARISON = "report.html", "comparison.html"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run, or of one with --seeds")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help=f"the page; default: RUN/{PAGE}, or {COMPARISON} beside the first of several runs",
    )


def execute(args: argparse.Namespace) -> int:
    """Writes the page and says where it is."""
    folders = expand(args.runs)
    for folder in folders:
        read_result(folder)
    path = _path(args)
    if len(folders) == 1:
        from simulations.report.page import write_report

        print(write_report(folders[0], path))
        return OK
    from simulations.report.comparison import write_comparison

    command = ["confide", "report", *map(str, args.runs), *(["--out", str(args.out)] if args.out is not None else [])]
    print(write_comparison(folders, path, command))
    return OK


def _path(args: argparse.Namespace) -> Path:
    """Where the page goes; refused before any work where it cannot."""
    path: Path | None = args.out
    if path is None:
        if len(args.runs) == 1:
            return Path(args.runs[0]) / PAGE  # Of a run, or of a folder with a run per seed.
        return Path(args.runs[0]).resolve().parent / COMPARISON
    if path.is_dir():
        raise ConfigError([f"--out: {path} is a folder; name a file in it, such as {path / PAGE}"])
    if not path.parent.is_dir():
        raise ConfigError([f"--out: {path.parent} is no folder; make it first"])
    return path
