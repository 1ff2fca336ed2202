"""Poisson batches: every row of a silo flips its own coin at every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from client.batches import Ints, Plan
from privacy import streams


def poisson(starts: Ints, sizes: Ints, rates: Sequence[float], steps: int, keys: streams.Keys) -> Plan:
    """Batches that each row joins by the silo's rate, independently at every step; a batch may be empty.

    Rates are public numbers, never computed from `sizes`. A silo without rows takes all its steps too: that it has
    none is private. A silo's batches depend on its own key and rows alone, so they are the same alone and in a stack.

    Args:
        starts: `(silos,)`, where each silo's rows begin.
        sizes: `(silos,)`, rows of each silo.
        rates: chance of a row to be in a batch, per silo.
        steps: batches of every silo.
        keys: `(silos,)`, stream of each silo for this fit.

    Returns:
        A plan whose padding is row 0 of all; whoever reads it uses no number of that row.
    """
    width = int(sizes.max(initial=0))
    present = np.arange(width) < sizes[:, None]
    joins = np.zeros((len(sizes), steps, width), dtype=bool)
    for step in range(steps):  # One at a time: a draw takes 8 bytes a row, what is kept of it one.
        coins = streams.uniforms(streams.keys(0, keys + np.uint64(step)), width)
        joins[:, step] = present & (coins < np.asarray(rates, dtype=np.float64)[:, None])
    counts = joins.sum(axis=-1)
    rows = np.zeros((len(sizes), steps, int(counts.max(initial=0))), dtype=np.int64)
    position = np.broadcast_to(starts[:, None, None] + np.arange(width), joins.shape)
    rows[np.arange(rows.shape[-1]) < counts[:, :, None]] = position[joins]
    return Plan(torch.from_numpy(rows), torch.from_numpy(counts), full=False)
