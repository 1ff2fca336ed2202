"""Banded matrices whose inverse correlates the noise of rounds so that it cancels in sums over them.

Releasing every prefix sum of x_1, ..., x_n privately as A C^-1 (C x + z) costs what C x + z does and errs by A C^-1 z,
where A is the lower triangle of ones. C is public and lower triangular. With b bands, columns b apart share no row.

Sources: Kairouz et al. 2021 (arXiv 2103.00039); Choquette-Choo et al. 2023 (arXiv 2306.08153), banded C; McKenna 2024
(arXiv 2405.15913), Toeplitz C and its normalised columns; Fichtenberger, Henzinger & Upadhyay 2023 (arXiv 2202.11205),
the square root that the search starts from.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from privacy import checks

Array: TypeAlias = npt.NDArray[np.float64]

MOST_ROUNDS = 10_000  # The error of a matrix takes rounds^2 numbers to find out: a second at most.
_DIGITS = 6  # Of coefficients: more would differ between processors, and gain nothing.


@dataclass(frozen=True)
class Band:
    """A lower triangular matrix C of `rounds` rows whose columns all have norm 1, those at the end too.

    C[t, s] = coefficients[t - s] / norm_s, where norm_s is the norm of what of the coefficients fits below row s.

    Attributes:
        coefficients: the b bands of the Toeplitz matrix before its columns are normalised; the first is 1.
        rounds: rows and columns.

    Raises:
        ValueError: no coefficients, more than rounds, not finite, or too many rounds.
    """

    coefficients: tuple[float, ...]
    rounds: int

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= MOST_ROUNDS:
            raise ValueError(f"rounds: banded noise is for 1 to {MOST_ROUNDS:,} rounds, got {self.rounds}")
        if not 1 <= len(self.coefficients) <= self.rounds:
            raise ValueError(f"coefficients: give 1 to {self.rounds} of them, got {len(self.coefficients)}")
        checks.finite(**{f"coefficients[{index}]": value for index, value in enumerate(self.coefficients)})
        if self.coefficients[0] != 1.0:
            raise ValueError(f"coefficients[0] must be 1, got {self.coefficients[0]!r}")

    @property
    def bands(self) -> int:
        """b: a round's noise is correlated with that of the b - 1 before it."""
        return len(self.coefficients)

    @property
    def digest(self) -> str:
        """SHA-256 of the matrix (hexadecimal)."""
        return hashlib.sha256(repr((self.coefficients, self.rounds)).encode()).hexdigest()

    def row(self, round_: int) -> list[float]:
        """Row `round_` (from 1) from its diagonal to the left: C[t, t], C[t, t - 1], ..., at most b numbers."""
        if not 1 <= round_ <= self.rounds:
            raise ValueError(f"round {round_}: banded noise was made for rounds 1 to {self.rounds}")
        norms = _norms(self)
        return [value / norms[round_ - 1 - back] for back, value in enumerate(self.coefficients[:round_])]

    def dense(self) -> Array:
        """The whole matrix, `(rounds, rounds)`."""
        matrix = np.zeros((self.rounds, self.rounds))
        for at in range(self.rounds):
            row = self.row(at + 1)
            matrix[at, at + 1 - len(row) : at + 1] = row[::-1]
        return matrix


@lru_cache(maxsize=64)
def optimal(rounds: int, separation: int) -> Band:
    """The band of least error in prefix sums that units may use who are in one of `separation` rounds at most.

    L-BFGS over Toeplitz coefficients (McKenna 2024), from the square root, deterministic. It does not see that the last
    columns are normalised, too: where bands are nearly as many as rounds, the square root may stay the better.
    """
    from scipy.optimize import minimize

    if not separation >= 1:
        raise ValueError(f"separation must be >= 1, got {separation!r}")
    first = square_root(rounds, separation)
    if first.bands == 1:
        return first

    def objective(tail: Array) -> tuple[float, Array]:
        loss, slope = _toeplitz_loss(np.concatenate([[1.0], tail]), rounds)
        return loss, slope[1:]

    found = minimize(objective, np.array(first.coefficients[1:]), jac=True, method="L-BFGS-B", options={"ftol": 1e-13})
    return min(first, Band((1.0, *np.round(found.x, _DIGITS).tolist()), rounds), key=rmse)


def square_root(rounds: int, separation: int) -> Band:
    """The first bands of the square root of A: binom(2j, j) / 4^j on band j; near the optimum for wide bands."""
    coefficients = [1.0]
    for j in range(1, min(separation, rounds)):
        coefficients.append(coefficients[-1] * (2 * j - 1) / (2 * j))
    return Band(tuple(coefficients), rounds)


@lru_cache(maxsize=64)
def rmse(band: Band) -> float:
    """Root mean square error of the prefix sums of all rounds, per coordinate, for z of standard deviation 1.

    That is the Frobenius norm of A C^-1 by the root of the rounds. With columns of norm 1 it is the error at the price
    of one Gaussian of noise multiplier 1 for each time that a unit takes part.
    """
    from scipy.signal import lfilter

    impulse = np.zeros(band.rounds)
    impulse[0] = 1.0
    inverse = lfilter([1.0], band.coefficients, impulse)  # The Toeplitz factor's inverse is Toeplitz, too.
    norms = np.array(_norms(band))
    # A C^-1 = A diag(norms) T^-1: column s holds the running sums of norms[s:] times the inverse's first column.
    total = sum(
        float(np.square(np.cumsum(norms[at:] * inverse[: band.rounds - at])).sum()) for at in range(band.rounds)
    )
    return math.sqrt(total / band.rounds)


def independent_rmse(rounds: int) -> float:
    """The same for independent noise: prefix t adds up t of them, so it is the root of the mean of 1, ..., rounds."""
    return math.sqrt((rounds + 1) / 2)


@lru_cache(maxsize=64)
def _norms(band: Band) -> tuple[float, ...]:
    """Of the columns before they are normalised, `(rounds,)`; the last ones are cut off by the last row."""
    below = np.sqrt(np.cumsum(np.square(band.coefficients)))
    fits = np.minimum(band.bands, band.rounds - np.arange(band.rounds))
    return tuple(below[fits - 1].tolist())


def _toeplitz_loss(coefficients: Array, rounds: int) -> tuple[float, Array]:
    """log(|c|^2 |A T(c)^-1|_F^2) and its gradient, in O(rounds * bands).

    A and T commute. So |A T^-1|_F^2 is the sum of (rounds - t) g_t^2 with T g = 1, and its gradient, by the implicit
    function theorem, -2 times the correlation of g with T^-T (rounds - t) g_t.
    """
    from scipy.signal import lfilter

    solved = lfilter([1.0], coefficients, np.ones(rounds))
    weighted = np.arange(rounds, 0.0, -1.0) * solved
    adjoint = lfilter([1.0], coefficients, weighted[::-1])[::-1]
    error, size = float(weighted @ solved), float(coefficients @ coefficients)
    slope = np.array([-2 * float(adjoint[j:] @ solved[: rounds - j]) for j in range(len(coefficients))])
    return math.log(error) + math.log(size), slope / error + 2 * coefficients / size
