"""Canary examples: gradients known to the auditor, in the batches of audited silos beside those of their rows.

Source: Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", ICLR 2024, arXiv 2302.03098, as
applied to DP-SGD: a canary flips a row's coin at a row's rate, passes a row's clip, and is noised with the batch's sum.
What the silo's own change over the run, which is what a server sees of it, holds of canaries is a measurement of what
it holds of a row. Canaries are no rows: they change neither the divisor nor the nominal size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.personal import PersonalStore
from client.poisson import poisson
from privacy import streams
from privacy.audit import LENGTH, direction
from privacy.noise import SystemNoise
from privacy.steps import NoisySteps

CHANGE = "audited-change"  # No strategy's: its personal vectors are named like variables.
NUMBERS = 2**22  # Numbers of directions that a silo keeps, 16 MiB; beyond it they are made anew where needed.
BLOCK = 64  # Directions made at a time at most, where they are not kept.


def direction_seed(seed: int, silo: int) -> int:
    """The seed of the directions of a silo's canaries; no two silos share one, nor do they with canary silos."""
    return streams.derive(seed, "example canaries", silo)


class Directions:
    """The gradients of a silo's canaries, regenerated from their numbers.

    They point against the canaries' directions, so that descending moves the silo along these.

    Args:
        canaries: how many.
        size: numbers in the model.
        seed: from `direction_seed`.
    """

    def __init__(self, canaries: int, size: int, *, seed: int) -> None:
        self.size, self.seed = size, seed
        self._kept = self._made(range(canaries)) if canaries * size <= NUMBERS else None

    def blocks(self, canaries: Sequence[int]) -> Iterator[Tensor]:
        """The unit gradients of some canaries, in blocks `(canaries, N)`."""
        for at in range(0, len(canaries), BLOCK):
            block = canaries[at : at + BLOCK]
            yield self._kept[list(block)] if self._kept is not None else self._made(block)

    def _made(self, canaries: Sequence[int]) -> Tensor:
        made = torch.empty(len(canaries), self.size)
        for row, canary in zip(made, canaries):
            row.copy_(direction(self.seed, canary, self.size)).neg_()
        return made


@dataclass(frozen=True)
class PlantedSteps(NoisySteps):
    """A silo's steps for one fit, with canaries in its batches; clip, noise, divisor and price are the silo's own.

    Attributes:
        directions: of the silo's canaries.
        joining: the canaries in the batch of each step; `release`, which ends a step, takes the next.
    """

    directions: Directions
    joining: Iterator[Sequence[int]]

    def release(self, total: Tensor, noise: torch.Generator | SystemNoise) -> Tensor:
        """The noised gradient of a batch and of the canaries that joined it; see `NoisySteps.release`."""
        for units in self.directions.blocks(next(self.joining)):
            gradients = LENGTH * self.clip_norm * units
            total = total + self.factors(torch.linalg.vector_norm(gradients, dim=1)) @ gradients
        return super().release(total, noise)


class Planted:
    """The canary examples of the audited silos, and what became of those silos.

    Args:
        canaries: of each audited silo.
        silos: the audited ones.
        size: numbers in the model.
        seed: of the experiment.
        secret: coins are the operating system's; directions follow from the seed all the same, and hide nothing.
    """

    def __init__(self, canaries: int, silos: Collection[int], *, size: int, seed: int, secret: bool) -> None:
        self.canaries, self.silos, self.size = canaries, frozenset(silos), size
        self.seed, self.secret = seed, secret
        self._directions: dict[int, Directions] = {}

    def join(self, own: NoisySteps, silo: int, *, steps: int, round_: int, fit: int) -> NoisySteps:
        """A silo's steps for a fit: with canaries where it is audited, and otherwise as they are."""
        if silo not in self.silos:
            return own
        keys = None if self.secret else streams.keys(streams.derive(self.seed, "example coins", round_, fit), [silo])
        coins = poisson(np.zeros(1, dtype=np.int64), np.array([self.canaries]), [own.rate], steps, keys)
        drawn = [coins.rows[0, step, : int(coins.counts[0, step])].tolist() for step in range(steps)]
        if silo not in self._directions:
            self._directions[silo] = Directions(self.canaries, self.size, seed=direction_seed(self.seed, silo))
        return PlantedSteps(
            own.clip_norm, own.noise_multiplier, own.batch, own.rows, self._directions[silo], iter(drawn)
        )

    def see(self, changes: dict[int, Tensor], silos: Sequence[int], start: Tensor, trained: Tensor) -> None:
        """Adds what a fit changed in the audited ones of some silos; `start` and `trained` as `Silo.fit` has them."""
        after = trained.reshape(len(silos), -1)
        before = start.expand(after.shape)
        for row, silo in enumerate(silos):
            if silo in self.silos:
                moved = after[row] - before[row]
                changes[silo] = changes[silo] + moved if silo in changes else moved

    def keep(self, changes: dict[int, Tensor], store: PersonalStore) -> None:
        """Stages the changes of a round on top of those of the rounds committed; they are committed with it."""
        for silo, change in changes.items():
            own = store.rows([silo], stacked=False)
            own[CHANGE] = own.get(CHANGE, torch.zeros(self.size)) + change
