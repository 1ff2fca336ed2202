"""The device of single silos: what is chosen, and that nothing counts on the CPU's moving of tensors being no copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from client.batches import Plan
from client.device import CPU, chosen, seeded
from client.examples import Examples
from client.private import PrivateTrainer
from client.separate_rows import separate
from client.single import SingleTrainer
from privacy.steps import NoisySteps
from simulations.preparing import prepare
from strategies.experiment import Train, digest
from strategies.loading import parse
from strategies.tasks import Shape, initial
from strategies.tasks.dense import MLP, Logistic

torch.set_num_threads(1)

META = torch.device("meta")
SHAPE = Shape((4,), 3)


def silo() -> Examples:
    rng = torch.Generator().manual_seed(5)
    return Examples(torch.randn(8, 4, generator=rng), torch.randint(3, (8,), generator=rng))


def batches() -> Plan:
    return Plan(torch.arange(8).view(1, 2, 4), torch.tensor([[4, 4]]), full=True)


def test_auto_is_a_graphics_card_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (chosen("auto"), chosen("cpu")) == (CPU, CPU)
    with pytest.raises(ValueError, match=r"^engine\.device: found 'cuda', but torch sees no graphics card here; use"):
        chosen("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert chosen("auto") == chosen("cuda") == torch.device("cuda", 1)
    assert chosen("cpu") == CPU


def test_a_device_that_is_not_here_is_found_before_the_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = {"rounds": 1, "task": "logistic", "data": {"path": str(tmp_path / "absent.npz"), "silos": 2}}
    with pytest.raises(ValueError, match=r"^engine\.device: found 'cuda'"):
        prepare(parse(config | {"engine": {"device": "cuda"}}))


def test_the_device_is_no_part_of_the_experiment() -> None:
    config = {"rounds": 1, "task": "logistic", "data": {"name": "digits", "silos": 2}}
    assert digest(parse(config | {"engine": {"device": "cpu"}})) == digest(parse(config))


def test_the_generator_is_left_as_it_was() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    with seeded(7, CPU):
        first = torch.rand(3)
    with seeded(7, CPU):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.random.get_rng_state(), before)


class Watched(MLP):
    """Notes the devices that a loss is computed on."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((outputs.device.type, targets.device.type))
        return super().losses(outputs, targets)


seen: list[tuple[str, str]] = []


def test_every_step_runs_on_the_device_and_the_result_is_fetched_at_the_end() -> None:
    # The meta device holds shapes and no numbers. An operation that mixed it with the CPU would raise; the one thing
    # that cannot be done there is the last one, to bring the weights back.
    module, start = initial(Watched((5,)), SHAPE, seed=0)
    seen.clear()
    trainer = SingleTrainer(module, Watched((5,)), Train(steps=2, momentum=0.9, weight_decay=0.1), device=META)
    assert {parameter.device for parameter in module.parameters()} == {META}
    with pytest.raises(NotImplementedError, match="meta tensor"):
        trainer.fit(start, silo(), batches())
    assert seen == [("meta", "meta")] * 2


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving a tensor gives a copy, as between devices; numbers and operations stay those of the CPU."""
    to, cpu = Tensor.to, Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: cpu(tensor).clone())
    monkeypatch.setattr(Tensor, "to", lambda tensor, *args, **kwargs: to(tensor, *args, **kwargs).clone())


def pull(weights: Tensor, gradient: Tensor) -> Tensor:
    return gradient.add_(weights, alpha=0.5)


TRAIN = Train(steps=2, momentum=0.9, weight_decay=0.1)
STEPS = NoisySteps(clip_norm=0.5, noise_multiplier=1.0, batch=4, rows=8)


def plain_fit() -> Tensor:
    module, start = initial(MLP((5,)), SHAPE, seed=0)
    return SingleTrainer(module, MLP((5,)), TRAIN).fit(start, silo(), batches(), correct=pull)


def private_fit() -> Tensor:
    module, start = initial(MLP((5,)), SHAPE, seed=0)
    noise = torch.Generator().manual_seed(3)
    return PrivateTrainer(module, MLP((5,)), TRAIN).fit(
        start, silo(), batches(), steps=STEPS, noise=noise, correct=pull
    )


def test_training_elsewhere_is_training_here(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = plain_fit(), private_fit()
    monkeypatch.undo()
    here = plain_fit(), private_fit()
    for found, expected in zip(moved, here):
        assert torch.equal(found, expected)
    _, start = initial(MLP((5,)), SHAPE, seed=0)
    assert not torch.equal(here[0], start)
    # Two private steps, and not the first one twice: had the twin kept its start, its second gradient would be another.
    one = Plan(batches().rows[:, :1], batches().counts[:, :1], full=True)
    module, start = initial(MLP((5,)), SHAPE, seed=0)
    noise = torch.Generator().manual_seed(3)
    once = PrivateTrainer(module, MLP((5,)), TRAIN).fit(start, silo(), one, steps=STEPS, noise=noise, correct=pull)
    assert not torch.equal(here[1], once)


def test_comparing_rows_leaves_the_generator_as_it_was() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.dropout = nn.Linear(4, 3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(self.dropout(x))
            return out

    module, rows, before = Drawing(), silo(), torch.random.get_rng_state()
    assert separate(module, Logistic(), rows.features, rows.targets)  # Dropout draws the same for the same shape.
    assert torch.equal(torch.random.get_rng_state(), before)


def test_positions_are_constants_and_what_changes_is_refused() -> None:
    from client.example_sums import ExampleSums, UnsupportedModel

    class Numbered(nn.Module):
        """Adds a feature's position, as BERT does; a careless one writes into it, so that it might remember a row."""

        def __init__(self, *, careless: bool = False, saved: bool = False) -> None:
            super().__init__()
            self.layer, self.careless = nn.Linear(4, 3), careless
            self.register_buffer("places", torch.arange(4), persistent=saved)

        def forward(self, x: Tensor) -> Tensor:
            if self.careless:
                self.places.mul_(1)
            out: Tensor = self.layer(x + self.places)
            return out

    rows = silo()
    sums, _ = ExampleSums(Numbered(), Logistic()).total(rows.features, rows.targets, STEPS)
    assert float(torch.cat([part.flatten() for part in sums]).norm()) > 0
    with pytest.raises(UnsupportedModel, match=r"^Numbered cannot be trained by DP-SGD: it changes its buffer places$"):
        ExampleSums(Numbered(careless=True), Logistic()).total(rows.features, rows.targets, STEPS)
    with pytest.raises(UnsupportedModel, match=r"it keeps buffers \(places\)"):  # A part of the model's file.
        ExampleSums(Numbered(saved=True), Logistic())
