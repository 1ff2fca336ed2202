"""`confide doctor --grads`: right gradients pass, a layer that mixes rows does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.private_stacked import PrivateStackedTrainer
from simulations.cli import main

PLUGIN = '''
"""Models of a kind that confide does not ship."""

from dataclasses import dataclass

import torch
from torch import nn

from strategies.tasks import Task, task


class Centred(nn.Module):
    """Takes the mean of a batch off every row: no row's gradient is its own, though their sum is right."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = self.layer(x)
        return torch.tanh(x - x.mean(0))


class Transposed(nn.Module):
    """The layer of GPT-2: a linear one with its weight the other way round (transformers' Conv1D)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.02)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class LowRank(nn.Module):
    """LoRA (Hu et al. 2021): a frozen layer and two small trained ones beside it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class PassedBy(nn.Module):
    """A layer whose weight is used behind the back of its hook, too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x).tanh() @ self.layer.weight


class Twice(nn.Module):
    """One layer used twice, as tied weights are."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class Bare(nn.Module):
    """A parameter beside a layer, in one module."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.inner(x) * self.scale


def offer(name, body):
    @task(name)
    @dataclass(frozen=True)
    class Offered(Task):
        kinds = frozenset({"classification"})

        def module(self, shape):
            return nn.Sequential(nn.Flatten(), body(), nn.Linear(4, shape.outputs))


offer("row_mixing", Centred)
offer("gpt2_layer", lambda: Transposed(4, 4))
offer("low_rank", lambda: LowRank(4, 4))
offer("group_norm", lambda: nn.GroupNorm(2, 4))
offer("batch_norm", lambda: nn.BatchNorm1d(4))
offer("twice", lambda: Twice(4))
offer("passed_by", PassedBy)
offer("bare", Bare)
'''

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "layers_plugin.py").write_text(PLUGIN)
    sys.path.insert(0, str(folder))
    yield "layers_plugin"
    sys.path.remove(str(folder))
    sys.modules.pop("layers_plugin", None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(60, 4)), y=rng.integers(0, 3, size=60))
    path = tmp_path / "e.yaml"
    path.write_text(f"rounds: 1\ntask: logistic\ndata: {{path: {tmp_path / 'd.npz'}, silos: 2}}\n")
    return path


def doctor(config: Path, *options: str) -> int:
    return main(["doctor", "--grads", str(config), "--format", "json", *options])


@pytest.mark.parametrize("task", ["logistic", "{name: mlp, hidden: [5]}"])
@pytest.mark.parametrize("stacked", ["auto", "off"])
def test_own_models_pass(config: Path, capsys: Any, task: str, stacked: str) -> None:
    assert doctor(config, "--set", f"task={task}", "--set", f"engine.stacked='{stacked}'") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["ok"] for row in rows} == {True}
    assert len(rows) == (2 if task == "logistic" else 4)


@pytest.mark.parametrize("task", ["gpt2_layer", "low_rank", "group_norm", "twice", "bare"])
def test_layers_of_large_models_pass(config: Path, plugin: str, capsys: Any, task: str) -> None:
    assert doctor(config, "--plugin", plugin, "--set", f"task={task}") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["ok"] for row in rows} == {True}
    assert not any("base" in row["parameter"] for row in rows)  # Frozen: not trained, not compared.


def test_a_layer_that_mixes_rows_is_refused_in_one_line(config: Path, plugin: str, capsys: Any, tmp_path: Path) -> None:
    """Its gradients add up to autograd's, so no sum of them tells."""
    assert doctor(config, "--plugin", plugin, "--set", "task=row_mixing") == 2
    assert "mixes the rows of a batch" in capsys.readouterr().err
    example = "{clip_norm: 1.0, noise_multiplier: 1.0, delta: 1e-3, rows: 30, batch: 5}"
    options = ["--plugin", plugin, "--set", "task=row_mixing", "--set", "train.steps=2"]
    options += ["--set", f"privacy.example={example}", "--out", str(tmp_path / "run")]
    assert main(["run", str(config), *options]) == 2
    printed = capsys.readouterr()
    assert "mixes the rows of a batch" in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_trainer_that_adds_up_wrong_is_found(config: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PrivateStackedTrainer.sums
    monkeypatch.setattr(PrivateStackedTrainer, "sums", lambda *given: tuple(1.001 * each for each in right(*given)))
    assert doctor(config) == 1
    assert False in {row["ok"] for row in json.loads(capsys.readouterr().out)}


def test_a_model_with_buffers_is_refused_in_one_line(config: Path, plugin: str, capsys: Any) -> None:
    assert doctor(config, "--plugin", plugin, "--set", "task=batch_norm") == 2
    printed = capsys.readouterr()
    assert "mixes rows or keeps running statistics: use GroupNorm" in printed.err
    assert printed.err.count("\n") == 1


def test_a_weight_used_behind_the_back_of_hooks_is_refused_before_a_run(
    config: Path, plugin: str, capsys: Any, tmp_path: Path
) -> None:
    example = "{clip_norm: 1.0, noise_multiplier: 1.0, delta: 1e-3, rows: 30, batch: 5}"
    options = ["--plugin", plugin, "--set", "task=passed_by", "--set", "train.steps=2"]
    options += ["--set", f"privacy.example={example}", "--out", str(tmp_path / "run")]
    assert main(["run", str(config), *options]) == 2
    printed = capsys.readouterr()
    assert "used outside of its layer" in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
