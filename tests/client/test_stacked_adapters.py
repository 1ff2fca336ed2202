"""Adapters in a stack train as silos do one by one, and what is frozen stays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from client.batches import Plan, plan
from client.examples import Examples, Shards
from client.single import SingleTrainer
from client.stacked_adapters import StackedAdapters
from privacy import streams
from strategies.base import Correction
from strategies.experiment import Train
from strategies.lora import adapt
from strategies.tasks import Chain, Shape, initial
from strategies.tasks.cnn import CNN
from strategies.tasks.dense import MLP
from strategies.tasks.lora import LoRA

torch.set_num_threads(1)

CLASSES, NUMBER = Shape((2, 3), 4), Shape((6,), 1)
MODELS: list[tuple[LoRA, Shape]] = [
    (LoRA(MLP((7, 5)), rank=2, alpha=6.0, dropout=0.0), CLASSES),
    (LoRA(MLP((7, 5), "tanh"), rank=3, alpha=3.0, dropout=0.0, targets=("1",)), CLASSES),
    (LoRA(MLP((7, 5), "tanh"), rank=3, dropout=0.0, targets=("3",)), NUMBER),
    (LoRA(MLP((7, 5), "tanh"), rank=2, dropout=0.0, head=False), CLASSES),
    (LoRA(MLP((7, 5)), rank=2, dropout=0.0, freeze="a"), CLASSES),
]
each = pytest.mark.parametrize(("task", "shape"), MODELS, ids=["all", "first", "second", "head frozen", "A frozen"])
TRAINS = {
    "plain": Train(epochs=2, batch_size=4),
    "momentum": Train(epochs=2, batch_size=4, momentum=0.9, learning_rate=0.05),
    "both": Train(steps=5, batch_size=3, momentum=0.5, weight_decay=0.05),
}
trains = pytest.mark.parametrize("train", TRAINS.values(), ids=TRAINS)
SIZES = [3, 9, 1, 0, 16, 4, 0]


def federation(shape: Shape) -> Shards:
    rng, rows = torch.Generator().manual_seed(5), sum(SIZES)
    features, drawn = torch.randn(rows, *shape.features, generator=rng), torch.randn(rows, generator=rng)
    targets = drawn if shape.outputs == 1 else torch.randint(shape.outputs, (rows,), generator=rng)
    return Shards(Examples(features, targets), torch.tensor([0, *SIZES]).cumsum(0))


def planned(shards: Shards, train: Train, silos: list[int]) -> Plan:
    return plan(shards.offsets[:-1].numpy()[silos], shards.sizes.numpy()[silos], train, streams.keys(1, silos))


def trained(
    task: LoRA, shape: Shape, train: Train, start: Tensor, correct: Correction | None = None
) -> tuple[Tensor, list[float], Tensor, list[float]]:
    """Together and one by one: the vectors, and the silos' mean losses."""
    shards, everyone = federation(shape), list(range(len(SIZES)))
    (module, _), chain = initial(task, shape, seed=3), task.stack_adapted(shape)
    assert chain is not None
    stack, single = StackedAdapters(chain, train, module), SingleTrainer(module, task, train)
    starts = start.expand(len(SIZES), -1)
    together = stack.fit(start, shards.rows, planned(shards, train, everyone), correct=correct, record=True)
    alone = [
        single.fit(starts[silo], shards.rows, planned(shards, train, [silo]), correct=correct, record=True)
        for silo in everyone
    ]
    return together, stack.losses, torch.stack(alone), single.losses


def start_of(task: LoRA, shape: Shape, *lead: int) -> Tensor:
    size = initial(task, shape, seed=3)[1].numel()
    return 0.3 * torch.randn(*lead, size, generator=torch.Generator().manual_seed(2))


def apart(first: Tensor, second: Tensor, start: Tensor) -> float:
    return float((first - second).norm() / (second - start).norm())


@each
@trains
@pytest.mark.parametrize("pull", [False, True], ids=["free", "pulled"])
@pytest.mark.parametrize("lead", [(), (len(SIZES),)], ids=["one start", "own starts"])
def test_a_stack_of_adapters_trains_as_silos_do_one_by_one(
    task: LoRA, shape: Shape, train: Train, pull: bool, lead: tuple[int, ...]
) -> None:
    start = start_of(task, shape, *lead)
    anchor = start_of(task, shape)
    correct: Correction | None = (lambda w, g: g + 0.5 * (w - anchor)) if pull else None
    together, losses, alone, known = trained(task, shape, train, start, correct)
    assert apart(together, alone, start) <= 1e-5  # Float32's rounding, relative to how far training went.
    for silo, size in enumerate(SIZES):
        if size == 0:
            assert torch.equal(together[silo], start.expand(len(SIZES), -1)[silo])
            assert math.isnan(losses[silo])
        else:
            assert losses[silo] == pytest.approx(known[silo], rel=1e-4)


def test_a_stack_leaves_the_base_and_its_start_alone() -> None:
    (task, shape), train = MODELS[0], TRAINS["momentum"]
    start = start_of(task, shape)
    before, (module, _) = start.clone(), initial(task, shape, seed=3)
    chain = task.stack_adapted(shape)
    assert chain is not None
    frozen = {name: value.clone() for name, value in module.state_dict().items()}
    shards = federation(shape)
    StackedAdapters(chain, train, module).fit(start, shards.rows, planned(shards, train, [1, 4]))
    assert torch.equal(start, before)
    assert all(torch.equal(value, frozen[name]) for name, value in module.state_dict().items())


def test_what_is_no_such_chain_trains_one_by_one_or_is_refused() -> None:
    assert LoRA(MLP((7,)), dropout=0.1).stack_adapted(CLASSES) is None
    assert LoRA(CNN((4,), 8), dropout=0.0).stack_adapted(Shape((1, 8, 8), 3)) is None
    assert LoRA(MLP((7,)), dropout=0.0).stack(CLASSES) is None  # Its vector is not that of dense layers.
    chain = Chain((6, 5, 4), "relu", "cross_entropy")

    def refused(module: nn.Module, *, dropout: float, trained: str | None = None, fixed: str | None = None) -> None:
        adapt(module, rank=2, head=["2"], dropout=dropout)
        for name, trains in ((trained, True), (fixed, False)):
            if name is not None:
                module.get_parameter(name).requires_grad_(trains)
        with pytest.raises(ValueError, match=r"Sequential is no chain \(6, 5, 4\) of dense layers, adapted or whole"):
            StackedAdapters(chain, Train(), module)

    refused(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), dropout=0.1)
    refused(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4)), dropout=0.0)
    refused(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False)), dropout=0.0)
    refused(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), dropout=0.0, trained="0.base_layer.bias")
    refused(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), dropout=0.0, fixed="0.lora_B.weight")
    normed = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4))
    adapt(normed, rank=2, dropout=0.0, targets=["0"], head=["1", "2"])
    with pytest.raises(ValueError, match="is no chain"):
        StackedAdapters(chain, Train(), normed)
