"""The largest numbers of a vector: which travel, when not all do."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def portion(size: int, density: float) -> int:
    """floor(size * density), and at least 1.

    >>> portion(15882, 0.1), portion(15882, 0.25), portion(3, 0.1), portion(100, 0.29)
    (1588, 3970, 1, 29)
    """
    return max(1, math.floor(size * density * (1 + 1e-12)))  # 100 * 0.29 is a little less than 29 in binary.


def largest(vector: Tensor, count: int) -> Tensor:
    """The `count` numbers of largest magnitude, and zeros; over the whole of the last axis, `(N,)` or `(silos, N)`."""
    if count >= vector.shape[-1]:
        return vector
    places = vector.abs().topk(count, dim=-1, sorted=False).indices
    return torch.zeros_like(vector).scatter(-1, places, vector.gather(-1, places))
