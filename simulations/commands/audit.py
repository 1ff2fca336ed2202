"""`confide audit`: what a run's canaries show, recomputed from their scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from simulations.commands import ALARM, OK, output
from simulations.commands.shared import format_argument

NAME = "audit"
HELP = "recompute a run's measured epsilon from its stored scores"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    format_argument(parser)


def execute(args: argparse.Namespace) -> int:
    """Prints the measurement; the exit code says whether it contradicts the claim."""
    from simulations import auditing
    from simulations.words import audit as audit_words

    found = auditing.results(auditing.read(args.run))
    if args.format == "json":
        print(output.document(found))
    else:
        print("\n\n".join(output.facts(list(audit_words.facts(each))) for each in audit_words.every(found)))
    audit_words.warn(found)
    return ALARM if audit_words.alarms(found) else OK
