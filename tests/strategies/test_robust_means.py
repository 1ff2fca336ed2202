"""Robust means: against Flower's own aggregates, against closed forms, and at their breakdown points."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies import robust_means as means

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg


def updates(count: int = 11, size: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def flower(rows: Tensor) -> list[tuple[list[np.ndarray], int]]:
    """Flower takes a list of layers and a number of examples from each client; one layer here, and one example."""
    return [([row.double().numpy()], 1) for row in rows]


# Oracles.


@pytest.mark.parametrize("malicious", [0, 1, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_krum_is_flowers(malicious: int, seed: int) -> None:
    rows = updates(seed=seed)
    ours = rows[means.krum_choice(rows, malicious, 1)][0]
    theirs = aggregate_krum(flower(rows), malicious, 0)[0]
    assert torch.equal(ours.double(), torch.from_numpy(theirs))


@pytest.mark.parametrize("keep", [1, 4, 9])
def test_multi_krum_is_flowers(keep: int) -> None:
    rows = updates()
    ours = rows[means.krum_choice(rows, 2, keep)].double().mean(0)
    theirs = aggregate_krum(flower(rows), 2, keep)[0]
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("count", [1, 2, 7, 10])
def test_the_median_is_flowers(count: int) -> None:
    rows = updates(count)
    theirs = aggregate_median(flower(rows))[0]
    torch.testing.assert_close(means.median(rows), torch.from_numpy(theirs), rtol=0, atol=0)


@pytest.mark.parametrize("trim", [0.0, 0.1, 0.25, 0.49])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_the_trimmed_mean_is_flowers(trim: float, count: int) -> None:
    rows = updates(count)
    theirs = aggregate_trimmed_avg(flower(rows), trim)[0]
    torch.testing.assert_close(means.trimmed_mean(rows, trim), torch.from_numpy(theirs), rtol=1e-12, atol=1e-14)


# Closed forms.


def test_krum_scores_are_sums_of_squared_distances_to_the_nearest() -> None:
    """At 0, 1, 3, 7, 20 with f = 1 the two nearest count: 1+9, 1+4, 4+9, 16+36, 169+289."""
    rows = torch.tensor([[0.0], [1.0], [3.0], [7.0], [20.0]])
    assert means.krum_scores(rows, 1).tolist() == [10.0, 5.0, 13.0, 52.0, 458.0]
    assert means.krum_choice(rows, 1, 3).tolist() == [0, 1, 2]


def test_equal_updates_are_each_others_neighbours() -> None:
    rows = torch.tensor([[5.0], [5.0], [5.0], [0.0], [1.0], [2.0], [3.0]])
    assert means.krum_scores(rows, 2).tolist()[:3] == [4.0] * 3  # Two equals and the one at 3.


def test_krum_refuses_what_it_cannot_guarantee() -> None:
    with pytest.raises(ValueError, match=r"krum needs more than 2 x 2 \+ 2 updates, got 6"):
        means.krum_scores(updates(6), 2)
    assert means.krum_scores(updates(7), 2).shape == (7,)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0], [4.0, 3.0]], [2.0, 1.5]),  # A quadrilateral: where diagonals cross.
        ([[-1.0], [0.0], [10.0]], [0.0]),  # On a line: the median.
        ([[0.0, 0.0], [2.0, 0.0], [1.0, math.sqrt(3.0)]], [1.0, 1.0 / math.sqrt(3.0)]),  # Fermat's point.
    ],
)
def test_the_geometric_median_is_where_geometry_puts_it(points: list[list[float]], expected: list[float]) -> None:
    found = means.geometric_median(torch.tensor(points), iterations=200, smoothing=1e-9)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_smoothing_bounds_the_pull_of_an_update_that_is_met() -> None:
    """Far above all distances every weight is 1 / nu: the mean."""
    rows = updates()
    torch.testing.assert_close(means.geometric_median(rows, iterations=5, smoothing=1e6), rows.double().mean(0))


def test_foolsgold_trusts_who_is_unlike_others_and_not_who_is_alike() -> None:
    honest, sybils = torch.eye(4)[:3], torch.tensor([[0.0, 0.0, 0.0, 1.0]]).repeat(2, 1)
    weights = means.foolsgold_weights(torch.cat([honest, sybils]), confidence=1.0)
    assert weights.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_foolsgold_pardons_who_is_a_little_like_a_sybil() -> None:
    """By hand: (1, 0, 0) is at .6 from the twins (.6, .8, 0), and at 0 from (0, 0, 1).

    Its likeness .6 to them is scaled by .6 / 1, so its weight is 1 - .36 = .64 of the largest: logit(.64) + .5 > 1, cut
    to 1; unpardoned it would be .4: logit(.4) + .5 = .0945.
    """
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    assert means.foolsgold_weights(rows, confidence=1.0).tolist() == pytest.approx([1.0, 0.0, 0.0, 1.0], abs=1e-6)
    halved = means.foolsgold_weights(rows, confidence=0.5)[0]
    assert float(halved) == pytest.approx(0.5 * (math.log(0.64 / 0.36) + 0.5), abs=1e-6)


@pytest.mark.parametrize("rows", [torch.ones(1, 3), torch.zeros(1, 3)])
def test_foolsgold_trusts_who_is_alone(rows: Tensor) -> None:
    assert means.foolsgold_weights(rows, confidence=1.0).tolist() == [1.0]


def test_foolsgold_trusts_nobody_where_all_are_alike_and_everybody_where_none_moved() -> None:
    assert means.foolsgold_weights(torch.ones(4, 3), confidence=1.0).tolist() == [0.0] * 4
    assert means.foolsgold_weights(torch.zeros(4, 3), confidence=1.0).tolist() == [1.0] * 4
    assert bool(torch.isfinite(means.foolsgold_weights(-torch.eye(3) + 1e-9, confidence=1.0)).all())


def test_a_majority_is_a_tight_cluster_of_more_than_half() -> None:
    """Six directions within a degree of (1, 0), four within a degree of (0, 1)."""
    angles = torch.tensor([0.0, 0.003, -0.004, 0.006, 0.008, -0.009])
    first = torch.stack([angles.cos(), angles.sin()], 1)
    other = torch.stack([angles[:4].sin(), angles[:4].cos()], 1)
    lengths = torch.arange(1.0, 11.0).unsqueeze(1)
    assert means.majority(torch.cat([first, other]) * lengths).tolist() == [True] * 6 + [False] * 4


def test_cosines_are_bounded_and_those_of_nothing_are_zero() -> None:
    rows = torch.cat([1e30 * updates(3), 1e-30 * updates(3), torch.zeros(1, 7)])
    found = means.cosines(rows)
    assert float(found.abs().max()) <= 1.0
    torch.testing.assert_close(found[:3, 3:6].diagonal(), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)
    assert not found[6].any()


# What holds for all of them.

MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "krum": lambda rows: rows[means.krum_choice(rows, 1, 1)].double().mean(0),
    "multi_krum": lambda rows: rows[means.krum_choice(rows, 1, len(rows) - 1)].double().mean(0),
    "median": means.median,
    "trimmed_mean": lambda rows: means.trimmed_mean(rows, 0.2),
    "geometric_median": lambda rows: means.geometric_median(rows, iterations=20, smoothing=1e-6),
}
each = pytest.mark.parametrize("mean", MEANS.values(), ids=list(MEANS))


@each
def test_the_order_of_updates_does_not_matter(mean: Callable[[Tensor], Tensor]) -> None:
    rows = updates(5, 3)
    expected = mean(rows)
    for order in permutations(range(5)):
        torch.testing.assert_close(mean(rows[list(order)]), expected, rtol=1e-9, atol=1e-12)


@each
def test_moving_all_updates_moves_the_mean(mean: Callable[[Tensor], Tensor]) -> None:
    rows, shift = updates(9).double(), torch.full((7,), 3.0, dtype=torch.float64)
    torch.testing.assert_close(mean(rows + shift), mean(rows) + shift)


@each
@pytest.mark.parametrize("size", [1e3, 1e12, 1e30])
def test_one_hostile_update_in_five_cannot_carry_the_mean_away(mean: Callable[[Tensor], Tensor], size: float) -> None:
    """Honest updates lie within 1 of 0; wherever the hostile one is, the mean stays within a bound that is theirs.

    Krum keeps an honest update; medians and trimmed means lie between honest numbers; the geometric median of four
    honest in five lies within 2 (1 - a) / (1 - 2 a) = 8/3 of their radius, a = 1/5 (Pillutla et al. 2022, theorem 1).
    """
    honest = torch.nn.functional.normalize(updates(4, 3), dim=1)
    hostile = torch.full((1, 3), size)
    moved = mean(torch.cat([honest[:2], hostile, honest[2:]]))
    assert float(moved.norm()) <= 8 / 3
    plain = torch.cat([honest, hostile]).double().mean(0)
    assert float(plain.norm()) > 100  # The mean that is not robust.


@pytest.mark.parametrize("far", [1e3, 1e9])
def test_a_majority_carries_any_median_away(far: float) -> None:
    """The breakdown point is a half: with three of five every one of them goes to the three."""
    rows = torch.cat([torch.zeros(2, 2), torch.full((3, 2), far)])
    assert means.median(rows).tolist() == [far, far]
    assert means.trimmed_mean(rows, 0.4).tolist() == [far, far]
    assert means.geometric_median(rows, iterations=50, smoothing=1e-6).tolist() == pytest.approx([far, far], rel=1e-3)
    two = torch.cat([torch.zeros(3, 2), torch.full((2, 2), far)])
    assert means.median(two).tolist() == means.trimmed_mean(two, 0.4).tolist() == [0.0, 0.0]
    assert float(means.geometric_median(two, iterations=50, smoothing=1e-6).norm()) < 1e-3
