"""A run's result in words, and several runs side by side."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations import audit_words
from simulations.commands import output

Result = Mapping[str, Any]


def describe(result: Result, folder: Path, *, public: bool) -> str:
    """What a person wants to know of a run that ended; `public`: its score is of the public test set."""
    pairs = [
        *_measured(result, public=public),
        *_epsilons(result),
        *_failures(result["updates"]),
        ("bytes", _bytes(result["communication"])),
        ("time in rounds", output.span(result["seconds"])),
        *(("note", note) for note in result["notes"]),
        ("run folder", str(folder)),
        ("report", str(folder / "report.html")),
    ]
    rounds = f"{result['rounds']} round{'' if result['rounds'] == 1 else 's'}"
    what = f"{result['strategy']} on {result['data']}, {result['silos']} silos, {rounds}"
    return f"{result['name']}: {what}, seed {result['seed']}\n\n{output.facts(pairs)}"


def metric(result: Result) -> str:
    """What the score of a result is called."""
    return "mse" if "mse" in result["metrics"] else "accuracy"


def _measured(result: Result, *, public: bool) -> Iterator[tuple[str, str]]:
    metrics, name = result["metrics"], metric(result)
    if metrics[name] is None:
        yield name, "not measured: there is no public test set, and no held-out rows that may be looked at"
    else:
        yield (
            name,
            f"{output.score(metrics[name])} on {'the public test set' if public else 'rows held out in the silos'}",
        )
    if metrics["loss"] is not None:
        yield "loss", output.score(metrics["loss"])
    if metrics["per_silo"] is not None:
        spread = ", ".join(f"{value:.4f} ({name})" for name, value in metrics["per_silo"].items())
        yield "over silos", spread


def _epsilons(result: Result) -> Iterator[tuple[str, str]]:
    claimed, measured = result["privacy"]["silo"], result["privacy"]["measured"]
    if claimed is None:
        yield "epsilon claimed", "no privacy: epsilon is infinite"
        return
    value = output.bracket(claimed["epsilon_lower"], claimed["epsilon_upper"])
    relation = output.RELATIONS[claimed["neighbours"]]
    note = f"; {claimed['note']}" if claimed["note"] else ""
    yield "epsilon claimed", f"{value} at delta {output.short(claimed['delta'])}, for {relation}{note}"
    if claimed.get("epsilon_planned") is not None:
        planned = output.at_most(claimed["epsilon_planned"])
        yield "epsilon planned", f"{planned}; that is the claim if the run was stopped for what it had shown"
    cumulative = result["privacy"].get("cumulative")
    if cumulative is not None:
        runs = f"{cumulative['runs']} run{'' if cumulative['runs'] == 1 else 's'}"
        how = ", by a filter" if cumulative["method"] == "filter" else ""
        spent = output.at_most(cumulative["epsilon_upper"])
        yield "epsilon of data", f"{spent}, by {runs} with a budget on this data{how}"
    if measured is not None:
        interval = f"{output.short(measured['lower'])} to {output.short(measured['upper'])}"
        words = f"{output.short(measured['epsilon'])}, 95% interval {interval}, from {measured['canaries']} canaries"
        yield "epsilon measured", f"{words}. {audit_words.sentence(measured)}"
        if audit_words.unsound(measured):
            yield "warning", audit_words.unsound(measured)


def _failures(updates: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if updates["failed"]:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in updates["reasons"].items())
        yield "failed updates", f"{updates['failed']} of {updates['arrived'] + updates['failed']}: {reasons}"


def _bytes(sent: Mapping[str, Any]) -> str:
    both = f"{output.size(sent['bytes_up'])} up, {output.size(sent['bytes_down'])} down"
    return both if sent["ratio"] is None else f"{both}; {sent['ratio']:.2f} times the dense model both ways"


COLUMNS = ("accuracy", "mse", "loss", "epsilon", "measured", "bytes_up", "bytes_down", "seconds")


def numbers(result: Result) -> dict[str, float | None]:
    """The numbers of a result that can be averaged and compared, by the names of `COLUMNS`."""
    metrics, privacy, sent = result["metrics"], result["privacy"], result["communication"]
    found: dict[str, float | None] = {metric(result): metrics[metric(result)], "loss": metrics["loss"]}
    if privacy["silo"] is not None:
        found["epsilon"] = privacy.get("selection", privacy["silo"])[
            "epsilon_upper"
        ]  # Of a sweep: the choice included.
    if privacy["measured"] is not None:
        found["measured"] = privacy["measured"]["epsilon"]
    return found | {"bytes_up": sent["bytes_up"], "bytes_down": sent["bytes_down"], "seconds": result["seconds"]}


def spread(results: Sequence[Result]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and sample standard deviation (n - 1) of every number that all runs have."""
    rows = [numbers(result) for result in results]
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for name in COLUMNS:
        values = [row[name] for row in rows if row.get(name) is not None]
        known = [value for value in values if value is not None]
        if rows and len(known) == len(rows):
            mean[name] = statistics.fmean(known)
            std[name] = statistics.stdev(known) if len(known) > 1 else None
    return mean, std


def cells(row: Mapping[str, float | None], columns: Sequence[str]) -> list[str]:
    """One line of a table of numbers."""
    return [_cell(name, row.get(name)) for name in columns]


def shown(rows: Sequence[Mapping[str, float | None]]) -> list[str]:
    """The columns that some row has a value for, in their order."""
    return [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]


def titles(columns: Sequence[str]) -> list[str]:
    """Columns as a reader calls them."""
    return [{"bytes_up": "up", "bytes_down": "down"}.get(name, name) for name in columns]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("bytes_up", "bytes_down"):
        return output.size(value)
    if name == "seconds":
        return f"{value:.1f}"
    if name == "epsilon":
        return output.at_most(value)
    return f"{value:.3f}" if name == "measured" else output.score(value)


def seeds_table(results: Sequence[Result]) -> str:
    """A line per seed, then mean and standard deviation."""
    rows = [numbers(result) for result in results]
    columns = shown(rows)
    lines = [[str(result["seed"]), *cells(row, columns)] for result, row in zip(results, rows)]
    if len(rows) > 1:
        mean, std = spread(results)
        lines += [["mean", *cells(mean, columns)], ["+- std", *cells(std, columns)]]
    return output.table(["seed", *titles(columns)], lines)
