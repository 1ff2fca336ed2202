"""Clopper-Pearson bounds on epsilon: what they can show, and how seldom they show too much."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from privacy import binomial
from privacy.two_gaussians import Normal, two_gaussian_epsilon

DELTA = 1e-6


@pytest.mark.parametrize(("canaries", "largest"), [(200, 3.98), (1000, 5.60)])
def test_what_so_many_canaries_can_show(canaries: int, largest: float) -> None:
    found = binomial.detectable(canaries, DELTA)
    assert found == pytest.approx(largest, abs=0.005)
    # By hand: both rates are within (1/40)^(1/k) of 1 and 0.
    rate = 0.025 ** (1 / canaries)
    assert found == pytest.approx(math.log((rate - DELTA) / (1 - rate)))


def test_one_canary_shows_nothing() -> None:
    assert binomial.detectable(1, DELTA) == 0.0
    assert binomial.lower_bound(np.array([9.0]), np.array([0.0]), DELTA, chance=0.05) == 0.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (1, 10), (7, 10), (10, 10)])
def test_a_rate_is_bounded_by_its_binomial_tail(successes: int, trials: int) -> None:
    found = binomial.least_rate(successes, trials, 0.01)
    assert (found == 0.0) == (successes == 0)
    if successes:
        assert stats.binom(trials, found).sf(successes - 1) == pytest.approx(0.01)


def test_canaries_told_apart_show_all_that_can_be_shown() -> None:
    seen, unseen = np.full(200, 50.0), np.full(200, -0.5)
    shown = binomial.lower_bound(seen, unseen, DELTA, chance=0.05)
    assert shown == pytest.approx(binomial.detectable(200, DELTA, chance=0.05, thresholds=len(binomial.THRESHOLDS)))
    assert binomial.lower_bound(unseen, unseen, DELTA, chance=0.05) == 0.0


def test_the_roles_may_be_exchanged() -> None:
    """Seen canaries that avoid a set show as much as unseen ones that avoid it."""
    seen, unseen = np.full(1000, 3.0), np.concatenate([np.full(500, 3.0), np.full(500, -1.0)])
    assert binomial.lower_bound(seen, unseen, DELTA, chance=0.05) > 3.0  # log(0.45 / 0.008)


def test_the_bound_is_above_the_truth_no_more_often_than_it_says() -> None:
    truth = two_gaussian_epsilon(Normal(0.0, 1.0), Normal(1.0, 1.0), 1e-2)
    rng, runs, above = np.random.default_rng(1), 400, 0
    for _ in range(runs):
        seen, unseen = 1 + rng.standard_normal(500), rng.standard_normal(500)
        above += binomial.lower_bound(seen, unseen, 1e-2, chance=0.1) > truth
    assert above <= stats.binom.ppf(1 - 1e-6, runs, 0.1)  # False alarm 1e-6.


def test_more_canaries_or_more_chance_show_more() -> None:
    values = [binomial.detectable(canaries, DELTA) for canaries in (10, 100, 1_000, 10_000)]
    assert values == sorted(values)
    assert binomial.detectable(100, DELTA, chance=1e-4) < binomial.detectable(100, DELTA)
    with pytest.raises(ValueError, match="chance must be"):
        binomial.detectable(100, DELTA, chance=math.nan)
