"""Directions in which rows fall into two parts, by their fourth moments.

Source: Pena and Prieto, "Multivariate Outlier Detection and Robust Covariance Matrix Estimation", Technometrics 43
(2001), section 2: few outliers make the fourth moment of a direction large, many make it small. Where two parts lie far
apart it is 1 / (alpha (1 - alpha)) - 3, and 1 for halves: below a Gaussian's 3 from alpha = .211 on.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 100
RATE = 0.1
"""Of a step down, along a unit direction: the fourth moment of rows of variance 1 curves by 3 for a Gaussian, more for
heavy tails, whose directions a step may overshoot: they are not what is looked for there."""


def parted(white: Tensor) -> Tensor:
    """How far rows `(n, k)` lie from the median along directions of extreme fourth moment, `(n, 2 k)`.

    One of the smallest and one of the largest is sought from each axis; a part of less than half of the rows is what
    lies farther out.

    Args:
        white: rows of mean 0 and covariance I.
    """
    along = white @ torch.cat([flattest(white), heaviest(white)], dim=1)
    return (along - along.median(0).values).abs()


def flattest(white: Tensor) -> Tensor:
    """Unit directions `(k, k)` in which the fourth moment of rows is locally smallest, one from each axis."""
    directions = torch.eye(white.shape[1], dtype=white.dtype)
    for _ in range(STEPS):
        slope = _slope(white, directions)
        directions = directions - RATE * (slope - directions * (directions * slope).sum(0))
        directions = directions / directions.norm(dim=0)
    return directions


def heaviest(white: Tensor) -> Tensor:
    """The same where it is locally largest: a convex function never falls when a unit direction follows its slope."""
    directions = torch.eye(white.shape[1], dtype=white.dtype)
    for _ in range(STEPS):
        slope = _slope(white, directions)
        directions = slope / slope.norm(dim=0)
    return directions


def _slope(white: Tensor, directions: Tensor) -> Tensor:
    """A quarter of the gradient of E (w'u)^4, for each unit direction u; never 0, since E (w'u)^2 is 1."""
    return white.T @ (white @ directions) ** 3 / len(white)
