"""Training a stack: the same as one by one, gradients as autograd has them, and no silo shows in another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from client.batches import Plan, plan
from client.examples import Examples, Shards
from client.single import SingleTrainer
from client.stacked import StackedTrainer
from privacy import streams
from strategies.base import Correction
from strategies.experiment import Train
from strategies.layout import Layout
from strategies.tasks import Chain, Shape, Task, initial
from strategies.tasks.dense import MLP, Linear, Logistic

torch.set_num_threads(1)

CLASSES, NUMBER = Shape((2, 3), 4), Shape((6,), 1)
MODELS: list[tuple[Task, Shape]] = [
    (Logistic(), CLASSES),
    (Linear(), NUMBER),
    (MLP((7,), "relu"), CLASSES),
    (MLP((7, 5), "tanh"), CLASSES),
    (MLP((5, 4), "relu"), NUMBER),
]
each = pytest.mark.parametrize(("task", "shape"), MODELS, ids=["logistic", "linear", "relu", "tanh", "regression"])
UNEVEN = [9, 1, 0, 16, 4, 0]  # The last silo starts where the rows are over.


def federation(shape: Shape, sizes: list[int], seed: int = 5) -> Shards:
    rng, rows = torch.Generator().manual_seed(seed), sum(sizes)
    features = torch.randn(rows, *shape.features, generator=rng)
    drawn = torch.randn(rows, generator=rng)
    targets = drawn if shape.outputs == 1 else torch.randint(shape.outputs, (rows,), generator=rng)
    return Shards(Examples(features, targets), torch.tensor([0, *sizes]).cumsum(0))


def planned(shards: Shards, train: Train, silos: list[int]) -> Plan:
    starts, sizes = shards.offsets[:-1].numpy(), shards.sizes.numpy()
    return plan(starts[silos], sizes[silos], train, streams.keys(1, silos))


def chain(task: Task, shape: Shape) -> Chain:
    found = task.stack(shape)
    assert found is not None
    return found


def start_of(task: Task, shape: Shape) -> Tensor:
    size = initial(task, shape, seed=3)[1].numel()
    return 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(2))


def stacked(
    task: Task, shape: Shape, train: Train, shards: Shards, start: Tensor, *, correct: Correction | None = None
) -> Tensor:
    everyone = list(range(len(shards)))
    return StackedTrainer(chain(task, shape), train).fit(
        start, shards.rows, planned(shards, train, everyone), correct=correct
    )


def one_by_one(
    task: Task, shape: Shape, train: Train, shards: Shards, start: Tensor, *, correct: Correction | None = None
) -> Tensor:
    worker = SingleTrainer(initial(task, shape, seed=3)[0], task, train)
    starts = start.expand(len(shards), -1)
    return torch.stack(
        [
            worker.fit(starts[silo], shards.rows, planned(shards, train, [silo]), correct=correct)
            for silo in range(len(shards))
        ]
    )


def apart(first: Tensor, second: Tensor, start: Tensor) -> float:
    """The distance of two results, relative to how far training went."""
    return float((first - second).norm() / (second - start).norm())


SETTINGS = {
    "epochs": Train(epochs=2, batch_size=4),
    "steps": Train(steps=7, batch_size=3, learning_rate=0.2),
    "whole silos": Train(steps=4),
    "momentum": Train(epochs=2, batch_size=4, momentum=0.9),
    "decay": Train(epochs=2, batch_size=4, weight_decay=0.05),
    "both": Train(steps=5, batch_size=100, momentum=0.5, weight_decay=0.05),
}


@each
@pytest.mark.parametrize("train", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("sizes", [UNEVEN, [8, 8, 8], [5], [0, 3]], ids=str)
def test_a_stack_trains_as_silos_do_one_by_one(task: Task, shape: Shape, train: Train, sizes: list[int]) -> None:
    shards, start = federation(shape, sizes), start_of(task, shape)
    together, alone = (run(task, shape, train, shards, start) for run in (stacked, one_by_one))
    assert apart(together, alone, start) <= 1e-5


@pytest.mark.parametrize(
    ("task", "shape"), [case for case in MODELS if case[1] is CLASSES], ids=["logistic", "relu", "tanh"]
)
@pytest.mark.parametrize(
    ("train", "sizes"),
    [
        (SETTINGS["whole silos"], [100, 1, 0, 16, 4, 0, 97, 359, 4, 17]),
        (SETTINGS["both"], [100, 1, 0, 16, 4, 0, 97, 64, 4, 17]),
        (Train(epochs=2, batch_size=10), [25, 28, 27, 26, 25]),
    ],
    ids=["whole silos", "both", "short last batches"],
)
def test_a_silo_trains_to_the_same_bits_in_every_stack(
    task: Task, shape: Shape, train: Train, sizes: list[int]
) -> None:
    """What it is padded to follows from its own rows; of short last batches, only among silos that have them alike.

    A model with one output is left out: a product of one matrix and one vector adds up in an order of its own.
    """
    shards, start = federation(shape, sizes), start_of(task, shape)
    together = stacked(task, shape, train, shards, start)
    worker = StackedTrainer(chain(task, shape), train)
    for silo in range(len(shards)):
        [alone] = worker.fit(start, shards.rows, planned(shards, train, [silo]))
        assert torch.equal(together[silo], alone)


@each
@pytest.mark.parametrize("train", [SETTINGS["epochs"], SETTINGS["both"]], ids=["plain", "both"])
def test_a_pull_acts_in_a_stack_as_one_by_one(task: Task, shape: Shape, train: Train) -> None:
    shards, start = federation(shape, UNEVEN), start_of(task, shape)
    together, alone = (
        run(task, shape, train, shards, start, correct=lambda w, g: g + 0.5 * (w - start))
        for run in (stacked, one_by_one)
    )
    assert apart(together, alone, start) <= 1e-5
    assert apart(together, stacked(task, shape, train, shards, start), start) > 1e-3  # It does act.


@each
def test_silos_may_start_from_vectors_of_their_own(task: Task, shape: Shape) -> None:
    train, shards = SETTINGS["epochs"], federation(shape, UNEVEN)
    start = start_of(task, shape) * torch.linspace(0.5, 1.5, len(UNEVEN))[:, None]
    together, alone = (run(task, shape, train, shards, start) for run in (stacked, one_by_one))
    assert apart(together, alone, start) <= 1e-5


@each
@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["plain", "corrected"])  # Two ways of stepping.
def test_one_step_goes_along_the_gradient_of_autograd(task: Task, shape: Shape, momentum: float) -> None:
    shards, start = federation(shape, [6, 3, 11]), start_of(task, shape)
    train = Train(steps=1, learning_rate=1.0, momentum=momentum)
    stepped = stacked(task, shape, train, shards, start)
    module, layout = initial(task, shape, seed=3)[0], None
    layout = Layout.of(module)
    for silo in range(3):
        vector, rows = start.clone().requires_grad_(), shards.silo(silo)
        loss = task.losses(functional_call(module, layout.unflatten(vector), (rows.features,)), rows.targets).mean()
        (gradient,) = torch.autograd.grad(loss, vector)
        torch.testing.assert_close(start - stepped[silo], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("silos", [1, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_start_is_left_alone_however_few_the_silos(silos: int, momentum: float) -> None:
    shards = federation(CLASSES, [5] * silos)
    for start in (start_of(Logistic(), CLASSES), start_of(Logistic(), CLASSES).repeat(silos, 1)):
        before = start.clone()
        after = stacked(Logistic(), CLASSES, Train(steps=2, momentum=momentum), shards, start)
        assert torch.equal(start, before)
        assert not torch.equal(after, start.expand(silos, -1))


@each
@pytest.mark.parametrize("train", [SETTINGS["epochs"], SETTINGS["both"]], ids=["plain", "both"])
def test_a_silo_that_is_not_finite_changes_no_bit_of_another(task: Task, shape: Shape, train: Train) -> None:
    shards, start = federation(shape, UNEVEN), start_of(task, shape)
    clean = stacked(task, shape, train, shards, start)
    shards.rows.features[:9] = math.nan  # All of silo 0, whose first row pads the empty silos.
    broken = stacked(task, shape, train, shards, start)
    assert bool(broken[0].isnan().all())
    assert torch.equal(broken[1:], clean[1:])


@each
def test_empty_silos_stay_exactly_where_they_start(task: Task, shape: Shape) -> None:
    start = start_of(task, shape)
    for train in SETTINGS.values():
        after = stacked(task, shape, train, federation(shape, UNEVEN), start)
        assert torch.equal(after[2], start)
        assert torch.equal(after[5], start)
        assert torch.equal(stacked(task, shape, train, federation(shape, [0, 0]), start), start.expand(2, -1))


def test_padding_weighs_nothing() -> None:
    # Silo 1 has one row and is padded to nine: its step is that of its one row, not of a ninth of it.
    shards, start = federation(CLASSES, [9, 1]), start_of(Logistic(), CLASSES)
    alone = federation(CLASSES, [9, 1])
    single = Shards(alone.silo(1), torch.tensor([0, 1]))
    train = Train(steps=1, learning_rate=1.0)
    together = stacked(Logistic(), CLASSES, train, shards, start)
    torch.testing.assert_close(together[1], stacked(Logistic(), CLASSES, train, single, start)[0])


@each
def test_recorded_losses_are_those_of_one_by_one_and_only_when_asked(task: Task, shape: Shape) -> None:
    train, shards, start = SETTINGS["epochs"], federation(shape, UNEVEN), start_of(task, shape)
    stack, single = (
        StackedTrainer(chain(task, shape), train),
        SingleTrainer(initial(task, shape, seed=3)[0], task, train),
    )
    everyone = list(range(len(shards)))
    stack.fit(start, shards.rows, planned(shards, train, everyone))
    assert stack.losses == []
    stack.fit(start, shards.rows, planned(shards, train, everyone), record=True)
    for silo in everyone:
        single.fit(start, shards.rows, planned(shards, train, [silo]), record=True)
    np.testing.assert_allclose(stack.losses, single.losses, rtol=1e-5)  # NaN where a silo has no rows, in both.
    assert [math.isnan(loss) for loss in stack.losses] == [size == 0 for size in UNEVEN]
