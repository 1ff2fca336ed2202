"""A strategy's weights of rows: what multiplies each row's loss, and so its gradient, before anything is clipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from client.examples import Examples, Shards
from strategies.base import Reweight, Strategy


@dataclass(frozen=True)
class Weigh:
    """The weights of some rows.

    Attributes:
        reweight: the strategy's rule.
        groups: of the rows, `(rows,)` or `(silos, rows)`; None where the data has none.
        private: single rows are private, so that a row's weight must follow from its own loss and group alone: what
            one row adds is bounded by a clip that other rows may not move.
    """

    reweight: Reweight
    groups: Tensor | None
    private: bool = False

    def __call__(self, losses: Tensor) -> Tensor:
        """The weights, in the shape of the losses and on their device.

        Raises:
            ValueError: a shape or a sign that no weight has, or, where rows are private, weights that mix rows.
        """
        here = losses.detach().cpu()
        found = self.reweight(here, self.groups)
        if found.shape != here.shape:
            raise ValueError(f"reweight gives shape {tuple(found.shape)} for losses of shape {tuple(here.shape)}")
        if bool((found < 0).any()):
            raise ValueError("reweight gives a weight below 0; a row can count for nothing, not against")
        if self.private:
            self._require_apart(here, found)
        return found.to(losses.device, losses.dtype)

    def select(self, kept: Tensor) -> Weigh:
        """Of the rows kept, given as a mask or as positions."""
        groups = None if self.groups is None else self.groups[kept.to(self.groups.device)]
        return Weigh(self.reweight, groups, self.private)

    def _require_apart(self, losses: Tensor, found: Tensor) -> None:
        half = losses.shape[-1] // 2
        for part in (slice(None, half), slice(half, None)):
            again = self.reweight(losses[..., part], None if self.groups is None else self.groups[..., part])
            if not torch.allclose(again, found[..., part], rtol=1e-5, atol=1e-7, equal_nan=True):
                raise ValueError("reweight: a row's weight depends on other rows; use its own loss and group alone")


def known_by(strategy: Strategy, shards: Shards) -> Shards:
    """The rows of silos, in the groups that the strategy knows rows by."""
    rows = shards.rows
    groups = strategy.grouped(rows.groups, rows.targets)
    return shards if groups is rows.groups else Shards(Examples(rows.features, rows.targets, groups), shards.offsets)
