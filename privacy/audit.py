"""One-shot estimation of epsilon from the canaries of a single run, and the alarm when they contradict a claim.

Source: Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar, "One-shot Empirical Privacy Estimation for Federated
Learning", ICLR 2024, arXiv 2302.03098: algorithm 2 (final model) and algorithm 3 (all iterates). The auditor's input
is two arrays of cosines, of canaries that took part and of as many that did not; it knows no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privacy import binomial, gaussian, null, streams
from privacy.two_gaussians import Normal, two_gaussian_epsilon, two_gaussian_epsilons

Array: TypeAlias = npt.NDArray[np.float64]

COVERAGE = 0.95
FALSE_ALARM = 1e-4  # Chance that a run with the right noise sets off the alarm; half for each of its two tests.
SOUND = 0.01  # A p-value below this says that unseen canaries do not follow their null.
FITTED_LEAST = 1000  # Below so many canaries the error of a fitted spread, of either sign, drives the estimate up.
LENGTH = 1e4  # Times the clip norm: the clip brings every canary to exactly the norm that its unit may have.
_DRAWS = 500


@dataclass(frozen=True, eq=False)
class Scores:
    """Cosines between canaries and what a run released.

    Attributes:
        seen: of canaries that took part, `(canaries,)`.
        unseen: of others of the same generator, `(unseen,)`.
        dimension: coordinates that were noised.

    Raises:
        ValueError: too few scores, or one that is no cosine.
    """

    seen: Array
    unseen: Array
    dimension: int

    def __post_init__(self) -> None:
        if not self.dimension >= 1:
            raise ValueError(f"dimension must be >= 1, got {self.dimension!r}")
        for name, values in (("seen", self.seen), ("unseen", self.unseen)):
            if not len(values) >= 1:
                raise ValueError(f"{name} must hold at least 1 score")
            if not bool(np.all(np.abs(values) <= 1 + 1e-9)):  # Written so that NaN fails too.
                raise ValueError(f"{name} must hold cosines, between -1 and 1")


@dataclass(frozen=True)
class Estimate:
    """An epsilon with its interval; `quotable` where there are canaries enough for its method."""

    method: str
    epsilon: float
    lower: float
    upper: float
    quotable: bool


@dataclass(frozen=True)
class Measurement:
    """What a run was measured to leak: estimates, neither upper nor lower bounds, and bounds for the alarm.

    Attributes:
        method: `final, shared`: from the final model, both spreads fixed to d^-1/2.
        epsilon: its estimate.
        lower: lower end of its interval.
        upper: upper end.
        interval: how often such an interval covers.
        delta: of every epsilon here.
        canaries: seen canaries scored.
        dimension: noised coordinates.
        ks_pvalue: of the test that unseen canaries follow the null.
        sound: whether they do, as far as that test can say; it errs in 1 of 100 sound runs.
        detectable: the largest epsilon that Clopper-Pearson could show with so many canaries (95%, one threshold).
        detectable_by_alarm: the same at the alarm's chance of error, over all its thresholds.
        lower_bound: what Clopper-Pearson shows, at half of `false_alarm`.
        shared_bound: lower end of the `final, shared` interval at half of `false_alarm`.
        false_alarm: chance that a run with the right noise sets off the alarm.
        claim: what the bounds are compared with; infinite without one.
        alarm: whether a bound exceeds the claim: noise is missing or mis-scaled.
        fitted: the estimate with the seen canaries' own spread; None for a single canary.
        all_iterates: from the largest cosine with any step of the model, both Gaussians fitted; None where not scored.
    """

    method: str
    epsilon: float
    lower: float
    upper: float
    interval: float
    delta: float
    canaries: int
    dimension: int
    ks_pvalue: float
    sound: bool
    detectable: float
    detectable_by_alarm: float
    lower_bound: float
    shared_bound: float
    false_alarm: float
    claim: float
    alarm: bool
    fitted: Estimate | None
    all_iterates: Estimate | None


def direction(seed: int, canary: int, size: int) -> Tensor:
    """The unit vector of a canary, `(size,)` float64, regenerated from its number; unseen ones are numbered on.

    Drawn in single precision, which is five times as fast and turns no direction by more than 1e-7.
    """
    vector = torch.randn(size, generator=streams.generator(seed, "canary", canary)).double()
    unit: Tensor = vector / torch.linalg.vector_norm(vector)
    return unit


def cosines(change: Tensor, *, seed: int, first: int, count: int) -> Array:
    """The cosines between `count` canaries from number `first` on and a change of the model `(N,)`, one at a time."""
    norm = torch.linalg.vector_norm(change.double())
    unit = change.double() / norm if norm > 0 else change.double()
    return np.array([float(direction(seed, first + j, change.numel()) @ unit) for j in range(count)])


def score(change: Tensor, *, seed: int, canaries: int) -> Scores:
    """Scores the canaries that took part, and as many unseen ones, against a change `(N,)` that was noised all over."""
    seen = cosines(change, seed=seed, first=0, count=canaries)
    return Scores(seen, cosines(change, seed=seed, first=canaries, count=canaries), change.numel())


def measure(final: Scores, *, delta: float, claim: float = math.inf, iterates: Scores | None = None) -> Measurement:
    """Estimates epsilon, and compares what canaries show beyond chance with a claim.

    Args:
        final: cosines with the change of the model over the whole run.
        delta: of every epsilon.
        claim: the epsilon that canaries may show at most; infinite for none.
        iterates: largest cosines with any one step of the model. They never set off the alarm: fitted Gaussians read
            well above 0 where there is nothing to find.
    """
    if not claim >= 0:
        raise ValueError(f"claim must be >= 0, got {claim!r}")
    size = final.dimension
    seen = null.standard_scores(final.seen, size)
    estimate = shared(seen, delta)
    counted, bound = bounds(final, delta)
    pvalue = null.fit(final.unseen, size)
    thresholds = len(binomial.THRESHOLDS)
    return Measurement(
        method=f"final, {estimate.method}",
        epsilon=estimate.epsilon,
        lower=estimate.lower,
        upper=estimate.upper,
        interval=COVERAGE,
        delta=delta,
        canaries=len(seen),
        dimension=size,
        ks_pvalue=pvalue,
        sound=pvalue >= SOUND,
        detectable=binomial.detectable(len(seen), delta),
        detectable_by_alarm=binomial.detectable(len(seen), delta, chance=FALSE_ALARM / 2, thresholds=thresholds),
        lower_bound=counted,
        shared_bound=bound,
        false_alarm=FALSE_ALARM,
        claim=claim,
        alarm=not max(counted, bound) <= claim,
        fitted=fitted(seen, None, delta) if len(seen) > 1 else None,
        all_iterates=None if iterates is None or len(seen) < 2 else fitted(iterates.seen, iterates.unseen, delta),
    )


def bounds(final: Scores, delta: float) -> tuple[float, float]:
    """What canaries show by counting, and by the shared spread; each above the truth in half of `FALSE_ALARM`."""
    seen, unseen = (null.standard_scores(cosines, final.dimension) for cosines in (final.seen, final.unseen))
    counted = binomial.lower_bound(seen, unseen, delta, chance=FALSE_ALARM / 2)
    return counted, shared_bound(seen, delta, chance=FALSE_ALARM / 2)


def shared(seen: Array, delta: float) -> Estimate:
    """Epsilon of N(0, 1) against N(mean, 1), from standard scores: exact for the Gaussian mechanism."""
    from scipy.special import ndtri

    mean, error = float(seen.mean()), float(ndtri((1 + COVERAGE) / 2)) * _error(seen)
    point, lower, upper = (shift_epsilon(mean + sign * error, delta) for sign in (0, -1, 1))
    return Estimate("shared", point, lower, upper, quotable=True)


def shared_bound(seen: Array, delta: float, *, chance: float) -> float:
    """The lower end of the shared interval that lies above the truth with probability at most `chance`."""
    from scipy.special import ndtri

    return shift_epsilon(float(seen.mean()) + float(ndtri(chance)) * _error(seen), delta)


def fitted(seen: Array, unseen: Array | None, delta: float) -> Estimate:
    """Epsilon between Gaussians fitted to scores; `unseen` None stands for the null N(0, 1).

    The interval maps draws from the sampling law of the fitted means and spreads, from a fixed stream.
    """
    rng = np.random.default_rng(streams.derive(0, "audit intervals"))
    point, drawn = _fit(seen, rng)
    other, others = (Normal(0.0, 1.0), _constant(0.0, 1.0)) if unseen is None else _fit(unseen, rng)
    draws = two_gaussian_epsilons(*others, *drawn, delta=delta)
    lower, upper = np.quantile(draws, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]).tolist()
    enough = len(seen) >= FITTED_LEAST
    return Estimate("fitted", two_gaussian_epsilon(other, point, delta), lower, upper, quotable=enough)


def shift_epsilon(shift: float, delta: float) -> float:
    """Epsilon of telling N(0, 1) from N(shift, 1); a shift away from the canaries shows no leak."""
    return gaussian.epsilon(1 / shift, delta) if shift > 1e-300 else 0.0  # Below, 1 / shift would overflow.


def _error(seen: Array) -> float:
    """Standard error of the mean score.

    Canaries that are in a round by chance spread by more than the noise alone: then their own spread counts.
    """
    spread = float(seen.std(ddof=1)) if len(seen) > 1 else 1.0
    return max(1.0, spread) / math.sqrt(len(seen))


def _fit(values: Array, rng: np.random.Generator) -> tuple[Normal, tuple[Array, Array]]:
    count = len(values)
    # Scores that are all equal, as in one dimension, still have a spread: that of double precision.
    mean, std = float(values.mean()), max(float(values.std(ddof=1)), 1e-9)
    means = mean + std / math.sqrt(count) * rng.standard_normal(_DRAWS)
    stds = std * np.sqrt(rng.chisquare(count - 1, _DRAWS) / (count - 1))
    return Normal(mean, std), (means, np.maximum(stds, 1e-9))


def _constant(mean: float, std: float) -> tuple[Array, Array]:
    return np.full(_DRAWS, mean), np.full(_DRAWS, std)
