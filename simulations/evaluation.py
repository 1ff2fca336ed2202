"""How silos are served at the end of a run, each on its own held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from server.link import evaluate
from simulations.report.axes import ticks
from strategies.base import Evaluation

if TYPE_CHECKING:
    from simulations.running import ActiveRun

BINS = 12  # Of a histogram over silos, about.


def served(active: ActiveRun, state: Mapping[str, Tensor], rounds: int) -> dict[str, Any]:
    """What the silos' own rows say of a run, where private numbers may be shown.

    Args:
        active: the run.
        state: of its strategy, after the last round.
        rounds: that were committed; fewer than planned where the run was stopped.

    Returns:
        `test`, `validation` where such rows were held out, and `new_silo` for a strategy with personal models: what
        every silo would be served on its test rows had it never been asked. Each has the score and the loss, weighted
        by rows, `per_silo`, the spread of scores, and `histograms` of both over silos. Beside them
        `personalization_gap`, the spread of what a silo's own model scores above a new silo's.
    """
    if not active.records:
        return {}
    strategy, metric = active.experiment.strategy, active.model.shape.metric
    asked = partial(evaluate, active.link, strategy, state, rounds + 1)
    found = {"test": asked(), "validation": asked(split="validation")}
    if strategy.personal(1):
        found["new_silo"] = asked(fresh=True)
    shown = {name: summary(each, metric) for name, each in found.items() if each.rows}
    gap = _gap(found["test"], found["new_silo"]) if "new_silo" in shown else None
    return shown if gap is None else shown | {"personalization_gap": gap}


def _gap(own: Evaluation, new: Evaluation) -> dict[str, float | None] | None:
    """Percentiles over silos of what its own model scores above what it would be served had it never been asked."""
    fresh = dict(zip(new.silos, new.score))
    gaps = [score - fresh[silo] for silo, score in zip(own.silos, own.score) if silo in fresh]
    return _percentiles(gaps) if gaps else None


def summary(found: Evaluation, metric: str) -> dict[str, Any]:
    """Score and loss weighted by rows, so that a row counts the same in every silo; and how they spread over silos."""
    return {
        metric: number(float(np.average(found.score, weights=found.rows))),
        "loss": number(float(np.average(found.loss, weights=found.rows))),
        "per_silo": _percentiles(found.score),
        "histograms": {metric: histogram(found.score, whole=metric == "accuracy"), "loss": histogram(found.loss)},
    }


def histogram(values: Sequence[float], *, whole: bool = False) -> dict[str, Any]:
    """How many silos have a value in which range.

    Args:
        values: one a silo.
        whole: ranges are twentieths of 0 to 1, whatever the values are.

    Returns:
        `edges`, one more than `silos`, the counts between them; a value on an edge counts above it, the last one below.
        And `beyond`, the silos whose value is not finite.
    """
    known = [value for value in values if math.isfinite(value)]
    edges = [step / 20 for step in range(21)] if whole else ticks(min(known), max(known), BINS) if known else []
    counts = np.histogram(known, edges)[0].tolist() if known else [0] * max(len(edges) - 1, 0)
    return {"edges": edges, "silos": counts, "beyond": len(values) - len(known)}


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    return {f"p{at}": number(float(np.percentile(values, at))) for at in (10, 50, 90)}


def number(value: float) -> float | None:
    """JSON has no infinity: None stands for it."""
    return value if math.isfinite(value) else None
