"""Lower bounds on epsilon from counts alone: how often a threshold tells seen canaries from unseen ones.

Any (epsilon, delta)-private mechanism keeps TPR <= e^epsilon FPR + delta at every threshold, and the same with the
roles exchanged. Rates are bounded by Clopper and Pearson (Biometrika 1934). No form of the scores is assumed; canaries
count as independent trials, which holds up to correlations of order 1/dimension.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from privacy import checks

Array: TypeAlias = npt.NDArray[np.float64]

# In standard deviations of the null. Fixed before any score is seen, so that a union bound over them is one; beyond the
# last, fewer than one unseen canary in 10^9 is found.
THRESHOLDS = tuple(step / 2 for step in range(13))


def lower_bound(seen: Array, unseen: Array, delta: float, *, chance: float) -> float:
    """An epsilon that the mechanism has at least, up to a probability of error of `chance`.

    Args:
        seen: standard scores of canaries that took part.
        unseen: of as many or other that did not.
        delta: of the epsilon.
        chance: that the true epsilon is below the bound, over all thresholds together.
    """
    each = chance / (2 * len(THRESHOLDS))  # Two rates at each threshold.
    best = 0.0
    for threshold in THRESHOLDS:
        found = least_rate(int((seen >= threshold).sum()), len(seen), each)
        false = 1 - least_rate(int((unseen < threshold).sum()), len(unseen), each)
        best = max(best, _ratio(found - delta, false), _ratio(1 - false - delta, 1 - found))
    return best


def detectable(canaries: int, delta: float, *, chance: float = 0.05, thresholds: int = 1) -> float:
    """The largest epsilon that Clopper-Pearson could show with so many canaries, were all told apart.

    >>> [round(detectable(canaries, 1e-6), 2) for canaries in (200, 1000)]
    [3.98, 5.6]
    """
    rate = least_rate(canaries, canaries, chance / (2 * thresholds))
    return max(0.0, _ratio(rate - delta, 1 - rate))


def least_rate(successes: int, trials: int, chance: float) -> float:
    """The one-sided Clopper-Pearson lower bound of a rate: too high with probability at most `chance`."""
    from scipy.special import betaincinv

    checks.open_unit(chance=chance)
    return float(betaincinv(successes, trials - successes + 1, chance)) if successes else 0.0


def _ratio(numerator: float, denominator: float) -> float:
    return math.log(numerator / denominator) if numerator > 0 else -math.inf
