"""The audit: canaries that repeat, an estimate that is right for the Gaussian mechanism, an interval that covers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from privacy import audit, null
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


def audited(change: Tensor, seed: int, canaries: int, **options: Any) -> audit.Measurement:
    return audit.measure(audit.score(change, seed=seed, canaries=canaries), delta=DELTA, **options)


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
    seen = audit.cosines(change, seed=1, first=3, count=3)
    expected = [float(audit.direction(1, canary, 50) @ audit.direction(1, 4, 50)) for canary in (3, 4, 5)]
    np.testing.assert_allclose(seen, expected, atol=1e-12)
    assert seen[1] == pytest.approx(1)
    np.testing.assert_allclose(audit.cosines(1e-6 * change.float(), seed=1, first=3, count=3), expected, atol=1e-6)


def test_a_model_that_did_not_move_scores_zero() -> None:
    assert audit.cosines(torch.zeros(20), seed=1, first=0, count=4).tolist() == [0.0] * 4


def test_the_epsilon_of_a_shift_is_that_of_the_gaussian_mechanism() -> None:
    # P1: telling N(0, 1) from N(m, 1), by numerical integration of (p - e^eps q)+.
    for shift, delta in [(1.0, 1e-2), (0.24, 1e-5), (1.9, 1e-6)]:
        found = audit.shift_epsilon(shift, delta)
        x = np.linspace(-12, 12 + shift, 400_001)
        gap = stats.norm.pdf(x - shift) - math.exp(found) * stats.norm.pdf(x)
        assert np.trapezoid(np.maximum(gap, 0), x) == pytest.approx(delta, rel=1e-6)
    assert audit.shift_epsilon(1.0, 1e-2) == pytest.approx(2.317789, abs=1e-6)


def test_no_shift_or_one_the_wrong_way_shows_no_leak() -> None:
    assert audit.shift_epsilon(0.0, DELTA) == audit.shift_epsilon(-1.0, DELTA) == 0.0
    values = [audit.shift_epsilon(shift, DELTA) for shift in (1e-3, 0.1, 1.0, 3.0, 10.0, 30.0)]
    assert values == sorted(values)
    assert all(map(math.isfinite, values))


@pytest.mark.parametrize(("sigma", "claim"), [(4.2247, 1.0), (1.5439, 3.0), (0.5411, 10.0)])
def test_the_gaussian_mechanism_measures_as_its_analytic_epsilon(sigma: float, claim: float) -> None:
    size, canaries = 10_000, 500
    assert epsilon(Gaussian(sigma), DELTA).upper == pytest.approx(claim, abs=1e-3)
    result = audited(released(size, canaries, sigma, seed=7), 7, canaries)
    assert (result.canaries, result.dimension, result.delta) == (canaries, size, DELTA)
    assert result.lower <= result.epsilon <= result.upper

    # The mean score has a standard deviation of at most sqrt((1 + 2 k / (d sigma_eff^2)) / k): the cross terms of the
    # canaries come in pairs. Five and a half of them are passed with a probability below 4e-8.
    hidden = effective(size, canaries, sigma)
    spread = 5.5 * math.sqrt((1 + 2 * canaries / (size * hidden**2)) / canaries)
    low, high = audit.shift_epsilon(1 / hidden - spread, DELTA), audit.shift_epsilon(1 / hidden + spread, DELTA)
    assert low <= result.epsilon <= high
    assert result.ks_pvalue > FALSE_ALARM


def test_the_interval_covers_as_often_as_it_says() -> None:
    runs, size, canaries, sigma = 200, 1_000, 20, 2.0
    truth = epsilon(Gaussian(effective(size, canaries, sigma)), DELTA).upper
    results = []
    for seed in range(runs):
        change = released(size, canaries, sigma, seed)
        seen = audit.cosines(change, seed=seed, first=0, count=canaries)
        results.append(audit.shared(null.standard_scores(seen, size), DELTA))
    covered = sum(result.lower <= truth <= result.upper for result in results)
    assert 0.90 * runs <= covered <= 0.99 * runs  # At 95% missed by chance in 1 of 640 seeds.
    below = sum(result.epsilon < truth for result in results)  # Nor does it err to one side.
    low, high = stats.binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], runs, 0.5)
    assert low <= below <= high


def test_missing_noise_is_seen() -> None:
    # Claimed 3 at sigma 1.5439; without the noise the shift is sqrt(d / k) = 4.5 instead of 0.64.
    result = audited(released(10_000, 500, 0.0, seed=3), 3, 500)
    assert result.lower > 3.0


def test_a_run_that_saw_no_canary_measures_what_chance_gives() -> None:
    # The mean of k = 400 null scores is beyond 5 / sqrt(k) with a probability below 3e-7.
    change = torch.randn(5_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = audited(change, 9, 400)
    assert result.epsilon <= audit.shift_epsilon(5 / math.sqrt(400), DELTA)
    assert result.lower == 0.0 or result.lower < result.epsilon
    assert result.ks_pvalue > FALSE_ALARM


@pytest.mark.parametrize("size", [3, 10, 300])
def test_unseen_canaries_follow_the_exact_null_at_any_dimension(size: int) -> None:
    change = torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert audited(change, 4, 2_000).ks_pvalue > FALSE_ALARM
    unseen = audit.cosines(change, seed=4, first=2_000, count=2_000)
    # Mean 0 and variance 1 / d; the variance of the squares of d * cos^2 is 2 (d - 1) / (d + 2).
    assert abs(unseen.mean()) < 5.5 / math.sqrt(2_000 * size)
    assert abs(size * (unseen**2).mean() - 1) < 5.5 * math.sqrt(2 * (size - 1) / (size + 2) / 2_000)
    if size == 3:
        assert stats.kstest(unseen, stats.uniform(-1, 2).cdf).pvalue > FALSE_ALARM  # Archimedes: uniform on [-1, 1].


def test_unseen_canaries_that_took_part_after_all_give_themselves_away() -> None:
    change = released(2_000, 200, 0.5, seed=5)  # As if canaries 100 to 199 were the unseen ones.
    assert audited(change, 5, 100).ks_pvalue < FALSE_ALARM


def test_a_measurement_repeats() -> None:
    change = released(500, 20, 1.0, seed=1)
    first, second = (audit.score(copy, seed=1, canaries=20) for copy in (change, change.clone()))
    assert audit.measure(first, delta=DELTA, iterates=first) == audit.measure(second, delta=DELTA, iterates=second)


def gaussian_scores(shift: float, canaries: int, seed: int, size: int = 10**6, spread: float = 1.0) -> audit.Scores:
    """Scores by the law of the Gaussian mechanism at a large dimension: N(shift, spread^2) and N(0, 1) over sqrt(d)."""
    rng = np.random.default_rng(seed)
    seen, unseen = shift + spread * rng.standard_normal(canaries), rng.standard_normal(canaries)
    return audit.Scores(seen / math.sqrt(size), unseen / math.sqrt(size), size)


@pytest.mark.parametrize(("shift", "truth"), [(1 / 4.2247, 1.0), (1 / 1.5439, 3.0), (1 / 0.5411, 10.0)])
def test_shared_and_fitted_read_the_gaussian_mechanism(shift: float, truth: float) -> None:
    # The methods page reads 1.01+-.13, 3.01+-.17, 9.99+-.21 (shared) and 1.33+-.34, 3.41+-.39, 10.6+-.58 (fitted): a
    # fitted spread errs upwards. Means over 20 runs lie within 5.5 of their standard errors.
    runs = [audit.measure(gaussian_scores(shift, 1000, seed), delta=DELTA) for seed in range(20)]
    shared = [run.epsilon for run in runs]
    fitted = [run.fitted.epsilon for run in runs if run.fitted is not None and run.fitted.quotable]
    assert len(fitted) == 20
    assert abs(np.mean(shared) - truth) < 5.5 * 0.21 / math.sqrt(20)
    assert -5.5 * 0.58 / math.sqrt(20) < np.mean(fitted) - truth < 0.7 + 5.5 * 0.58 / math.sqrt(20)
    assert np.mean(fitted) > np.mean(shared)


def test_the_spread_of_seen_canaries_is_of_the_null_at_large_dimension() -> None:
    # P5: |sqrt(d) m - 1/sigma_eff| <= 4/sqrt(k) and |d s^2 - 1| <= 4 sqrt(2/k); missed by chance in 1 of 8,000 seeds.
    size, canaries, sigma = 100_000, 500, 1.5439
    seen = audit.cosines(released(size, canaries, sigma, seed=2), seed=2, first=0, count=canaries)
    assert abs(math.sqrt(size) * seen.mean() - 1 / effective(size, canaries, sigma)) <= 4 / math.sqrt(canaries)
    assert abs(size * seen.var(ddof=1) - 1) <= 4 * math.sqrt(2 / canaries)


def test_a_fitted_spread_is_quoted_from_a_thousand_canaries_on() -> None:
    for canaries, quotable in ((999, False), (1000, True)):
        scores = gaussian_scores(0.5, canaries, seed=1)
        result = audit.measure(scores, delta=DELTA, iterates=scores)
        assert result.fitted is not None
        assert result.all_iterates is not None
        assert (result.fitted.quotable, result.all_iterates.quotable) == (quotable, quotable)
        assert result.fitted.lower < result.fitted.epsilon < result.fitted.upper


def test_the_interval_of_a_fitted_spread_covers_what_was_fitted() -> None:
    # Its ends are quantiles of draws around the fit: wider than the shared interval, as another number is unknown.
    result = audit.measure(gaussian_scores(1 / 1.5439, 4000, seed=3), delta=DELTA)
    assert result.fitted is not None
    assert result.fitted.upper - result.fitted.lower > result.upper - result.lower
    assert result.fitted.lower < 3.4
    assert result.fitted.upper > 2.9


def test_what_can_be_detected_is_stated() -> None:
    for canaries, largest in ((200, 3.98), (1000, 5.60)):
        result = audit.measure(gaussian_scores(50.0, canaries, seed=1), delta=DELTA, claim=2.0)
        assert result.detectable == pytest.approx(largest, abs=0.005)
        assert result.lower_bound == pytest.approx(result.detectable_by_alarm)  # All canaries were told apart.
        assert result.lower_bound < result.detectable


def test_right_noise_sets_off_no_alarm_and_little_noise_does() -> None:
    # 300 runs at exactly the claim: each half errs in 5e-5 of runs, so one alarm in 300 has a chance of 3%, two 4e-4,
    # three 4e-6.
    shift, canaries = 0.5, 200
    claim = audit.shift_epsilon(shift, DELTA)
    right = [_alarms(gaussian_scores(shift, canaries, seed), claim) for seed in range(300)]
    assert sum(right) <= 2
    # A quarter of the noise quadruples the shift to 2: 1.5 above the claim, against 3.9 errors of 1/sqrt(200) = 0.07.
    assert all(_alarms(gaussian_scores(4 * shift, canaries, seed), claim) for seed in range(20))


def _alarms(scores: audit.Scores, claim: float) -> bool:
    return max(audit.bounds(scores, DELTA)) > claim


def test_each_half_of_the_alarm_suffices() -> None:
    # Shift 1.2: the shared bound passes 4, counting does not; spread 3: counting passes 0.5, the shared bound does not.
    shifted = audit.measure(gaussian_scores(1.2, 1000, seed=1), delta=DELTA, claim=4.0)
    assert shifted.alarm
    assert shifted.shared_bound > 4.0 > shifted.lower_bound
    spread = audit.measure(gaussian_scores(0.0, 1000, seed=1, spread=3.0), delta=DELTA, claim=0.5)
    assert spread.alarm
    assert spread.lower_bound > 0.5 > spread.shared_bound


def test_all_iterates_never_set_off_the_alarm() -> None:
    nothing, much = gaussian_scores(0.0, 200, seed=1), gaussian_scores(20.0, 200, seed=1)
    result = audit.measure(nothing, delta=DELTA, claim=0.5, iterates=much)
    assert result.all_iterates is not None
    assert result.all_iterates.epsilon > 100
    assert not result.alarm


def test_an_infinite_claim_is_never_contradicted_and_one_that_is_no_number_is_refused() -> None:
    assert not audit.measure(gaussian_scores(50.0, 100, seed=1), delta=DELTA).alarm
    with pytest.raises(ValueError, match="claim must be"):
        audit.measure(gaussian_scores(50.0, 100, seed=1), delta=DELTA, claim=math.nan)


def test_canaries_that_spread_have_a_wider_interval() -> None:
    narrow = audit.measure(gaussian_scores(1.0, 400, seed=1), delta=DELTA)
    wide = audit.measure(gaussian_scores(1.0, 400, seed=1, spread=3.0), delta=DELTA)
    assert wide.upper - wide.lower > 2 * (narrow.upper - narrow.lower)


@pytest.mark.parametrize("size", [2, 3, 10, 650])
def test_few_dimensions_are_estimated_by_the_exact_null(size: int) -> None:
    # One canary hidden by noise of norm about sigma sqrt(d): the scores follow N(0, 1) without it, whatever d.
    change = torch.randn(size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    result = audited(change, 3, 2_000)
    assert result.sound
    assert result.epsilon <= audit.shift_epsilon(5 / math.sqrt(2_000), DELTA)  # Beyond with probability 3e-7.


@pytest.mark.parametrize(
    ("seen", "unseen", "dimension"),
    [([math.nan], [0.0], 10), ([0.0], [1.5], 10), ([], [0.0], 10), ([0.0], [], 10), ([0.0], [0.0], 0)],
)
def test_what_is_no_score_is_refused(seen: list[float], unseen: list[float], dimension: int) -> None:
    with pytest.raises(ValueError, match="must"):
        audit.Scores(np.array(seen), np.array(unseen), dimension)
