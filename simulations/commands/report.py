"""`confide report`: writes a run's report.html again."""

from __future__ import annotations

import argparse
from pathlib import Path

from simulations.commands import OK
from simulations.commands.runs import read_result

NAME = "report"
HELP = "write a run's report.html again"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")


def execute(args: argparse.Namespace) -> int:
    """Writes the report and says where it is."""
    read_result(args.run)
    from simulations.report.page import write_report

    print(write_report(args.run))
    return OK
