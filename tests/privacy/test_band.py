"""Banded matrices: columns of norm 1 that are orthogonal b apart, and the error that they leave in prefix sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.band import MOST_ROUNDS, Band, _toeplitz_loss, independent_rmse, optimal, rmse, square_root

SIZES = [(1, 1), (6, 1), (6, 3), (12, 5), (12, 12), (40, 8)]


def prefix(rounds: int) -> np.ndarray:
    return np.tril(np.ones((rounds, rounds)))


@given(st.integers(1, 12), st.lists(st.floats(-1, 1), max_size=11))
def test_every_column_has_norm_1_and_columns_b_apart_share_no_row(rounds: int, tail: list[float]) -> None:
    band = Band((1.0, *tail[: rounds - 1]), rounds)
    matrix = band.dense()
    gram = matrix.T @ matrix
    apart = np.abs(np.subtract.outer(range(rounds), range(rounds))) >= band.bands
    np.testing.assert_allclose(np.diag(gram), 1.0, rtol=1e-12)  # The last columns too, which the last row cuts off.
    assert not gram[apart].any()
    assert not np.triu(matrix, 1).any()
    assert (np.diag(matrix) > 0).all()


@pytest.mark.parametrize(("rounds", "separation"), SIZES)
def test_the_error_is_that_of_the_dense_matrices(rounds: int, separation: int) -> None:
    band = optimal(rounds, separation)
    dense = prefix(rounds) @ np.linalg.inv(band.dense())
    assert rmse(band) == pytest.approx(np.linalg.norm(dense) / math.sqrt(rounds), rel=1e-10)


@pytest.mark.parametrize("rounds", [1, 7, 512])
def test_one_band_is_independent_noise(rounds: int) -> None:
    band = optimal(rounds, 1)
    assert np.array_equal(band.dense(), np.eye(rounds))
    assert rmse(band) == pytest.approx(independent_rmse(rounds), rel=1e-12)
    assert independent_rmse(rounds) == pytest.approx(np.linalg.norm(prefix(rounds)) / math.sqrt(rounds), rel=1e-12)


def test_the_square_root_of_all_bands_is_the_square_root() -> None:
    """T^2 = A, so that A T^-1 = T."""
    band = square_root(9, 9)
    root = np.zeros((9, 9))
    for j, value in enumerate(band.coefficients):
        root += value * np.eye(9, k=-j)
    np.testing.assert_allclose(root @ root, prefix(9), atol=1e-12)


def test_the_loss_and_its_gradient_are_those_of_the_dense_matrices() -> None:
    """Central differences of step 1e-6 err by about 1e-9 here: their third derivatives and rounding."""
    rounds, point, step = 10, np.array([1.0, 0.5, -0.2, 0.3]), 1e-6

    def dense_loss(coefficients: np.ndarray) -> float:
        matrix = sum(value * np.eye(rounds, k=-j) for j, value in enumerate(coefficients))
        error = np.linalg.norm(prefix(rounds) @ np.linalg.inv(matrix)) ** 2
        return math.log(error * float(coefficients @ coefficients))

    loss, slope = _toeplitz_loss(point, rounds)
    assert loss == pytest.approx(dense_loss(point), rel=1e-12)
    for j, unit in enumerate(np.eye(len(point))):
        difference = (dense_loss(point + step * unit) - dense_loss(point - step * unit)) / (2 * step)
        assert slope[j] == pytest.approx(difference, abs=1e-7)


@pytest.mark.parametrize(("rounds", "separation"), [(40, 8), (512, 32), (512, 128), (512, 512)])
def test_the_search_ends_no_worse_than_the_square_root_and_than_what_is_near_it(rounds: int, separation: int) -> None:
    best = optimal(rounds, separation)
    assert rmse(best) <= rmse(square_root(rounds, separation))
    if best != square_root(
        rounds, separation
    ):  # Then it is where the Toeplitz loss is flat; rounding moved it by 1e-6.
        _, slope = _toeplitz_loss(np.array(best.coefficients), rounds)
        assert np.abs(slope[1:]).max() < 1e-2
    assert rmse(optimal(rounds, separation)) < rmse(optimal(rounds, separation // 2))  # More bands, less error.


def test_the_same_question_has_the_same_answer_and_another_matrix_another_digest() -> None:
    again = optimal.__wrapped__(60, 6)
    assert again == optimal(60, 6)
    assert again.digest == optimal(60, 6).digest != optimal(61, 6).digest
    assert Band((1.0, 0.5), 4).digest != Band((1.0, 0.5000001), 4).digest


def test_more_bands_than_rounds_are_cut() -> None:
    assert optimal(3, 100).bands == 3


@pytest.mark.parametrize(
    ("coefficients", "rounds", "words"),
    [
        ((), 3, "give 1 to 3 of them, got 0"),
        ((1.0, 0.5, 0.25, 0.1), 3, "give 1 to 3 of them, got 4"),
        ((1.0, float("nan")), 3, r"coefficients\[1\] must be finite"),
        ((2.0,), 3, r"coefficients\[0\] must be 1"),
        ((1.0,), 0, "1 to 10,000 rounds, got 0"),
        ((1.0,), MOST_ROUNDS + 1, "1 to 10,000 rounds, got 10001"),
    ],
)
def test_what_is_no_band_is_refused(coefficients: tuple[float, ...], rounds: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Band(coefficients, rounds)


@pytest.mark.parametrize("round_", [0, 4])
def test_a_round_beyond_the_matrix_is_refused(round_: int) -> None:
    with pytest.raises(ValueError, match="banded noise was made for rounds 1 to 3"):
        optimal(3, 2).row(round_)


def test_a_separation_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="separation must be >= 1"):
        optimal(3, 0)
