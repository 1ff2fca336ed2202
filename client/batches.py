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

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Of every step how many silos take it, and what their batches are padded to."""
        counts = self.counts.numpy()
        return list(zip((counts > 0).sum(0).tolist(), padded(counts.max(0, initial=0)).tolist()))

    def of(self, silos: Tensor, width: int) -> Plan:
        """The plan of some silos, up to their last step, with batches of `width` rows: no fewer than they hold."""
        counts = self.counts[silos]
        counts = counts[:, : int((counts > 0).any(0).sum())]
        rows = self.rows[silos, : counts.shape[1], :width]
        if missing := width - rows.shape[2]:
            rows = torch.cat([rows, rows[:, :, :1].expand(-1, -1, missing)], dim=2)
        return Plan(rows, counts, bool((counts == width).all()))


def padded(rows: Ints) -> Ints:
    """How many rows batches of some are padded to in a stack: a multiple of 4, and from 64 on of a sixteenth.

    The order in which a batched product adds rows up depends on how many there are. So what a silo is padded to follows
    from its own rows, not from the longest of its stack, and it trains to the same bits in every stack; and few widths
    make few stacks.

    >>> padded(np.array([0, 1, 4, 5, 64, 65, 359, 1000])).tolist()
    [4, 4, 4, 8, 64, 68, 368, 1024]
    """
    step = 2 ** np.maximum(np.frexp(rows)[1].astype(np.int64) - 5, 2)
    found: Ints = -(-np.maximum(rows, 1) // step) * step
    return found


def alike(plan: Plan, train: Train) -> list[tuple[Tensor, Plan]]:
    """Splits a plan into stacks of silos that are padded alike: which silos, and their plan; at least one stack.

    Those with most steps come first in their stack: who is done needs no more work, and under label skew that is most.
    """
    widths, steps = _widths(plan, train), (plan.counts.numpy() > 0).sum(1)
    order = np.lexsort((-steps, widths))
    parts = [torch.from_numpy(part) for part in np.split(order, np.flatnonzero(np.diff(widths[order])) + 1)]
    return [(part, plan.of(part, int(widths[part].max(initial=0)))) for part in parts]


def together(plan: Plan, train: Train) -> Plan:
    """A plan as one stack, padded as the widest of its silos is."""
    width = int(_widths(plan, train).max(initial=0))
    return plan if width == plan.rows.shape[2] else plan.of(torch.arange(len(plan.rows)), width)


def _widths(plan: Plan, train: Train) -> Ints:
    """What the batches of each silo are padded to, `(silos,)`: full ones need not be."""
    widths = padded(plan.counts.numpy().max(1, initial=0))
    return widths if train.batch_size is None else np.minimum(widths, train.batch_size)


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
