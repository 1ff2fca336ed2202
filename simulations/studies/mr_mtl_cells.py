"""The experiments of the study `mr_mtl`: schools, their public constants, and a cell of the grid.

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
from strategies.experiment import Experiment
from strategies.loading import parse

LOCAL, FEDAVG = 0.0, math.inf  # The ends of the path of lambda.
NO_PRIVACY = math.inf
DELTA = 1e-3
CLIP = 1.0
ROUNDS = 60


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
    """What decides a cell, beside its seed.

    Attributes:
        data: which schools.
        epsilon: of each silo; infinite without privacy.
        method: a place of the path (lambda), or a strategy as a config has it.
        rate: of SGD.
    """

    data: str
    epsilon: float
    method: float | Mapping[str, Any]
    rate: float


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
    lam = f".lam-{setting.method:g}" if isinstance(setting.method, float) else ""
    return parse(
        {
            "name": f"{setting.data}.eps-{level}{lam}.rate-{setting.rate:g}.seed-{seed}",
            "seed": seed,
            "rounds": ROUNDS,
            "task": "linear",
            "data": data,
            "cohort": {"sampling": "all"},
            "train": {"steps": 1, "learning_rate": setting.rate},
            "strategy": strategy(setting.method),
            "privacy": privacy(setting),
            "metrics": {"privacy": "research", "every": ROUNDS},
        }
    )


def strategy(method: float | Mapping[str, Any]) -> dict[str, Any]:
    """The strategy's section."""
    if not isinstance(method, float):
        return dict(method)
    if method == LOCAL:
        return {"name": "local"}
    return {"name": "fedavg"} if method == FEDAVG else {"name": "mr_mtl", "lam": method}


def privacy(setting: Setting) -> dict[str, Any]:
    """DP-SGD in every silo: all rows in every step, divided by the public number."""
    if setting.epsilon == NO_PRIVACY:
        return {}
    rows_ = SCHOOLS[setting.data].rows
    whole = {"clip_norm": CLIP, "epsilon": setting.epsilon, "delta": DELTA, "rows": rows_, "batch": rows_}
    return {"example": whole}
