"""The command line.

Every error that a user can cause is one line on stderr and exit code 2. Only the project's own error classes are
caught: a mistake in confide itself keeps its traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from simulations.commands import INTERRUPTED, OK, REFUSED
from simulations.commands import audit as audit_
from simulations.commands import certs as certs_
from simulations.commands import compare as compare_
from simulations.commands import config as config_
from simulations.commands import data as data_
from simulations.commands import doctor as doctor_
from simulations.commands import epsilon as epsilon_
from simulations.commands import explain as explain_
from simulations.commands import init as init_
from simulations.commands import join as join_
from simulations.commands import ledger as ledger_
from simulations.commands import listing as list_
from simulations.commands import metrics as metrics_
from simulations.commands import plan as plan_
from simulations.commands import predict as predict_
from simulations.commands import report as report_
from simulations.commands import run as run_
from simulations.commands import serve as serve_
from simulations.commands import silo as silo_
from simulations.commands import study as study_
from simulations.commands import sweep as sweep_
from simulations.commands import watch as watch_
from simulations.exits import codes
from simulations.version import version

COMMANDS = (
    *(run_, sweep_, study_, plan_, epsilon_, explain_, audit_, compare_, ledger_, predict_),
    *(watch_, report_, metrics_, init_, config_, list_, data_, doctor_),
    *(certs_, serve_, silo_, join_),
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and where to look."""
        self.exit(REFUSED, f"confide: {' '.join(message.split())}; see: {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        args = parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said what there is to say.
        return stop.code if isinstance(stop.code, int) else REFUSED
    try:
        code: int = args.execute(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `confide ... | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print("confide: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"confide: {where}{error.strerror or error}", file=sys.stderr)
        return REFUSED
    except Exception as error:
        code = next(codes(error), -1)
        if code < 0:
            raise
        for line in str(error).splitlines():
            print(f"confide: {line}", file=sys.stderr)
        return code


def parser() -> Parser:
    """The whole command line."""
    root = Parser(
        prog="confide",
        description="Federated learning, simulated and priced: claimed and measured epsilon side by side.",
        epilog="Start with: confide run quickstart",
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=f"confide {version()}")
    commands = root.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.NAME, help=command.HELP, description=command.HELP[0].upper() + command.HELP[1:], allow_abbrev=False
        )
        command.arguments(sub)
        sub.set_defaults(execute=command.execute)
    return root
