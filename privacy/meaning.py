"""What an epsilon lets somebody learn: guesses, beliefs and accusations, as bounds that hold for every attacker.

Sources: Kairouz, Oh, Viswanath, "The Composition Theorem for Differential Privacy", ICML 2015, theorem 2.1 (error rates
of guesses); Dong, Roth, Su, "Gaussian Differential Privacy", JRSS B 2022, section 2 (all pairs of epsilon and delta
together).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from privacy.checks import open_unit, positive

_MOST = 700.0  # The largest power of e, nearly, that is a double.


def wrong_guesses(epsilon: float, delta: float) -> float:
    """How often a guess between two equally likely neighbours is wrong, at least; a coin is wrong half of the time.

    Theorem 2.1 at the corner of the region of error rates where both are equal.

    >>> wrong_guesses(0.0, 0.0), round(wrong_guesses(1.0, 0.0), 3)
    (0.5, 0.269)
    """
    _epsilon(epsilon)
    if not 0 <= delta <= 1:
        raise ValueError(f"delta must be >= 0 and <= 1, got {delta!r}")
    return (1 - delta) / (1 + math.exp(min(epsilon, _MOST)))


def posterior(prior: float, epsilon: float) -> float:
    """The most that may be believed afterwards of what was believed with probability `prior`: odds grow by e^epsilon.

    >>> round(posterior(0.001, 4.0), 3)
    0.052
    """
    open_unit(prior=prior)
    _epsilon(epsilon)
    return 1 / (1 + (1 - prior) / prior * math.exp(-epsilon))


def caught(accused: float, pairs: Iterable[tuple[float, float]]) -> float:
    """The most of those who took part that an attacker finds who also accuses a part of those who did not.

    Args:
        accused: that part, from 0 to 1.
        pairs: epsilon and delta, each proved of one and the same release; more of them make a closer bound.

    >>> caught(0.01, [(0.0, 0.0)]), round(caught(0.01, [(1.0, 0.0)]), 4)
    (0.01, 0.0272)
    """
    if not 0 <= accused <= 1:
        raise ValueError(f"accused must be >= 0 and <= 1, got {accused!r}")
    most = 1.0
    for epsilon, delta in pairs:
        _epsilon(epsilon)
        power = math.exp(min(epsilon, _MOST))
        most = min(most, power * accused + delta, 1 - (1 - delta - accused) / power)
    return most


def beyond(noise: float, epsilon: float) -> float:
    """How likely one Gaussian release changes somebody's odds by more than e^epsilon; this is above its delta.

    The logarithm of that change is Gaussian with mean 1 / (2 noise^2) and deviation 1 / noise (Balle & Wang 2018).

    Args:
        noise: standard deviation / the most that one unit can move the sum.
        epsilon: the power of e.
    """
    positive(noise=noise)
    _epsilon(epsilon)
    return 0.5 * math.erfc((epsilon * noise - 0.5 / noise) / math.sqrt(2))


def _epsilon(value: float) -> None:
    if not value >= 0:  # Written so that NaN fails too; infinity promises nothing, and may be asked for.
        raise ValueError(f"epsilon must be >= 0, got {value!r}")
