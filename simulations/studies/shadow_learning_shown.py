"""What the cells of the study `shadow_learning` say: numbers of a run, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulations.report.plots import Curve, plot
from simulations.report.scales import Axis
from simulations.studies.cells import Cell
from simulations.studies.findings import Figure, Sheet, mean, spread, told

SUCCESS = "attack_success.pixel_patch"
COLUMNS = ("accuracy", SUCCESS, "variants", "attackers", "seconds")
SHIFTED = 100
DRAWN = {
    "none_30": "no defence",
    "filter_30": "filter of one round",
    "pooled_30": "filter over 10 rounds",
    "shadow_30": "shadow learning",
}


@dataclass(frozen=True)
class Method:
    """A defence against a fraction.

    Attributes:
        label: for people.
        fraction: of silos that are malicious, as the strategy is told.
        changes: to the shipped experiment.
    """

    label: str
    fraction: float
    changes: tuple[str, ...] = ()


Runs = Mapping[str, Sequence[Cell]]


def success(cells: Sequence[Cell], round_: int | None = None) -> list[float]:
    """Each run's attack success of what is served after a round, the last for None; NaN where it failed."""
    return [_after(cell, SUCCESS, round_) for cell in cells]


def accuracies(cells: Sequence[Cell], round_: int | None = None) -> list[float]:
    """Each run's accuracy on clean rows, likewise."""
    return [_after(cell, "accuracy", round_) for cell in cells]


def _after(cell: Cell, column: str, round_: int | None) -> float:
    values = cell.rounds.get(column, ())
    at = len(values) if round_ is None else round_
    found = values[at - 1] if 0 < at <= len(values) else None
    return math.nan if found is None or cell.failed else float(found)


def backbone(cells: Sequence[Cell], column: str = "accuracy") -> list[float]:
    """What each run's backbone does alone at the end; NaN where no shadow was ever served."""
    found = [cell.result.get("metrics", {}).get("variants", {}).get("backbone", {}) for cell in cells]
    return [math.nan if each.get(column) is None else float(each[column]) for each in found]


def recalls(cells: Sequence[Cell]) -> list[float]:
    """The fraction of malicious silos that each run's filter flagged."""
    return flags(cells, "recall")


def flags(cells: Sequence[Cell], name: str) -> list[float]:
    """A rate of `attacks.detection`; NaN where nobody was judged, or there are no such silos."""
    found = [(cell.result.get("attacks") or {}).get("detection") or {} for cell in cells]
    return [math.nan if each.get(name) is None else float(each[name]) for each in found]


def restarts(cells: Sequence[Cell]) -> list[float]:
    """Shadows that each run began after its first; NaN where it failed."""
    found = [cell.result.get("strategy_report", {}).get("shadows") for cell in cells]
    return [math.nan if each is None else each - 1 for each in found]


def sheets(methods: Mapping[str, Method], runs: Runs) -> list[Sheet]:
    """The table of defences, and what they cost."""
    body = []
    for name, cells in runs.items():
        rates = [told(flags(cells, rate)) for rate in ("recall", "false_flag_rate", "minority_false_flag_rate")]
        numbers = [told(success(cells, 40)), told(success(cells)), told(accuracies(cells)), told(backbone(cells))]
        body.append((methods[name].label, f"{methods[name].fraction:g}", *numbers, *rates))
    header = ("defence", "malicious", "success, round 40", "success", "accuracy", "of the backbone", "found")
    remark = (
        "Success of the attack at the end, where no round is named. A filter flags 1.5 times as many as it is told."
    )
    table = Sheet("Defences", (*header, "benign flagged", "of rare classes"), body, remark)
    seconds = [(methods[name].label, f"{methods[name].fraction:g}", *costs(cells)) for name, cells in runs.items()]
    parts = ("defence", "malicious", "training", "with a shadow", "server", "with a filter")
    told_of = "Mean over rounds; rounds in which a shadow learns are those with a shadow and with a filter."
    return [table, Sheet("Seconds a round", parts, seconds, told_of)]


def costs(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Seconds of training and of the server, in rounds without a shadow that learns and with one."""
    found = []
    for phase in ("train", "aggregate"):
        for learning in (False, True):
            found.append(told([_mean_seconds(cell, phase, learning) for cell in cells]))
    return tuple(found)


def _mean_seconds(cell: Cell, phase: str, learning: bool) -> float:
    pairs = zip(cell.rounds.get("attackers", ()), cell.rounds.get("seconds", ()))
    return mean([seconds[phase] for attackers, seconds in pairs if ("flagged" in attackers) == learning])


def figures(runs: Runs, seeds: int) -> list[Figure]:
    """How filters leak; and what a shift of the data does."""
    told_of = f"small garments, 30% malicious, {seeds} seed{'s' if seeds > 1 else ''}"
    bands = "; bands: a deviation" if seeds > 1 else ""
    leaks = [curve(label, runs[name], SUCCESS) for name, label in DRAWN.items() if name in runs]
    y = Axis("attack success rate", low=0.0, high=1.0)
    drawn = plot(
        "leak", "A backdoor where filters are never stopped", told=told_of + bands, curves=leaks, x=Axis("round"), y=y
    )
    found = [Figure("shadow_learning_leak", drawn)]
    if "shift_30" not in runs:
        return found
    shifted = [
        curve("attack, with a shadow", runs["shift_30"], SUCCESS),
        curve("attack, backbone", runs["shift_30"], SUCCESS, variant="backbone"),
        curve("accuracy, with a shadow", runs["shift_30"], "accuracy"),
        curve("accuracy, backbone", runs["shift_30"], "accuracy", variant="backbone"),
    ]
    title, y = f"Images turn by 12 degrees in round {SHIFTED}", Axis("fraction of test rows", low=0.0, high=1.0)
    picture = plot("shift", title, told=told_of + bands, curves=shifted, x=Axis("round"), y=y)
    return [*found, Figure("shadow_learning_shift", picture)]


def curve(label: str, cells: Sequence[Cell], column: str, *, variant: str | None = None) -> Curve:
    """The mean over seeds in the rounds that were evaluated; a backbone without a guard is what is served."""

    def values(cell: Cell) -> list[Any]:
        served, variants = cell.rounds.get(column, []), cell.rounds.get("variants", [])
        if variant is None:
            return list(served)
        return [own[variant][column] if own else whole for whole, own in zip(served, variants)]

    rows = list(zip(*map(values, cells)))
    good = [(at, row) for at, row in enumerate(rows, 1) if not any(value is None for value in row)]
    points = [(float(at), mean(row)) for at, row in good]
    return Curve(label, points=points or [(0.0, 0.0)], spread=[spread(row) or 0.0 for _, row in good] or [0.0])


def rows(methods: Mapping[str, Method], runs: Runs, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Everything, a mapping per method and seed."""
    reads: Mapping[str, Callable[[Sequence[Cell]], list[float]]] = {
        "success": success,
        "success_round_40": lambda cells: success(cells, 40),
        "accuracy": accuracies,
        "backbone_accuracy": backbone,
        "backbone_success": lambda cells: backbone(cells, SUCCESS),
        "recall": recalls,
        "false_flag_rate": lambda cells: flags(cells, "false_flag_rate"),
        "minority_false_flag_rate": lambda cells: flags(cells, "minority_false_flag_rate"),
        "restarts": restarts,
    }
    found = []
    for name, cells in runs.items():
        for seed, cell in zip(seeds, cells):
            numbers = {key: _finite(read([cell])[0]) for key, read in reads.items()}
            own = {"method": name, "fraction": methods[name].fraction, "seed": seed, "failed": cell.failed}
            found.append(own | numbers | {"seconds": cell.seconds, "path": list(cell.rounds.get(SUCCESS, ()))})
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
