"""Answers about a silo's own rows: sums of per-row numbers, clipped and noised where single examples are private."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from client.examples import Examples
from client.single import SingleTrainer, layout_of_images
from privacy import streams
from privacy.noise import SystemNoise
from privacy.queries import NoisyQuery
from strategies.base import Rows, Shown

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
        columns: list[Tensor | None] = [self._losses(held, models), held.groups]
        return self._released(name, silo, round_, columns, rows)

    def represent(self, name: str, silo: int, round_: int, held: Examples, models: Tensor, rows: Shown) -> Tensor:
        """The same for what models make of rows, as `strategies.base.Silo.represent` says.

        Raises:
            ValueError: as for `answer`; or rows have no classes, or the model has no dense layer to look into.
        """
        if held.targets.dim() != 1 or held.targets.is_floating_point():
            raise ValueError(f"query {name!r}: rows need one class each, their targets are {held.targets.dtype}")
        return self._released(name, silo, round_, [*self._seen(held, models), held.targets], rows)

    def _released(
        self, name: str, silo: int, round_: int, columns: Sequence[Tensor | None], rows: Callable[..., Tensor]
    ) -> Tensor:
        """The sum of what `rows` makes of columns, each of a row for a row; noised where rows are private."""
        query, held = self.declared[name], _rows(columns)
        found = rows(*columns)
        if tuple(found.shape) != (held, query.size):
            raise ValueError(f"query {name!r}: rows have shape {tuple(found.shape)}, declared {(held, query.size)}")
        if not self.private:
            return found.double().sum(0).to(found.dtype)
        _require_apart(name, found, columns, rows)
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

    @torch.no_grad()
    def _seen(self, held: Examples, models: Tensor) -> tuple[Tensor, Tensor]:
        """What goes into every model's last dense layer `(rows, models, width)`, and `(rows, models, outputs)`."""
        single, inside, outputs = self.single, [], []
        single.module.eval()
        here: list[Tensor] = []
        with _hooked(_last_dense(single.module), here):
            for model in models:
                single.weights.copy_(model)
                made = []
                for at in range(0, max(len(held), 1), BATCH):  # One pass for no rows, too: it says how wide they are.
                    batch = held.select(slice(at, at + BATCH))
                    made.append(single.module(layout_of_images(batch.features).to(single.device)).cpu())
                outputs.append(torch.cat(made))
                inside.append(torch.cat([each.cpu() for each in here]))
                here.clear()
        return torch.stack(inside, 1), torch.stack(outputs, 1)


@contextmanager
def _hooked(layer: nn.Module, kept: list[Tensor]) -> Iterator[None]:
    """Keeps what goes into a layer."""
    handle = layer.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach()))
    try:
        yield
    finally:
        handle.remove()


def _rows(columns: Sequence[Tensor | None]) -> int:
    return len(next(column for column in columns if column is not None))


def _last_dense(module: nn.Module) -> nn.Module:
    """The model's last dense layer; what goes into it is how the model sees a row."""
    layers = [each for each in module.modules() if isinstance(each, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(module).__name__} has no dense layer, whose input would show how it sees a row")
    return layers[-1]


def _require_apart(name: str, found: Tensor, columns: Sequence[Tensor | None], rows: Callable[..., Tensor]) -> None:
    """A row's numbers must be its own: clipped, they bound it only then."""
    middle = len(found) // 2
    for half in (slice(None, middle), slice(middle, None)):
        again = rows(*(None if column is None else column[half] for column in columns))
        if not torch.allclose(again, found[half], rtol=1e-5, atol=1e-7, equal_nan=True):
            raise ValueError(f"query {name!r}: a row's numbers depend on other rows; compute each from its own losses")
