"""DP-SGD's steps: what is drawn is what is priced, every coordinate is noised, the divisor is a constant."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2

from privacy.accountant import epsilon
from privacy.events import Gaussian, Poisson, Repeated, Sampled
from privacy.noise import SystemNoise, grid
from privacy.steps import NoisySteps

STEPS = NoisySteps(clip_norm=0.5, noise_multiplier=1.5, batch=8.0, rows=100)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_price_is_of_the_batches_alone() -> None:
    assert STEPS.event(30) == Repeated(Sampled(Poisson(0.08), Gaussian(1.5)), 30)
    assert NoisySteps(0.5, 1.5, 100.0, 100).event(30) == Repeated(Gaussian(1.5), 30)  # Everybody: nothing amplifies.


def test_reference_price() -> None:
    # accounting.md: rate .01, z 1, 1,000 steps, delta 1e-5: 1.828.
    found = epsilon(NoisySteps(1.0, 1.0, 1.0, 100).event(1000), 1e-5).upper
    assert found == pytest.approx(1.828, abs=2e-3)


@pytest.mark.parametrize("filled", [0.0, 3.0], ids=["empty batch", "full batch"])
def test_noise_of_the_promised_size_is_on_every_coordinate_of_every_batch(filled: float) -> None:
    # 2,000 releases of 40 coordinates: each coordinate's sum of squares is chi-square with 2,000 degrees of freedom.
    # 80 comparisons (40, two tails) at 1e-7 / 80: together a false alarm in less than 1 of 10 million.
    rng, total = generator(1), torch.full((40,), filled)
    seen = torch.stack([STEPS.release(total, rng) for _ in range(2000)]).double()
    scaled = ((seen * 8.0 - filled) / (1.5 * 0.5)).square().sum(0)
    low, high = chi2.ppf([1e-7 / 80, 1 - 1e-7 / 80], df=2000)
    assert bool(((scaled > low) & (scaled < high)).all())


def test_the_divisor_is_the_expected_batch() -> None:
    quiet = NoisySteps(1.0, 1e-9, 8.0, 100)
    torch.testing.assert_close(quiet.release(torch.full((5,), 24.0), generator(0)), torch.full((5,), 3.0))


def test_a_release_leaves_the_sum_alone_and_follows_its_stream() -> None:
    total = torch.ones(6)
    first, again, other = (STEPS.release(total, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(total, torch.ones(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_factors_bound_every_norm_and_drop_what_is_not_finite() -> None:
    norms = torch.tensor([0.0, 0.25, 0.5, 0.6, 1e20, math.inf, math.nan])
    factors = STEPS.factors(norms)
    assert factors[:3].tolist() == [1.0, 1.0, 1.0]
    assert factors[5:].tolist() == [0.0, 0.0]
    assert float((factors[:5] * norms[:5]).max()) <= 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["clip_norm", "noise_multiplier", "batch"])
def test_fields_must_be_positive_and_finite(field: str, bad: float) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        NoisySteps(**{"clip_norm": 1.0, "noise_multiplier": 1.0, "batch": 1.0, "rows": 10} | {field: bad})


def test_a_batch_larger_than_the_silo_has_no_rate() -> None:
    with pytest.raises(ValueError, match=r"batch / rows must be in \(0, 1\]"):
        NoisySteps(1.0, 1.0, 11.0, 10)


def test_secret_noise_is_put_on_a_grid_before_the_division() -> None:
    steps = NoisySteps(clip_norm=0.5, noise_multiplier=1.5, batch=1.0, rows=100)
    total = torch.linspace(-1.0, 1.0, 1000, dtype=torch.float64)
    ticks = steps.release(total, SystemNoise()) / grid(0.75)
    assert torch.equal(ticks, ticks.round())
    assert not torch.equal(steps.release(total, SystemNoise()), steps.release(total, SystemNoise()))


def test_secret_noise_has_the_declared_spread() -> None:
    """The variance of n normal numbers: n * s^2 / std^2 is chi-square; false-alarm probability 1e-6."""
    released = STEPS.release(torch.zeros(20_000, dtype=torch.float64), SystemNoise()) * STEPS.batch
    low, high = chi2.ppf([5e-7, 1 - 5e-7], 20_000)
    assert low < float((released / 0.75).square().sum()) < high
