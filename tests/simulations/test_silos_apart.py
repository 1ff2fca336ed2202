"""Whole runs over silos that read, price and keep everything themselves: the model and the claims of a simulation."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from privacy.accountant import epsilon
from privacy.chain import load
from privacy.events import Composed, Gaussian, NonPrivate, Repeated
from simulations.running import run as simulate
from tests.simulations.silos import SILO, apart, experiment, policy

METRICS = ["train_loss", "loss", "score"]
EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": 1.5, "delta": 1e-4, "batch": 20, "rows": 80}
LOCAL = {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-2}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "exact": ({}, {}),
    "personal": ({"strategy": "mr_mtl"}, {"strategies": ["mr_mtl"]}),
    "sparse": ({"strategy": {"name": "flasc", "density_up": 0.2, "density_down": 0.3}}, {"strategies": ["flasc"]}),
    "half as many bits": ({"wire": {"values": "float16", "feedback": True}}, {}),
    "silo": (
        {"privacy": {"silo": SILO, "noise": "simulated"}},
        {"unprotected": False, "simulated_noise": True, "silo": {"epsilon": 50.0, "delta": 1e-2}},
    ),
    "local": (
        {"privacy": {"local": LOCAL, "noise": "simulated"}},
        {"unprotected": False, "simulated_noise": True, "server": {"epsilon": 50.0, "delta": 1e-2}},
    ),
    "example": (
        {"privacy": {"example": EXAMPLE, "noise": "simulated"}},
        {"unprotected": False, "simulated_noise": True, "example": {"epsilon": 50.0, "delta": 1e-4}},
    ),
}


def model(folder: Path) -> torch.Tensor:
    return torch.cat([each.flatten() for _, each in sorted(load_file(folder / "model.safetensors").items())])


@pytest.mark.parametrize("name", RUNS)
def test_the_model_and_the_claims_are_those_of_a_simulation(name: str, tmp_path: Path) -> None:
    """The noise is simulated where there is any, so both draw the same; float32 sums differ by their order alone."""
    changes, rules = RUNS[name]
    run = experiment(**changes)
    here = simulate(run, out=tmp_path / "here").result
    with ExitStack() as opened:
        there, post = apart(run, tmp_path / "there", policy(**{"metrics": METRICS, **rules}), opened)
    difference = (model(tmp_path / "here") - model(tmp_path / "there" / "run")).abs().max()
    assert float(difference) <= 1e-6
    assert len(post.asked("train")) == 12
    for section in ("privacy", "updates", "communication"):
        assert here[section] == there[section]


def test_a_silos_own_ledger_comes_to_the_epsilon_that_the_server_claims(tmp_path: Path) -> None:
    """All silos are in all rounds, so nothing amplifies: 3 Gaussians, of noise multiplier 2, on both sides."""
    run = experiment(privacy={"silo": SILO, "noise": "simulated"})
    rules = policy(unprotected=False, simulated_noise=True, silo={"epsilon": 50.0, "delta": 1e-2})
    with ExitStack() as opened:
        result, _ = apart(run, tmp_path, rules, opened)
    due = epsilon(Repeated(Gaussian(2.0), 3), 1e-2).upper
    assert result["privacy"]["silo"]["epsilon_upper"] == pytest.approx(due, rel=1e-9)
    for number in range(4):
        [path] = (tmp_path / f"silo{number}" / "ledgers").glob("*.jsonl")
        entries = load(path).chain.counted()
        mine = [entry.event for entry in entries if entry.unit == "silo"]
        assert mine == [Gaussian(2.0)] * 3
        assert epsilon(Composed(tuple(mine)), 1e-2).upper == pytest.approx(due, rel=1e-9)
        others = {entry.unit: type(entry.event) for entry in entries if entry.unit != "silo"}
        assert others == {"silo/local": NonPrivate, "example": NonPrivate}  # What this run does not protect.
