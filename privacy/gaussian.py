"""The exact price of a Gaussian release: the analytic Gaussian mechanism (Balle & Wang 2018, theorem 8)."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

_HALVINGS = 64  # From a bracket of a few times epsilon to the last digit of double precision.


def epsilon(noise: float, delta: float) -> float:
    """The smallest epsilon at delta, from above.

    Args:
        noise: standard deviation / the most that one unit can move the sum.
        delta: in (0, 1).
    """
    return float(epsilons(np.array([noise]), delta)[0])


def epsilons(noise: Array, delta: float) -> Array:
    """`epsilon` for many noises at once, `(counts,)`."""
    # The loss is a Gaussian of mean 1/(2 noise^2) and deviation 1/noise: beyond this point its tail is below delta.
    high = (0.5 / noise + math.sqrt(-2 * math.log(delta))) / noise
    low = np.zeros_like(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = log_delta(noise, middle) <= math.log(delta)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(log_delta(noise, np.zeros_like(high)) <= math.log(delta), 0.0, high)


def log_delta(noise: Array, epsilon: Array) -> Array:
    """log of Phi(a) - e^epsilon Phi(b), where a, b = +-1/(2 noise) - epsilon noise.

    As (a^2 - b^2) / 2 = -epsilon, the quotient of the terms is one of scaled error functions, which keep their digits.
    """
    from scipy.special import erfcx, log_ndtr

    upper, lower = 0.5 / noise - epsilon * noise, -0.5 / noise - epsilon * noise
    with np.errstate(divide="ignore", over="ignore"):  # Both limits, delta 0 and 1, are right.
        quotient = np.log(erfcx(-lower / math.sqrt(2))) - np.log(erfcx(-upper / math.sqrt(2)))
        found: Array = log_ndtr(upper) + np.log(-np.expm1(quotient))
    return found
