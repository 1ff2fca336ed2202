"""Privacy-loss distributions: epsilon nearly exact, from above by dp-accounting and from below by grouping outcomes.

From above the library connects the dots (Doroshenko et al. 2022) on a grid of losses, refined here until it no longer
matters. From below we group outcomes, which can only hide something, and round the losses of the groups down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from privacy.terms import Law, Part, merged

Array: TypeAlias = npt.NDArray[np.float64]

COARSEST = 3e-3  # First grid step, in units of loss; the second, 1e-3, is the one that is trusted first.
FINEST = 1e-7  # Below this, rounding of double precision is larger than what a finer grid would win.
_REFINE = 3.0
_SETTLED = 0.01  # The error falls ninefold per refinement: a change of 1% leaves about 0.1%.
_STEPS_PER_DEVIATION = 2.0  # Grid steps per standard deviation of one round's loss: below 1, the grid is all one sees.
_MAX_BINS = 1_000_000  # Of one round: the library passes through a dict, about 150 bytes a bin.
_MAX_COMPOSED = 100_000  # Wanted size of the grid from below; a coarser grid stays valid, only looser.
_LOWER_BINS = 50_000
MAX_PARTS = 24  # Kinds of sampled rounds in one history; each costs a distribution and a convolution per grid.

_REACH = 8.0  # Standard deviations kept from below: 1e-15 of the mass is beyond, and leaving it out is optimistic.
_TAIL = 1e-15  # Mass that composing may cut, as the library does by default; part of `rounding`.
_SHIFT = 0.02  # Of a grid step; groups aim this much high, so that rounding their loss down costs 2% of a step.
_EDGE_SHIFT = 1e-4  # For the groups made one by one, which can aim well; only rounding must not put them lower.
_EDGE_GROUPS = 256  # Groups made one by one; a rare unit leaves most of the mass within a step of the lowest loss.
_CAPPED: dict[str, Law] = {"capped": "poisson", "capped_replace": "poisson_replace"}  # While the cap is out of reach.


def rounding(parts: Sequence[Part]) -> float:
    """The mass that Fourier transforms in double precision may create or lose: some 1e-16 per release, and a floor."""
    return 1e-13 + 1e-16 * sum(part.times for part in parts)


def resolves(parts: Sequence[Part], delta: float) -> bool:
    """Whether delta stands far enough above `rounding`, and the kinds of rounds are few enough, or can be made so."""
    return delta >= 100 * rounding(parts) and len(merged(tuple(parts), MAX_PARTS)) <= MAX_PARTS


def upper(parts: Sequence[Part], delta: float) -> float:
    """Epsilon from above, on grids refined until it changes by less than 1%; infinite if no grid fits.

    Args:
        parts: of any law but `fixed_size`.
        delta: one that `resolves`.
    """
    parts = merged(tuple(parts), MAX_PARTS)
    step = first_step(parts)
    found = math.inf
    while step >= FINEST and all(_bins(part, step) <= _MAX_BINS for part in parts):
        before, found = found, min(found, upper_at(parts, delta, step))
        if before - found <= _SETTLED * found:  # Not so at first: the infinity before makes the change infinite.
            break
        step /= _REFINE
    return found


def upper_at(parts: Sequence[Part], delta: float, step: float) -> float:
    """Epsilon from above on one grid: valid for every step, tight for a fine one."""
    total = None
    with _overflow():
        for part in merged(tuple(parts), MAX_PARTS):
            one = _one(part, step)
            many = one if part.times == 1 else one.self_compose(part.times)
            total = many if total is None else total.compose(many)
        if total is None:
            return 0.0
        return _at_least_zero(total, delta - rounding(parts))


def first_step(parts: Sequence[Part]) -> float:
    """The grid to start from: half the standard deviation of a typical round's loss, at most `COARSEST`."""
    variance = sum(part.times * _variance(part) for part in parts)
    deviation = math.sqrt(variance / max(1, sum(part.times for part in parts)))
    return max(FINEST, min(COARSEST, deviation / _STEPS_PER_DEVIATION))


def lower(parts: Sequence[Part], delta: float, width: float) -> float:
    """Epsilon from below.

    Args:
        parts: of the laws `all`, `poisson` and `poisson_replace`.
        delta: raised to one that rounding lets us see, if it is smaller; epsilon only falls by that.
        width: about the largest total loss, to choose a grid by; any positive number gives a valid bound.
    """
    import dp_accounting

    pmf = dp_accounting.pld.pld_pmf
    heavy = sorted(parts, key=lambda part: part.times * _variance(part))[-MAX_PARTS:]  # Fewer releases cost less.
    noise = rounding(heavy)
    step = max(FINEST, min(width, 1e9) / _MAX_COMPOSED, *(_lower_step(part) for part in heavy)) if heavy else COARSEST
    total = None
    with _overflow():
        for part in heavy:
            lowest, masses = _grouped(part, step)
            many = pmf.DensePLDPmf(step, lowest, masses, 0.0, False)
            many = many if part.times == 1 else many.self_compose(part.times)
            total = many if total is None else total.compose(many, _TAIL)
        if total is None:
            return 0.0
        return _at_least_zero(total, max(delta, 100 * noise) + noise)


def _one(part: Part, step: float) -> Any:
    """One release's distribution; under a cap a mixture of two, as the library's own for truncated samples is."""
    if part.law not in _CAPPED:
        return _library(part.law, part.rate, part.noise, step)
    free, full = _cases(part)
    few, many = (_library(case.law, case.rate, case.noise, step) for case in (free, full))
    return many.compute_mixture(few, part.spill)


def _cases(part: Part) -> tuple[Part, ...]:
    """The part itself, or the two that a cap makes of it: out of reach, and reached. See `privacy.capped`."""
    if part.law not in _CAPPED:
        return (part,)
    free = Part(_CAPPED[part.law], part.rate, part.noise, part.times)
    return free, Part("poisson_replace", part.kept, part.noise / 2, part.times)


@lru_cache(maxsize=16)
def _library(law: str, rate: float, noise: float, step: float) -> Any:
    """One release's distribution by dp-accounting, pessimistic; kept, as histories differ mostly in counts."""
    import dp_accounting

    relation = dp_accounting.NeighboringRelation
    return dp_accounting.pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        value_discretization_interval=step,
        sampling_prob=rate,
        neighboring_relation=relation.REPLACE_ONE if law == "poisson_replace" else relation.ADD_OR_REMOVE_ONE,
    )


def _overflow() -> np.errstate:
    """Lets densities and moments far out in the tails over- and underflow: their limits, 0 and infinity, are right."""
    return np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore")


def _at_least_zero(distribution: Any, delta: float) -> float:
    """Epsilon of a distribution; asking about 0 first spares the library exp(-loss) of very negative losses."""
    if distribution.get_delta_for_epsilon(0.0) <= delta:
        return 0.0
    return float(distribution.get_epsilon_for_delta(delta))


def _loss(part: Part, x: Array | float) -> Array:
    """log density ratio at x, where the unit moves the mean from 0 (or, replaced, from -1) to 1 with prob. `rate`."""
    present = _against_absence(part, np.asarray(x))
    return present - _against_absence(part, -np.asarray(x)) if part.law == "poisson_replace" else present


def _against_absence(part: Part, x: Array) -> Array:
    stay = math.log1p(-part.rate) if part.rate < 1 else -math.inf
    mixed: Array = np.logaddexp(stay, math.log(part.rate) + (2 * x - 1) / 2 / part.noise / part.noise)
    return mixed


def _edge(part: Part, deviations: float) -> float:
    return float(_loss(part, deviations * part.noise + (1.0 if deviations > 0 else 0.0)))


def _bins(part: Part, step: float) -> float:
    """Grid points that the library will make; it cuts at exp(-50), 10 standard deviations."""
    return max(_edge(case, 10.1) - _edge(case, -10.1) for case in _cases(part)) / step


def _lower_step(part: Part) -> float:
    """A grid step to begin with: one part in 50,000 of the losses, finer where a rare unit keeps them near 0."""
    span = _edge(part, _REACH) - _edge(part, -_REACH)
    near = -math.log1p(-part.rate) if part.rate < 1 else math.inf
    return min(max(near / 4, span / _MAX_BINS), span / _LOWER_BINS)


def _variance(part: Part) -> float:
    """The chi-square divergence, which for rare samples is the variance of the loss; an estimate to choose grids by."""
    if part.law in _CAPPED:
        free, full = _cases(part)
        return (1 - part.spill) * _variance(free) + part.spill * _variance(full)
    spread = math.expm1(min(part.noise**-2, 50.0))
    return min(part.rate**2 * spread, part.noise**-2) * (4 if part.law == "poisson_replace" else 1)


def _grouped(part: Part, step: float) -> tuple[int, Array]:
    """Masses on a grid of losses, from below: grouping outcomes is post-processing, rounding down is optimistic.

    The edges of the groups may be anything; they are put such that each group's own loss lies just above a grid point.

    Returns:
        The index of the lowest loss, and `(bins,)` masses, together at most 1.
    """
    edges = _edges(part, step)
    with_unit, without = _masses(part, edges)
    low = _loss(part, edges[:-1])
    # A quotient of small masses is rounding noise; there the loss at the lower edge serves, a bound as good.
    trusted = np.minimum(with_unit, without) > 1e-13 / step
    group = np.log(with_unit, where=trusted, out=low.copy()) - np.log(without, where=trusted, out=np.zeros_like(low))
    high = np.append(_loss(part, edges[1:-1]), np.inf)
    index = np.floor(np.clip(group, low, high) / step).astype(np.int64)
    lowest = int(index.min())
    return lowest, np.bincount(index - lowest, weights=with_unit).astype(np.float64)


def _edges(part: Part, step: float) -> Array:
    """Edges of the groups, `(groups + 1,)`, rising to infinity; half a step around each grid point but at the start."""
    top = _REACH * part.noise + 1
    fine = np.linspace(-top, top, 4 * _LOWER_BINS)
    losses = np.maximum.accumulate(_loss(part, fine))
    starts = _first_edges(part, step, fine, losses)
    first, last = math.floor(losses[0] / step), math.floor(losses[-1] / step)
    middles = (np.arange(first, last + 1) + 0.5 + _SHIFT) * step
    after = np.interp(middles[(middles > losses[0]) & (middles < losses[-1])], losses, fine)
    return np.concatenate([starts, after[after > starts[-1]], [top, np.inf]])


def _first_edges(part: Part, step: float, fine: Array, losses: Array) -> Array:
    """The first edges, found one after the other: a group ends where its own loss has risen to the next grid point."""
    with_unit, without = (np.concatenate([[0.0], np.cumsum(masses)]) for masses in _masses(part, fine))
    start, edges = 0, [fine[0]]
    for index in range(math.ceil(losses[0] / step), math.ceil(losses[0] / step) + _EDGE_GROUPS):
        aim = (index + _EDGE_SHIFT) * step
        low, high = max(start, int(np.searchsorted(losses, aim))), len(fine) - 1
        ratio = math.exp(min(aim, 700.0))
        if low >= high:
            break
        while low < high:  # Beyond its grid point, more outcomes only raise the loss of a group.
            middle = (low + high) // 2
            short = with_unit[middle] - with_unit[start] < ratio * (without[middle] - without[start])
            low, high = (middle + 1, high) if short else (low, middle)
        if low > start:
            start = low
            edges.append(fine[low])
    return np.array(edges)


def _masses(part: Part, edges: Array) -> tuple[Array, Array]:
    """Probabilities of the cells between the edges, with the unit and without (replaced: at the other end)."""
    absent = _between(edges / part.noise)
    present = _between((edges - 1) / part.noise)
    other = _between((edges + 1) / part.noise) if part.law == "poisson_replace" else absent
    return (1 - part.rate) * absent + part.rate * present, (1 - part.rate) * absent + part.rate * other


def _between(edges: Array) -> Array:
    """Standard normal mass between neighbouring edges, taken from the tail that keeps the digits."""
    from scipy.special import ndtr

    low, high = edges[:-1], edges[1:]
    masses: Array = np.where(low > 0, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
    return masses
