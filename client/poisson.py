"""Poisson batches: every row of a silo flips its own coin at every step."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from client.batches import Ints, Plan
from privacy import streams


def poisson(starts: Ints, sizes: Ints, rates: Sequence[float], steps: int, keys: streams.Keys | None) -> Plan:
    """Batches that each row joins by the silo's rate, independently at every step; a batch may be empty.

    Rates are public numbers, never computed from `sizes`. A silo without rows takes all its steps too: that it has
    none is private. A silo's batches depend on its own key and rows alone, so they are the same alone and in a stack.

    Args:
        starts: `(silos,)`, where each silo's rows begin.
        sizes: `(silos,)`, rows of each silo.
        rates: chance of a row to be in a batch, per silo.
        steps: batches of every silo.
        keys: `(silos,)`, stream of each silo for this fit; None: coins of the operating system, which nobody can flip
            again.

    Returns:
        A plan whose padding is row 0 of all; whoever reads it uses no number of that row.
    """
    width = int(sizes.max(initial=0))
    present = np.arange(width) < sizes[:, None]
    joins = np.zeros((len(sizes), steps, width), dtype=bool)
    for step in range(steps):  # One at a time: a draw takes 8 bytes a row, what is kept of it one.
        coins = _coins(len(sizes), width, None if keys is None else streams.keys(0, keys + np.uint64(step)))
        joins[:, step] = present & (coins < np.asarray(rates, dtype=np.float64)[:, None])
    counts = joins.sum(axis=-1)
    rows = np.zeros((len(sizes), steps, int(counts.max(initial=0))), dtype=np.int64)
    position = np.broadcast_to(starts[:, None, None] + np.arange(width), joins.shape)
    rows[np.arange(rows.shape[-1]) < counts[:, :, None]] = position[joins]
    return Plan(torch.from_numpy(rows), torch.from_numpy(counts), full=False)


def _coins(silos: int, width: int, keys: streams.Keys | None) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), `(silos, width)`."""
    if keys is not None:
        return streams.uniforms(keys, width)
    words = np.frombuffer(os.urandom(8 * silos * width), dtype=np.uint64).reshape(silos, width)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
