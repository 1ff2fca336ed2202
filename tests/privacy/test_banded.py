"""Noise that is correlated over rounds: what is drawn, what a silo can move, and what a stretch of rounds remembers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from privacy.band import Band, optimal
from privacy.banded import BandedSum, Tail
from privacy.events import Gaussian
from privacy.mechanism import GaussianSum
from privacy.noise import SimulatedNoise, SystemNoise, grid

CLIP, NOISE, SIZE = 0.5, 2.0, 4
STD = CLIP * NOISE


def fresh(rounds: int, size: int = SIZE) -> torch.Tensor:
    return torch.stack([SimulatedNoise(3).normals(size, "noise", t, "delta") for t in range(1, rounds + 1)])


def released(mechanism: BandedSum, totals: torch.Tensor, first: int = 1) -> torch.Tensor:
    rows = [
        mechanism.privatize(total, SimulatedNoise(3), stream=("noise", first + at, "delta"))
        for at, total in enumerate(totals)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize(("rounds", "separation"), [(1, 1), (5, 1), (9, 3), (9, 9), (30, 7)])
def test_the_streamed_noise_is_the_dense_product(rounds: int, separation: int) -> None:
    """C (y - x) = Z * std, to within the grid's half step in every release (columns of C sum to less than b)."""
    band = optimal(rounds, separation)
    totals = torch.linspace(-1, 1, rounds * SIZE, dtype=torch.float64).reshape(rounds, SIZE)
    noise = released(BandedSum(CLIP, NOISE, band), totals) - totals
    expected = np.linalg.solve(band.dense(), STD * fresh(rounds).numpy())
    np.testing.assert_allclose(noise.numpy(), expected, rtol=0, atol=grid(STD))
    np.testing.assert_allclose(band.dense() @ noise.numpy(), STD * fresh(rounds).numpy(), atol=separation * grid(STD))


def test_releases_lie_on_the_grid_of_the_independent_sum() -> None:
    steps = released(BandedSum(CLIP, NOISE, optimal(9, 3)), torch.full((9, SIZE), 0.1, dtype=torch.float64)) / grid(STD)
    assert torch.equal(steps, steps.round())


def test_one_band_is_the_gaussian_sum_bit_for_bit() -> None:
    totals = torch.rand(3, SIZE, dtype=torch.float64)
    plain = [
        GaussianSum(CLIP, NOISE).privatize(total, SimulatedNoise(3), stream=("noise", t, "delta"))
        for t, total in enumerate(totals, 1)
    ]
    assert torch.equal(released(BandedSum(CLIP, NOISE, optimal(3, 1)), totals), torch.stack(plain))


@pytest.mark.parametrize("source", [SimulatedNoise(11), SystemNoise()])
def test_the_covariance_of_the_noise_is_that_of_the_inverse(source: SimulatedNoise | SystemNoise) -> None:
    """W = C n / std holds 6 rounds of N independent standard normals; all means of products of two rows are looked at.

    Such a mean is normal to within N^-1/2, with standard deviation N^-1/2 (2^1/2 as much for squares). 21 of them and 6
    means beyond 6 standard deviations: a right source fails with probability 27 * 2e-9 = 6e-8, here below 1e-6.
    """
    rounds, size, band = 6, 20_000, optimal(6, 3)
    mechanism, zero = BandedSum(CLIP, NOISE, band), torch.zeros(size, dtype=torch.float64)
    noise = torch.stack([mechanism.privatize(zero, source, stream=("noise", t, "delta")) for t in range(1, rounds + 1)])
    white = band.dense() @ noise.numpy() / STD
    spread = np.sqrt((1 + np.eye(rounds)) / size)
    assert (np.abs(white @ white.T / size - np.eye(rounds)) < 6 * spread).all()
    assert (np.abs(white.mean(axis=1)) < 6 / math.sqrt(size)).all()
    inverse = np.linalg.inv(band.dense())
    covariance = noise.numpy() @ noise.numpy().T / size / STD**2
    assert covariance[1, 0] < 0 > (inverse @ inverse.T)[1, 0]  # A round takes off what the one before it added.


def patterns(rounds: int, separation: int) -> list[tuple[int, ...]]:
    """Every choice of rounds, any two of which are `separation` apart."""
    chosen = [set_ for k in range(1, rounds + 1) for set_ in itertools.combinations(range(rounds), k)]
    return [each for each in chosen if all(b - a >= separation for a, b in itertools.pairwise(each))]


def moved(band: Band, rounds: tuple[int, ...], vectors: np.ndarray) -> float:
    """The squared distance that a silo moves C x by, with `vectors` `(k, N)` in its rounds."""
    change = np.zeros((band.rounds, vectors.shape[1]))
    change[list(rounds)] = vectors
    return float(np.square(band.dense() @ change).sum())


@pytest.mark.parametrize("separation", [1, 2, 3, 8])
def test_a_silo_moves_what_is_released_by_no_more_than_its_turns_are_priced_for(separation: int) -> None:
    """|C (x - x')|^2 is the sum of |g_i|^2 <= k clip^2, for every allowed pattern and whatever a silo sends in it."""
    band, rng = optimal(8, separation), np.random.default_rng(0)
    for rounds in patterns(8, separation):
        assert len(rounds) <= math.ceil(8 / separation)
        for _ in range(5):
            vectors = rng.normal(size=(len(rounds), 2))
            vectors *= CLIP / np.linalg.norm(vectors, axis=1, keepdims=True)
            assert moved(band, rounds, vectors) == pytest.approx(len(rounds) * CLIP**2, rel=1e-12)
            shorter = rng.uniform(size=(len(rounds), 1)) * vectors
            assert moved(band, rounds, shorter) <= len(rounds) * CLIP**2 * (1 + 1e-12)


def test_one_round_sooner_would_cost_more_than_its_price() -> None:
    """So the separation is not there for nothing."""
    band = optimal(8, 3)
    assert moved(band, (0, 2), np.full((2, 1), CLIP)) > 2 * CLIP**2 * 1.05


@pytest.mark.parametrize("r", range(1, 9))
def test_the_first_rounds_are_paid_by_the_turns_in_them(r: int) -> None:
    """What is out after r rounds is made of r rows of C x + Z: a silo moves these by its turns up to r at most."""
    band = optimal(8, 3)
    for rounds in patterns(8, 3):
        so_far = [t for t in rounds if t < r]
        change = np.zeros(8)
        change[list(rounds)] = CLIP
        assert np.square((band.dense() @ change)[:r]).sum() <= len(so_far) * CLIP**2 * (1 + 1e-12)


def test_what_a_silo_sends_may_depend_on_what_it_saw() -> None:
    """To release the same without the silo, Z has to move by the silo's vectors alone, though all react to releases.

    Its squared distance is then the sum of their squares: what the price of k turns is for (Denisov et al. 2022).
    """
    band, rng = optimal(8, 3), np.random.default_rng(1)
    for _ in range(20):
        z, tail, releases = rng.normal(size=8), Tail(), np.zeros(8)
        for t in range(8):
            noise = float(tail.next(torch.tensor([z[t]], dtype=torch.float64), band)[0])
            releases[t] = _others(releases[:t]) + _silo(releases[:t]) + noise
        sent = np.array([_silo(releases[:t]) for t in range(8)])
        without = band.dense() @ (releases - np.array([_others(releases[:t]) for t in range(8)]))
        assert np.square(without - z).sum() == pytest.approx(np.square(sent).sum(), rel=1e-9)
        assert np.square(without - z).sum() <= 3  # Three turns, of norm 1 at most.


def _others(seen: np.ndarray) -> float:
    return math.sin(3 * seen.sum())


def _silo(seen: np.ndarray) -> float:
    return math.cos(2 * seen.sum()) if len(seen) % 3 == 0 else 0.0


def test_a_turn_costs_the_gaussian_of_the_fresh_noise() -> None:
    assert BandedSum(CLIP, NOISE, optimal(8, 3)).event == Gaussian(NOISE)
    assert BandedSum(CLIP, NOISE, optimal(8, 3)).std == STD


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 8])
def test_a_tail_that_was_put_away_goes_on_with_the_same_bits(stop: int) -> None:
    totals, band = torch.rand(9, SIZE, dtype=torch.float64), optimal(9, 4)
    whole, first = released(BandedSum(CLIP, NOISE, band), totals), BandedSum(CLIP, NOISE, band)
    released(first, totals[:stop])
    assert first.tail.rows is not None
    again = BandedSum(CLIP, NOISE, band, Tail(stop, first.tail.rows.clone()))
    assert torch.equal(released(again, totals[stop:], stop + 1), whole[stop:])
    lost = BandedSum(CLIP, NOISE, band, Tail(stop))
    assert not torch.equal(released(lost, totals[stop:], stop + 1), whole[stop:])


def test_only_the_last_rounds_are_kept() -> None:
    mechanism = BandedSum(CLIP, NOISE, optimal(9, 4))
    released(mechanism, torch.zeros(9, SIZE, dtype=torch.float64))
    assert mechanism.tail.rows is not None
    assert (mechanism.tail.round, tuple(mechanism.tail.rows.shape)) == (9, (3, SIZE))
    with pytest.raises(ValueError, match="round 10: banded noise was made for rounds 1 to 9"):
        mechanism.privatize(torch.zeros(SIZE, dtype=torch.float64), SimulatedNoise(3), stream=("noise", 10, "delta"))
