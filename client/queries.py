"""Answers about a silo's own rows: sums of per-row numbers, clipped and noised where single examples are private."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from client.examples import Examples
from client.single import SingleTrainer, layout_of_images
from privacy import streams
from privacy.noise import SystemNoise
from privacy.queries import NoisyQuery
from strategies.base import Rows

BATCH = 1024  # Rows of a forward pass.


class Queries:
    """What silos may be asked of their rows, besides training on them.

    Args:
        declared: what was priced, by name.
        single: evaluates models; its weights are overwritten.
        private: whether single examples are; else answers are exact.
        seed: of the experiment.
        secret: noise comes from the operating system.
    """

    def __init__(
        self, declared: Mapping[str, NoisyQuery], single: SingleTrainer, *, private: bool, seed: int, secret: bool
    ) -> None:
        self.declared, self.single, self.private = dict(declared), single, private
        self.seed, self.secret = seed, secret

    def answer(self, name: str, silo: int, round_: int, held: Examples, models: Tensor, rows: Rows) -> Tensor:
        """The sum over a silo's rows, `(size,)`, as `strategies.base.Silo.query` says.

        Raises:
            ValueError: `rows` gives another shape than declared, or numbers of a row that depend on other rows.
        """
        query, losses = self.declared[name], self._losses(held, models)
        found = rows(losses, held.groups)
        if tuple(found.shape) != (len(held), query.size):
            raise ValueError(
                f"query {name!r}: rows have shape {tuple(found.shape)}, declared {(len(held), query.size)}"
            )
        if not self.private:
            return found.double().sum(0).to(found.dtype)
        _require_apart(name, found, losses, held.groups, rows)
        noise = SystemNoise() if self.secret else streams.generator(self.seed, f"example query {name}", round_, silo)
        return query.release(query.total(found), noise).to(found.dtype)

    @torch.no_grad()
    def _losses(self, held: Examples, models: Tensor) -> Tensor:
        """Every row's loss under every model, `(rows, models)`."""
        single, found = self.single, torch.empty(len(held), len(models))
        single.module.eval()
        for number, model in enumerate(models):
            single.weights.copy_(model)
            for at in range(0, len(held), BATCH):
                batch = held.select(slice(at, at + BATCH))
                outputs = single.module(layout_of_images(batch.features).to(single.device))
                found[at : at + BATCH, number] = single.task.losses(outputs, batch.targets.to(single.device)).cpu()
        return found


def _require_apart(name: str, found: Tensor, losses: Tensor, groups: Tensor | None, rows: Rows) -> None:
    """A row's numbers must be its own: clipped, they bound it only then."""
    for half in (slice(None, len(losses) // 2), slice(len(losses) // 2, None)):
        again = rows(losses[half], None if groups is None else groups[half])
        if not torch.allclose(again, found[half], rtol=1e-5, atol=1e-7, equal_nan=True):
            raise ValueError(f"query {name!r}: a row's numbers depend on other rows; compute each from its own losses")
