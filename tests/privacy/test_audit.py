"""The audit: canaries that repeat, an estimate that is right for the Gaussian mechanism, an interval that covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from privacy import audit
from privacy.accountant import epsilon
from privacy.events import Gaussian
from privacy.mechanism import GaussianSum
from privacy.noise import SimulatedNoise

torch.set_num_threads(1)

FALSE_ALARM = 1e-6  # Probability that a statistical test here fails although the code is right, for a fresh seed.
DELTA = 1e-6


def released(size: int, canaries: int, sigma: float, seed: int) -> Tensor:
    """One release of the sum of all canaries by the Gaussian mechanism, `(N,)`; `sigma` 0 leaves the noise away."""
    total = torch.zeros(size, dtype=torch.float64)
    for canary in range(canaries):
        total += audit.direction(seed, canary, size)
    return GaussianSum(1.0, sigma).privatize(total, SimulatedNoise(seed), stream=("noise",)) if sigma else total


def effective(size: int, canaries: int, sigma: float) -> float:
    """The noise that a canary is hidden by at finite dimension: the others are noise too, if a little."""
    return math.sqrt(sigma**2 + canaries / size)


@pytest.mark.parametrize("size", [1, 2, 10, 10_000])
def test_a_direction_has_norm_one_repeats_and_differs_by_canary_and_seed(size: int) -> None:
    first = audit.direction(1, 0, size)
    assert float(torch.linalg.vector_norm(first)) == pytest.approx(1, abs=1e-12)
    assert torch.equal(first, audit.direction(1, 0, size))
    if size > 1:  # In one dimension there are but two directions.
        assert not torch.equal(first, audit.direction(1, 1, size))
        assert not torch.equal(first, audit.direction(2, 0, size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_canary_after_the_clip_has_exactly_the_clip_norm(dtype: torch.dtype) -> None:
    sent = (1e4 * audit.direction(3, 5, 1_000)).to(dtype).double()
    clipped = GaussianSum(0.3, 1.0).factors(torch.linalg.vector_norm(sent)) * sent
    assert float(torch.linalg.vector_norm(clipped)) == pytest.approx(0.3, rel=1e-6)


def test_scores_are_cosines_and_do_not_know_the_length_of_the_change() -> None:
    change = 3 * audit.direction(1, 4, 50)
    seen = audit.scores(change, seed=1, first=3, count=3)
    expected = [float(audit.direction(1, canary, 50) @ audit.direction(1, 4, 50)) for canary in (3, 4, 5)]
    np.testing.assert_allclose(seen, expected, atol=1e-12)
    assert seen[1] == pytest.approx(1)
    np.testing.assert_allclose(audit.scores(1e-6 * change.float(), seed=1, first=3, count=3), expected, atol=1e-6)


def test_a_model_that_did_not_move_scores_zero() -> None:
    assert audit.scores(torch.zeros(20), seed=1, first=0, count=4).tolist() == [0.0] * 4


def test_the_epsilon_of_a_shift_is_that_of_the_gaussian_mechanism() -> None:
    # P1: telling N(0, 1) from N(m, 1), by numerical integration of (p - e^eps q)+.
    for shift, delta in [(1.0, 1e-2), (0.24, 1e-5), (1.9, 1e-6)]:
        found = audit._epsilon(shift, delta)
        x = np.linspace(-12, 12 + shift, 400_001)
        gap = stats.norm.pdf(x - shift) - math.exp(found) * stats.norm.pdf(x)
        assert np.trapezoid(np.maximum(gap, 0), x) == pytest.approx(delta, rel=1e-6)
    assert audit._epsilon(1.0, 1e-2) == pytest.approx(2.317789, abs=1e-6)


def test_no_shift_or_one_the_wrong_way_shows_no_leak() -> None:
    assert audit._epsilon(0.0, DELTA) == audit._epsilon(-1.0, DELTA) == 0.0
    values = [audit._epsilon(shift, DELTA) for shift in (1e-3, 0.1, 1.0, 3.0, 10.0, 30.0)]
    assert values == sorted(values)
    assert all(map(math.isfinite, values))


@pytest.mark.parametrize(("sigma", "claim"), [(4.2247, 1.0), (1.5439, 3.0), (0.5411, 10.0)])
def test_the_gaussian_mechanism_measures_as_its_analytic_epsilon(sigma: float, claim: float) -> None:
    size, canaries = 10_000, 500
    assert epsilon(Gaussian(sigma), DELTA).upper == pytest.approx(claim, abs=1e-3)
    result = audit.measure(released(size, canaries, sigma, seed=7), seed=7, canaries=canaries, delta=DELTA)
    assert (result.canaries, result.dimension, result.delta) == (canaries, size, DELTA)
    assert result.lower <= result.epsilon <= result.upper

    # The mean score has a standard deviation of at most sqrt((1 + 2 k / (d sigma_eff^2)) / k): the cross terms of the
    # canaries come in pairs. Five and a half of them are passed with a probability below 4e-8.
    hidden = effective(size, canaries, sigma)
    spread = 5.5 * math.sqrt((1 + 2 * canaries / (size * hidden**2)) / canaries)
    low, high = audit._epsilon(1 / hidden - spread, DELTA), audit._epsilon(1 / hidden + spread, DELTA)
    assert low <= result.epsilon <= high
    assert result.ks_pvalue > FALSE_ALARM


def test_the_interval_covers_as_often_as_it_says() -> None:
    runs, size, canaries, sigma = 100, 1_000, 20, 2.0
    truth = epsilon(Gaussian(effective(size, canaries, sigma)), DELTA).upper
    results = [
        audit.measure(released(size, canaries, sigma, seed), seed=seed, canaries=canaries, delta=DELTA)
        for seed in range(runs)
    ]
    covered = sum(result.lower <= truth <= result.upper for result in results)
    low, high = stats.binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], runs, 0.95)
    assert low <= covered <= high
    below = sum(result.epsilon < truth for result in results)  # Nor does it err to one side.
    low, high = stats.binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], runs, 0.5)
    assert low <= below <= high


def test_missing_noise_is_seen() -> None:
    # Claimed 3 at sigma 1.5439; without the noise the shift is sqrt(d / k) = 4.5 instead of 0.64.
    result = audit.measure(released(10_000, 500, 0.0, seed=3), seed=3, canaries=500, delta=DELTA)
    assert result.lower > 3.0


def test_a_run_that_saw_no_canary_measures_what_chance_gives() -> None:
    # The mean of k = 400 null scores is beyond 5 / sqrt(k) with a probability below 3e-7.
    change = torch.randn(5_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = audit.measure(change, seed=9, canaries=400, delta=DELTA)
    assert result.epsilon <= audit._epsilon(5 / math.sqrt(400), DELTA)
    assert result.lower == 0.0 or result.lower < result.epsilon
    assert result.ks_pvalue > FALSE_ALARM


@pytest.mark.parametrize("size", [3, 10, 300])
def test_unseen_canaries_follow_the_exact_null_at_any_dimension(size: int) -> None:
    change = torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert audit.measure(change, seed=4, canaries=2_000, delta=DELTA).ks_pvalue > FALSE_ALARM
    unseen = audit.scores(change, seed=4, first=2_000, count=2_000)
    # Mean 0 and variance 1 / d; the variance of the squares of d * cos^2 is 2 (d - 1) / (d + 2).
    assert abs(unseen.mean()) < 5.5 / math.sqrt(2_000 * size)
    assert abs(size * (unseen**2).mean() - 1) < 5.5 * math.sqrt(2 * (size - 1) / (size + 2) / 2_000)
    if size == 3:
        assert stats.kstest(unseen, stats.uniform(-1, 2).cdf).pvalue > FALSE_ALARM  # Archimedes: uniform on [-1, 1].


def test_unseen_canaries_that_took_part_after_all_give_themselves_away() -> None:
    change = released(2_000, 200, 0.5, seed=5)  # As if canaries 100 to 199 were the unseen ones.
    assert audit.measure(change, seed=5, canaries=100, delta=DELTA).ks_pvalue < FALSE_ALARM


def test_a_measurement_repeats() -> None:
    change = released(500, 20, 1.0, seed=1)
    assert audit.measure(change, seed=1, canaries=20, delta=DELTA) == audit.measure(
        change.clone(), seed=1, canaries=20, delta=DELTA
    )
