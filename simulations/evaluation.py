"""How silos are served at the end of a run, each on its own held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from server.link import evaluate
from strategies.base import Evaluation

if TYPE_CHECKING:
    from simulations.running import ActiveRun


def served(active: ActiveRun, state: Mapping[str, Tensor], rounds: int) -> dict[str, Any]:
    """What the silos' own rows say of a run, where private numbers may be shown.

    Args:
        active: the run.
        state: of its strategy, after the last round.
        rounds: that were committed; fewer than planned where the run was stopped.

    Returns:
        `test`, `validation` where such rows were held out, and `new_silo` for a strategy with personal models: what
        every silo would be served on its test rows had it never been asked. Each has the score and the loss, weighted
        by rows, and `per_silo`, the spread of scores.
    """
    if not active.records:
        return {}
    strategy, metric = active.experiment.strategy, active.model.shape.metric
    asked = partial(evaluate, active.link, strategy, state, rounds + 1)
    found = {"test": asked(), "validation": asked(split="validation")}
    if strategy.personal(1):
        found["new_silo"] = asked(fresh=True)
    return {name: summary(each, metric) for name, each in found.items() if each.rows}


def summary(found: Evaluation, metric: str) -> dict[str, Any]:
    """Score and loss weighted by rows, so that a row counts the same in every silo; and percentiles over silos."""
    p10, p50, p90 = np.percentile(found.score, [10, 50, 90]).tolist()
    return {
        metric: number(float(np.average(found.score, weights=found.rows))),
        "loss": number(float(np.average(found.loss, weights=found.rows))),
        "per_silo": {"p10": number(p10), "p50": number(p50), "p90": number(p90)},
    }


def number(value: float) -> float | None:
    """JSON has no infinity: None stands for it."""
    return value if math.isfinite(value) else None
