from __future__ import annotations

import pytest
import torch

from strategies.standardize import STANDARDIZE, Constants, OwnSilo, Unchanged

torch.set_num_threads(1)


def test_registry_offers_no_unpriced_statistics_over_silos() -> None:
    assert sorted(STANDARDIZE) == ["constants", "none", "own", "private"]


def test_none_changes_nothing() -> None:
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Unchanged().apply(rows, reference=rows[:1]), rows)


def test_constants_ignore_the_reference() -> None:
    rows = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    expected = [[0.0, -1.0], [1.0, 1.0]]
    for reference in (rows, rows[:1] * 1e6):
        assert Constants((1.0, 20.0), (2.0, 10.0)).apply(rows, reference=reference).tolist() == expected


def test_one_constant_is_for_all_and_images_have_one_per_channel() -> None:
    images = torch.ones(2, 3, 4, 4)
    assert (Constants((0.5,), (0.25,)).apply(images, reference=images) == 2).all()
    scaled = Constants((1.0, 0.0, -1.0), (1.0,)).apply(images, reference=images)
    assert [float(scaled[:, channel].unique()) for channel in range(3)] == [0.0, 1.0, 2.0]


def test_constants_that_do_not_fit_say_so() -> None:
    with pytest.raises(ValueError, match=r"^standardize\.mean: 2 numbers for 3 features; give 1 or as many$"):
        Constants((1.0, 2.0), (1.0,)).apply(torch.zeros(2, 3), reference=torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("mean", "std"), [((), (1.0,)), ((float("nan"),), (1.0,)), ((0.0,), (0.0,)), ((0.0,), (float("nan"),))]
)
def test_constants_are_finite_and_std_is_positive(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"^(mean|std) must be "):
        Constants(mean, std)


def test_own_gives_the_reference_mean_0_and_std_1() -> None:
    rows = torch.randn(500, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 5.0, 100.0]) + 7
    scaled = OwnSilo().apply(rows, reference=rows)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_own_uses_the_reference_alone() -> None:
    reference = torch.tensor([[0.0], [2.0]])
    assert OwnSilo().apply(torch.tensor([[5.0]]), reference=reference).tolist() == [[4.0]]


def test_own_only_centres_what_is_constant() -> None:
    reference = torch.full((7, 1), 0.1)  # Not a binary fraction: its computed spread may be rounding, not 0.
    assert abs(float(OwnSilo().apply(torch.tensor([[1.1]]), reference=reference)) - 1.0) < 1e-6
    one_row = OwnSilo().apply(torch.tensor([[3.0, 4.0]]), reference=torch.tensor([[3.0, 4.0]]))
    assert one_row.tolist() == [[0.0, 0.0]]
