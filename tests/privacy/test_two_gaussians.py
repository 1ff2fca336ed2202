"""Epsilon of two Gaussians: numerical integration, the analytic mechanism, and what must not change it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import gaussian
from privacy.two_gaussians import Normal, two_gaussian_epsilon, two_gaussian_epsilons

STANDARD = Normal(0.0, 1.0)
means, stds = st.floats(-20, 20), st.floats(0.05, 20)
deltas = st.sampled_from([1e-2, 1e-5, 1e-8])


def integral(first: Normal, second: Normal, epsilon: float) -> float:
    """The integral of (p - e^epsilon q)+ by the trapezoidal rule, in both directions."""

    def log_density(x: np.ndarray, law: Normal) -> np.ndarray:
        return -(((x - law.mean) / law.std) ** 2) / 2 - math.log(law.std * math.sqrt(2 * math.pi))

    found = 0.0
    for one, other in ((first, second), (second, first)):
        x = np.linspace(
            one.mean - 12 * one.std, one.mean + 12 * one.std, 200_001
        )  # Fine enough for 1e-7 where the other law is much narrower.
        p = np.exp(log_density(x, one))
        gap = np.where(log_density(x, one) > epsilon + log_density(x, other), p, 0.0)
        gap -= np.where(gap > 0, np.exp(np.minimum(epsilon + log_density(x, other), 50.0)), 0.0)
        found = max(found, float(np.trapezoid(gap, x)))
    return found


def test_delta_at_epsilon_is_that_of_numerical_integration() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        first, second = (Normal(float(rng.normal(0, 3)), float(np.exp(rng.normal(0, 0.7)))) for _ in range(2))
        delta = float(10 ** rng.uniform(-7, -1))
        found = two_gaussian_epsilon(first, second, delta)
        assert found > 0
        assert integral(first, second, found) == pytest.approx(delta, abs=1e-7)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 5.0, 10.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-6])
@pytest.mark.parametrize("error", [0.0, 1e-12, -1e-12])
def test_equal_spreads_are_the_analytic_gaussian_mechanism(epsilon: float, delta: float, error: float) -> None:
    low, high = 1e-2, 1e2
    for _ in range(200):  # The noise that costs epsilon.
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gaussian.epsilon(middle, delta) > epsilon else (low, middle)
    found = two_gaussian_epsilon(STANDARD, Normal(1 / high, 1 + error), delta)
    assert found == pytest.approx(epsilon, rel=1e-9)


def test_the_number_of_one_deviation_at_one_in_a_hundred() -> None:
    assert two_gaussian_epsilon(STANDARD, Normal(1.0, 1.0), 1e-2) == pytest.approx(2.317789, abs=1e-6)


@settings(max_examples=25)
@given(means, stds, means, stds, deltas, st.floats(-50, 50), st.floats(0.1, 10))
def test_units_and_order_do_not_matter(
    mean: float, std: float, other: float, spread: float, delta: float, shift: float, scale: float
) -> None:
    found = two_gaussian_epsilon(Normal(mean, std), Normal(other, spread), delta)
    assert found >= 0
    assert math.isfinite(found)
    assert two_gaussian_epsilon(Normal(other, spread), Normal(mean, std), delta) == pytest.approx(found, rel=1e-9)
    moved = (Normal(shift + scale * mean, scale * std), Normal(shift + scale * other, scale * spread))
    assert two_gaussian_epsilon(*moved, delta) == pytest.approx(found, rel=1e-5, abs=1e-7)


@settings(max_examples=25)
@given(stds, st.floats(0, 10), st.floats(0.01, 10), deltas)
def test_farther_apart_is_never_less(spread: float, shift: float, more: float, delta: float) -> None:
    near = two_gaussian_epsilon(STANDARD, Normal(shift, spread), delta)
    far = two_gaussian_epsilon(STANDARD, Normal(shift + more, spread), delta)
    assert far >= near * (1 - 1e-9)
    assert two_gaussian_epsilon(STANDARD, Normal(shift, spread), delta / 10) >= near * (1 - 1e-9)


@pytest.mark.parametrize("spread", [0.5, 0.999, 1.001, 2.0])
def test_another_spread_of_either_sign_raises_epsilon(spread: float) -> None:
    assert two_gaussian_epsilon(STANDARD, Normal(1.0, spread), 1e-6) > two_gaussian_epsilon(
        STANDARD, Normal(1.0, 1.0), 1e-6
    )


@settings(max_examples=25)
@given(means, stds, deltas)
def test_identical_gaussians_cannot_be_told_apart(mean: float, std: float, delta: float) -> None:
    assert two_gaussian_epsilon(Normal(mean, std), Normal(mean, std), delta) == 0.0


@pytest.mark.parametrize("spread", [0.9, 1.0, 1.1])
def test_nothing_overflows_beyond_a_thousand(spread: float) -> None:
    found = two_gaussian_epsilon(STANDARD, Normal(60.0, spread), 1e-6)
    assert 1000 < found < 1e4
    assert two_gaussian_epsilon(STANDARD, Normal(1e5, spread), 1e-6) < math.inf


def test_many_at_once_are_each_alone() -> None:
    mean, std = np.array([0.0, 1.0, 30.0]), np.array([1.0, 1.5, 0.7])
    together = two_gaussian_epsilons(np.zeros(3), np.ones(3), mean, std, delta=1e-5)
    alone = [two_gaussian_epsilon(STANDARD, Normal(*pair), 1e-5) for pair in zip(mean.tolist(), std.tolist())]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize(
    ("law", "delta"),
    [
        (Normal(math.nan, 1.0), 0.1),
        (Normal(math.inf, 1.0), 0.1),
        (Normal(0.0, 0.0), 0.1),
        (Normal(0.0, math.nan), 0.1),
        (Normal(0.0, -1.0), 0.1),
        (STANDARD, 0.0),
        (STANDARD, math.nan),
    ],
)
def test_what_is_no_gaussian_is_refused(law: Normal, delta: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        two_gaussian_epsilon(STANDARD, law, delta)
