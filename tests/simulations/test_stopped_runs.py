"""What a run that was stopped early, or whose numbers run out of range, says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simulations.running import ActiveRun, run, train
from strategies.loading import parse

torch.set_num_threads(1)


def digits(strategy: dict[str, Any], **sections: Any) -> Any:
    content = {
        "rounds": 12,
        "task": "logistic",
        "data": {"name": "digits", "silos": 6, "limit": 300, "test": 0.2},
        "cohort": {"sampling": "all"},
        "train": {"steps": 2, "learning_rate": 0.5},
        "strategy": strategy,
        "metrics": {"privacy": "research"},
    }
    return parse(content | sections)


def stopped(config: Any, folder: Path, rounds: int) -> dict[str, Any]:
    """The result of a run that was stopped after some rounds."""
    with ActiveRun(config, folder) as active:
        train(active, stop=lambda: len(active.store.rows()) >= rounds)
        return dict(active.finish().result)


def test_a_run_stopped_in_its_warmup_serves_what_it_would_serve_there(tmp_path: Path) -> None:
    """Without a pull yet, models are those of training alone, and so is what silos are served."""
    example = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3, "rows": 40, "batch": 10}
    sections = {"privacy": {"example": example}}
    alone = stopped(digits({"name": "mr_mtl", "lam": 0}, **sections), tmp_path / "alone", 3)
    auto = stopped(digits({"name": "mr_mtl", "lam": "auto", "warmup": 4}, **sections), tmp_path / "auto", 3)
    assert auto["metrics"]["test"] == alone["metrics"]["test"]
    assert auto["metrics"]["test"] != auto["metrics"]["new_silo"]


def test_a_run_stopped_early_is_measured_at_the_density_it_had_reached(tmp_path: Path) -> None:
    strategy = {"name": "flasc", "density_down": 1.0, "decay_down": 0.5, "every": 4}
    early = stopped(digits(strategy), tmp_path / "early", 2)
    assert early["metrics"]["variants"] == {}  # All numbers still travel.
    assert (early["rounds"], early["stopped"]) == (2, "interrupted")


def test_an_epsilon_beyond_all_numbers_is_null_and_not_a_crash(tmp_path: Path) -> None:
    silo = {"clip_norm": 0.5, "noise_multiplier": 1e-6, "delta": 1e-3}
    result = run(digits({"name": "fedavg"}, rounds=2, privacy={"silo": silo}), out=tmp_path / "run").result
    assert result["privacy"]["silo"]["epsilon_upper"] is None
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [line["epsilon"] for line in lines] == [None, None]


def test_whether_a_silo_is_too_small_for_a_test_row_stays_with_it(tmp_path: Path) -> None:
    """Two tables that differ in one row, by which a silo has a test row or not."""
    notes = []
    for rows in (3, 2):
        silo = np.array([0] * rows + [1] * 20)
        path = tmp_path / f"{rows}.npz"
        x = np.arange(2.0 * len(silo)).reshape(-1, 2)
        np.savez(path, x=x, y=np.arange(len(silo)) % 2, silo=silo)
        data = {"path": str(path), "partition": "column", "public_test": 0, "test": 0.34}
        notes.append(run(digits({"name": "fedavg"}, rounds=1, data=data), out=tmp_path / f"run{rows}").result["notes"])
    assert notes[0] == notes[1]
