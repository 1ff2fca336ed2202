"""`confide explain`: a run's privacy in plain words, from its files alone."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.commands import OK, output
from simulations.commands.runs import read_result
from simulations.commands.shared import format_argument

if TYPE_CHECKING:
    from simulations.words.statement import Topic

NAME = "explain"
HELP = "say what a run's privacy means, and what it leaves out"
WIDTH = 80


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    format_argument(parser, choices=("text", "json"))


def execute(args: argparse.Namespace) -> int:
    """Prints the statement."""
    read_result(args.run)  # Its refusals know the usual mistakes.
    from simulations.report.run import read_run
    from simulations.words.statement import ledger_remarks, statement

    run = read_run(args.run)
    topics, remarks = statement(run), ledger_remarks(run, args.run)
    if args.format == "json":
        print(
            output.document(
                {
                    "run": str(args.run),
                    "name": run.result["name"],
                    "claimed": run.claimed,
                    "local": run.local,
                    "selection": run.selection,
                    "measured": run.measured,
                    "measured_example": list(run.measured_examples),
                    "statement": [{"topic": topic.title, "sentences": list(topic.sentences)} for topic in topics],
                    "warnings": remarks,
                }
            )
        )
        return OK
    print(describe(run.result["name"], topics, remarks))
    return OK


def describe(name: str, topics: Sequence[Topic], remarks: Sequence[str]) -> str:
    """The statement as paragraphs of at most 80 columns."""
    from simulations.words.privacy import READ_MORE

    blocks = [_wrapped(f"What the privacy of the run {name!r} means", "")]
    blocks += [_wrapped(f"Warning: {line}", "") for line in remarks]
    for topic in topics:
        blocks.append("\n".join([topic.title, *(_wrapped(line, "  ") for line in topic.sentences)]))
    return "\n\n".join([*blocks, _wrapped(READ_MORE, "")])


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text,
        min(output.width(), WIDTH),
        initial_indent=indent,
        subsequent_indent=indent and f"{indent}  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
