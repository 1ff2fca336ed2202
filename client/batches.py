"""Which rows a silo trains on at which step, for one silo or a stack of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privacy import streams
from strategies.experiment import Train

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The batches of a local training run.

    Attributes:
        rows: `(silos, steps, batch)` int64, positions in the concatenated rows; padding repeats a silo's first row,
            and the first row of all where a silo has none.
        counts: `(silos, steps)` int64, real rows of each batch; 0 where a silo has no step left.
        full: nothing is padded.
    """

    rows: Tensor
    counts: Tensor
    full: bool

    @property
    def steps(self) -> int:
        """Local steps of the silo that takes most."""
        return self.rows.shape[1]


def plan(starts: Ints, sizes: Ints, train: Train, keys: streams.Keys) -> Plan:
    """Batches by reshuffled epochs, the last batch of an epoch as short as it falls.

    A silo's batches depend on its own key and size alone, so they are the same alone and in a stack.

    Args:
        starts: `(silos,)`, where each silo's rows begin.
        sizes: `(silos,)`, rows of each silo.
        train: steps or epochs, and the batch size (None: all rows of the silo).
        keys: `(silos,)`, stream of each silo for this round.
    """
    widest = int(sizes.max(initial=1))
    batch = min(train.batch_size or widest, widest) or 1
    per_epoch = np.maximum(-(-sizes // batch), 1)
    steps = np.full_like(sizes, train.steps) if train.steps is not None else per_epoch * (train.epochs or 1)
    steps = np.where(sizes > 0, steps, 0)
    step = np.arange(int(steps.max(initial=0)), dtype=np.int64)
    active, several = step < steps[:, None], per_epoch[:, None] > 1
    epoch, block = np.divmod(step, per_epoch[:, None])
    counts = np.clip(sizes[:, None] - block * batch, 0, batch) * active
    position = block[:, :, None] * batch + np.arange(batch, dtype=np.int64)
    valid = np.arange(batch) < counts[:, :, None]
    local = np.where(valid, position, 0)
    if several.any():  # One batch an epoch needs no shuffling: a sum over rows has no order.
        epoch = np.where(active & several, epoch, 0)
        shuffled = _shuffled(local, epoch, sizes, keys, int(epoch.max(initial=0)) + 1)
        local = np.where(several[:, :, None], shuffled, local)  # Whoever else is in the stack.
    first = np.where(sizes > 0, starts, 0)  # An empty silo at the end starts where the rows are over.
    rows = first[:, None, None] + np.where(valid, local, 0)
    return Plan(torch.from_numpy(rows), torch.from_numpy(counts), bool(valid.all()))


def _shuffled(position: Ints, epoch: Ints, sizes: Ints, keys: streams.Keys, epochs: int) -> Ints:
    width = int(sizes.max())
    orders = np.stack([streams.permutations(streams.keys(0, keys + np.uint64(e)), sizes, width) for e in range(epochs)])
    silos = np.arange(len(sizes))[:, None, None]
    shuffled: Ints = orders[epoch[:, :, None], silos, np.minimum(position, width - 1)]
    return shuffled
