"""Epsilon of telling two Gaussians apart, of any means and spreads.

Source: Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", ICLR 2024, arXiv 2302.03098,
section 3. The log ratio of the densities is a quadratic, so the set where it exceeds epsilon is bounded by its roots.
There the densities differ by exactly e^epsilon, which turns every tail into a quotient of scaled error functions: no
power of e is ever formed, however large epsilon is.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from privacy import checks

Array: TypeAlias = npt.NDArray[np.float64]

_EQUAL = 1e-12  # Relative difference of two spreads below which the quadratic is taken for a line.
_HALVINGS = 60  # From a bracket of at most twice epsilon (or of 1) to the last digits of double precision.


class Normal(NamedTuple):
    """A Gaussian on the line."""

    mean: float
    std: float


def two_gaussian_epsilon(first: Normal, second: Normal, delta: float) -> float:
    """The smallest epsilon at which two Gaussians are (epsilon, delta)-indistinguishable, in both directions.

    Raises:
        ValueError: a mean is not finite, a spread not positive and finite, or delta outside (0, 1).

    >>> round(two_gaussian_epsilon(Normal(0.0, 1.0), Normal(1.0, 1.0), 1e-2), 6)
    2.317789
    """
    return float(two_gaussian_epsilons(*(np.array([value]) for value in (*first, *second)), delta=delta)[0])


def two_gaussian_epsilons(mean: Array, std: Array, other_mean: Array, other_std: Array, *, delta: float) -> Array:
    """`two_gaussian_epsilon` of many pairs at once, all `(pairs,)`."""
    checks.open_unit(delta=delta)
    for value in (*mean, *other_mean, *std, *other_std):
        checks.finite(mean_or_std=float(value))
    for value in (*std, *other_std):
        checks.positive(std=float(value))
    # Standardised to the one and to the other: reflected, so that the shift is never negative.
    gap = np.abs(mean - other_mean)
    pairs = ((gap / other_std, std / other_std), (gap / std, other_std / std))

    def enough(epsilon: Array) -> npt.NDArray[np.bool_]:
        return np.maximum(*(_delta(shift, scale, epsilon) for shift, scale in pairs)) <= delta

    low, high = np.zeros_like(gap), np.ones_like(gap)
    while not (kept := enough(high)).all():
        low, high = np.where(kept, low, high), np.where(kept, high, 2 * high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        kept = enough(middle)
        low, high = np.where(kept, low, middle), np.where(kept, middle, high)
    return np.where(enough(np.zeros_like(high)), 0.0, high)


def _delta(shift: Array, scale: Array, epsilon: Array) -> Array:
    """The integral of (p - e^epsilon q)+ for P = N(shift, scale^2), Q = N(0, 1); shift >= 0, epsilon >= 0.

    log p/q = a x^2 + b x + c exceeds epsilon beyond a point (a = 0), outside two roots (P is wider, a > 0) or between
    them (a < 0).
    """
    equal = np.abs(scale - 1) < _EQUAL
    a = np.where(equal, 0.0, (1 - scale**-2.0) / 2)
    b = shift / scale**2
    c = -(shift**2) / (2 * scale**2) - np.log(scale)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # Cases that do not apply are masked below.
        root = -(b + np.sqrt(b**2 - 4 * a * (c - epsilon))) / 2  # Not the difference: it would lose its digits.
        one, two = root / a, (c - epsilon) / root
        left, right = np.minimum(one, two), np.maximum(one, two)
        wider = _beyond(right, shift, scale) + _beyond(-left, -shift, scale)
        narrower = _beyond(left, shift, scale) - _beyond(right, shift, scale)
        line = np.where(shift > 0, _beyond((epsilon - c) / b, shift, scale), 0.0)
        found = np.where(equal, line, np.where(a > 0, wider, narrower))
    # No roots: P is narrower and epsilon above the largest loss, so nothing is left.
    return np.where(np.isnan(found), 0.0, np.maximum(found, 0.0))


def _beyond(root: Array, shift: Array, scale: Array) -> Array:
    """P[x > root] - e^epsilon Q[x > root] at a root of log p/q = epsilon; may be negative.

    As scale^-1 exp(-u^2/2) = e^epsilon exp(-v^2/2) there, the quotient of the terms is one of scaled error functions.
    """
    from scipy.special import erfcx, log_ndtr

    inside = (root - shift) / scale
    log_first = log_ndtr(-inside)
    quotient = np.log(erfcx(root / np.sqrt(2))) - np.log(erfcx(inside / np.sqrt(2))) - np.log(scale)
    close = -np.exp(log_first) * np.expm1(np.minimum(quotient, 1.0))
    found: Array = np.where(quotient < 1, close, np.exp(log_first) - np.exp(log_first + quotient))
    return found
