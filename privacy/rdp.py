"""Renyi accounting: a valid bound for every part that has a price, cheap for many counts at once, never tight."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from privacy.events import Event
from privacy.terms import LEAST_NOISE, Neighbours, Part, history_of, upper_parts

Array: TypeAlias = npt.NDArray[np.float64]

# Low orders serve large epsilons, high ones small: near the best order alpha, epsilon is about 2 log(1/delta) / alpha.
ORDERS: Array = np.array(
    [1 + tenth / 10 for tenth in range(1, 100)]
    + [float(order) for order in range(11, 65)]
    + [72.0, 80.0, 96.0, 112.0, 128.0, 160.0, 192.0, 256.0, 320.0, 384.0, 512.0, 768.0, 1024.0, 2048.0]
)

# Moments of rare samples are sums near 1, exact to about 1e-15; the price must not fall by what rounding took.
_ROUNDING = 1e-14


def epsilon(parts: Sequence[Part], delta: float) -> float:
    """An upper bound on epsilon; infinite where no order bounds it."""
    return float(epsilons(parts, delta, np.ones(1))[0])


def epsilons(parts: Sequence[Part], delta: float, times: Array) -> Array:
    """Upper bounds on epsilon for the parts done `times` over.

    Args:
        parts: what one repetition releases.
        delta: in (0, 1).
        times: `(counts,)` numbers of repetitions.

    Returns:
        `(counts,)`, non-decreasing where `times` is.
    """
    return convert(times[:, None] * moments(parts), delta)


def curve(event: Event, neighbours: Neighbours) -> Array:
    """The Renyi divergence of an event at each of `ORDERS`, `(orders,)`; infinite where there is no guarantee.

    Raises:
        Unpriceable: nobody proved a price for this pairing.
    """
    history = history_of(event)
    parts = upper_parts(history, neighbours)
    if history.non_private is not None or any(part.noise < LEAST_NOISE for part in parts):
        return np.full(len(ORDERS), np.inf)
    return moments(parts)


def moments(parts: Sequence[Part]) -> Array:
    """The Renyi divergence at each of `ORDERS` of all parts together, `(orders,)`."""
    total = np.zeros(len(ORDERS))
    for part in parts:
        total += part.times * _release(part)
    return total


def allowances(epsilon: float, delta: float) -> Array:
    """The divergence at each of `ORDERS` that `convert` takes to epsilon, `(orders,)`; negative where none does."""
    spared: Array = epsilon - np.log1p(-1 / ORDERS) + (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return spared


def convert(divergences: Array, delta: float) -> Array:
    """Epsilon at delta, the best over orders; Canonne, Kamath & Steinke 2020 (arXiv 2004.00010), proposition 12.

    Args:
        divergences: `(counts, orders)`.
        delta: in (0, 1).
    """
    orders = ORDERS
    found = divergences + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    # Total variation is at most sqrt(1 - exp(-KL)) (Bretagnolle & Huber 1979), and KL is at most any divergence here.
    free = -np.expm1(-divergences) < delta**2
    best: Array = np.where(free, 0.0, np.maximum(found, 0.0)).min(axis=1)
    return best


def _release(part: Part) -> Array:
    """The Renyi divergence of one release of a part; under a cap of the two cases that it makes, see `privacy.capped`.

    exp((a - 1) D_a) of a release that names its case is the mean of those of the cases.
    """
    if part.law not in ("capped", "capped_replace"):
        return _one(part.law, part.rate, part.noise)
    free = _one("poisson" if part.law == "capped" else "poisson_replace", part.rate, part.noise)
    full = _one("poisson_replace", part.kept, part.noise / 2)
    if part.spill == 1:
        return full
    first, second = math.log1p(-part.spill), math.log(part.spill)
    whole: Array = np.logaddexp((ORDERS - 1) * free + first, (ORDERS - 1) * full + second) / (ORDERS - 1)
    return np.maximum(whole, 0.0) + _ROUNDING


@lru_cache(maxsize=512)
def _one(law: str, rate: float, noise: float) -> Array:
    """The Renyi divergence of one release at `ORDERS`, `(orders,)`; read-only, because it is shared."""
    match law:
        case "all":
            divergence = ORDERS / (2 * noise) / noise  # Mironov 2017, corollary 3; noise**2 could underflow.
        case "poisson":
            divergence = _poisson(rate, noise, ORDERS)
        case "poisson_replace":
            divergence = _replaced(rate, noise)
        case "fixed_size":
            divergence = _fixed_size(rate, noise)
        case _:
            raise ValueError(f"no Renyi divergence for the law {law!r}")
    # NaN, where a moment overflowed, must not win the minimum over orders.
    divergence = np.where(np.isnan(divergence), np.inf, np.maximum(divergence, 0.0))
    if law != "all":
        divergence = divergence + _ROUNDING
    divergence.setflags(write=False)
    return divergence


def _poisson(rate: float, noise: float, orders: Array) -> Array:
    """Mironov, Talwar & Zhang 2019 (arXiv 1908.10530), as dp-accounting computes it."""
    import dp_accounting

    accountant = dp_accounting.rdp.RdpAccountant(orders)
    with _quiet():
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)))
    result: Array = accountant.rdp
    return result


def _replaced(rate: float, noise: float) -> Array:
    """A unit's values replaced, by the better of two ways through its absence R, order by order.

    Removed, then added: D_a(P, Q) <= (a - 1/2) / (a - 1) D_2a(P, R) + D_(2a - 1)(R, Q), Mironov 2017, proposition 11,
    with p = q = 2. Or, as Q >= (1 - rate) R: D_a(P, Q) <= D_a(P, R) - log(1 - rate), good where divergences are large.
    """
    weight = (ORDERS - 0.5) / (ORDERS - 1)
    through = weight * _poisson(rate, noise, 2 * ORDERS) + _poisson(rate, noise, 2 * ORDERS - 1)
    unsampled = -math.log1p(-rate) if rate < 1 else math.inf
    better: Array = np.fmin(through, _poisson(rate, noise, ORDERS) + unsampled)
    return better


def _fixed_size(rate: float, noise: float) -> Array:
    """Wang, Balle & Kasiviswanathan 2019, theorem 27; `noise` is already per sensitivity of 2 clip norms.

    dp-accounting 0.6 takes the sensitivity to be one clip norm (its issue 378), so the caller halves.
    """
    import dp_accounting

    accountant = dp_accounting.rdp.RdpAccountant(ORDERS, dp_accounting.NeighboringRelation.REPLACE_ONE)
    numerator, denominator = rate.as_integer_ratio()  # The library takes counts and divides them again, exactly.
    event = dp_accounting.SampledWithoutReplacementDpEvent(denominator, numerator, dp_accounting.GaussianDpEvent(noise))
    with _quiet():
        accountant.compose(event)
    result: Array = accountant.rdp
    return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops the library's line on orders whose series does not converge, and numpy's on overflowing moments.

    Both are answered here: such an order counts as infinite, and another order wins.
    """
    log = logging.getLogger("absl")
    log.addFilter(_expected)
    try:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
            yield
    finally:
        log.removeFilter(_expected)


def _expected(record: logging.LogRecord) -> bool:
    return "failed to converge" not in record.getMessage()
