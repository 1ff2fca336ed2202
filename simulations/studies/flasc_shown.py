"""What cells that send sparse messages show: accuracy against bytes and rounds, and what was sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulations.report.plots import Curve, plot
from simulations.report.scales import Axis
from simulations.studies.cells import Cell
from simulations.studies.findings import Figure, Sheet, mean, spread, told

MB = 1e6


@dataclass(frozen=True)
class Method:
    """A way to train, as changes to the shipped experiment.

    Attributes:
        label: in tables and figures.
        changes: as `--set` takes them.
        drawn: whether the figures show it.
    """

    label: str
    changes: tuple[str, ...] = ()
    drawn: bool = True


Runs = Mapping[str, Sequence[Cell]]
"""The cells of every method, one per seed, seeds in the same order."""


def accuracies(cells: Sequence[Cell]) -> list[float]:
    """The final accuracy of every seed, of the model that silos are sent; NaN for a run that failed."""
    return [curve(cell)[-1][1] if curve(cell) else math.nan for cell in cells]


def whole(cells: Sequence[Cell]) -> list[float]:
    """The same of all that the server holds, the numbers that did not travel included."""
    found = []
    for cell in cells:
        metrics = cell.result.get("metrics", {"accuracy": math.nan})
        found.append(float(metrics.get("variants", {}).get("dense", metrics)["accuracy"]))
    return found


def curve(cell: Cell) -> list[tuple[int, float]]:
    """(index of the round, accuracy of the model that silos are sent) of the rounds that were measured."""
    values = cell.rounds.get("accuracy", ())
    return [(index, float(value)) for index, value in enumerate(values) if value is not None]


def cumulative(cell: Cell, *names: str) -> list[float]:
    """Sums of columns up to each round; empty for a run that failed."""
    total, found = 0.0, []
    for parts in zip(*(cell.rounds.get(name, ()) for name in names)):
        total += sum(part or 0.0 for part in parts)
        found.append(total)
    return found


def parameters(cell: Cell) -> list[float]:
    """Numbers sent both ways up to each round; NaN alone for a run that failed."""
    return cumulative(cell, "parameters_up", "parameters_down") or [math.nan]


def at_parameters(cell: Cell, most: float) -> float:
    """The last accuracy that was measured before more than `most` numbers were sent; NaN where there is none."""
    sent = parameters(cell)
    seen = [value for index, value in curve(cell) if sent[index] <= most]
    return seen[-1] if seen else math.nan


def ratios(runs: Runs, name: str, *, unit: str = "parameters") -> list[float]:
    """What a method sent both ways in units of dense LoRA, seed by seed."""
    up_down = (f"{unit}_up", f"{unit}_down")
    sums = [[(cumulative(cell, *up_down) or [math.nan])[-1] for cell in runs[each]] for each in (name, "dense")]
    return [part / whole for part, whole in zip(*sums)]


def sheet(methods: Mapping[str, Method], runs: Runs) -> Sheet:
    """Accuracy of the server's model and of what silos are sent, and what was sent."""
    body = [
        (
            methods[name].label,
            told(accuracies(cells)),
            told(whole(cells)),
            f"{mean(ratios(runs, name)):.4f}",
            f"{mean(ratios(runs, name, unit='bytes')):.4f}",
            f"{mean([(cumulative(cell, 'bytes_up', 'bytes_down') or [math.nan])[-1] for cell in cells]) / MB:.2f}",
        )
        for name, cells in runs.items()
    ]
    header = ("method", "accuracy as sent", "of all that the server holds", "parameters / dense", "bytes / dense", "MB")
    remark = (
        "Mean ± standard deviation over seeds, after the last round. Criteria and figures are about the model as silos "
        "are sent it: numbers that do not travel are trained by nobody, and Adam moves them all the same. What was "
        "sent counts both ways and all silos."
    )
    return Sheet("Accuracy and traffic", header, body, remark)


def figures(name: str, about: str, methods: Mapping[str, Method], runs: Runs) -> list[Figure]:
    """Accuracy against what was sent, and against rounds."""
    drawn = {methods[key].label: cells for key, cells in runs.items() if methods[key].drawn}
    seeds = len(next(iter(runs.values())))
    under = f"{about}; mean and deviation of {seeds} seeds"
    sent, rounds = Axis("sent both ways, MB", log=True), Axis("rounds")
    accuracy = Axis("accuracy", low=0.0, high=1.0)
    return [
        Figure(
            f"{name}_bytes",
            plot(
                f"{name}-bytes",
                "Accuracy by bytes",
                told=under,
                curves=_curves(drawn, by_bytes=True),
                x=sent,
                y=accuracy,
            ),
        ),
        Figure(
            f"{name}_rounds",
            plot(
                f"{name}-rounds",
                "Accuracy by rounds",
                told=under,
                curves=_curves(drawn, by_bytes=False),
                x=rounds,
                y=accuracy,
            ),
        ),
    ]


def _curves(runs: Runs, *, by_bytes: bool) -> list[Curve]:
    """A curve per method over the rounds that were measured in every seed; a method that failed has none."""
    curves = []
    for label, cells in runs.items():
        if any(cell.failed for cell in cells):
            continue
        sent = [cumulative(cell, "bytes_up", "bytes_down") for cell in cells]
        points, widths = [], []
        for seen in zip(*map(curve, cells)):
            index, values = seen[0][0], [value for _, value in seen]
            points.append((mean([each[index] for each in sent]) / MB if by_bytes else index + 1, mean(values)))
            widths.append(spread(values) or 0.0)
        curves.append(Curve(label, points, widths))
    return curves


def rows(runs: Runs, seeds: Sequence[int]) -> list[dict[str, object]]:
    """A row per cell, with the curves that the figures are drawn from."""
    found: list[dict[str, object]] = []
    for name, cells in runs.items():
        for seed, cell in zip(seeds, cells):
            row: dict[str, object] = {"method": name, "seed": seed, "failed": cell.failed, "seconds": cell.seconds}
            found.append(row | {"metrics": cell.result.get("metrics"), "sent": cell.result.get("communication")})
            bytes_ = cumulative(cell, "bytes_up", "bytes_down")
            found[-1]["curve"] = [
                {"round": index + 1, "accuracy": value, "bytes": bytes_[index]} for index, value in curve(cell)
            ]
    return found
