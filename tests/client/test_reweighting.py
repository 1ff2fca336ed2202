"""Weights of rows act before the clip: u loss is trained on, its gradient is what brute force finds, for any model."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.batches import plan
from client.example_sums import ExampleSums
from client.examples import Examples
from client.poisson import poisson
from client.private import PrivateTrainer
from client.private_stacked import PrivateStackedTrainer
from client.reweighting import Weigh
from client.single import SingleTrainer
from client.stacked import StackedTrainer
from privacy import streams
from privacy.steps import NoisySteps
from strategies.experiment import Train
from strategies.groups import by_group
from strategies.tasks import Shape, Task, initial
from strategies.tasks.cnn import CNN
from strategies.tasks.dense import MLP, Linear, Logistic

torch.set_num_threads(1)

CLIP = 0.7
STEPS = NoisySteps(clip_norm=CLIP, noise_multiplier=1.0, batch=8.0, rows=40)
DENSE: list[tuple[Task, Shape]] = [
    (Logistic(), Shape((2, 3), 4)),
    (Linear(), Shape((6,), 1)),
    (MLP((7,), "relu"), Shape((6,), 4)),
]
CONV: list[tuple[Task, Shape]] = [(CNN((4, 6), 8), Shape((1, 8, 8), 3))]
dense = pytest.mark.parametrize(("task", "shape"), DENSE, ids=["logistic", "linear", "relu"])
every = pytest.mark.parametrize(("task", "shape"), DENSE + CONV, ids=["logistic", "linear", "relu", "cnn"])
TABLE = torch.tensor([0.5, 0.0, 4.0])


def rows_of(shape: Shape, count: int) -> Examples:
    rng = torch.Generator().manual_seed(5)
    features, drawn = torch.randn(count, *shape.features, generator=rng), torch.randn(count, generator=rng)
    targets = drawn if shape.outputs == 1 else torch.randint(shape.outputs, (count,), generator=rng)
    return Examples(features, targets, torch.arange(count) % 3)


def doubled(rows: Examples) -> Examples:
    targets = rows.targets.double() if rows.targets.is_floating_point() else rows.targets
    return Examples(rows.features.double(), targets, rows.groups)


def model(task: Task, shape: Shape) -> tuple[nn.Module, Tensor]:
    module, start = initial(task, shape, seed=3)
    start = start + 0.3 * torch.randn(start.numel(), generator=torch.Generator().manual_seed(2))
    nn.utils.vector_to_parameters(start, module.parameters())
    return module, start


def gradients(module: nn.Module, task: Task, rows: Examples) -> Tensor:
    """Every example's gradient of u loss by autograd, `(rows, N)` float64."""
    module, found = copy.deepcopy(module).double(), []
    assert rows.groups is not None
    for row in range(len(rows)):
        one = doubled(rows.select(torch.tensor([row])))
        loss = TABLE[rows.groups[row]] * task.losses(module(one.features), one.targets).sum()
        parts = torch.autograd.grad(loss, list(module.parameters()))
        found.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(found)


def clipped(each: Tensor) -> Tensor:
    return (each * (CLIP / each.norm(dim=1)).clamp(max=1.0).nan_to_num(1.0).unsqueeze(1)).sum(0)


def stacked(task: Task, shape: Shape, start: Tensor, rows: Examples) -> Tensor:
    """One silo with all rows, and one with none."""
    chain = task.stack(shape)
    assert chain is not None
    index = torch.arange(len(rows)).repeat(2, 1)
    trainer = PrivateStackedTrainer(chain, Train(steps=1))
    weights, count = start.repeat(2, 1), torch.tensor([len(rows), 0])
    found, _ = trainer.sums(weights, rows, index, count, [STEPS] * 2, reweight=by_group(TABLE))
    assert not found[1].any()
    return found[0]


def summed(module: nn.Module, task: Task, rows: Examples, *, hooks: bool) -> Tensor:
    sums, wide = ExampleSums(module, task, hooks=hooks), doubled(rows)
    sums.double()
    weigh = Weigh(by_group(TABLE), rows.groups, private=True)
    return torch.cat([part.reshape(-1) for part in sums.total(wide.features, wide.targets, STEPS, weigh=weigh)[0]])


def apart(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


@every
def test_weighed_sums_are_those_of_brute_force(task: Task, shape: Shape) -> None:
    (module, start), rows = model(task, shape), rows_of(shape, 12)
    each = gradients(module, task, rows)
    assert bool((each.norm(dim=1) > CLIP).any())  # Clipping is active.
    assert bool((each.norm(dim=1) == 0).any())  # So is a weight of 0.
    truth = clipped(each)
    for hooks in (True, False):
        assert apart(summed(module, task, rows, hooks=hooks), truth) < 1e-12
    if task.stack(shape) is not None:
        assert apart(stacked(task, shape, start.double(), doubled(rows)), truth) < 1e-12


@every
def test_no_weight_makes_a_row_longer_than_the_clip_norm(task: Task, shape: Shape) -> None:
    (module, start), rows = model(task, shape), rows_of(shape, 8)
    rows.features[2] *= 1e4  # Of group 2, whose weight is 4.

    def total(rows: Examples) -> Tensor:
        if task.stack(shape) is None:
            return summed(module, task, rows, hooks=False)
        return stacked(task, shape, start.double(), doubled(rows))

    whole = total(rows)
    for row in range(8):
        rest = rows.select(torch.tensor([other for other in range(8) if other != row]))
        assert float((whole - total(rest)).norm()) <= CLIP * (1 + 1e-6)


@dense
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_weight_that_is_not_finite_drops_its_rows(task: Task, shape: Shape, value: float) -> None:
    (module, start), rows, chain = model(task, shape), rows_of(shape, 12), task.stack(shape)
    assert chain is not None
    assert rows.groups is not None
    spoilt, others = torch.tensor([0.5, value, 4.0]), rows.select(rows.groups != 1)
    trainer, truth = PrivateStackedTrainer(chain, Train(steps=1)), clipped(gradients(module, task, others))
    index, count = torch.arange(12).unsqueeze(0), torch.tensor([12])
    found, _ = trainer.sums(start.unsqueeze(0), rows, index, count, [STEPS], reweight=by_group(spoilt))
    assert apart(found[0], truth) < 1e-5
    books = ExampleSums(module, task)
    parts, _ = books.total(rows.features, rows.targets, STEPS, weigh=Weigh(by_group(spoilt), rows.groups, private=True))
    assert apart(torch.cat([part.reshape(-1) for part in parts]), truth) < 1e-5


@every
def test_trainers_agree_on_weights(task: Task, shape: Shape) -> None:
    (module, start), rows = model(task, shape), rows_of(shape, 12)
    steps = NoisySteps(clip_norm=CLIP, noise_multiplier=1e-12, batch=6.0, rows=12)
    drawn = poisson(np.array([0]), np.array([12]), [steps.rate], 6, streams.keys(1, [0]))
    train, chain, noise = Train(steps=6, learning_rate=0.2), task.stack(shape), torch.Generator().manual_seed(1)

    def alone(table: Tensor | None) -> Tensor:
        weights = None if table is None else by_group(table)
        return PrivateTrainer(module, task, train).fit(start, rows, drawn, steps=steps, noise=noise, reweight=weights)

    weighed = alone(TABLE)
    assert float((weighed - alone(None)).norm()) > 0.1 * float((weighed - start).norm())
    if chain is not None:
        trainer = PrivateStackedTrainer(chain, train)
        both = trainer.fit(start, rows, drawn, steps=[steps], noise=[noise], reweight=by_group(TABLE))
        assert float((both[0] - weighed).norm()) <= 1e-5 * float((weighed - start).norm())


@dense
def test_without_privacy_the_mean_of_weighed_losses_is_descended(task: Task, shape: Shape) -> None:
    # Two silos, the first with a batch that is padded; each has weights of its own.
    (module, start), rows, chain = model(task, shape), rows_of(shape, 12), task.stack(shape)
    assert chain is not None
    tables = torch.stack([TABLE, torch.tensor([2.0, 1.0, 0.0])])
    train = Train(steps=1, learning_rate=1.0)
    both = plan(np.array([0, 5]), np.array([5, 7]), train, streams.keys(1, [0, 1]))
    together = StackedTrainer(chain, train).fit(start, rows, both, reweight=by_group(tables))
    for silo, (at, until) in enumerate([(0, 5), (5, 12)]):
        one = plan(np.array([at]), np.array([until - at]), train, streams.keys(1, [silo]))
        alone = SingleTrainer(copy.deepcopy(module), task, train).fit(start, rows, one, reweight=by_group(tables[silo]))
        own = rows.select(slice(at, until))
        assert own.groups is not None
        twin = copy.deepcopy(module)
        losses = task.losses(twin(own.features), own.targets) * tables[silo][own.groups]
        slopes = torch.autograd.grad(losses.mean(), list(twin.parameters()))
        truth = torch.cat([part.reshape(-1) for part in slopes])
        assert apart(start - alone, truth.double()) < 1e-5
        assert apart(start - together[silo], truth.double()) < 1e-5


@dense
def test_padding_with_a_weight_that_is_not_finite_changes_nothing(task: Task, shape: Shape) -> None:
    # Padding of the second silo is its first row, of the empty one the first row of all: of group 0.
    (_, start), rows, chain = model(task, shape), rows_of(shape, 9), task.stack(shape)
    assert chain is not None
    rows = Examples(rows.features, rows.targets, torch.tensor([0, *[1] * 8]))
    train = Train(steps=1, learning_rate=1.0)
    both = plan(np.array([1, 9, 4]), np.array([3, 0, 5]), train, streams.keys(1, [0, 1, 2]))
    for table in (torch.tensor([math.inf, 2.0]), torch.tensor([math.nan, 2.0])):
        found = StackedTrainer(chain, train).fit(start, rows, both, reweight=by_group(table))
        assert bool(torch.isfinite(found).all())
        assert torch.equal(found[1], start)


def test_a_weight_is_a_rows_own() -> None:
    losses, groups = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 1, 2, 0])
    mixing = [lambda each, _: each / each.sum(), lambda each, _: each.softmax(-1)]
    for reweight in mixing:
        with pytest.raises(ValueError, match="depends on other rows"):
            Weigh(reweight, groups, private=True)(losses)
        assert float(Weigh(reweight, groups)(losses).sum()) == pytest.approx(1.0)  # No clip rests on it.
    assert Weigh(by_group(TABLE), groups, private=True)(losses).tolist() == [0.5, 0.0, 4.0, 0.5]
    assert Weigh(by_group(TABLE), groups[:1], private=True)(losses[:1]).tolist() == [0.5]


def test_what_is_no_weight_is_refused() -> None:
    losses = torch.ones(3)
    with pytest.raises(ValueError, match="below 0"):
        Weigh(lambda each, _: -each, None)(losses)
    with pytest.raises(ValueError, match="shape"):
        Weigh(lambda each, _: each.sum(), None)(losses)
    with pytest.raises(ValueError, match=r"data\.group"):
        Weigh(by_group(TABLE), None)(losses)
