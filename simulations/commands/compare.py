"""`confide compare`: finished runs side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.commands import OK, output, summary
from simulations.commands.runs import expand, read_result
from simulations.commands.shared import format_argument
from simulations.comparing import Group, Member, cautions, differences, grouped, paired, settings, unpaired
from simulations.outcomes import numbers

NAME = "compare"
HELP = "put finished runs side by side; as a page: confide report RUN RUN"
SHOWN = 20  # Keys that differ; runs that differ in more are not of one kind.


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run, or of one with --seeds")
    format_argument(parser)


def execute(args: argparse.Namespace) -> int:
    """Prints a line per run, the keys that differ, and paired differences between experiments."""
    folders = expand(args.runs)
    members = [Member(folder, read_result(folder), settings(folder)) for folder in folders]
    groups = grouped(members)
    keys = differences([each.settings for each in members])
    pairs, notes = _pairs(groups)
    notes = [*cautions([each.result for each in members]), *notes]
    if args.format == "json":
        _document(members, keys, notes, pairs)
        return OK
    _table(members)
    _keys(keys)
    _differences(groups, pairs)
    for line in notes:
        print(f"\nnote: {line}")
    return OK


def _document(
    members: Sequence[Member], keys: Mapping[str, Any], notes: Sequence[str], pairs: Sequence[Mapping[str, Any]]
) -> None:
    runs = [
        {"run": str(each.folder), **{name: each.result[name] for name in ("name", "rounds", "seed")}}
        | numbers(each.result)
        for each in members
    ]
    print(output.document({"runs": runs, "differences": keys, "notes": notes, "paired": pairs}))


def _table(members: Sequence[Member]) -> None:
    rows = [numbers(each.result) for each in members]
    columns = summary.shown(rows)
    lines = [
        [str(each.folder), str(each.result["rounds"]), *summary.cells(row, columns)] for each, row in zip(members, rows)
    ]
    print(output.table(["run", "rounds", *summary.titles(columns)], lines))


def _keys(keys: Mapping[str, Sequence[Any]]) -> None:
    if not keys:
        return
    print("\nwhat differs")
    some = list(keys.items())[:SHOWN]
    print(output.facts([(f"  {key}", " | ".join(map(output.word, values))) for key, values in some]))
    if len(keys) > SHOWN:
        print(f"  and {len(keys) - SHOWN} more keys")


def _pairs(groups: Sequence[Group]) -> tuple[list[dict[str, Any]], list[str]]:
    """Every experiment against the first, seed by seed; and why not, where it may not be."""
    base, rows, notes = groups[0], [], []
    for other in groups[1:]:
        reason = unpaired(base, other)
        if reason is not None:
            notes.append(f"{other.letter} ({other.label}) is not paired with {base.letter} ({base.label}): {reason}")
            continue
        for found in paired(base, other):
            low, high = found.interval or (None, None)
            said = {"experiment": other.label, "against": base.label, "number": found.column, "seeds": found.seeds}
            rows.append(said | {"mean": found.mean, "low": low, "high": high})
    return rows, notes


def _differences(groups: Sequence[Group], pairs: Sequence[Mapping[str, Any]]) -> None:
    """The pairs that have an interval, so more than one seed."""
    known = [each for each in pairs if each["low"] is not None]
    if not known:
        return
    print(f"\nabove {groups[0].label}, seed by seed, with 95% intervals")

    def count(each: Mapping[str, Any]) -> str:
        return str(len(each["seeds"]))

    cells = [
        [each["experiment"], each["number"], *(f"{each[name]:+.4g}" for name in ("mean", "low", "high")), count(each)]
        for each in known
    ]
    print(output.table(["experiment", "number", "difference", "from", "to", "seeds"], cells, left=2))
