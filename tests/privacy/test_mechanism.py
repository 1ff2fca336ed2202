"""Mechanisms: the clip bounds, the noise is as strong as its price says, and prices compose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats

from privacy.accountant import epsilon
from privacy.events import Composed, Gaussian, NonPrivate
from privacy.mechanism import ExactSum, GaussianSum, joint_event
from privacy.noise import SimulatedNoise

torch.set_num_threads(1)

FALSE_ALARM = 1e-6  # Probability that a statistical test here fails although the code is right, for a fresh seed.

rows = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.one_of(
        st.just(0.0),
        st.floats(-10, 10, width=32),
        st.floats(-(2.0**127), 2.0**127, width=32),
        st.floats(-(2.0**-126), 2.0**-126, width=32, allow_subnormal=True),
    ),
)
norms_ = st.floats(1e-9, 1e9)


@settings(deadline=None)
@given(rows, norms_)
def test_the_clip_bounds_every_norm_and_leaves_short_vectors_as_they_are(values: np.ndarray, clip_norm: float) -> None:
    vectors = torch.from_numpy(values).double()
    norms = torch.linalg.vector_norm(vectors, dim=-1)
    factors = GaussianSum(clip_norm, 1.0).factors(norms)
    after = torch.linalg.vector_norm(factors[:, None] * vectors, dim=-1)
    assert bool((after <= clip_norm * (1 + 1e-12)).all())
    assert bool((after <= norms).all())
    assert bool(((factors > 0) & (factors <= 1)).all())  # The direction stays.
    assert bool((factors[norms <= clip_norm] == 1.0).all())
    torch.testing.assert_close(after[norms > clip_norm], torch.full_like(after, clip_norm)[norms > clip_norm])


def test_a_zero_vector_keeps_factor_one() -> None:
    assert GaussianSum(1e-9, 1.0).factors(torch.zeros(3, dtype=torch.float64)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["clip_norm", "noise_multiplier"])
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        GaussianSum(**({"clip_norm": 1.0, "noise_multiplier": 1.0} | {name: value}))


@pytest.mark.parametrize(
    ("clip_norm", "noise_multiplier"), [(1e-200, 1e-200), (1e200, 1e200), (1e-160, 1e-160), (1e150, 1e150)]
)
def test_noise_that_underflows_to_nothing_or_overflows_is_refused(clip_norm: float, noise_multiplier: float) -> None:
    with pytest.raises(ValueError, match=r"noise_multiplier \* clip_norm"):
        GaussianSum(clip_norm, noise_multiplier)


@pytest.mark.parametrize(("clip_norm", "noise_multiplier"), [(1.0, 1.0), (0.5, 3.0), (20.0, 0.01)])
def test_the_noise_is_gaussian_and_as_strong_as_the_event_says(clip_norm: float, noise_multiplier: float) -> None:
    draws = 100_000
    mechanism = GaussianSum(clip_norm, noise_multiplier)
    noise = mechanism.privatize(torch.zeros(draws, dtype=torch.float64), SimulatedNoise(1), stream=("noise",)).numpy()
    assert mechanism.event == Gaussian(noise_multiplier)
    squares = float((noise**2).sum()) / (mechanism.event.noise_multiplier * clip_norm) ** 2
    low, high = stats.chi2.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4], draws)
    assert low < squares < high  # At 10^5 draws this holds the standard deviation to 1.1%.
    assert stats.kstest(noise / (clip_norm * noise_multiplier), "norm").pvalue > FALSE_ALARM / 2


def test_every_coordinate_is_noised_alike_and_apart_from_the_others() -> None:
    draws, size, std = 1_000, 100, 1.5
    mechanism, source, nothing = GaussianSum(0.5, 3.0), SimulatedNoise(2), torch.zeros(size, dtype=torch.float64)
    noise = torch.stack([mechanism.privatize(nothing, source, stream=("noise", draw)) for draw in range(draws)])
    squares = (noise / std).square().sum(0).numpy()
    low, high = stats.chi2.ppf([FALSE_ALARM / (4 * size), 1 - FALSE_ALARM / (4 * size)], draws)
    assert (low < squares).all()
    assert (squares < high).all()
    # Fisher: atanh of a sample correlation of independent Gaussians has a standard deviation of 1 / sqrt(draws - 3).
    correlations = np.corrcoef(noise.numpy().T)[np.triu_indices(size, 1)]
    bound = stats.norm.isf(FALSE_ALARM / (4 * len(correlations)))
    assert np.abs(np.arctanh(correlations)).max() * math.sqrt(draws - 3) < bound


def test_noise_is_added_to_the_total_and_does_not_depend_on_it() -> None:
    mechanism, total = GaussianSum(2.0, 1.0), torch.arange(64, dtype=torch.float64)
    noised = mechanism.privatize(total, SimulatedNoise(3), stream=("noise",))
    alone = mechanism.privatize(torch.zeros(64, dtype=torch.float64), SimulatedNoise(3), stream=("noise",))
    assert torch.equal(noised, total + alone)  # The total lies on the grid: nothing is rounded away.
    assert noised.dtype == torch.float64
    assert torch.equal(total, torch.arange(64, dtype=torch.float64))  # The total itself is not written to.


def test_an_exact_sum_is_exact_and_has_no_guarantee() -> None:
    total = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert torch.equal(ExactSum().privatize(total, SimulatedNoise(0), stream=("noise",)), total)
    assert ExactSum().factors(torch.tensor([0.0, 1e30])).tolist() == [1.0, 1.0]
    assert isinstance(ExactSum().event, NonPrivate)
    assert epsilon(ExactSum().event, 1e-5).lower == math.inf


def test_one_channel_costs_what_its_mechanism_costs() -> None:
    assert joint_event({"delta": GaussianSum(0.1, 1.3)}) == Gaussian(1.3)


@settings(deadline=None)
@given(st.floats(0.5, 20), st.floats(0.5, 20))
def test_two_channels_on_one_sample_cost_like_one_gaussian(first: float, second: float) -> None:
    joint = joint_event({"delta": GaussianSum(1.0, first), "variance": GaussianSum(7.0, second)})
    assert joint == Composed((Gaussian(first), Gaussian(second)))
    together = (first**-2 + second**-2) ** -0.5
    assert epsilon(joint, 1e-5).upper == pytest.approx(epsilon(Gaussian(together), 1e-5).upper, rel=1e-9)
    assert epsilon(joint, 1e-5).upper > epsilon(Gaussian(min(first, second)), 1e-5).upper


def test_the_joint_event_does_not_depend_on_the_order_of_the_channels() -> None:
    channels = {"b": GaussianSum(1.0, 1.0), "a": GaussianSum(1.0, 2.0)}
    assert joint_event(channels) == joint_event(dict(sorted(channels.items())))


def test_one_exact_channel_takes_the_guarantee_of_all() -> None:
    joint = joint_event({"delta": GaussianSum(1.0, 5.0), "loss": ExactSum()})
    assert epsilon(joint, 1e-5).lower == math.inf
