"""What a run's folder says, read for its report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.report.axes import Point
from simulations.report.places import without_folders
from strategies.yaml_text import read_yaml, yaml_of


class ReportError(ValueError):
    """A folder that no report can be made of; the message is one line."""


@dataclass(frozen=True)
class Run:
    """A run that has a result.

    Attributes:
        result: what result.json holds.
        rows: the lines of rounds.jsonl up to the round that the result is about.
        experiment: the resolved experiment.
        spelt: experiment.yaml as it is written, but for folders.
    """

    result: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    experiment: Mapping[str, Any]
    spelt: str

    @property
    def metric(self) -> str:
        """`accuracy`, or `mse` for regression."""
        return "mse" if "mse" in self.result["metrics"] else "accuracy"

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What was measured at the end."""
        found: Mapping[str, Any] = self.result["metrics"]
        return found

    @property
    def claimed(self) -> Mapping[str, Any] | None:
        """The claimed epsilon of a silo; None without privacy."""
        found: Mapping[str, Any] | None = self.result["privacy"]["silo"]
        return found

    @property
    def example(self) -> Mapping[str, Any] | None:
        """The claimed epsilon of a single example, the worst silo's; None without example-level privacy."""
        found: Mapping[str, Any] | None = self.result["privacy"].get("example")
        return found

    @property
    def cumulative_example(self) -> Mapping[str, Any] | None:
        """What all runs with a budget of examples spent, in the silo that spent most; None without such a budget."""
        found: Mapping[str, Any] | None = self.result["privacy"].get("cumulative_example")
        return found

    @property
    def local(self) -> Mapping[str, Any] | None:
        """What the server may have learned, where silos noised their own updates; None where they did not."""
        found: Mapping[str, Any] | None = self.result["privacy"].get("local")
        return found

    @property
    def measured(self) -> Mapping[str, Any] | None:
        """The measured epsilon; None where nothing was audited."""
        found: Mapping[str, Any] | None = self.result["privacy"]["measured"]
        return found

    @property
    def measured_examples(self) -> Sequence[Mapping[str, Any]]:
        """The measured epsilon of a row, of every audited silo."""
        found: Sequence[Mapping[str, Any]] | None = self.result["privacy"].get("measured_example")
        return found or ()

    @property
    def selection(self) -> Mapping[str, Any] | None:
        """What choosing this run in a sweep cost; None where it was not chosen."""
        found: Mapping[str, Any] | None = self.result["privacy"].get("selection")
        return found

    @property
    def promised(self) -> Mapping[str, Any] | None:
        """The claim for all that this run's release rests on: of a run that a sweep chose, the choice included."""
        if self.claimed is None or self.selection is None:
            return self.claimed
        return {**self.claimed, **{name: self.selection[name] for name in ("epsilon_lower", "epsilon_upper")}}

    @property
    def standardized_privately(self) -> bool:
        """Whether silos released moments to standardise features with."""
        return self.result.get("standardize") is not None

    @property
    def private_shown(self) -> bool:
        """Whether numbers computed on private rows may be shown: without privacy, or for research."""
        claims = (self.claimed, self.example, self.local)
        return all(claim is None for claim in claims) or self.section("metrics").get("privacy") == "research"

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the experiment; empty where it has none."""
        found = self.experiment.get(name)
        return found if isinstance(found, Mapping) else {}

    def series(self, name: str, scale: float = 1.0) -> list[Point]:
        """(round, value * scale) of the rounds that have the value."""
        return [(row["round"], scale * row[name]) for row in self.rows if row.get(name) is not None]

    def cumulative(self, name: str, scale: float = 1.0) -> list[Point]:
        """(round, sum so far * scale), from round 0 on."""
        points, total = [(0.0, 0.0)], 0.0
        for row in self.rows:
            total += row[name]
            points.append((row["round"], scale * total))
        return points

    def total(self, name: str) -> Counter[str]:
        """The sums over rounds of a mapping of numbers that each row holds, largest first."""
        sums: Counter[str] = Counter()
        for row in self.rows:
            sums.update(row[name])
        return Counter(dict(sums.most_common()))


def read_run(folder: Path) -> Run:
    """Reads result.json, rounds.jsonl and experiment.yaml.

    Raises:
        ReportError: one of them is missing or is not what a run writes.
        ConfigError: experiment.yaml cannot be read.
    """
    text = _text(folder / "result.json", f"let the run end, or go on with 'confide run --resume {folder}'")
    result = _json(text, folder / "result.json", 1)
    experiment = folder / "experiment.yaml"
    spelt = _text(experiment, "restore it from a copy")
    # A run that was resumed and killed has more rounds than its result, the last one maybe torn: left out.
    rounds = folder / "rounds.jsonl"
    lines = _text(rounds, "").split("\n")[:-1] if rounds.exists() else []
    if len(lines) < result["rounds"]:
        raise ReportError(f"{rounds}: {len(lines)} lines for {result['rounds']} rounds; restore it from a copy")
    rows = [_json(line, rounds, number) for number, line in enumerate(lines[: result["rounds"]], 1)]
    # The page is handed on: it shows the experiment without the folders of this machine.
    read = read_yaml(experiment)
    shown = without_folders(read)
    return Run(result, rows, shown, spelt if shown == read else yaml_of(shown))


def _text(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ReportError(f"{path}: missing, so there is nothing to report on; {remedy}") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: not UTF-8 text; restore it from a copy") from error


def _json(text: str, path: Path, line: int) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ReportError(f"{path}, line {line}: not JSON ({error}); restore it from a copy") from error
    needed = "round" if path.suffix == ".jsonl" else "rounds"
    if not isinstance(found, dict) or not isinstance(found.get(needed), int):
        raise ReportError(f"{path}, line {line}: not what a run writes ({needed!r} is missing); restore it from a copy")
    return found
