"""SPECTRE: which rows of a table stand out, once the spread of the others is estimated robustly.

Source: Hayase, Kong, Somani, Oh, "Defending Against Backdoor Attacks Using Robust Statistics", ICML 2021, arXiv
2104.11315; its covariance is that of Diakonikolas et al. 2017 (arXiv 1703.00893), its scores ("quantum entropy") are
those of Dong, Hopkins, Li 2019 (arXiv 1906.11366). Here a row is what a silo says of its data, not a single example.
Everything is computed in float64; the order of rows does not matter, nor does a rotation of their numbers.

Three things differ from the paper, because silos are few and many of them may be malicious:

- `HEAVY` is half of the paper's constant. A direction in which a fraction alpha lies apart has a fourth moment of at
  most (1 - 3 alpha (1 - alpha)) / (alpha (1 - alpha)) - 1, which is 5.1 to 6.3 where the paper's limit is 6.3 to 6.4
  (alpha .10 to .11), and far below it for larger fractions: with the paper's constant nothing would ever be trimmed.
- Trimming alone misses clusters: from a fraction of .211 on, a direction that parts rows in two has a smaller fourth
  moment than a Gaussian. So directions of extreme fourth moments are tried as well (`strategies.parted`), and whatever
  sets apart the most is chosen, by the measure that chooses the number of directions.
- A pass trims what is within `BAND` of the farthest row, as the authors' program does in effect: its test of the tail
  is met nowhere else. So a pass takes few rows, and a direction that stands out by chance cannot use up the budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from strategies.parted import parted

FAR, TAU = 10.0, 0.1
"""A row whose squared whitened length is FAR k log(n / TAU) or more is no row of a Gaussian sample."""
HEAVY = 5.0
"""Fourth moments up to 1 + HEAVY alpha log(1 / alpha)^2 are left alone; a Gaussian's is 2."""
BAND = 3.0
"""How far below the farthest row a pass of trimming reaches, in standard deviations of a Gaussian's square form."""
TRIMMED, DROPPED = 2.0, 1.5
"""Rows that may be left out of the covariance, and rows that are flagged, in units of alpha n."""
RIDGE = 1e-4
SHARPNESS = 4.0
"""Of the weighting of directions: 0 weighs all alike, infinity only the one that spreads most."""
NOTHING = 1e-3
"""Excess spread below which no direction stands out."""
SQUARES = (1, 4, 9, 16)
"""The numbers of directions to choose from; the paper goes on to 100, for which there are too few silos."""
ROWS_PER_DIRECTION = 12
"""Rows that each direction needs: with fewer, every direction has rows that seem to stand out."""


def flagged(rows: Tensor, alpha: float, *, k: int | None = None) -> Tensor:
    """The rows that stand out most, `(n,)` bool: round(1.5 alpha n) of them, and those that equal the last of these.

    Args:
        rows: `(n, D)`, finite.
        alpha: largest fraction of rows that may be malicious, above 0 and below 0.5.
        k: directions to look along; None chooses.

    Raises:
        ValueError: an alpha or rows as above are not given.
    """
    return worst(scores(rows, alpha, k=k), alpha)


def worst(found: Tensor, alpha: float) -> Tensor:
    """The round(1.5 alpha n) largest scores, `(n,)` bool, with those that equal the last; where all are 0, none."""
    dropped = min(round(DROPPED * alpha * len(found)), len(found))
    if dropped == 0:
        return torch.zeros(len(found), dtype=torch.bool)
    return (found >= found.sort(descending=True).values[dropped - 1]) & (found > 0)


def scores(rows: Tensor, alpha: float, *, k: int | None = None) -> Tensor:
    """How much each row stands out, `(n,)` float64, at least 0; the mean of clean rows is about 1.

    Arguments and errors are those of `flagged`.
    """
    projected = _projected(rows, alpha)
    if projected.shape[1] == 0:  # All rows are alike, or there are none.
        return torch.zeros(len(rows), dtype=torch.float64)
    return _chosen(projected, alpha)[0] if k is None else _along(projected[:, :k], alpha)


def standing_apart(rows: Tensor, alpha: float) -> float:
    """How far apart the rows that stand out lie from the others: what the choice of directions is made by.

    Tables of as many rows can be compared by it. Arguments and errors are those of `flagged`.
    """
    projected = _projected(rows, alpha)
    return _chosen(projected, alpha)[1] if projected.shape[1] else 0.0


def _projected(rows: Tensor, alpha: float) -> Tensor:
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must be above 0 and below 0.5, got {alpha!r}")
    if rows.dim() != 2 or not bool(torch.isfinite(rows).all()):
        raise ValueError(f"rows has shape {tuple(rows.shape)}: a table of finite numbers is needed")
    return principal(rows)


def principal(rows: Tensor) -> Tensor:
    """Centred rows in the directions in which they spread, widest first, `(n, rank)` float64."""
    centred = rows.double() - rows.double().mean(0)
    left, spread, _ = torch.linalg.svd(centred, full_matrices=False)
    rank = int((spread > 1e-9 * spread[:1]).sum()) if len(spread) else 0
    along: Tensor = left[:, :rank] * spread[:rank]
    return along


def _chosen(projected: Tensor, alpha: float) -> tuple[Tensor, float]:
    """The scores along as many directions as SPECTRE chooses: those that set apart the most; and how far they do.

    Every choice is judged in the same space, that of the most directions that the rows are enough for.
    """
    n, rank = projected.shape
    sizes = [k for k in SQUARES if k <= min(rank, n // ROWS_PER_DIRECTION)] or [1]
    best, widest = _along(projected[:, :1], alpha), -math.inf
    for k in sizes:
        for found in _candidates(projected[:, :k], alpha):
            apart = _apart(projected[:, : sizes[-1]], ~worst(found, alpha))
            if apart > widest:
                best, widest = found, apart
    return best, widest


def _candidates(projected: Tensor, alpha: float) -> Iterator[Tensor]:
    """The scores along some directions, by every covariance of rows that may be the clean ones."""
    yield _along(projected, alpha)
    if projected.shape[1] > 1:
        every = torch.ones(len(projected), dtype=torch.bool)
        far = torch.stack([worst(distance, alpha) for distance in parted(whitened(projected, every)).T])
        for out in torch.unique(far, dim=0):  # Many descents end in the same direction.
            yield _by(projected, ~out)


def _apart(projected: Tensor, kept: Tensor) -> float:
    """How wide all rows spread in units of those kept, weighted towards where they do most: tr(S M) / tr M."""
    white = whitened(projected, kept)
    spread = covariance(white)
    return float((spread * weighting(spread)).sum())


def _along(projected: Tensor, alpha: float) -> Tensor:
    if projected.shape[1] == 1:  # One direction has no shape to whiten: the scores only order.
        return projected[:, 0].square()
    return _by(projected, trimmed(projected, alpha))


def _by(projected: Tensor, kept: Tensor) -> Tensor:
    """The scores in units of the spread of the rows kept."""
    white = whitened(projected, kept)
    return (white @ weighting(covariance(white)) * white).sum(1)


def weighting(spread: Tensor) -> Tensor:
    """M, `(k, k)`: positive, of trace 1, and exponentially larger in directions of larger spread `(k, k)`."""
    identity = torch.eye(len(spread), dtype=spread.dtype)
    excess = float(torch.linalg.matrix_norm(spread, 2)) - 1
    if not excess >= NOTHING:
        return identity / len(spread)
    raw: Tensor = torch.linalg.matrix_exp(SHARPNESS * (spread - identity) / excess)
    return raw / raw.trace()


def covariance(rows: Tensor) -> Tensor:
    """The covariance of rows, `(k, k)`."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / max(len(rows) - 1, 1)


def whitened(rows: Tensor, kept: Tensor) -> Tensor:
    """All rows in units of the spread of those kept, from their mean, `(n, k)`."""
    inside = rows[kept]
    spread = covariance(inside)
    # Where the rows kept do not spread at all, their ridge would be 0: then it is a little of what all rows do.
    ridge = max(RIDGE * float(spread.trace()), 1e-12 * float(covariance(rows).trace())) / len(spread)
    values, vectors = torch.linalg.eigh(spread)
    scale = (values.clamp(min=0) + ridge).rsqrt()
    white: Tensor = (rows - inside.mean(0)) @ (vectors * scale) @ vectors.T
    return white


def trimmed(rows: Tensor, alpha: float) -> Tensor:
    """The rows to take a covariance from, `(n,)` bool: without those that make its fourth moments heavy.

    At most 2 alpha n rows are left out, and always at least k + 1 kept.
    """
    n, k = rows.shape
    kept = torch.ones(n, dtype=torch.bool)
    budget = min(int(TRIMMED * alpha * n), n - k - 1)
    while budget > 0:
        distance, limit = _heaviest(whitened(rows, kept)[kept], alpha)
        out = distance >= limit
        count = min(int(out.sum()), budget)
        if count == 0:
            break
        farthest = distance.argsort(descending=True)[:count]
        kept[kept.nonzero()[:, 0][farthest]] = False
        budget -= count
    return kept


def _heaviest(white: Tensor, alpha: float) -> tuple[Tensor, float]:
    """How far rows `(n, k)` are out, `(n,)`, and from where on they are to be trimmed: infinity for a clean sample."""
    n, k = white.shape
    squares = white.square().sum(1)
    far = FAR * k * math.log(n / TAU)
    if bool((squares >= far).any()):
        return squares, far
    moments = _moments(white)
    values, directions = torch.linalg.eigh(moments.T @ moments / n)
    if float(values[-1]) <= 1 + HEAVY * alpha * math.log(1 / alpha) ** 2:
        return squares, math.inf
    form = moments @ directions[:, -1] / math.sqrt(2)  # w'Vw - tr V, of standard deviation 1 for a Gaussian.
    distance = (form - form.median()).abs()
    return distance, float(distance.max()) - BAND


def _moments(white: Tensor) -> Tensor:
    """vec(ww' - I) of every row, `(n, k (k + 1) / 2)`: off the diagonal twice as heavy, so lengths are Frobenius'."""
    k = white.shape[1]
    one, other = torch.triu_indices(k, k)
    equal = (one == other).double()
    moments: Tensor = (white[:, one] * white[:, other] - equal) * torch.where(
        one == other, 1.0, math.sqrt(2.0)
    ).double()
    return moments
