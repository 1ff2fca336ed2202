"""What result.json says of silos' own held-out rows: scores weighted by rows, validation beside test, new silos."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from privacy.release import Release
from simulations.evaluation import histogram, summary
from simulations.running import run
from strategies.base import Evaluation, Instruction, Silo, State, Strategy, Update
from strategies.loading import parse
from strategies.registry import STRATEGIES, strategy

SILOS = 4


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """A strategy whose silos are served 10 once they were asked, and 20 before; nothing is learned."""

    @strategy("evaluation_probe")
    @dataclass(frozen=True)
    class Probe(Strategy):
        def personal(self, size: int) -> dict[str, int]:
            return {"model": size}

        def local(self, silo: Silo, instruction: Instruction) -> Update:
            after = constant(silo.fit(instruction["model"]), 10.0)
            silo.state["model"] = after
            return Update({"delta": torch.zeros_like(after)})

        def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
            return state

        def evaluate(self, silo: Silo, instruction: Instruction) -> Any:
            return silo.evaluate(silo.state.get("model", constant(instruction["model"], 20.0)))

    yield
    del STRATEGIES["evaluation_probe"]


def constant(like: Tensor, bias: float) -> Tensor:
    """A linear model that answers `bias` to every row."""
    found = torch.zeros_like(like)
    found[..., -1] = bias
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    silo = np.repeat(np.arange(SILOS), [10, 20, 30, 40])
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(100, 2)), y=np.zeros(100, dtype=np.float32), silo=silo)
    return tmp_path / "data.npz"


def metrics(data: Path, out: Path, engine: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "rounds": 2,
        "task": "linear",
        "strategy": "evaluation_probe",
        "data": {
            "path": str(data),
            "kind": "regression",
            "partition": "column",
            "public_test": 0,
            "validation": 0.2,
            "test": 0.2,
        },
        "engine": engine or {"kind": "local"},
    }
    result: dict[str, Any] = run(parse(base | changes), out=out).result["metrics"]
    return result


def test_a_score_is_weighted_by_rows_and_its_spread_is_over_silos() -> None:
    found = summary(Evaluation((0, 1, 2), (1, 1, 8), (2.0, 4.0, 1.0), (4.0, 8.0, 2.0)), "mse")
    histograms = found.pop("histograms")
    assert histograms["loss"] == {"edges": [1, 1.5, 2, 2.5, 3, 3.5, 4], "silos": [1, 0, 1, 0, 0, 1], "beyond": 0}
    assert sum(histograms["mse"]["silos"]) == 3
    assert found == {
        "mse": pytest.approx(2.8),  # (4 + 8 + 8 * 2) / 10
        "loss": pytest.approx(1.4),
        "per_silo": {"p10": pytest.approx(2.4), "p50": 4.0, "p90": pytest.approx(7.2)},
    }


def test_a_histogram_counts_every_silo_once() -> None:
    found = histogram([0.0, 0.05, 0.999, 1.0, math.nan, math.inf], whole=True)
    assert found["edges"][:3] == [0.0, 0.05, 0.1]
    assert (found["silos"][0], found["silos"][1], found["silos"][-1]) == (1, 1, 2)  # An edge counts above it, 1 below.
    assert sum(found["silos"]) == 4
    assert found["beyond"] == 2
    assert histogram([math.inf]) == {"edges": [], "silos": [], "beyond": 1}


def test_personal_models_are_tested_and_validated_beside_what_a_new_silo_gets(data: Path, tmp_path: Path) -> None:
    found = metrics(data, tmp_path / "run")
    assert (found["mse"], found["loss"]) == (100.0, 50.0)  # 10 where 0 is right.
    assert found["test"]["mse"] == found["validation"]["mse"] == 100.0
    assert found["new_silo"]["mse"] == 400.0
    assert found["per_silo"] == found["test"]["per_silo"] == {"p10": 100.0, "p50": 100.0, "p90": 100.0}
    assert found["personalization_gap"] == {"p10": -300.0, "p50": -300.0, "p90": -300.0}  # Own less new; less error.


def test_who_was_never_asked_is_served_as_a_new_silo_is(data: Path, tmp_path: Path) -> None:
    cohort = {"sampling": "fixed", "size": 1}
    found = metrics(data, tmp_path / "run", cohort=cohort, rounds=1, seed=3)
    assert found["new_silo"]["mse"] == 400.0
    assert found["per_silo"]["p50"] == 400.0
    assert 100.0 < found["mse"] < 400.0


def test_engines_measure_the_same(data: Path, tmp_path: Path) -> None:
    pool = metrics(data, tmp_path / "pool", {"kind": "pool", "workers": 1}, strategy="fedavg")
    assert pool == metrics(data, tmp_path / "local", strategy="fedavg")
    assert {"test", "validation"} < set(pool)
    assert "new_silo" not in pool  # Nobody is served anything of his own.


def test_strict_metrics_hold_all_of_it_back(data: Path, tmp_path: Path) -> None:
    silo = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}
    found = metrics(data, tmp_path / "run", privacy={"silo": silo})
    assert found == {"mse": None, "loss": None, "per_silo": None}
    shown = metrics(data, tmp_path / "shown", privacy={"silo": silo}, metrics={"privacy": "research"})
    assert set(shown) == {"mse", "loss", "per_silo", "test", "validation", "new_silo", "personalization_gap"}
