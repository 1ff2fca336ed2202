"""FLASC: dense LoRA's accuracy at a tenth of its traffic, where pruning as it is done centrally falls behind.

Source: Kuo, Raje, Rajesh, Smith, "Federated LoRA with Sparse Communication", arXiv 2406.05233 (2024). The shipped
`flasc_digits` at small scale: adapters of rank 16 on a perceptron that reads upright digits learn turned ones on 50
silos. Methods of one seed share silos, cohorts and batches, so differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from simulations.report.plots import Axis, Curve, plot
from simulations.shipped import find
from simulations.studies.cells import Cell
from simulations.studies.findings import Criterion, Figure, Findings, Sheet, mean, spread, told
from simulations.studies.registry import Ask, study
from strategies.experiment import Experiment
from strategies.loading import load

COLUMNS = ("accuracy", "variants", "bytes_up", "bytes_down", "parameters_up", "parameters_down")
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


def strategy(keys: str) -> str:
    """The whole section, with the server optimizer that all methods share."""
    return f"strategy={{{keys}, server: {{name: adam, learning_rate: 0.005, beta2: 0.999, eps: 1.0e-8}}}}"


def sparse(density: float) -> tuple[str, ...]:
    """FLASC at one density both ways."""
    return (strategy(f"name: flasc, density_down: {density}, density_up: {density}"),)


DENSE = strategy("name: fedavg")
TIERS = "tiers: [{down: 0.0625, up: 0.0625}, {down: 0.25, up: 0.25}, {down: 1.0, up: 1.0}]"
METHODS: Mapping[str, Method] = {
    "dense": Method("dense LoRA", (DENSE,)),
    "flasc_4": Method("FLASC 1/4", sparse(1 / 4)),
    "flasc_10": Method("FLASC 1/10", sparse(1 / 10)),
    "flasc_16": Method("FLASC 1/16", sparse(1 / 16)),
    "fixed_10": Method("fixed mask 1/10", (strategy("name: fixed_mask, density: 0.1"),)),
    "pruning": Method("gradual pruning", (strategy("name: pruning"),)),
    "ffa": Method("FFA-LoRA", (DENSE, "task.freeze=a")),
    "rank_4": Method("rank 4", (DENSE, "task.rank=4", "task.alpha=4"), drawn=False),
    "rank_1": Method("rank 1", (DENSE, "task.rank=1", "task.alpha=1"), drawn=False),
    "flasc_tiers": Method("FLASC, tiers 1/16, 1/4, 1", (strategy(f"name: flasc, {TIERS}"),), drawn=False),
    "rank_tiers": Method("rank tiers 1, 4, 16", (strategy("name: rank_tiers, ranks: [1, 4, 16]"),), drawn=False),
}
QUICK = ("dense", "flasc_4", "flasc_10", "fixed_10")

Runs = Mapping[str, Sequence[Cell]]
"""The cells of every method, one per seed, seeds in the same order."""


@study("flasc", about="Sparse LoRA messages: the accuracy of dense ones at a tenth of the traffic (digits)")
def flasc(ask: Ask) -> Findings:
    """The experiment of the specification, over paired seeds."""
    chosen = QUICK if ask.quick else tuple(METHODS)
    runs = trained(ask, "flasc_digits", {name: METHODS[name] for name in chosen})
    left = [METHODS[name].label for name in METHODS if name not in chosen]
    return Findings(
        criteria=criteria(runs),
        sheets=[sheet(runs)],
        figures=figures("flasc", "turned digits, 50 silos", runs),
        rows=rows(runs, ask.seeds),
        skipped=[f"methods: {'; '.join(left)}"] if ask.quick else [],
    )


def trained(ask: Ask, config: str, methods: Mapping[str, Method], extra: Sequence[str] = ()) -> Runs:
    """Every method with every seed."""
    wanted = [(name, seed) for seed in ask.seeds for name in methods]
    experiments = [experiment(config, name, seed, [*extra, *methods[name].changes]) for name, seed in wanted]
    cells = dict(zip(wanted, ask.cells.run(experiments, columns=COLUMNS)))
    return {name: [cells[name, seed] for seed in ask.seeds] for name in methods}


def experiment(config: str, name: str, seed: int, changes: Sequence[str]) -> Experiment:
    """The shipped experiment with a method's changes."""
    return load(find(config), [f"seed={seed}", f"name={name}.seed-{seed}", *changes])


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
    served = []
    for index, value in enumerate(cell.rounds.get("accuracy", ())):
        variants = cell.rounds["variants"][index]
        value = variants["sparse"]["accuracy"] if "sparse" in (variants or {}) else value
        if value is not None:
            served.append((index, float(value)))
    return served


def criteria(runs: Runs) -> list[Criterion]:
    """The specification's claims, each about differences of runs with the same seed."""
    found = {name: accuracies(cells) for name, cells in runs.items()}
    few, dense, fixed = found["flasc_10"], found["dense"], found["fixed_10"]
    early = [at_parameters(all_, parameters(part)[-1]) for all_, part in zip(runs["dense"], runs["flasc_10"])]
    unsent = "all that the server holds, less dense, accuracy"
    return [
        _less("FLASC 1/4 less dense, accuracy", "flasc.1", found["flasc_4"], dense, -0.02),
        _less("FLASC 1/10 less dense, accuracy", "flasc.2", few, dense, -0.03),
        Criterion(
            name="FLASC 1/10, parameters over dense: distance from .1000",
            spec_id="flasc.3",
            measured=max(abs(value - 0.1) for value in ratios(runs, "flasc_10")),
            threshold=0.0005,
            relation="<=",
        ),
        _less("FLASC 1/10 less fixed mask 1/10, accuracy", "flasc.4", few, fixed, 0.08),
        _less("FLASC 1/10 less dense at as many parameters sent, accuracy", "flasc.5", few, early, 0.10),
        replace(_less(f"FLASC 1/4, {unsent}", "flasc.1", whole(runs["flasc_4"]), dense, -0.02), kind="goal"),
        replace(_less(f"FLASC 1/10, {unsent}", "flasc.2", whole(runs["flasc_10"]), dense, -0.03), kind="goal"),
    ]


def _less(name: str, spec_id: str, values: Sequence[float], others: Sequence[float], least: float) -> Criterion:
    differences = [value - other for value, other in zip(values, others)]
    return Criterion(
        name=name, spec_id=spec_id, measured=mean(differences), threshold=least, spread=spread(differences)
    )


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


def sheet(runs: Runs) -> Sheet:
    """Accuracy of the server's model and of what silos are sent, and what was sent."""
    body = [
        (
            METHODS[name].label,
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


def figures(name: str, about: str, runs: Runs) -> list[Figure]:
    """Accuracy against what was sent, and against rounds."""
    drawn = {METHODS[key].label: cells for key, cells in runs.items() if METHODS[key].drawn}
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
