"""Noised sums over a silo's rows: what they cost, and that a row moves them by no more than that is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from privacy.accountant import epsilon
from privacy.events import Composed, Gaussian, Repeated
from privacy.noise import SystemNoise, grid
from privacy.queries import NoisyQuery

torch.set_num_threads(1)


@pytest.mark.parametrize("own", [0.1, 0.5, 2.0])
def test_a_choice_costs_an_eighth_of_its_epsilon_squared(own: float) -> None:
    query = NoisyQuery.costing(own, size=3, clip_norm=2.0)
    assert query.event == Gaussian(2 / own)
    rho = 1 / (2 * query.noise_multiplier**2)  # Of a Gaussian: Bun & Steinke 2016, proposition 6.
    assert rho == pytest.approx(own**2 / 8, rel=1e-12)
    # And never more than the conversion of rho: rho + 2 sqrt(rho log(1 / delta)).
    for times in (1, 40):
        spent = epsilon(Repeated(query.event, times), 1e-5).upper
        assert spent <= times * rho + 2 * math.sqrt(times * rho * math.log(1e5))


def test_choices_add_up_as_one_gaussian() -> None:
    query = NoisyQuery.costing(0.4, size=2, clip_norm=1.0)
    both = epsilon(Composed((query.event,) * 4), 1e-5).upper
    assert both == pytest.approx(epsilon(Gaussian(2 / 0.4 / 2), 1e-5).upper, rel=1e-9)


@given(st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=6), st.integers(0, 5))
def test_a_row_less_moves_the_sum_by_at_most_the_clip_norm(rows: list[list[float]], which: int) -> None:
    query, every = NoisyQuery(3, 0.7, 1.0), torch.tensor(rows)
    less = torch.cat([every[: which % len(rows)], every[which % len(rows) + 1 :]])
    assert float((query.total(every) - query.total(less)).norm()) <= 0.7 * (1 + 1e-6)


def test_short_rows_add_up_as_they_are_and_long_ones_keep_their_direction() -> None:
    query = NoisyQuery(2, 1.0, 1.0)
    rows = torch.tensor([[0.3, 0.4], [-0.1, 0.0], [30.0, 40.0], [math.inf, 0.0], [math.nan, 0.0]])
    torch.testing.assert_close(query.total(rows), torch.tensor([0.3 - 0.1 + 0.6, 0.4 + 0.8], dtype=torch.float64))
    assert query.total(torch.zeros(0, 2)).tolist() == [0.0, 0.0]


def test_noise_has_the_declared_deviation_on_every_number() -> None:
    # 20,000 draws of std 0.6: their scaled sum of squares is chi-square. False alarms: 2e-9.
    query, rng = NoisyQuery(2, 0.3, 2.0), torch.Generator().manual_seed(3)
    drawn = torch.stack([query.release(torch.zeros(2, dtype=torch.float64), rng) for _ in range(10_000)])
    low, high = chi2.ppf([1e-9, 1 - 1e-9], 20_000)
    assert low <= float(drawn.square().sum()) / 0.36 <= high
    assert abs(float(np.corrcoef(drawn.numpy().T)[0, 1])) < 0.06


def test_secret_noise_is_new_every_time_and_on_a_grid() -> None:
    query, total = NoisyQuery(4, 1.0, 1.0), torch.zeros(4, dtype=torch.float64)
    one, two = (query.release(total, SystemNoise()) for _ in range(2))
    assert not torch.equal(one, two)
    assert torch.equal((one / grid(1.0)).round() * grid(1.0), one)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["clip_norm", "noise_multiplier"])
def test_a_field_that_bounds_nothing_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        NoisyQuery(**{"size": 2, "clip_norm": 1.0, "noise_multiplier": 1.0, name: value})
