"""A run's result in words, and several runs side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.commands import output
from simulations.outcomes import COLUMNS, Result, metric, numbers, spread
from simulations.words import audit as audit_words
from simulations.words import groups as group_words


def describe(result: Result, folder: Path, *, public: bool) -> str:
    """What a person wants to know of a run that ended; `public`: its score is of the public test set."""
    pairs = [
        *_measured(result, public=public),
        *_attacks(result.get("attacks")),
        *_epsilons(result),
        *group_words.told(result),
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


def _attacks(found: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if found is None:
        return
    for label, success in found["success"].items():
        if success is not None:
            yield label.replace("_", " "), f"succeeds on {output.score(success)} of triggered rows of other classes"
    caught = found["detection"]
    if caught is not None and caught["recall"] is not None and caught["false_flag_rate"] is not None:
        shares = f"{output.score(caught['recall'])} of malicious, {output.score(caught['false_flag_rate'])} of benign"
        yield "left out", f"{shares} silos"


def _epsilons(result: Result) -> Iterator[tuple[str, str]]:
    claimed, measured = result["privacy"]["silo"], result["privacy"]["measured"]
    example = result["privacy"].get("example")
    if example is not None:
        yield "epsilon of a row", _of_examples(example)
    rows = result["privacy"].get("cumulative_example")
    if rows is not None:
        yield (
            "rows, all runs",
            f"{output.at_most(rows['epsilon_upper'])}, in the silo that spent most, by {_runs(rows)}",
        )
    for each in result["privacy"].get("measured_example") or []:
        yield from _shown(each, f"measured, silo {each['silo']}", "canary examples")
    yield from _local(result["privacy"].get("local"), alone=claimed is None)
    if claimed is None and result["privacy"].get("local") is not None:
        return
    if claimed is None:
        none = "a whole silo has no privacy: its" if example is not None else "no privacy:"
        yield "epsilon claimed", f"{none} epsilon is infinite"
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
        yield "epsilon of data", f"{output.at_most(cumulative['epsilon_upper'])}, by {_runs(cumulative)}"
    if measured is not None:
        yield from _shown(measured, "epsilon measured", "canaries")


def _shown(measured: audit_words.Measured, name: str, canaries: str) -> Iterator[tuple[str, str]]:
    interval = f"{output.short(measured['lower'])} to {output.short(measured['upper'])}"
    words = f"{output.short(measured['epsilon'])}, 95% interval {interval}, from {measured['canaries']} {canaries}"
    yield name, f"{words}. {audit_words.sentence(measured)}"
    if audit_words.unsound(measured):
        yield "warning", audit_words.unsound(measured)


def _runs(cumulative: Mapping[str, Any]) -> str:
    how = ", by a filter" if cumulative["method"] == "filter" else ""
    return f"{cumulative['runs']} run{'' if cumulative['runs'] == 1 else 's'} with a budget on this data{how}"


def _of_examples(claimed: Mapping[str, Any]) -> str:
    value = output.bracket(claimed["epsilon_lower"], claimed["epsilon_upper"])
    spread, note = claimed["per_silo"], f"; {claimed['note']}" if claimed["note"] else ""
    even = spread is None or spread["p10"] == claimed["epsilon_upper"]
    over = "" if even else "; over silos " + ", ".join(f"{output.at_most(v)} ({k})" for k, v in spread.items())
    return f"{value} at delta {output.short(claimed['delta'])}, for adding or removing one row of a silo{over}{note}"


def _local(local: Mapping[str, Any] | None, *, alone: bool) -> Iterator[tuple[str, str]]:
    """The server's view, where silos noised their own updates."""
    if local is None:
        return
    value, relation = output.at_most(local["epsilon_upper"]), output.RELATIONS[local["neighbours"]]
    words = (
        f"{value} at delta {output.short(local['delta'])}, for {relation}; asked {local['most_charges']} times at most"
    )
    yield "epsilon server", f"{words}. Against the server, by the silos' own noise"
    if alone:
        yield "epsilon outside", f"{value}, as whoever sees the models sees no more than the server"


def _failures(updates: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if updates["failed"]:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in updates["reasons"].items())
        yield "failed updates", f"{updates['failed']} of {updates['arrived'] + updates['failed']}: {reasons}"


def _bytes(sent: Mapping[str, Any]) -> str:
    both = f"{output.size(sent['bytes_up'])} up, {output.size(sent['bytes_down'])} down"
    return both if sent["ratio"] is None else f"{both}; {sent['ratio']:.2f} times the dense model both ways"


def cells(row: Mapping[str, float | None], columns: Sequence[str]) -> list[str]:
    """One line of a table of numbers."""
    return [_cell(name, row.get(name)) for name in columns]


def shown(rows: Sequence[Mapping[str, float | None]]) -> list[str]:
    """The columns that some row has a value for, in their order."""
    return [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]


def titles(columns: Sequence[str]) -> list[str]:
    """Columns as a reader calls them."""
    return [{"bytes_up": "up", "bytes_down": "down", "server": "epsilon server"}.get(name, name) for name in columns]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("bytes_up", "bytes_down"):
        return output.size(value)
    if name == "seconds":
        return f"{value:.1f}"
    if name in ("epsilon", "server", "row epsilon"):
        return output.at_most(value)
    return f"{value:.3f}" if name in ("measured", "row measured") else output.score(value)


def seeds_table(results: Sequence[Result]) -> str:
    """A line per seed, then mean and standard deviation."""
    rows = [numbers(result) for result in results]
    columns = shown(rows)
    lines = [[str(result["seed"]), *cells(row, columns)] for result, row in zip(results, rows)]
    if len(rows) > 1:
        mean, std = spread(results)
        lines += [["mean", *cells(mean, columns)], ["+- std", *cells(std, columns)]]
    return output.table(["seed", *titles(columns)], lines)
