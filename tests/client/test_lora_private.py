"""DP-SGD of adapted models: the gradients of single examples are those of brute force, frozen layers have none."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from client.example_sums import ExampleSums
from privacy.steps import NoisySteps
from strategies.layout import Layout
from strategies.tasks import Shape, Task, initial
from strategies.tasks.cnn import CNN
from strategies.tasks.dense import MLP
from strategies.tasks.lora import LoRA

torch.set_num_threads(1)

STEPS = NoisySteps(clip_norm=0.7, noise_multiplier=1.0, batch=8.0, rows=40)
ROWS = 20
CASES: list[tuple[Task, Shape]] = [
    (LoRA(MLP((9, 7), "tanh"), rank=3, alpha=5.0, dropout=0.0), Shape((6,), 4)),
    (LoRA(MLP((9,)), rank=2, dropout=0.0, head=False), Shape((6,), 1)),
    (LoRA(CNN((4, 6), 8), rank=2, dropout=0.0), Shape((1, 8, 8), 3)),
    (LoRA(CNN((4, 6), 8), rank=2, dropout=0.0, targets=("4",)), Shape((2, 9, 8), 3)),
]
cases = pytest.mark.parametrize(("task", "shape"), CASES, ids=["mlp", "head frozen", "cnn", "one convolution"])


def model(task: Task, shape: Shape) -> nn.Module:
    """At a point where B is not zero."""
    module, start = initial(task, shape, seed=3)
    Layout.of(module).load(module, start + 0.3 * torch.randn(len(start), generator=torch.Generator().manual_seed(2)))
    return module


def rows_of(shape: Shape) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    features = torch.randn(ROWS, *shape.features, generator=rng)
    drawn = torch.randn(ROWS, generator=rng)
    return features, drawn if shape.outputs == 1 else torch.randint(shape.outputs, (ROWS,), generator=rng)


def brute(module: nn.Module, losses: Tensor) -> Tensor:
    """Every row's own gradient by autograd, clipped, and their sum."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    for loss in losses:
        flat = torch.cat(
            [part.reshape(-1) for part in torch.autograd.grad(loss, parameters, retain_graph=True)]
        ).double()
        total += flat * min(1.0, STEPS.clip_norm / max(float(flat.norm()), 1e-300))  # All units of a row may be off.
    return total


def apart(found: list[Tensor], truth: Tensor) -> float:
    flat = torch.cat([part.reshape(-1) for part in found]).double()
    return float((flat - truth).norm() / truth.norm())


@cases
@pytest.mark.parametrize("hooks", [False, True], ids=["as trained", "hooks"])
def test_sums_are_those_of_brute_force(task: Task, shape: Shape, hooks: bool) -> None:
    module, (features, targets) = model(task, shape), rows_of(shape)
    features, targets = features.double(), targets.double() if targets.is_floating_point() else targets
    double = copy.deepcopy(module).double()
    truth = brute(double, task.losses(double(features), targets))
    sums = ExampleSums(module, task, hooks=hooks)
    sums.double()
    found, _ = sums.total(features, targets, STEPS)
    assert (sums.books is None) == hooks  # Adapters are ordinary layers, for which there are rules.
    assert [part.shape for part in found] == [torch.Size(each) for each in Layout.of(module).shapes]
    assert apart(found, truth) < 1e-12


@cases
@pytest.mark.parametrize("hooks", [False, True], ids=["as trained", "hooks"])
def test_with_dropout_an_example_s_gradient_is_that_under_its_own_draw(task: LoRA, shape: Shape, hooks: bool) -> None:
    task = LoRA(task.base, rank=task.rank, dropout=0.5, targets=task.targets, head=task.head)
    module, (features, targets) = model(task, shape).train(), rows_of(shape)
    sums = ExampleSums(module, task, hooks=hooks)
    torch.manual_seed(7)
    truth = brute(module, task.losses(module(features), targets))
    torch.manual_seed(7)
    found, _ = sums.total(features, targets, STEPS)
    assert apart(found, truth) < 1e-5  # Of float32.
    torch.manual_seed(8)
    assert apart(sums.total(features, targets, STEPS)[0], truth) > 1e-2


@cases
def test_no_example_adds_more_than_the_clip_norm(task: LoRA, shape: Shape) -> None:
    task = LoRA(task.base, rank=task.rank, dropout=0.5, targets=task.targets, head=task.head)
    module, (features, targets) = model(task, shape), rows_of(shape)
    sums = ExampleSums(module, task)
    for row in range(5):
        found, _ = sums.total(1e3 * features[[row]], targets[[row]], STEPS)
        norm = torch.cat([part.reshape(-1) for part in found]).double().norm()
        assert float(norm) <= STEPS.clip_norm * (1 + 1e-6)
