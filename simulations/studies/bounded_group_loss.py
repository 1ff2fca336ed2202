"""Bounded group loss on Adult: the worst group's loss, what its bound costs, and what else could be done.

Source: Hu, Wu, Smith, "Fair Federated Learning via Bounded Group Loss", SaTML 2024, arXiv 2203.10190. 20 silos hold
people in proportions that are skewed by group; logistic regression is tested on the official test set. A seed draws the
silos and the batches. Nothing is chosen by results: bounds, rates and rounds are the same in every seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulations.report.plots import Curve, plot
from simulations.report.scales import Axis
from simulations.studies.bounded_group_loss_cells import (
    FRONTIER,
    QUICK_ROUNDS,
    ROUNDS,
    TIGHT,
    ZETA,
    experiment,
    methods,
)
from simulations.studies.cells import Cell
from simulations.studies.findings import Criterion, Figure, Findings, Sheet, mean, spread, told
from simulations.studies.registry import Ask, study


@dataclass(frozen=True)
class Served:
    """How one run serves its groups, on public test rows.

    Attributes:
        worst: loss of the group that loses most.
        loss: mean loss.
        accuracy: of all rows.
        groups: name to loss, accuracy and rows.
        parity: demographic parity difference.
        odds: equalized odds difference.
        lam: sum of the multipliers at the end, NaN for strategies without.
        violation: of the worst group's bound on training rows in the last round, NaN likewise.
    """

    worst: float
    loss: float
    accuracy: float
    groups: Mapping[str, Mapping[str, float]]
    parity: float
    odds: float
    lam: float
    violation: float


NOBODY = Served(math.nan, math.nan, math.nan, {}, math.nan, math.nan, math.nan, math.nan)
Runs = Mapping[str, Sequence[Served]]


def served(cell: Cell) -> Served:
    """What a cell's result says; NaN all over for a run that diverged."""
    if cell.failed:
        return NOBODY
    metrics, told_by = cell.result["metrics"], cell.result["strategy_report"]
    found = metrics["groups"]["public_test"]
    return Served(
        worst=found["groups"][found["worst"]]["loss"],
        loss=metrics["loss"],
        accuracy=metrics["accuracy"],
        groups=found["groups"],
        parity=found["demographic_parity_difference"],
        odds=found["equalized_odds_difference"],
        lam=sum(told_by["lam"]) if "lam" in told_by else math.nan,
        violation=max(told_by["violations"]) if "violations" in told_by else math.nan,
    )


@study("bounded_group_loss", about="Bounds on the loss of every group across silos, against averaging and silo by silo")
def bounded_group_loss(ask: Ask) -> Findings:
    """The experiment of the specification, over paired seeds."""
    from simulations.data import carriers

    ask.say(f"data: {carriers.fetch('adult')}")
    by = {group: trained(ask, group) for group in (("age",) if ask.quick else ("age", "sex"))}
    return Findings(
        criteria=[*claims(by["age"], ZETA, "required"), *claims(by["age"], TIGHT, "goal")],
        sheets=[sheet(group, runs) for group, runs in by.items()],
        figures=[frontier(by["age"], ask.seeds)],
        rows=[row for group, runs in by.items() for row in rows(group, runs, ask.seeds)],
        skipped=["groups by sex; q-FedAvg, AFL, TERM", f"rounds: {QUICK_ROUNDS} of {ROUNDS}"] if ask.quick else [],
        notes=[
            "no privacy: the study is about the method; losses, counts and multipliers would be noised under it",
            f"zeta {ZETA:g} is the specification's, for a centralized model that lost .4430 on its worst group; the "
            f"model here has other features, so zeta {TIGHT:g} is held to the same claims as a goal",
            "where the sum of lam ends at 0 the bound is met without it: a loss below FedAvg's comes from rounds in "
            "which it was not, and would fade with more rounds; weights also make up for the L2 penalty, so that "
            "accuracy may rise",
            "multipliers of a silo with few rows of a group make steps there very long: silo by silo, the spread over "
            "seeds says how often that ends badly, so read seeds one by one in study.json",
        ],
    )


def trained(ask: Ask, group: str) -> dict[str, list[Served]]:
    """Every method's runs, a seed each."""
    named = methods(group, quick=ask.quick)
    rounds = QUICK_ROUNDS if ask.quick else ROUNDS
    wanted = [(name, seed) for name in named for seed in ask.seeds]
    cells = ask.cells.run([experiment(group, name, named[name], seed, rounds=rounds) for name, seed in wanted])
    found: dict[str, list[Served]] = {name: [] for name in named}
    for (name, _), cell in zip(wanted, cells):
        found[name].append(served(cell))
    return found


def claims(runs: Runs, zeta: float, kind: Any) -> list[Criterion]:
    """Those of the specification: a bound kept on test rows, better than averaging and silo by silo, at little cost.

    Differences are of the same seed.
    """
    free, own, apart = (runs[name] for name in ("FedAvg", f"bounded {zeta:g}", f"silo by silo {zeta:g}"))
    gained = [one.worst - other.worst for one, other in zip(free, own)]
    lost = [100 * (one.accuracy - other.accuracy) for one, other in zip(free, own)]
    higher = [one.worst - other.worst for one, other in zip(apart, own)]
    worst = [each.worst for each in own]
    at = f"zeta {zeta:g}"

    def claim(number: int, name: str, values: Sequence[float], threshold: float, relation: Any) -> Criterion:
        return Criterion(
            name=f"{at}: {name}",
            spec_id=f"bounded_group_loss.{number}",
            kind=kind,
            measured=mean(values),
            threshold=threshold,
            relation=relation,
            spread=spread(values),
        )

    return [
        claim(1, "worst group's test loss", worst, zeta + 0.01, "<="),
        claim(2, "FedAvg's worst group loses more, by", gained, 0.004, ">="),
        claim(3, "points of accuracy lost to FedAvg", lost, 0.5, "<="),
        claim(4, "silo by silo the worst group loses more, by", higher, 1e-9, ">="),
    ]


def sheet(group: str, runs: Runs) -> Sheet:
    """A line a method: loss and accuracy of each group, and how far groups are apart."""
    first = next((run for run in next(iter(runs.values())) if run.groups), NOBODY)
    names = list(first.groups)
    support = ", ".join(f"{name} {int(first.groups[name]['rows']):,}" for name in names)
    header = ("method", "worst", *(f"loss {name}" for name in names), *(f"accuracy {name}" for name in names))
    body = []
    for method, seeds in runs.items():
        good = [run for run in seeds if run.groups]
        cells = [told([run.groups[name][key] for run in good], 4) for key in ("loss", "accuracy") for name in names]
        rest = [told([getattr(run, key) for run in seeds], 4) for key in ("accuracy", "parity", "odds")]
        limits = [told([getattr(run, key) for run in seeds], 4) for key in ("lam", "violation")]
        body.append((method, told([run.worst for run in seeds], 4), *cells, *rest, *limits))
    more = ("accuracy", "demographic parity", "equalized odds", "sum of lam", "violation in training")
    return Sheet(f"Adult by {group}", (*header, *more), body, f"Official test set, rows of each group: {support}.")


def frontier(runs: Runs, seeds: Sequence[int]) -> Figure:
    """Worst loss and mean loss over the bound."""
    zetas = sorted(zeta for zeta in FRONTIER if f"bounded {zeta:g}" in runs)
    lines = []
    for key, label in (("worst", "worst group"), ("loss", "mean over rows")):
        values = [[getattr(run, key) for run in runs[f"bounded {zeta:g}"]] for zeta in zetas]
        free = mean([getattr(run, key) for run in runs["FedAvg"]])
        heights = [mean(each) for each in values]
        if all(map(math.isfinite, [*heights, free])):
            bands = [spread(each) or 0.0 for each in values]
            lines.append(Curve(label, points=list(zip(zetas, heights)), spread=bands, dots=True))
            lines.append(Curve(f"{label}, FedAvg", points=[(zetas[0], free), (zetas[-1], free)]))
    picture = plot(
        "frontier",
        "Test loss against the bound",
        told=f"Adult by age, 20 silos, {len(seeds)} seeds; bands are a standard deviation",
        curves=lines or [Curve("no run ended", points=[(0.0, 0.0)])],
        x=Axis("zeta, the bound of every group's loss"),
        y=Axis("test loss"),
    )
    return Figure("bounded_group_loss", picture)


def rows(group: str, runs: Runs, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Everything, a mapping per method and seed."""
    return [
        {"group": group, "method": method, "seed": seed}
        | {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in vars(run).items()}
        for method, each in runs.items()
        for seed, run in zip(seeds, each)
    ]
