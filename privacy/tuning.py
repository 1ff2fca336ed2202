"""What it costs to publish the best of several private runs, when how many there were was drawn at random.

Papernot & Steinke, "Hyperparameter Tuning with Renyi Differential Privacy", ICLR 2022, arXiv 2110.03620. Each run draws
its settings from a public grid and releases a model with its score; only the best of them is ever seen. What protects
is that nobody knows how many runs it was the best of: the number must be drawn before the first run, never again, and
must not be published. The order of the scores must be a function of what the runs released.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from privacy import rdp
from privacy.checks import finite, open_unit, positive
from privacy.events import Event
from privacy.rdp import ORDERS, Array
from privacy.terms import Neighbours

MOST_MEAN = 500.0  # exp(-mean) is the first term of the Poisson law, and must be a number.
_HALVINGS = 200


@dataclass(frozen=True)
class TruncatedNegativeBinomial:
    """A number of runs that is at least 1 (definition 1): geometric at eta = 1, logarithmic at eta = 0.

    Attributes:
        eta: > -1; smaller means a heavier tail, and a smaller price.
        gamma: in (0, 1); smaller means more runs.

    >>> TruncatedNegativeBinomial.with_mean(10).gamma
    0.1
    """

    eta: float
    gamma: float

    def __post_init__(self) -> None:
        if not -1 < self.eta < math.inf:
            raise ValueError(f"eta must be > -1 and finite, got {self.eta!r}")
        open_unit(gamma=self.gamma)

    @classmethod
    def with_mean(cls, mean: float, *, eta: float = 1.0) -> TruncatedNegativeBinomial:
        """The law of this mean; gamma = 1 / mean at eta = 1, else by bisection to double precision."""
        _mean(mean)
        if eta == 1:
            return cls(eta, 1 / mean)
        low, high = -700.0, 0.0  # Of log gamma; the mean falls as gamma rises.
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if not low < middle < high:
                break
            low, high = (middle, high) if cls(eta, math.exp(middle)).mean > mean else (low, middle)
        return cls(eta, math.exp(low))

    @property
    def mean(self) -> float:
        """The expected number of runs."""
        odds = (1 - self.gamma) / self.gamma
        if self.eta == 0:
            return odds / -math.log(self.gamma)
        return self.eta * odds / -math.expm1(self.eta * math.log(self.gamma))

    def draw(self, uniform: float) -> int:
        """The number of runs that a uniform draw from [0, 1) stands for, by inversion."""
        log = math.log(self.gamma)
        share = 1 / -log if self.eta == 0 else self.eta / math.expm1(-self.eta * log)
        number, chance = 1, (1 - self.gamma) * share
        below = chance
        while uniform >= below and chance > 0:
            chance *= (1 - self.gamma) * (number + self.eta) / (number + 1)
            number += 1
            below += chance
        return number

    def curve(self, one: Array) -> Array:
        """The Renyi divergences of the selection from those of one run, `(orders,)`; theorem 2.

        Its second order is free and does not interact with the first, so one minimum serves all; at order 1 the
        divergence of a run has weight 0.
        """
        lowest = min(-math.log(self.gamma), float(((1 - 1 / ORDERS) * one - math.log(self.gamma) / ORDERS).min()))
        return one + (1 + self.eta) * lowest + math.log(self.mean) / (ORDERS - 1)


@dataclass(frozen=True)
class PoissonRuns:
    """A Poisson number of runs, which may be 0: then nothing is released (section 3.3).

    Attributes:
        mean: the expected number, > 1 here, so that a selection never costs less than a run.
    """

    mean: float

    def __post_init__(self) -> None:
        _mean(self.mean)

    def draw(self, uniform: float) -> int:
        """The number of runs that a uniform draw from [0, 1) stands for, by inversion."""
        number, chance = 0, math.exp(-self.mean)
        below = chance
        while uniform >= below and chance > 0:
            number += 1
            chance *= self.mean / number
            below += chance
        return number

    def curve(self, one: Array) -> Array:
        """The Renyi divergences of the selection from those of one run, `(orders,)`; theorem 6.

        It needs the delta of a run at epsilon = log(1 + 1 / (order - 1)): Canonne, Kamath & Steinke 2020 (arXiv
        2004.00010), proposition 12, over all orders.
        """
        with np.errstate(invalid="ignore"):
            margin = one[None, :] - np.log(ORDERS / (ORDERS - 1))[:, None] + np.log1p(-1 / ORDERS)
            logs = (ORDERS - 1) * margin - np.log(ORDERS)
        delta = np.exp(np.minimum(logs.min(axis=1), 0.0))  # No delta is above 1.
        grown: Array = one + self.mean * delta + math.log(self.mean) / (ORDERS - 1)
        return grown


Runs: TypeAlias = TruncatedNegativeBinomial | PoissonRuns


def epsilon(settings: Sequence[Event], runs: Runs, delta: float, *, neighbours: Neighbours = "add_remove") -> float:
    """An upper bound on the epsilon of the best of a random number of runs; infinite where a run has no guarantee.

    Args:
        settings: what a run costs under each point of the grid; a run takes one of them, each as likely.
        runs: the law of the number of runs.
        delta: in (0, 1).
        neighbours: as in `privacy.accountant.epsilon`.

    Raises:
        Unpriceable: a run that nobody has a price for.
        ValueError: an empty grid, or delta outside (0, 1).
    """
    open_unit(delta=delta)
    if not settings:
        raise ValueError("settings must not be empty")
    one = mixture([rdp.curve(event, neighbours) for event in settings])
    return float(rdp.convert(runs.curve(one)[None, :], delta)[0])


def mixture(curves: Sequence[Array]) -> Array:
    """Renyi divergences of a release that names which of several it is, drawn uniformly, `(orders,)`.

    exp((a - 1) D_a) of the whole is the mean of those of its parts, so it is at most the largest part's.
    """
    scaled = np.stack(curves) * (ORDERS - 1)
    top = scaled.max(axis=0)
    with np.errstate(invalid="ignore", under="ignore"):  # Infinity minus itself, where nothing is promised.
        mean = top + np.log(np.exp(scaled - top).mean(axis=0))
    whole: Array = np.where(np.isfinite(top), mean, np.inf) / (ORDERS - 1)
    return whole


def _mean(mean: float) -> None:
    positive(mean=mean)
    finite(mean=mean)
    if not 1 < mean <= MOST_MEAN:
        raise ValueError(f"mean must be > 1 and <= {MOST_MEAN:g} runs, got {mean!r}")
