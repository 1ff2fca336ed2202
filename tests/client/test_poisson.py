"""Poisson batches: every row by its own coin, whoever else is in the stack."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, chi2

from client.poisson import poisson
from privacy import streams

SIZES = np.array([7, 0, 30, 1])
STARTS = np.array([0, 7, 7, 37])


def keys(silos: list[int], seed: int = 3) -> streams.Keys:
    return streams.keys(seed, silos)


def batches(silos: list[int], rates: list[float], steps: int) -> list[list[list[int]]]:
    plan = poisson(STARTS[silos], SIZES[silos], rates, steps, keys(silos))
    return [[plan.rows[k, t, : int(plan.counts[k, t])].tolist() for t in range(steps)] for k in range(len(silos))]


def test_sizes_have_the_mean_and_the_variance_of_a_binomial() -> None:
    # 4,000 batches of 200 rows at .1. The total is binomial(800,000, .1); the sum of squared deviations over the
    # variance is close to chi-square with 4,000 degrees of freedom (excess kurtosis 0.002). False alarms: 4e-9 in all.
    plan = poisson(np.array([0]), np.array([200]), [0.1], 4000, keys([0]))
    sizes = plan.counts[0].numpy()
    low, high = binom.ppf([1e-9, 1 - 1e-9], 800_000, 0.1)
    assert low <= sizes.sum() <= high
    spread = float(((sizes - 20.0) ** 2).sum() / (200 * 0.1 * 0.9))
    low, high = chi2.ppf([1e-9, 1 - 1e-9], df=4000)
    assert low <= spread <= high


def test_every_row_is_drawn_as_often_as_the_rate_says() -> None:
    # 50 rows, 2,000 batches at .3: 100 comparisons at 1e-10.
    plan = poisson(np.array([0]), np.array([50]), [0.3], 2000, keys([0]))
    valid = np.arange(plan.rows.shape[-1]) < plan.counts[0].numpy()[:, None]
    drawn = np.bincount(plan.rows[0].numpy()[valid], minlength=50)
    low, high = binom.ppf([1e-10, 1 - 1e-10], 2000, 0.3)
    assert bool(((drawn >= low) & (drawn <= high)).all())


def test_a_silos_batches_do_not_depend_on_who_is_beside_it() -> None:
    together = batches([0, 1, 2, 3], [0.5, 0.5, 0.2, 1.0], 6)
    for silo, rate in enumerate([0.5, 0.5, 0.2, 1.0]):
        assert batches([silo], [rate], 6) == [together[silo]]


def test_batches_hold_own_rows_once_each_and_silos_without_rows_take_their_steps() -> None:
    for silo, drawn in enumerate(batches([0, 1, 2, 3], [0.9] * 4, 20)):
        assert len(drawn) == 20
        for batch in drawn:
            assert len(set(batch)) == len(batch)
            assert set(batch) <= set(range(STARTS[silo], STARTS[silo] + SIZES[silo]))
    assert batches([1], [0.9], 20) == [[[]] * 20]


def test_a_row_that_leaves_takes_nobody_along() -> None:
    # The last row of silo 2 is taken away: all others flip the same coins.
    with_it = batches([2], [0.4], 50)[0]
    plan = poisson(STARTS[[2]], SIZES[[2]] - 1, [0.4], 50, keys([2]))
    without = [plan.rows[0, t, : int(plan.counts[0, t])].tolist() for t in range(50)]
    assert without == [[row for row in batch if row != 36] for batch in with_it]


@pytest.mark.parametrize("rate", [1.0, 1e-12])
def test_the_ends_of_the_range(rate: float) -> None:
    plan = poisson(STARTS, SIZES, [rate] * 4, 3, keys([0, 1, 2, 3]))
    expected = SIZES[:, None].repeat(3, 1) if rate == 1.0 else np.zeros((4, 3))
    assert plan.counts.tolist() == expected.tolist()
