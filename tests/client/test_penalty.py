"""A penalty inside of the clip: g + r is bounded as a whole, by the norm that brute force finds, for any model."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.descent import beside
from client.example_sums import ExampleSums
from client.examples import Examples
from client.poisson import poisson
from client.private import PrivateTrainer
from client.private_stacked import PrivateStackedTrainer
from privacy import streams
from privacy.steps import NoisySteps
from strategies.experiment import Train
from strategies.tasks import Shape, Task, initial
from strategies.tasks.cnn import CNN
from strategies.tasks.dense import MLP, Linear, Logistic

torch.set_num_threads(1)

CLIP = 0.7
STEPS = NoisySteps(clip_norm=CLIP, noise_multiplier=1.0, batch=8.0, rows=40)
DENSE: list[tuple[Task, Shape]] = [
    (Logistic(), Shape((2, 3), 4)),
    (Linear(), Shape((6,), 1)),
    (MLP((7, 5), "tanh"), Shape((6,), 4)),
    (MLP((7,), "relu"), Shape((6,), 1)),
]
CONV: list[tuple[Task, Shape]] = [(CNN((4, 6), 8), Shape((1, 8, 8), 3))]
dense = pytest.mark.parametrize(("task", "shape"), DENSE, ids=["logistic", "linear", "tanh", "relu"])
every = pytest.mark.parametrize(("task", "shape"), DENSE + CONV, ids=["logistic", "linear", "tanh", "relu", "cnn"])


def rows_of(shape: Shape, count: int) -> Examples:
    rng = torch.Generator().manual_seed(5)
    features, drawn = torch.randn(count, *shape.features, generator=rng), torch.randn(count, generator=rng)
    return Examples(features, drawn if shape.outputs == 1 else torch.randint(shape.outputs, (count,), generator=rng))


def doubled(rows: Examples) -> Examples:
    targets = rows.targets.double() if rows.targets.is_floating_point() else rows.targets
    return Examples(rows.features.double(), targets)


def model(task: Task, shape: Shape) -> tuple[nn.Module, Tensor]:
    module, start = initial(task, shape, seed=3)
    start = start + 0.3 * torch.randn(start.numel(), generator=torch.Generator().manual_seed(2))
    nn.utils.vector_to_parameters(start, module.parameters())
    return module, start


def pull_of(size: int, length: float = 1.0) -> Tensor:
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return length * drawn / drawn.norm()


def gradients(module: nn.Module, task: Task, rows: Examples) -> Tensor:
    """Every example's gradient by autograd, `(rows, N)` float64."""
    module, found = copy.deepcopy(module).double(), []
    for row in range(len(rows)):
        one = doubled(rows.select(torch.tensor([row])))
        parts = torch.autograd.grad(task.losses(module(one.features), one.targets).sum(), list(module.parameters()))
        found.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(found)


def brute(each: Tensor, pull: Tensor) -> Tensor:
    both = each + pull
    return (both * (CLIP / both.norm(dim=1)).clamp(max=1.0).unsqueeze(1)).sum(0)


def stacked(task: Task, shape: Shape, start: Tensor, rows: Examples, pull: Tensor) -> Tensor:
    """One silo with all rows, and one with none."""
    chain = task.stack(shape)
    assert chain is not None
    index = torch.arange(len(rows)).repeat(2, 1)
    weights, count = start.repeat(2, 1), torch.tensor([len(rows), 0])
    trainer = PrivateStackedTrainer(chain, Train(steps=1))
    found, _ = trainer.sums(weights, rows, index, count, [STEPS] * 2, pull.to(start.dtype).repeat(2, 1))
    assert not found[1].any()  # A batch without rows has no gradient for a penalty to be in.
    return found[0]


def hooked(module: nn.Module, task: Task, rows: Examples, pull: Tensor) -> Tensor:
    sums = ExampleSums(module, task, hooks=True)
    sums.double()
    parts, at = [], 0
    for parameter in sums.parameters:
        parts.append(pull[at : at + parameter.numel()].view_as(parameter))
        at += parameter.numel()
    wide = doubled(rows)
    return torch.cat([part.reshape(-1) for part in sums.total(wide.features, wide.targets, STEPS, pull=parts)[0]])


def apart(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


@every
@pytest.mark.parametrize("length", [0.1, 1.0, 30.0])
def test_sums_with_a_pull_are_those_of_brute_force(task: Task, shape: Shape, length: float) -> None:
    (module, start), rows = model(task, shape), rows_of(shape, 12)
    pull, each = pull_of(start.numel(), length), gradients(module, task, rows)
    assert bool(((each + pull).norm(dim=1) > CLIP).any())  # Clipping is active.
    truth = brute(each, pull)
    assert apart(hooked(module, task, rows, pull), truth) < 1e-12
    if task.stack(shape) is not None:
        assert apart(stacked(task, shape, start.double(), doubled(rows), pull), truth) < 1e-12
        assert apart(stacked(task, shape, start, rows, pull), truth) < 1e-5  # Of float32's forward pass.


@every
def test_removing_one_example_moves_the_sum_by_at_most_the_clip_norm(task: Task, shape: Shape) -> None:
    (module, start), rows = model(task, shape), rows_of(shape, 8)
    rows.features[3] *= 1e4
    pull = pull_of(start.numel(), 5.0)

    def total(rows: Examples) -> Tensor:
        if task.stack(shape) is None:
            return hooked(module, task, rows, pull)
        return stacked(task, shape, start.double(), doubled(rows), pull)

    whole = total(rows)
    for row in range(8):
        rest = rows.select(torch.tensor([other for other in range(8) if other != row]))
        assert float((whole - total(rest)).norm()) <= CLIP * (1 + 1e-6)


@pytest.mark.parametrize(("task", "shape"), [DENSE[0], DENSE[1], DENSE[3]], ids=["logistic", "linear", "relu"])
def test_a_pull_that_cancels_a_long_gradient_is_clipped_by_what_is_left(task: Task, shape: Shape) -> None:
    # |g|^2 + 2 <g, r> + |r|^2 of thousands-long g loses its digits in float32; what is left of g is 2 long, in 40 ways.
    (module, start), rows = model(task, shape), rows_of(shape, 1)
    rows.features.mul_(3e3)
    each, rng = gradients(module, task, rows)[0], torch.Generator().manual_seed(6)
    assert float(each.norm()) > 100
    rounding = 1e-6 * float(each.norm())  # Of the pull, the gradient and their sum, each in float32.
    for _ in range(40):
        left = torch.randn(start.numel(), generator=rng, dtype=torch.float64)
        found = stacked(task, shape, start, rows, (2.0 * left / left.norm() - each).float())
        assert float(found.norm()) <= CLIP + rounding


@dense
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_pull_that_is_not_finite_adds_nothing(task: Task, shape: Shape, value: float) -> None:
    (_, start), rows = model(task, shape), rows_of(shape, 4)
    pull = torch.full((start.numel(),), value, dtype=torch.float64)
    assert not stacked(task, shape, start, rows, pull).any()


def wide_steps(rows: int) -> NoisySteps:
    """Clips nothing, adds no noise that a double could hold, and has all rows in every batch."""
    return NoisySteps(clip_norm=1e3, noise_multiplier=1e-30, batch=float(rows), rows=rows)


@dense
def test_where_nothing_is_clipped_inside_is_outside(task: Task, shape: Shape) -> None:
    (_, start), rows, chain = model(task, shape), doubled(rows_of(shape, 12)), task.stack(shape)
    assert chain is not None
    centre = start.double() + pull_of(start.numel(), 0.5)

    def pull(weights: Tensor) -> Tensor:
        return 0.4 * (weights - centre)

    found = []
    for options in ({"correct": lambda w, g: g + pull(w)}, {"penalty": pull}):
        plan = poisson(np.array([0]), np.array([12]), [1.0], 20, streams.keys(1, [0]))
        trainer = PrivateStackedTrainer(chain, Train(steps=20, learning_rate=0.1))
        noise = [torch.Generator().manual_seed(1)]
        found.append(trainer.fit(start.double(), rows, plan, steps=[wide_steps(12)], noise=noise, **options))  # type: ignore[arg-type]
    assert float((found[0] - found[1]).abs().max()) <= 1e-12
    assert float((found[0] - start.double()).norm()) > 0.01


@every
def test_trainers_agree_on_a_penalty(task: Task, shape: Shape) -> None:
    (module, start), rows = model(task, shape), rows_of(shape, 12)
    centre = start + 1.0

    def fitted(penalty: float, clip: float) -> Tensor:
        steps = NoisySteps(clip_norm=clip, noise_multiplier=1e-12, batch=6.0, rows=12)
        plan = poisson(np.array([0]), np.array([12]), [steps.rate], 6, streams.keys(1, [0]))
        train, chain = Train(steps=6, learning_rate=0.2), task.stack(shape)

        def pull(weights: Tensor) -> Tensor:
            return penalty * (weights - centre)

        noise = torch.Generator().manual_seed(1)
        alone = PrivateTrainer(module, task, train).fit(start, rows, plan, steps=steps, noise=noise, penalty=pull)
        if chain is not None:
            both = PrivateStackedTrainer(chain, train).fit(
                start, rows, plan, steps=[steps], noise=[noise], penalty=pull
            )
            assert float((both[0] - alone).norm()) <= 1e-5 * float((alone - start).norm())
        return alone - start

    free, bound = fitted(5.0, 1e4), fitted(5.0, CLIP)
    assert float(bound.norm()) < 0.5 * float(free.norm())  # A strong pull inside of the clip saturates it.
    assert float((fitted(0.0, CLIP) - bound).norm()) > 0.1 * float(bound.norm())


def test_without_clipping_a_penalty_is_a_correction() -> None:
    weights, gradient = torch.ones(3), torch.full((3,), 2.0)
    assert beside(None, None) is None
    alone = beside(None, lambda w: 3 * w)
    both = beside(lambda w, g: 10 * g, lambda w: 3 * w)
    assert alone is not None
    assert both is not None
    assert alone(weights, gradient).tolist() == [5.0] * 3
    assert both(weights, gradient).tolist() == [50.0] * 3


def test_a_pull_needs_gradients_that_are_written_out() -> None:
    (module, _), rows = model(*CONV[0]), rows_of(CONV[0][1], 3)
    sums = ExampleSums(module, CONV[0][0])
    with pytest.raises(ValueError, match="use hooks"):
        sums.total(rows.features, rows.targets, STEPS, pull=[torch.zeros_like(p) for p in sums.parameters])
