"""MR-MTL under privacy of single pupils: between training alone and averaging, by how much noise there is.

Source: Liu, Hu, Wu, Smith, "On Privacy and Personalization in Cross-Silo Federated Learning", NeurIPS 2022, arXiv
2206.07902. Schools (or authorities) are silos that predict a score by linear regression; each keeps epsilon for every
one of its pupils. Lambda 0 is local training and lambda = infinity is federated averaging, so both are ends of one
path. A seed draws the split into training, validation and test rows, the start and the noise; in a seed everything is
shared. Rate and lambda are chosen by a seed's validation rows, what is reported comes from its test rows. That choice
is not charged: the study asks what the methods can do, and its numbers are computed on private rows without noise.

Constants are public: exam scores come in standard units; mathematics has mean 12.75 and deviation 6.88 in the book that
the data comes from (Raudenbush & Bryk 2002, table 4.1); an A-level is worth 0, 2, ..., 10 points, whose middle is 5 and
whose deviation, were all alike, is 3.416; a GCSE average is counted from 6, a grade B; months of a year spread by 3.45.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulations.studies.cells import Cell
from simulations.studies.findings import Findings
from simulations.studies.mr_mtl_shown import Grid, claims, figures, rows, sheets
from simulations.studies.registry import Ask, study
from strategies.experiment import Experiment
from strategies.loading import parse

LOCAL, FEDAVG = 0.0, math.inf
LAMBDAS = (0.1, 0.3, 1.0, 3.0, 10.0)
RATES = (0.01, 0.03, 0.1, 0.3)
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
NO_PRIVACY = math.inf
DELTA = 1e-3
CLIP = 1.0
ROUNDS = 80


@dataclass(frozen=True)
class Schools:
    """One of the three data sets.

    Attributes:
        about: in titles.
        source: its name.
        rows: public nominal number of training rows of a silo: pupils over silos, of which 60% train.
        target: public mean and deviation of the score, or None where it comes in standard units.
        features: public means and deviations of the features, or None.
    """

    about: str
    source: str
    rows: int
    target: tuple[float, float] | None = None
    features: tuple[tuple[float, ...], tuple[float, ...]] | None = None


SCHOOLS: Mapping[str, Schools] = {
    "exam": Schools("exam scores, 65 London schools", "schools:exam", rows=37),
    "hsb82": Schools("mathematics, 160 US schools", "schools:hsb82", rows=27, target=(12.75, 6.88)),
    "chem97": Schools(
        "chemistry, 131 English authorities",
        "schools:chem97",
        rows=142,
        target=(5.0, 3.416),
        features=((0.0, 0.0, 0.0, 6.0), (1.0, 1.0, 3.45, 1.0)),
    ),
}


@dataclass(frozen=True)
class Setting:
    """What decides a cell, beside its seed."""

    data: str
    epsilon: float
    lam: float
    rate: float


@study("mr_mtl", about="Mean-regularised personal models between local training and averaging, by epsilon (schools)")
def mr_mtl(ask: Ask) -> Findings:
    """The experiment of the specification, over paired seeds."""
    if ask.quick:
        grid = Grid(("exam",), (0.5, 2.0, 8.0), (LOCAL, 0.3, 1.0, 3.0, FEDAVG), (0.03, 0.1), ask.seeds)
    else:
        grid = Grid(tuple(SCHOOLS), (*EPSILONS, NO_PRIVACY), (LOCAL, *LAMBDAS, FEDAVG), RATES, ask.seeds)
    fetch(ask)
    grid = trained(ask, grid)
    left = [
        "data: hsb82, chem97",
        "epsilon: 1, 4, and no privacy",
        f"lambda: {LAMBDAS[0]:g} and {LAMBDAS[-1]:g}; rates {RATES[0]:g} and {RATES[-1]:g}",
    ]
    return Findings(
        criteria=[claim for data in grid.data for claim in claims(grid, data)],
        sheets=sheets(grid, {name: each.about for name, each in SCHOOLS.items()}),
        figures=figures(grid, {name: each.about for name, each in SCHOOLS.items()}),
        rows=rows(grid),
        skipped=left if ask.quick else [],
        notes=[
            f"each silo's epsilon is for one of its pupils, at delta {DELTA:g}, by adding or removing one; a pupil in "
            "two silos would pay twice",
            "noise is simulated, and the choice of lambda and rate on validation rows is not charged: these are "
            "figures about methods, not a release",
        ],
    )


def fetch(ask: Ask) -> None:
    """Brings the data, where it is not there yet."""
    from simulations.data import carriers

    ask.say(f"data: {carriers.fetch('schools')}")


def trained(ask: Ask, grid: Grid) -> Grid:
    """The grid with the errors of every cell that is stable."""
    wanted = [(setting, seed) for seed in grid.seeds for setting in settings(grid)]
    cells = ask.cells.run([experiment(setting, seed) for setting, seed in wanted])
    found: dict[tuple[str, float, float, int], list[tuple[float, float]]] = {}
    for (setting, seed), cell in zip(wanted, cells):
        place = (setting.data, setting.epsilon, setting.lam, seed)
        found.setdefault(place, []).append(errors(cell))
    return grid.filled(found)


def settings(grid: Grid) -> list[Setting]:
    """All cells of a seed; where rate * lambda is above 1 the pull alone would overshoot the mean."""
    return [
        Setting(data, epsilon, lam, rate)
        for data in grid.data
        for epsilon in grid.epsilons
        for lam in grid.lambdas
        for rate in grid.rates
        if lam == FEDAVG or not rate * lam > 1
    ]


def errors(cell: Cell) -> tuple[float, float]:
    """Mean squared error of the silos' own models on validation and test rows; infinite for a run that diverged."""
    if cell.failed:
        return math.inf, math.inf
    metrics = cell.result["metrics"]
    found = [metrics[split]["mse"] for split in ("validation", "test")]
    validation, test = (math.inf if value is None else float(value) for value in found)
    return validation, test


def experiment(setting: Setting, seed: int) -> Experiment:
    """The experiment of a cell."""
    schools = SCHOOLS[setting.data]
    data: dict[str, Any] = {
        "name": schools.source,
        "partition": "column",
        "public_test": 0.0,
        "validation": 0.2,
        "test": 0.2,
    }
    if schools.target is not None:
        data["target_scale"] = dict(zip(("mean", "std"), schools.target))
    if schools.features is not None:
        data["standardize"] = {"name": "constants"} | dict(zip(("mean", "std"), map(list, schools.features)))
    level = "none" if setting.epsilon == NO_PRIVACY else f"{setting.epsilon:g}"
    return parse(
        {
            "name": f"{setting.data}.eps-{level}.lam-{setting.lam:g}.rate-{setting.rate:g}.seed-{seed}",
            "seed": seed,
            "rounds": ROUNDS,
            "task": "linear",
            "data": data,
            "cohort": {"sampling": "all"},
            "train": {"steps": 1, "learning_rate": setting.rate},
            "strategy": strategy(setting.lam),
            "privacy": privacy(setting),
            "metrics": {"privacy": "research", "every": ROUNDS},
        }
    )


def strategy(lam: float) -> dict[str, Any]:
    """The method at a place of the path."""
    if lam == LOCAL:
        return {"name": "local"}
    return {"name": "fedavg"} if lam == FEDAVG else {"name": "mr_mtl", "lam": lam}


def privacy(setting: Setting) -> dict[str, Any]:
    """DP-SGD in every silo: all rows in every step, divided by the public number."""
    if setting.epsilon == NO_PRIVACY:
        return {}
    rows_ = SCHOOLS[setting.data].rows
    whole = {"clip_norm": CLIP, "epsilon": setting.epsilon, "delta": DELTA, "rows": rows_, "batch": rows_}
    return {"example": whole}
