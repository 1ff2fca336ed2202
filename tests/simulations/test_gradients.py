"""`confide doctor --grads`: right gradients pass, a layer that mixes rows does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simulations.cli import main

PLUGIN = '''
"""A model that takes the mean of a batch off every row: no row's gradient is its own."""

from dataclasses import dataclass

from torch import nn

from strategies.tasks import Task, task


class Centred(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


@task("row_mixing")
@dataclass(frozen=True)
class RowMixing(Task):
    kinds = frozenset({"classification"})

    def module(self, shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.features[0], 4), Centred(4, shape.outputs))
'''

torch.set_num_threads(1)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(60, 4)), y=rng.integers(0, 3, size=60))
    (tmp_path / "row_mixing_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
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


def test_a_layer_that_mixes_rows_is_found(config: Path, capsys: Any) -> None:
    assert doctor(config, "--plugin", "row_mixing_plugin", "--set", "task=row_mixing") == 1
    assert False in {row["ok"] for row in json.loads(capsys.readouterr().out)}
