"""The study of bounded group loss: what it runs, and what it says of runs whose numbers are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from simulations.data import tabular
from simulations.studies import bounded_group_loss as study
from simulations.studies import bounded_group_loss_cells as cells
from simulations.studies.cells import Cell
from simulations.studies.registry import load


def cell(worst: float, accuracy: float = 0.85, *, failed: str | None = None) -> Cell:
    groups = {
        "<35": {"rows": 7, "loss": 0.2, "accuracy": 0.9},
        ">50": {"rows": 3, "loss": worst, "accuracy": 0.8},
    }
    found = {
        "groups": groups,
        "worst": ">50",
        "demographic_parity_difference": 0.2,
        "equalized_odds_difference": 0.1,
    }
    metrics = {"loss": 0.3, "accuracy": accuracy, "groups": {"public_test": found}}
    told = {"lam": [0.5, 1.0], "violations": [-0.1, 0.002]}
    return Cell(failed=failed) if failed else Cell({"metrics": metrics, "strategy_report": told})


def runs(free: Sequence[float], own: Sequence[float], apart: Sequence[float]) -> dict[str, list[study.Served]]:
    names = ("FedAvg", f"bounded {cells.ZETA:g}", f"silo by silo {cells.ZETA:g}")
    return {name: [study.served(cell(worst)) for worst in each] for name, each in zip(names, (free, own, apart))}


def test_a_run_says_how_its_groups_are_served() -> None:
    found = study.served(cell(0.43))
    assert (found.worst, found.loss, found.accuracy, found.lam, found.violation) == (0.43, 0.3, 0.85, 1.5, 0.002)


def test_claims_are_those_of_the_specification() -> None:
    held = study.claims(runs([0.443, 0.445], [0.436, 0.438], [0.440, 0.441]), cells.ZETA, "required")
    assert [each.threshold for each in held] == [pytest.approx(0.446), 0.004, 0.5, 1e-9]
    assert [each.relation for each in held] == ["<=", ">=", "<=", ">="]
    assert [each.measured for each in held] == pytest.approx([0.437, 0.007, 0.0, 0.0035])
    assert all(each.passed for each in held)


@pytest.mark.parametrize(
    ("number", "values"),
    [
        (0, ([0.46, 0.46], [0.447, 0.447], [0.45, 0.45])),
        (1, ([0.440, 0.440], [0.437, 0.437], [0.44, 0.44])),
        (3, ([0.443, 0.443], [0.437, 0.437], [0.436, 0.436])),
    ],
)
def test_each_claim_can_fail(number: int, values: tuple[list[float], list[float], list[float]]) -> None:
    held = study.claims(runs(*values), cells.ZETA, "required")
    assert [at for at, each in enumerate(held) if not each.passed] == [number]


def test_a_run_that_diverged_fails_the_claims() -> None:
    found: dict[str, list[Any]] = runs([0.443], [0.436], [0.44])
    found[f"bounded {cells.ZETA:g}"] = [study.served(cell(0.4, failed="diverged"))]
    held = study.claims(found, cells.ZETA, "required")
    assert not any(each.passed for each in held)
    rows = study.rows("age", found, (0,))
    assert rows[1]["worst"] is None
    assert math.isnan(found[f"bounded {cells.ZETA:g}"][0].worst)
    assert "no run ended" not in study.sheet("age", found).title
    study.frontier(found, (0,))


def test_every_method_of_the_study_is_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "constants", lambda group: {"mean": [0.0], "std": [1.0]})
    assert "bounded_group_loss" in load()
    for group, count in cells.GROUPS.items():
        for name, strategy in cells.methods(group, quick=False).items():
            made = cells.experiment(group, name, strategy, 3, rounds=5)
            assert made.data.group == group
            assert made.data.public_test * 32561 >= 16280
            assert made.strategy.group_problems([""] * count) == []


def test_years_are_in_three_bands() -> None:
    assert [tabular._band(years) for years in ("17", "34", "35", "50", "51", "90")] == [
        "<35",
        "<35",
        "35-50",
        "35-50",
        ">50",
        ">50",
    ]
