"""Backbones that confide trains itself, once per machine, into the user's cache, in seconds.

Each has a data set beside it that it never saw, under a shift (a quarter turn), for adapters to learn. Rows, starts and
orders come from fixed seeds and one thread, so a machine makes the same bytes again; another may round otherwise, which
is why a run's identity holds the weights' SHA-256.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from client.errors import DataError
from strategies.backbones import backbone
from strategies.cache import cache

if TYPE_CHECKING:  # Registered with the engines; torch is loaded when a backbone is made.
    import torch
    from torch import Tensor, nn

    from client.tables import Table

VERSION = 2  # Of how backbones are made; another one makes them anew.
DIGITS = 400  # Upright digits that the backbone is trained on; the other 1,397 are the data set `digits:rotated`.
GARMENTS = 30_000  # Likewise of the 60,000 garments, the first ones in the data's own order, which is mixed.


@backbone("digits_upright", about="mlp with hidden [256, 256], trained on 400 upright digits of scikit-learn")
def digits_upright() -> Path:
    """The file of the perceptron; about two seconds where it is missing."""

    def build(say: Callable[[str], None]) -> nn.Module:
        import torch

        from simulations.data.sources import digits
        from strategies.tasks import Shape
        from strategies.tasks.dense import MLP

        table, _ = digits(None)
        upright, _ = digits_parts(table.targets)
        return _trained(
            lambda: MLP((256, 256)).module(Shape((1, 8, 8), 10)),
            table.features[upright],
            table.targets[upright],
            epochs=60,
            batch=32,
            # SGD at rate 0.1 reads upright digits as well, but drives the last layer's weights to twice the size, so
            # that they take more of the places in FLASC's messages from the adapters.
            rule=lambda parameters: torch.optim.Adam(parameters, lr=0.001, foreach=False),
            say=say,
        )

    return _kept("digits_upright", build)


@backbone("fashion_upright", about="cnn with channels [16, 32], hidden 64, trained on 30,000 upright garments")
def fashion_upright() -> Path:
    """The file of the convolutional network; a few seconds where it is missing."""

    def build(say: Callable[[str], None]) -> nn.Module:
        import torch

        from simulations.data.sources import fashion_mnist
        from strategies.tasks import Shape
        from strategies.tasks.cnn import CNN

        table, _ = fashion_mnist(None)
        features, targets = table.features[:GARMENTS], table.targets[:GARMENTS]
        start = lambda: CNN((16, 32), 64).module(Shape((1, 28, 28), 10))  # noqa: E731
        rule = lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9)  # noqa: E731
        return _trained(start, features, targets, epochs=4, batch=64, rule=rule, say=say)

    return _kept("fashion_upright", build)


def digits_parts(targets: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the upright digits, and of all others, as indices."""
    import torch

    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    return order[:DIGITS], order[DIGITS:].sort().values


def turned(table: Table, rows: Tensor | slice = slice(None)) -> Table:
    """Some images of a table, a quarter turn counter-clockwise."""
    from dataclasses import replace

    import torch

    note = "every image is turned by 90 degrees"
    features = torch.rot90(table.features[rows], 1, (2, 3)).contiguous()
    return replace(table, features=features, targets=table.targets[rows], notes=(*table.notes, note))


def _kept(name: str, build: Callable[[Callable[[str], None]], nn.Module]) -> Path:
    """The file of a backbone in the cache, made where it is missing."""
    path = cache() / "backbones" / f"{name}-{VERSION}.safetensors"
    if path.is_file():
        return path
    from safetensors.torch import save

    module = build(lambda line: print(f"backbone {name}: {line}", file=sys.stderr, flush=True))
    data = save({key: value.contiguous() for key, value in module.state_dict().items()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as work:  # One's own: two may be at it.
            ready = Path(work) / path.name
            ready.write_bytes(data)
            ready.replace(path)
    except OSError as error:
        what = f"cannot write to {path.parent} ({error.strerror})"
        raise DataError(f"{name}: {what}; set CONFIDE_CACHE to a folder of yours") from error
    return path


def _trained(
    start: Callable[[], nn.Module],
    features: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    batch: int,
    rule: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    say: Callable[[str], None],
) -> nn.Module:
    """A model after some epochs of steps by a rule; on an accelerator where there is one."""
    import torch
    from torch.nn.functional import cross_entropy

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # The bits of a sum depend on their number.
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            module = start().to(device)
        order, optimizer = torch.Generator().manual_seed(0), rule(module.parameters())
        features, targets = features.to(device), targets.to(device)
        say(f"making it once, {len(targets):,} rows x {epochs} epochs")
        for epoch in range(epochs):
            for rows in torch.split(torch.randperm(len(targets), generator=order).to(device), batch):
                loss = cross_entropy(module(features[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if (epoch + 1) % max(1, epochs // 4) == 0:
                say(f"epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}")
    finally:
        torch.set_num_threads(threads)
    return module.cpu()
