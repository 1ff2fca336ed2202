"""Rounds that are broken off at the seams between what they keep, where several kinds of privacy meet in one run.

`test_kill` kills processes; here an error ends the round, which leaves the same files, so that many runs are cheap.
What a run carries from round to round (clip norms that adapt, turns, correlated noise, models) must come back, and
every attempt must be charged in every ledger.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privacy.chain import load
from privacy.events import Turn
from server.checkpoint import read
from server.store import RunStore
from simulations import ledgers
from simulations.engines.local import LocalLink
from simulations.running import ActiveRun, train
from strategies.loading import parse

torch.set_num_threads(1)

ROUNDS, SILOS, DELTA = 5, 6, 1e-3
TURNS = {"sampling": "cyclic", "separation": 2}
ADAPTIVE = {"clip_norm": {"start": 0.3, "count_noise": 4.0}}
LOCAL = {"clip_norm": 0.5, "noise_multiplier": 6.0, "delta": DELTA}
EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": 4.0, "delta": DELTA, "rows": 10, "batch": 3}
SILO_BUDGET = {"epsilon": 90.0, "delta": DELTA}
EXAMPLE_BUDGET = {"example": {"epsilon": 90.0, "delta": DELTA}}

# Cohort; changes of privacy.silo; other kinds of privacy; budget; charges of silos in a run that nothing breaks off.
COMBINATIONS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any] | None, int]] = {
    "turns, adaptive, local": (TURNS, ADAPTIVE, {"local": LOCAL | {"budget": 90.0}}, SILO_BUDGET, 3),
    "turns, banded, examples, both budgets": (
        TURNS,
        {"mechanism": "banded"},
        {"example": EXAMPLE},
        SILO_BUDGET | EXAMPLE_BUDGET,
        3,
    ),
    "capped, adaptive, examples, both budgets": (
        {"sampling": "poisson", "rate": 0.6, "cap": 4},
        ADAPTIVE,
        {"example": EXAMPLE},
        SILO_BUDGET | EXAMPLE_BUDGET,
        5,
    ),
    "all, adaptive, examples": ({"sampling": "all"}, ADAPTIVE, {"example": EXAMPLE}, EXAMPLE_BUDGET, 5),
    "poisson, adaptive, local": ({"sampling": "poisson", "rate": 0.6}, ADAPTIVE, {"local": LOCAL}, SILO_BUDGET, 5),
}
SEAMS = {  # Where the round breaks off: before this is called; and whether it will be done, and paid, again.
    "before the checkpoint": (RunStore, "save", True),
    "after the checkpoint": (LocalLink, "commit", False),
    "before the line": (RunStore, "append", False),
}


class BrokenOff(Exception):
    """The end of an attempt."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("seams") / "data.npz"
    np.savez(path, x=rng.normal(size=(60, 3)), y=rng.integers(0, 3, size=60))
    return path


def go(data: Path, folder: Path, name: str, *, resume: bool = False) -> dict[str, Any]:
    cohort, silo, others, budget, _ = COMBINATIONS[name]
    silo = {"clip_norm": 0.3, "noise_multiplier": 3.0, "delta": DELTA} | silo
    experiment = {
        "rounds": ROUNDS,
        "task": "logistic",
        "data": {"path": str(data), "silos": SILOS},
        "cohort": cohort,
        "train": {"steps": 2},
        "privacy": {"silo": silo, "audit": {"canaries": 3}} | others,
        "budget": budget,
    }
    with ActiveRun(parse(experiment), folder, resume=resume) as active:
        train(active)
        return active.finish().result


def charged(folder: Path) -> Counter[str]:
    """Reserves of a run's ledgers that pay, by unit."""
    spent = [entry for place in ledgers.find(folder) for entry in load(place.ledger).chain.counted()]
    return Counter(entry.unit for entry in spent if not isinstance(entry.event, Turn) or entry.event.charged)


@pytest.fixture(scope="module")
def wholes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Runs that nothing breaks off."""
    found = {}
    for name in COMBINATIONS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CONFIDE_HOME", str(tmp_path_factory.mktemp("alone")))
            folder = tmp_path_factory.mktemp("whole") / "run"
            found[name] = folder, go(data, folder, name)
    return found


@pytest.mark.parametrize("round_", [1, 4])
@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_all_that_a_run_carries_comes_back_and_every_attempt_is_charged(
    name: str,
    seam: str,
    round_: int,
    data: Path,
    tmp_path: Path,
    wholes: dict[str, tuple[Path, dict[str, Any]]],
    home: Path,
) -> None:
    (other, whole), (owner, call, again) = wholes[name], SEAMS[seam]
    original, calls = getattr(owner, call), Counter[str]()

    def breaking(*given: Any) -> Any:
        calls["calls"] += 1
        if calls["calls"] == round_:
            raise BrokenOff
        return original(*given)

    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(BrokenOff):
        patch.setattr(owner, call, breaking)
        go(data, folder, name)
    result = go(data, folder, name, resume=True)

    assert result["model"]["sha256"] == whole["model"]["sha256"]
    one, two = (read(each / "checkpoint.safetensors") for each in (folder, other))
    assert one.meta["clip_norms"] == two.meta["clip_norms"]
    assert one.carried.keys() == two.carried.keys()
    assert all(torch.equal(value, two.carried[key]) for key, value in one.carried.items())

    paid, alone = charged(folder), charged(other)
    assert alone["silo"] == COMBINATIONS[name][-1]
    assert paid["silo"] == alone["silo"] + again
    assert paid["silo/local"] == alone["silo/local"] + (again and "silo/local" in alone)
    if "example" in alone:  # A line for all silos of a round, which spend alike.
        assert paid["example"] == alone["example"] + again
    assert [problem for place in ledgers.find(folder) for problem in ledgers.verify(place).problems] == []
    cumulative = result["privacy"]["cumulative"]
    assert cumulative is None or cumulative["epsilon_upper"] == result["privacy"]["silo"]["epsilon_upper"]
    for path in (home / "ledgers").glob("*.jsonl"):  # The data set's ledger has all that the run's own have.
        units = Counter(entry.unit for entry in load(path).chain.counted())
        assert "silo" not in units or units["silo"] == load(folder / "ledger.jsonl").chain.charges("silo")
        assert "example" not in units or units["example"] >= paid["example"]
