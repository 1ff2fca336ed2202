"""Malicious updates against the papers' formulas."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from simulations.attacks.updates import changed, farthest, hidden_deviations
from strategies.attacks import (
    InnerProduct,
    LittleIsEnough,
    MinMax,
    ModelReplacement,
    NormBounded,
    PixelPatch,
    SignFlip,
)

UPDATES = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, -2.0], [2.0, 3.0, 0.0]])
"""Mean (2, 1, 0), deviations (sqrt(2/3), sqrt(2), sqrt(8/3))."""
DEVIATIONS = torch.tensor([2 / 3, 2.0, 8 / 3]).sqrt()


def test_poisoned_rows_change_no_update_any_further() -> None:
    assert changed(PixelPatch(fraction=0.1, target=1), UPDATES, cohort=9) is UPDATES


def test_scaled_and_turned_updates_are_each_silos_own() -> None:
    torch.testing.assert_close(changed(ModelReplacement(fraction=0.1, scale=4.0), UPDATES, cohort=9), 4 * UPDATES)
    torch.testing.assert_close(changed(SignFlip(fraction=0.1, scale=2.0), UPDATES, cohort=9), -2 * UPDATES)


def test_replacement_by_one_of_n_puts_the_attackers_model_in_place_of_the_mean() -> None:
    """Bagdasaryan et al. 2020, equation 3: honest deltas that cancel, one scaled by n, averaged over n."""
    honest = torch.stack([torch.ones(3), -torch.ones(3)])
    sent = changed(ModelReplacement(fraction=0.3, scale=3.0), UPDATES[:1], cohort=3)
    torch.testing.assert_close(torch.cat([honest, sent]).mean(0), UPDATES[0])


def test_a_bounded_update_has_the_norm_or_less_and_the_same_direction() -> None:
    sent = changed(NormBounded(fraction=0.1, norm=5.0, scale=2.0), UPDATES, cohort=9)
    assert sent.norm(dim=1).tolist() == pytest.approx([2 * 5**0.5, 5.0, 5.0])
    torch.testing.assert_close(torch.cosine_similarity(sent, UPDATES), torch.ones(3))
    assert not changed(NormBounded(fraction=0.1, norm=5.0), torch.zeros(2, 3), cohort=9).any()


def test_a_little_is_the_mean_less_z_deviations_sent_by_all() -> None:
    sent = changed(LittleIsEnough(fraction=0.1, z=1.5), UPDATES, cohort=9)
    expected = torch.tensor([2.0, 1.0, 0.0]) - 1.5 * DEVIATIONS
    torch.testing.assert_close(sent, expected.expand(3, 3))


def test_the_z_of_a_little_is_the_papers() -> None:
    """Baruch et al. 2019, algorithm 3: n = 50 with m = 24 needs s = 2 more, so z is the normal quantile of 24 / 26."""
    assert hidden_deviations(50, 24) == pytest.approx(1.4260768722848, abs=1e-9)
    assert hidden_deviations(10, 1) == 0.0  # 5 of 9 honest ones farther out: below the mean.
    assert hidden_deviations(3, 3) == 0.0
    sent = changed(LittleIsEnough(fraction=0.1), UPDATES, cohort=8)
    z = hidden_deviations(8, 3)
    assert z == pytest.approx(0.2533471, abs=1e-6)  # (5 - 2) / 5 = .6
    torch.testing.assert_close(sent[0], torch.tensor([2.0, 1.0, 0.0]) - z * DEVIATIONS)


def test_inner_product_is_the_turned_mean() -> None:
    sent = changed(InnerProduct(fraction=0.1, scale=0.5), UPDATES, cohort=9)
    torch.testing.assert_close(sent, torch.tensor([-1.0, -0.5, 0.0]).expand(3, 3))


@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
def test_min_max_goes_as_far_as_two_updates_are_apart(direction: Literal["std", "unit", "sign"]) -> None:
    apart = float(torch.cdist(UPDATES, UPDATES).max())
    found = farthest(UPDATES, direction)
    assert float((UPDATES - found).norm(dim=1).max()) == pytest.approx(apart, rel=1e-5)
    away: dict[str, Tensor] = {
        "std": -DEVIATIONS,
        "unit": -torch.tensor([2.0, 1.0, 0.0]),
        "sign": -torch.tensor([1.0, 1.0, 0.0]),
    }
    moved = found - UPDATES.mean(0)
    assert float(torch.cosine_similarity(moved, away[direction], dim=0)) == pytest.approx(1.0)
    sent = changed(MinMax(fraction=0.1, direction=direction), UPDATES, cohort=9)
    torch.testing.assert_close(sent, found.expand(3, 3))


@pytest.mark.parametrize("alone", [UPDATES[:1], UPDATES[:1].repeat(3, 1), torch.zeros(2, 3)])
def test_whoever_knows_of_no_difference_sends_the_mean(alone: Tensor) -> None:
    torch.testing.assert_close(farthest(alone, "std"), alone.mean(0))
    torch.testing.assert_close(changed(LittleIsEnough(fraction=0.1, z=3.0), alone, cohort=9), alone)
