"""How canaries score that took no part: the law of the cosine between a fixed vector and a random direction.

Exact at any dimension: the density is proportional to (1 - t^2)^((d-3)/2) on [-1, 1]. From d = 1000 on it is a Gaussian
of variance 1/d for all that is measured here.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

EXACT_BELOW = 1000
_TINY = 1e-290  # Tails below this are taken from their series, before they leave the range of double precision.


def density(cosine: Array, dimension: int) -> Array:
    """The exact density, same shape; dimension >= 2."""
    from scipy.special import betaln

    with np.errstate(divide="ignore"):  # At the ends of the interval the density is 0, or infinite for d = 2.
        logs = (dimension - 3) / 2 * np.log1p(-(cosine**2)) if dimension != 3 else np.zeros_like(cosine)
    found: Array = np.exp(logs - betaln(0.5, (dimension - 1) / 2))
    return found


def standard_scores(cosines: Array, dimension: int) -> Array:
    """Cosines as scores that are N(0, 1) for a random direction, in the same order and shape.

    Below `EXACT_BELOW` by their exact rank in the null: a monotone map, which neither adds to nor takes from what the
    scores tell apart. Above it by the factor sqrt(d).
    """
    if dimension >= EXACT_BELOW:
        return math.sqrt(dimension) * cosines
    from scipy.special import ndtri_exp

    # Ends are a score that no double precision tells from infinity; a finite one keeps means finite.
    tails = np.maximum(_log_tail(np.abs(np.clip(cosines, -1, 1)), dimension), -1e15)
    found: Array = -np.sign(cosines) * ndtri_exp(tails)
    return found


def _log_tail(cosines: Array, dimension: int) -> Array:
    """log P[T > t] for t in [0, 1]: half an incomplete beta function of 1 - t^2 at ((d - 1)/2, 1/2)."""
    from scipy.special import betainc, betaln, hyp2f1

    if dimension == 1:  # Only -1 and 1, equally likely.
        return np.full_like(cosines, math.log(0.5))
    a, rest = (dimension - 1) / 2, (1 - cosines) * (1 + cosines)
    tail = betainc(a, 0.5, rest) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        series = a * np.log(rest) + np.log(cosines) - math.log(a) - betaln(a, 0.5)
        series = series + np.log(hyp2f1(a + 0.5, 1.0, a + 1, np.minimum(rest, 0.5))) - math.log(2)
        found: Array = np.where(tail > _TINY, np.log(tail), series)
    return found


def fit(cosines: Array, dimension: int) -> float:
    """The p-value of a Kolmogorov-Smirnov test that cosines follow the null."""
    from scipy import stats

    return float(stats.kstest(standard_scores(cosines, dimension), stats.norm.cdf).pvalue)
