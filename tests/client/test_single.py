"""Training one silo: ten lines of torch.optim.SGD say the same, bit for bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.batches import Plan, plan
from client.examples import Examples
from client.single import SingleTrainer
from privacy import streams
from strategies.experiment import Train
from strategies.layout import Layout
from strategies.tasks import Shape, Task, initial
from strategies.tasks.cnn import CNN
from strategies.tasks.dense import MLP, Linear, Logistic

torch.set_num_threads(1)

ROWS = 23


def silo(shape: Shape, rows: int = ROWS) -> Examples:
    rng = torch.Generator().manual_seed(5)
    features = torch.randn(rows, *shape.features, generator=rng)
    if shape.outputs == 1:
        return Examples(features, torch.randn(rows, generator=rng))
    return Examples(features, torch.randint(shape.outputs, (rows,), generator=rng))


def planned(rows: int, train: Train) -> Plan:
    return plan(np.array([0]), np.array([rows]), train, streams.keys(1, [0]))


def reference(module: nn.Module, task: Task, rows: Examples, batches: Plan, train: Train, start: Tensor) -> Tensor:
    """What a reader would write: a copy of the module, torch's own optimizer, one loop."""
    module, layout = copy.deepcopy(module), Layout.of(module)
    layout.load(module, start)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=train.learning_rate, momentum=train.momentum, weight_decay=train.weight_decay
    )
    for step in range(batches.steps):
        batch = rows.select(batches.rows[0, step, : int(batches.counts[0, step])])
        optimizer.zero_grad()
        task.losses(module(batch.features), batch.targets).mean().backward()
        optimizer.step()
    return layout.flatten(module)


SETTINGS = [
    Train(epochs=2, batch_size=5),
    Train(steps=7, batch_size=8, momentum=0.9),
    Train(epochs=2, batch_size=4, weight_decay=0.01),
    Train(steps=9, batch_size=None, momentum=0.5, weight_decay=0.1, learning_rate=0.05),
]


@pytest.mark.parametrize("train", SETTINGS, ids=["plain", "momentum", "decay", "both"])
@pytest.mark.parametrize(
    ("task", "shape"),
    [(Logistic(), Shape((6,), 3)), (MLP((7, 5), "tanh"), Shape((6,), 3)), (Linear(), Shape((6,), 1))],
    ids=lambda value: getattr(value, "name", ""),
)
def test_training_is_torch_sgd_bit_for_bit(task: Task, shape: Shape, train: Train) -> None:
    rows, batches = silo(shape), planned(ROWS, train)
    module, start = initial(task, shape, seed=3)
    expected = reference(module, task, rows, batches, train, start)
    found = SingleTrainer(module, task, train).fit(start, rows, batches)
    assert torch.equal(found, expected)
    assert not torch.equal(found, start)


def test_a_convolution_is_the_same_to_rounding() -> None:
    # Not bit for bit: images are put channels last, and there the convolution sums in another order.
    task, shape, train = CNN((4,), 8), Shape((1, 8, 8), 3), Train(epochs=2, batch_size=5, momentum=0.9)
    rows, batches = silo(shape), planned(ROWS, train)
    module, start = initial(task, shape, seed=3)
    expected = reference(module, task, rows, batches, train, start)
    found = SingleTrainer(module, task, train).fit(start, rows, batches)
    assert float((found - expected).norm() / (expected - start).norm()) < 1e-5


def trainer(train: Train) -> tuple[SingleTrainer, Tensor, Examples]:
    task, shape = Logistic(), Shape((6,), 3)
    module, _ = initial(task, shape, seed=3)
    return SingleTrainer(module, task, train), torch.linspace(-1, 1, 21), silo(shape)


def test_a_fit_leaves_its_start_alone_and_remembers_nothing() -> None:
    train = Train(epochs=2, batch_size=5, momentum=0.9)
    worker, start, rows = trainer(train)
    before, batches = start.clone(), planned(ROWS, train)
    first = worker.fit(start, rows, batches)
    kept = first.clone()
    worker.fit(torch.ones(21), rows, batches)
    assert torch.equal(start, before)
    assert torch.equal(first, kept)  # A result is the caller's own.
    assert torch.equal(worker.fit(start, rows, batches), first)


def test_a_correction_sees_the_parameters_and_what_it_returns_is_stepped_with() -> None:
    train = Train(steps=3, batch_size=5, learning_rate=0.5)
    worker, start, rows = trainer(train)
    seen: list[Tensor] = []

    def down(w: Tensor, g: Tensor) -> Tensor:
        seen.append(w.clone())
        return torch.ones_like(g)

    after = worker.fit(start, rows, planned(ROWS, train), correct=down)
    torch.testing.assert_close(after, start - 1.5)
    assert torch.equal(seen[0], start)
    torch.testing.assert_close(torch.stack(seen), torch.stack([start, start - 0.5, start - 1.0]))


def test_a_pull_is_a_penalty_on_the_distance() -> None:
    # FedProx: the gradient of mu/2 |w - start|^2 is mu (w - start); weight decay is the same pull, towards zero.
    train, decayed = Train(epochs=1, batch_size=5), Train(epochs=1, batch_size=5, weight_decay=0.3)
    worker, start, rows = trainer(train)
    pulled = worker.fit(start, rows, planned(ROWS, train), correct=lambda w, g: g + 0.3 * w)
    shrunk = trainer(decayed)[0].fit(start, rows, planned(ROWS, train))
    torch.testing.assert_close(pulled, shrunk)


def test_the_recorded_loss_is_the_mean_over_the_steps() -> None:
    train = Train(steps=4, batch_size=None, learning_rate=0.2)
    worker, start, rows = trainer(train)
    batches, losses, weights = planned(ROWS, train), [], start
    one = Train(steps=1, batch_size=None, learning_rate=0.2)
    for _ in range(4):
        weight, bias = weights[:18].view(3, 6), weights[18:]
        losses.append(float(nn.functional.cross_entropy(rows.features @ weight.T + bias, rows.targets)))
        weights = trainer(one)[0].fit(weights, rows, planned(ROWS, one))
    worker.fit(start, rows, batches)
    assert worker.losses == []  # Only when asked.
    worker.fit(start, rows, batches, record=True)
    assert worker.losses == [pytest.approx(sum(losses) / 4, rel=1e-5)]


def test_an_empty_silo_stays_where_it_starts_and_has_no_loss() -> None:
    train = Train(steps=3)
    worker, start, rows = trainer(train)
    assert torch.equal(worker.fit(start, rows.select(slice(0, 0)), planned(0, train), record=True), start)
    assert len(worker.losses) == 1
    assert worker.losses[0] != worker.losses[0]


def test_dropout_draws_from_the_key_and_leaves_the_global_generator_alone() -> None:
    class Dropping(Logistic):
        def module(self, shape: Shape) -> nn.Module:
            return nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))

    train, shape = Train(epochs=1, batch_size=5), Shape((6,), 3)
    module, start = initial(Dropping(), shape, seed=1)
    worker, rows, batches = SingleTrainer(module, Dropping(), train), silo(shape), planned(ROWS, train)
    module.eval()  # As an evaluation leaves it: training must turn dropout on again.
    state = torch.get_rng_state()
    first = worker.fit(start, rows, batches, key=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(worker.fit(start, rows, batches, key=1), first)
    assert not torch.equal(worker.fit(start, rows, batches, key=2), first)
