"""One-shot estimation of epsilon from the canaries of a single run.

Source: Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar, "One-shot Empirical Privacy Estimation for Federated
Learning", ICLR 2024, arXiv 2302.03098, algorithm 2 (final model only), with both standard deviations fixed to d^-1/2,
which is exact for the Gaussian mechanism (`shared`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privacy import streams
from privacy.accountant import epsilon
from privacy.events import Gaussian

SPREAD = 1.96  # Standard errors of a 95% interval.


@dataclass(frozen=True)
class Measurement:
    """What a run was measured to leak: an estimate, neither an upper nor a lower bound.

    Attributes:
        epsilon: the estimate.
        lower: lower end of its 95% interval.
        upper: upper end.
        delta: of all three.
        canaries: seen canaries scored.
        dimension: noised coordinates.
        ks_pvalue: of the test that unseen canaries follow the null; a small value says that the estimate is unsound.
        method: which statistic, and how its spread was obtained.
    """

    epsilon: float
    lower: float
    upper: float
    delta: float
    canaries: int
    dimension: int
    ks_pvalue: float
    method: str = "final, shared"


def direction(seed: int, canary: int, size: int) -> Tensor:
    """The unit vector of a canary, `(size,)` float64, regenerated from its number; unseen ones are numbered on."""
    vector = torch.randn(size, generator=streams.generator(seed, "canary", canary), dtype=torch.float64)
    unit: Tensor = vector / torch.linalg.vector_norm(vector)
    return unit


def scores(change: Tensor, *, seed: int, first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The cosines between `count` canaries from number `first` on and the change of the model `(N,)`."""
    norm = torch.linalg.vector_norm(change.double())
    unit = change.double() / norm if norm > 0 else change.double()
    return np.array([float(direction(seed, first + j, change.numel()) @ unit) for j in range(count)])


def measure(change: Tensor, *, seed: int, canaries: int, delta: float) -> Measurement:
    """Estimates epsilon from how much of its canaries a model holds.

    Args:
        change: final minus initial model, `(N,)`, all of whose coordinates were noised.
        seed: of the canaries.
        canaries: how many took part; as many unseen ones are scored against the null.
        delta: of the estimate.
    """
    from scipy import stats

    size = change.numel()
    seen = math.sqrt(size) * scores(change, seed=seed, first=0, count=canaries)
    unseen = scores(change, seed=seed, first=canaries, count=canaries)
    # (1 + cos) / 2 of a random direction is Beta((d - 1) / 2, (d - 1) / 2): the exact null at any dimension.
    null = stats.beta((size - 1) / 2, (size - 1) / 2)
    mean, error = float(seen.mean()), SPREAD / math.sqrt(canaries)
    return Measurement(
        epsilon=_epsilon(mean, delta),
        lower=_epsilon(mean - error, delta),
        upper=_epsilon(mean + error, delta),
        delta=delta,
        canaries=canaries,
        dimension=size,
        ks_pvalue=float(stats.kstest((1 + unseen) / 2, null.cdf).pvalue),
    )


def _epsilon(shift: float, delta: float) -> float:
    """Epsilon of telling N(0, 1) from N(shift, 1)."""
    return epsilon(Gaussian(1 / shift), delta).upper if shift > 0 else 0.0
