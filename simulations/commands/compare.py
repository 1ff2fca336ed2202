"""`confide compare`: finished runs side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.commands import OK, output, summary
from simulations.commands.runs import expand, read_result
from simulations.commands.shared import format_argument

NAME = "compare"
HELP = "put finished runs side by side"
SHOWN = 20  # Keys that differ; runs that differ in more are not of one kind.


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run, or of one with --seeds")
    format_argument(parser)


def execute(args: argparse.Namespace) -> int:
    """Prints a line per run, and the keys that differ."""
    folders = expand(args.runs)
    results = [read_result(folder) for folder in folders]
    keys = differences([settings(folder) for folder in folders])
    warnings = cautions(results)
    rows = [summary.numbers(result) for result in results]
    if args.format == "json":
        runs = [
            {"run": str(folder), "name": result["name"], "rounds": result["rounds"], "seed": result["seed"], **row}
            for folder, result, row in zip(folders, results, rows)
        ]
        print(output.document({"runs": runs, "differences": keys, "notes": warnings}))
        return OK
    columns = summary.shown(rows)
    lines = [
        [str(folder), str(result["rounds"]), *summary.cells(row, columns)]
        for folder, result, row in zip(folders, results, rows)
    ]
    print(output.table(["run", "rounds", *summary.titles(columns)], lines))
    if keys:
        print("\nwhat differs")
        some = list(keys.items())[:SHOWN]
        print(output.facts([(f"  {key}", " | ".join(map(output.word, values))) for key, values in some]))
        if len(keys) > SHOWN:
            print(f"  and {len(keys) - SHOWN} more keys")
    for line in warnings:
        print(f"\nnote: {line}")
    return OK


def settings(folder: Path) -> dict[str, Any]:
    """The keys of a run's experiment, `train.learning_rate` to its value."""
    from strategies.yaml_text import read_yaml

    return _flat(read_yaml(folder / "experiment.yaml"))


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys whose values are not the same in all runs, to the value of each (None where it has no such key)."""
    keys = dict.fromkeys(key for run in runs for key in run)
    values = {key: [run.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def cautions(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why numbers of these runs may not be of one kind."""
    claims = [result["privacy"]["silo"] for result in results if result["privacy"]["silo"] is not None]
    lines = []
    if len({claim["delta"] for claim in claims}) > 1:
        lines.append("the epsilons are at different deltas and do not compare")
    if len({claim["neighbours"] for claim in claims}) > 1:
        lines.append("the epsilons are for different neighbouring relations and do not compare")
    if len({result["data"] for result in results}) > 1:
        lines.append("the runs are on different data")
    return lines


def _flat(section: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section.items():
        at = f"{path}.{name}" if path else str(name)
        found |= _flat(value, at) if isinstance(value, Mapping) else {at: value}
    return found
