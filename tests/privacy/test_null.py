"""The law of the cosine of a random direction, at any dimension."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from privacy import null


@pytest.mark.parametrize("dimension", [2, 3, 4, 10, 650, 5_000])
def test_the_density_integrates_to_one_with_variance_one_over_the_dimension(dimension: int) -> None:
    # In the angle, so that the density of two dimensions, infinite at both ends, has no singularity.
    def at(angle: float) -> float:
        return float(null.density(np.array([math.cos(angle)]), dimension)[0]) * math.sin(angle)

    ends, middle = (1e-12, math.pi - 1e-12), [math.pi / 2]
    whole = integrate.quad(at, *ends, points=middle, limit=200)[0]
    variance = integrate.quad(lambda angle: math.cos(angle) ** 2 * at(angle), *ends, points=middle, limit=200)[0]
    assert whole == pytest.approx(1, abs=1e-8)
    assert dimension * variance == pytest.approx(1, abs=1e-7)


def test_three_dimensions_are_uniform() -> None:
    x = np.linspace(-1, 1, 101)
    np.testing.assert_allclose(null.density(x, 3), 0.5)
    np.testing.assert_allclose(null.standard_scores(x[1:-1], 3), stats.norm.ppf((1 + x[1:-1]) / 2), atol=1e-12)


@pytest.mark.parametrize("dimension", [2, 3, 10, 100, 999])
def test_standard_scores_are_the_ranks_of_the_exact_null(dimension: int) -> None:
    law = stats.beta((dimension - 1) / 2, (dimension - 1) / 2)
    x = np.linspace(-0.3, 0.3, 41)
    expected = np.where(x > 0, -stats.norm.ppf(law.sf((1 + x) / 2)), stats.norm.ppf(law.cdf((1 + x) / 2)))
    np.testing.assert_allclose(null.standard_scores(x, dimension), expected, atol=1e-9)


@pytest.mark.parametrize("dimension", [2, 10, 400, 999])
def test_scores_rise_to_the_ends_and_stay_finite(dimension: int) -> None:
    """Also where the tail leaves the range of double precision and its series takes over."""
    x = np.linspace(-1, 1, 20_001)
    scores = null.standard_scores(x, dimension)
    assert np.isfinite(scores).all()
    assert (np.diff(scores) > 0).all()
    np.testing.assert_allclose(scores, -scores[::-1], atol=1e-9)


def test_the_two_ways_meet_at_a_thousand_dimensions() -> None:
    x = np.linspace(-4, 4, 81) / math.sqrt(1000)
    below, above = null.standard_scores(x, 999), null.standard_scores(x, 1000)
    np.testing.assert_allclose(below, above, atol=0.02)  # The Gaussian is 1.6e-2 off at four deviations.


def test_one_dimension_has_two_directions() -> None:
    assert null.standard_scores(np.array([-1.0, 1.0]), 1).tolist() == [0.0, 0.0]
