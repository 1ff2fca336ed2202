"""The pull that the known noise asks for: the model's closed forms, and silos of curvature 1 that it is read off from.

The simulated silos have N = 8 numbers and K = 40 silos. Their estimate of tau^2 errs by sqrt(2 / 320) = 8%, at 1
standard deviation, by what was drawn alone.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from strategies import spread

torch.set_num_threads(1)

RATE, SILOS, SIZE = 0.05, 40, 8
SURE = torch.tensor(spread.doubt(SIZE, SILOS))


def seen(tau2: float, curvature: float, variance: float, steps: int, doubt: float = 0.0) -> Tensor:
    apart, moved = spread.moments(tau2, curvature, variance, steps=steps, rate=RATE)
    return torch.tensor([apart, moved, variance, doubt], dtype=torch.float64)


def chain(weights: Tensor, best: Tensor, noise: float, steps: int, rng: torch.Generator, pull: float = 0.0) -> Tensor:
    """Noisy steps on |w - best|^2 / 2, pulled towards zero, which the best vectors lie around."""
    for _ in range(steps):
        gradient = weights - best + pull * weights + noise * torch.randn(weights.shape, generator=rng)
        weights = weights - RATE * gradient
    return weights


@pytest.mark.parametrize("variance", [0.0, 0.5])
@pytest.mark.parametrize("curvature", [0.3, 1.0])
def test_the_models_moments_are_those_of_a_chain(variance: float, curvature: float) -> None:
    # 200,000 chains: a mean of squares errs by sqrt(2 / 200,000) = .3%; 5.5 of that.
    rng, tau2, steps = torch.Generator().manual_seed(4), 0.8, 30
    best = math.sqrt(tau2) * torch.randn(200_000, generator=rng)
    weights, half = torch.zeros_like(best), torch.zeros_like(best)
    for step in range(steps):
        gradient = curvature * (weights - best) + math.sqrt(variance) * torch.randn(best.shape, generator=rng)
        weights = weights - RATE * gradient
        half = weights.clone() if step == steps // 2 - 1 else half
    found = spread.moments(tau2, curvature, variance, steps=steps, rate=RATE)
    measured = float(weights.square().mean()), float((weights - half).square().mean())
    assert measured == pytest.approx(found, rel=0.0175)


@pytest.mark.parametrize("tau2", [0.01, 0.3])
@pytest.mark.parametrize("curvature", [0.5, 2.0])
def test_what_is_seen_exactly_gives_tau_and_curvature_back(tau2: float, curvature: float) -> None:
    found = spread.between(seen(tau2, curvature, 0.1, 200), steps=200, rate=RATE)
    assert found.tolist() == pytest.approx([tau2, curvature], rel=0.05)  # The grid's points are 1% apart.


def test_noise_alone_is_no_difference_between_silos() -> None:
    found = spread.between(seen(0.0, 1.0, 0.5, 100, float(SURE)), steps=100, rate=RATE)
    assert found[0] == 0.0


def test_without_anything_seen_there_is_no_difference() -> None:
    assert 0 <= float(spread.between(torch.zeros(4), steps=100, rate=RATE)[0]) < 1e-30


def test_the_strength_is_the_least_of_the_error() -> None:
    for tau2, variance in ((0.05, 0.2), (0.5, 0.2), (0.001, 1.0)):
        one, curvature = torch.tensor(tau2), torch.tensor(1.0)
        lam, least = spread.strength(one, torch.tensor(variance), curvature=curvature, rate=RATE)
        around = torch.linspace(0.0, 1 / RATE - 1, 20_001)
        errors = spread.error(around, one, torch.tensor(variance), curvature=curvature, rate=RATE)
        assert float(least) <= float(errors.min()) * (1 + 1e-5)
        assert 0 <= float(lam) <= 1 / RATE - 1


def test_for_small_steps_the_strength_is_the_closed_form() -> None:
    # h s^2 / (2 tau^2 - s^2) with s^2 = eta v / 2 = 5e-4 v.
    variances = torch.tensor([1.0, 10.0, 100.0])
    lam, _ = spread.strength(torch.tensor(0.1), variances, curvature=torch.tensor(1.0), rate=1e-3)
    local = 5e-4 * variances
    assert lam.tolist() == pytest.approx((local / (0.2 - local)).tolist(), rel=0.02)


def test_more_noise_asks_for_more_pull_and_none_for_none() -> None:
    variances = torch.tensor([0.0, 0.01, 0.1, 1.0, 10.0])
    lam, error = spread.strength(torch.tensor(0.1), variances, curvature=torch.tensor(1.0), rate=RATE)
    assert lam[0] == error[0] == 0.0
    assert lam.tolist() == sorted(lam.tolist())
    alike, _ = spread.strength(torch.tensor(0.0), torch.tensor(1.0), curvature=torch.tensor(1.0), rate=RATE)
    assert float(alike) == pytest.approx(1 / RATE - 1)  # Beyond it, steps add noise again.


@pytest.mark.parametrize(("tau", "noise"), [(0.3, 1.0), (0.15, 1.0), (0.5, 0.5)])
def test_auto_lands_within_a_factor_of_two_of_the_best_pull(tau: float, noise: float) -> None:
    rng, steps = torch.Generator().manual_seed(11), 100
    best = tau * torch.randn(SILOS, SIZE, generator=rng)
    best -= best.mean(0)  # So that the mean is known: it is zero.
    half = chain(torch.zeros_like(best), best, noise, steps // 2, rng)
    last = chain(half, best, noise, steps // 2, rng)
    share = 1 - 1 / SILOS
    pair = [float((part - part.mean(0)).square().mean()) / share for part in (last, last - half)]
    tau2, curvature = spread.between(torch.tensor([*pair, noise**2, float(SURE)]), steps=steps, rate=RATE)
    lam, _ = spread.strength(tau2, torch.tensor(noise**2), curvature=curvature, rate=RATE)
    truth, _ = spread.strength(
        best.square().mean() / share, torch.tensor(noise**2), curvature=torch.tensor(1.0), rate=RATE
    )
    assert 0.5 <= float(lam / truth) <= 2.0

    def measured(pull: float) -> float:
        """Mean squared error of models after long training; 2,000 copies of the silos, so it errs by .5%."""
        many = best.repeat(500, 1)
        return float((chain(torch.zeros_like(many), many, noise, 150, rng, pull) - many).square().mean())

    assert measured(float(lam)) <= 1.1 * min(measured(float(truth) * factor) for factor in (0.0, 0.25, 1.0, 4.0))
