"""What a run claims is what its ledgers hold, whoever adds it up: the run, `confide ledger verify`, `verify.py`.

Tiny runs over samplers, mechanisms, units, relations and budgets, as they may meet in one experiment. Nothing is said
here of what a model learned.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privacy import verify
from simulations import ledgers
from simulations.ledgers import MAIN, SECTIONS, SILOS
from simulations.running import run
from strategies.loading import parse

torch.set_num_threads(1)

COUNT, DELTA = 8, 1e-3
SHORT = 0.999  # The verifier's distributions are coarser than the accountant's: above, as a rule, and never below this.
CYCLIC = {"sampling": "cyclic", "separation": 3}
POISSON = {"sampling": "poisson", "rate": 0.5}
CAPPED = POISSON | {"cap": 5}
FIXED = {"sampling": "fixed", "size": 4}
ADAPTIVE = {"clip_norm": {"start": 0.4, "count_noise": 3.0}}
BANDED = {"mechanism": "banded"}
LOCAL = {"clip_norm": 0.5, "noise_multiplier": 5.0, "delta": DELTA}
EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": 3.0, "delta": DELTA, "rows": 12, "batch": 4}
PRIVATE = {"name": "private", "low": -4.0, "high": 4.0, "noise_multiplier": 4.0}
BUDGET = {"epsilon": 50.0, "delta": DELTA}
EXAMPLE_BUDGET = {"example": {"epsilon": 50.0, "delta": DELTA}}

CASES: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]] = {
    # Name: cohort, changes of privacy.silo, other sections.
    "poisson": (POISSON, {}, {}),
    "poisson, replace": (POISSON, {"neighbours": "replace"}, {}),
    "poisson, adaptive": (POISSON, ADAPTIVE, {}),
    "poisson, adaptive, zero_out": (POISSON, ADAPTIVE | {"neighbours": "zero_out"}, {}),
    "capped, adaptive": (CAPPED, ADAPTIVE, {}),
    "capped, zero_out": (CAPPED, {"neighbours": "zero_out"}, {}),
    "capped, replace": (CAPPED, {"neighbours": "replace"}, {}),
    "capped, budget, standardised": (CAPPED, {}, {"budget": BUDGET, "standardize": PRIVATE}),
    "fixed, adaptive, replace": (FIXED, ADAPTIVE | {"neighbours": "replace"}, {}),
    "fixed, zero_out, standardised": (FIXED, {"neighbours": "zero_out"}, {"standardize": PRIVATE}),
    "all, adaptive": ({"sampling": "all"}, ADAPTIVE, {}),
    "all, replace, standardised": ({"sampling": "all"}, {"neighbours": "replace"}, {"standardize": PRIVATE}),
    "turns": (CYCLIC, {}, {}),
    "turns, adaptive, budget": (CYCLIC, ADAPTIVE, {"budget": BUDGET}),
    "turns, banded, standardised": (CYCLIC, BANDED, {"standardize": PRIVATE}),
    "turns, banded, replace, pool": (
        CYCLIC,
        BANDED | {"neighbours": "replace"},
        {"engine": {"kind": "pool", "workers": 1}},
    ),
    "turns, banded, examples, both budgets": (
        CYCLIC,
        BANDED,
        {"example": EXAMPLE, "budget": BUDGET | EXAMPLE_BUDGET},
    ),
    "poisson, adaptive, local": (POISSON, ADAPTIVE, {"local": LOCAL}),
    "turns, adaptive, local": (CYCLIC, ADAPTIVE, {"local": LOCAL | {"budget": 50.0}}),
    "turns, banded, local, zero_out": (CYCLIC, BANDED, {"local": LOCAL | {"neighbours": "zero_out"}}),
    "poisson, adaptive, examples, budget": (POISSON, ADAPTIVE, {"example": EXAMPLE, "budget": EXAMPLE_BUDGET}),
    "capped, examples, both budgets": (CAPPED, {}, {"example": EXAMPLE, "budget": BUDGET | EXAMPLE_BUDGET}),
    "poisson, secret": (POISSON, ADAPTIVE, {"noise": "system"}),
    "turns, banded, examples, secret": (CYCLIC, BANDED, {"example": EXAMPLE, "noise": "system"}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("claims") / "data.npz"
    np.savez(path, x=rng.normal(size=(96, 3)), y=rng.integers(0, 3, size=96))
    return path


def experiment(data: Path, case: str) -> dict[str, Any]:
    cohort, silo, others = CASES[case]
    privacy = {name: others[name] for name in ("local", "example", "noise") if name in others}
    canaries = {"audit": {"canaries": 4}}
    example = {"train": {"steps": 2}} if "example" in others else {}
    return {
        "rounds": 5,
        "task": "logistic",
        "data": {"path": str(data), "silos": COUNT, "standardize": others.get("standardize", {"name": "none"})},
        "cohort": dict(cohort),
        "privacy": {"silo": {"clip_norm": 0.4, "noise_multiplier": 3.0, "delta": DELTA} | silo} | privacy | canaries,
        **example,
        **{name: others[name] for name in ("budget", "engine") if name in others},
    }


def verified(path: Path, unit: str, delta: float, capsys: pytest.CaptureFixture[str]) -> float:
    """What the verifier that knows nothing of confide says of a ledger."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["verify.py", str(path), "--delta", repr(delta), "--unit", unit])
        verify.main()
    found = json.loads(capsys.readouterr().out)["epsilon"]
    return math.inf if found is None else float(found)


@pytest.mark.parametrize("case", CASES)
def test_three_readers_agree_on_what_a_run_cost(
    case: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(parse(experiment(data, case)), out=tmp_path / "run").folder
    result = json.loads((folder / "result.json").read_bytes())
    assert result["rounds"] == 5
    for place in ledgers.find(folder):
        verdict = ledgers.verify(place)
        assert verdict.problems == ()
        units = {key.rpartition("/")[0] for key in verdict.epsilon}
        assert units == ({"example"} if place.ledger.name == SILOS else set(verdict.charges))
    for unit, section in SECTIONS.items():
        claimed = result["privacy"][section]
        assert (claimed is not None) == (section in experiment(data, case)["privacy"])
        if claimed is not None:
            ledger = folder / (SILOS if unit == "example" else MAIN)
            assert verified(ledger, unit, claimed["delta"], capsys) >= SHORT * claimed["epsilon_upper"]
