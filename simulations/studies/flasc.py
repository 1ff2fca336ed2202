"""FLASC: dense LoRA's accuracy at a tenth of its traffic, where pruning as it is done centrally falls behind.

Source: Kuo, Raje, Rajesh, Smith, "Federated LoRA with Sparse Communication", arXiv 2406.05233 (2024). The shipped
`flasc_digits` at small scale: adapters of rank 16 on a perceptron that reads upright digits learn turned ones on 50
silos. Methods of one seed share silos, cohorts and batches, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from simulations.shipped import find
from simulations.studies.findings import Criterion, Findings, largest, mean, spread
from simulations.studies.flasc_shown import (
    Method,
    Runs,
    accuracies,
    at_parameters,
    figures,
    parameters,
    ratios,
    rows,
    sheet,
    whole,
)
from simulations.studies.registry import Ask, study
from strategies.experiment import Experiment
from strategies.loading import load

COLUMNS = ("accuracy", "bytes_up", "bytes_down", "parameters_up", "parameters_down")


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


@study("flasc", about="Sparse LoRA messages: the accuracy of dense ones at a tenth of the traffic (digits)")
def flasc(ask: Ask) -> Findings:
    """The experiment of the specification, over paired seeds."""
    chosen = QUICK if ask.quick else tuple(METHODS)
    runs = trained(ask, "flasc_digits", {name: METHODS[name] for name in chosen})
    left = [METHODS[name].label for name in METHODS if name not in chosen]
    return Findings(
        criteria=criteria(runs),
        sheets=[sheet(METHODS, runs)],
        figures=figures("flasc", "turned digits, 50 silos", METHODS, runs),
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


def criteria(runs: Runs) -> list[Criterion]:
    """The specification's claims, each about differences of runs with the same seed."""
    found = {name: accuracies(cells) for name, cells in runs.items()}
    few, dense, fixed = found["flasc_10"], found["dense"], found["fixed_10"]
    early = [at_parameters(all_, parameters(part)[-1]) for all_, part in zip(runs["dense"], runs["flasc_10"])]
    unsent = "all that the server holds, less dense, accuracy"
    return [
        less("FLASC 1/4 less dense, accuracy", "flasc.1", found["flasc_4"], dense, -0.02),
        less("FLASC 1/10 less dense, accuracy", "flasc.2", few, dense, -0.03),
        Criterion(
            name="FLASC 1/10, parameters over dense: distance from .1000",
            spec_id="flasc.3",
            measured=largest([abs(value - 0.1) for value in ratios(runs, "flasc_10")]),
            threshold=0.0005,
            relation="<=",
        ),
        less("FLASC 1/10 less fixed mask 1/10, accuracy", "flasc.4", few, fixed, 0.08),
        less("FLASC 1/10 less dense at as many parameters sent, accuracy", "flasc.5", few, early, 0.10),
        replace(less(f"FLASC 1/4, {unsent}", "flasc.1", whole(runs["flasc_4"]), dense, -0.02), kind="goal"),
        replace(less(f"FLASC 1/10, {unsent}", "flasc.2", whole(runs["flasc_10"]), dense, -0.03), kind="goal"),
    ]


def less(name: str, spec_id: str, values: Sequence[float], others: Sequence[float], least: float) -> Criterion:
    """A claim about the mean of paired differences."""
    differences = [value - other for value, other in zip(values, others)]
    return Criterion(
        name=name, spec_id=spec_id, measured=mean(differences), threshold=least, spread=spread(differences)
    )
