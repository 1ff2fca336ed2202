"""The closed forms of mean regularisation, each against another way to the same number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulations.cli import main
from simulations.studies import mean_estimation as study

TAU = 0.08


def test_the_study_holds_and_says_so(tmp_path: Path, capsys: Any) -> None:
    # Simulated errors are means of 10^4 x 20 squares or more: 0.4% at one standard deviation where only the mean
    # errs, and that is a fifth of the error at most. 33 of them within 1%: false alarms 1e-3; the seed is fixed.
    assert main(["study", "mean_estimation", "--out", str(tmp_path), "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {each["spec_id"] for each in said["criteria"]} == {"M4", "M5", "M6"}
    assert all(each["passed"] for each in said["criteria"])
    found = study.rows(trials=100)
    assert round(found["noise_multiplier"], 4) == 13.2855
    assert round(found["s2"], 6) == 0.005213
    table = [tuple(round(row[name], 6) for name in ("least", "local", "fedavg")) for row in found["settings"]]
    assert table == [(0.00099, 0.005213, 0.001116), (0.00299, 0.005213, 0.006341), (0.004642, 0.005213, 0.038261)]
    assert [round(row["best_lambda"], 3) for row in found["settings"]] == [5.792, 0.814, 0.130]


def test_a_failed_criterion_fails_the_study(monkeypatch: Any) -> None:
    found = study.rows(trials=study.TRIALS)
    assert all(each.passed for each in study.criteria(found))
    monkeypatch.setattr(study, "NOISE", 14.567)  # The authors' own calibration, by Renyi divergences.
    assert [each.name for each in study.criteria(found) if not each.passed] == ["the noise multiplier, relative"]


@pytest.mark.parametrize("lam", [0.0, 0.3, 5.0, study.FEDAVG])
def test_the_formula_is_the_exact_error_of_the_matrix(lam: float) -> None:
    uniform, s2 = np.full(study.SILOS, 1 / study.SILOS), np.full(study.SILOS, 0.005)
    exact = study.expected(study.pulled(np.full(study.SILOS, lam), uniform), s2, TAU)
    assert exact == pytest.approx(study.error(lam, 0.005, TAU), rel=1e-9)


def test_the_ends_of_lambda_are_local_training_and_federated_averaging() -> None:
    assert study.error(0.0, 0.005, TAU) == pytest.approx(0.005)
    assert study.error(np.inf, 0.005, TAU) == pytest.approx(0.95 * TAU**2 + 0.005 / 20)
    assert study.error(study.FEDAVG, 0.005, TAU) == pytest.approx(study.error(np.inf, 0.005, TAU), rel=1e-4)


def test_the_best_lambda_rises_as_epsilon_falls() -> None:
    best = [study.variance(study.noise_for(epsilon)) / TAU**2 for epsilon in (0.25, 0.5, 1.0, 2.0)]
    assert best == sorted(best, reverse=True)


OWN = np.geomspace(0.0005, 0.05, study.SILOS)


@pytest.mark.parametrize("weighted", ["uniform", "precise"])
def test_own_lambdas_are_where_each_silos_error_is_least(weighted: str) -> None:
    weights = np.full(study.SILOS, 1 / study.SILOS) if weighted == "uniform" else study.precision(OWN, TAU)
    lams = study.own_lambdas(OWN, TAU, weights)
    if weighted == "precise":
        np.testing.assert_allclose(lams, OWN / TAU**2, rtol=1e-9)
    least = study.expected(study.pulled(lams, weights), OWN, TAU)
    for silo in range(study.SILOS):
        for factor in (0.9, 1.1):
            moved = lams.copy()
            moved[silo] *= factor
            assert study.expected(study.pulled(moved, weights), OWN, TAU) > least


def test_a_silo_that_is_all_noise_has_an_infinite_lambda_in_a_uniform_mean() -> None:
    s2 = np.array([0.0001] * 19 + [10.0])
    uniform = np.full(20, 1 / 20)
    lams = study.own_lambdas(s2, 0.01, uniform)
    assert np.isinf(lams[19])
    assert np.isfinite(lams[:19]).all()
    matrix = study.pulled(lams, uniform)
    np.testing.assert_allclose(matrix.sum(1), 1.0)
    np.testing.assert_allclose(matrix[19], uniform)  # It is left with the mean.
    finite = np.where(np.isinf(lams), 1e9, lams)
    assert study.expected(matrix, s2, 0.01) <= study.expected(study.pulled(finite, uniform), s2, 0.01) * (1 + 1e-6)


def test_pulled_models_average_to_the_precise_mean_without_weights() -> None:
    uniform = np.full(study.SILOS, 1 / study.SILOS)
    precise = study.precision(OWN, TAU)
    np.testing.assert_allclose(study.fixed_point(OWN / TAU**2, uniform), precise, rtol=1e-12)
    twice = study.fixed_point(OWN / TAU**2, precise)
    errors = [study.expected(study.pulled(OWN / TAU**2, mean), OWN, TAU) for mean in (precise, twice)]
    assert errors[0] < errors[1]
