"""The studies: the commands run, use what confide uses, and show what they say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from privacy import audit, gaussian
from privacy.noise import SimulatedNoise
from simulations.shipped import find
from simulations.studies import accountant_grid, alarm, canary_cost, iterates, one_shot_table
from strategies.loading import load

torch.set_num_threads(1)


@pytest.mark.parametrize("epsilon", one_shot_table.EPSILONS)
def test_the_noise_of_the_table_costs_its_epsilon(epsilon: float) -> None:
    noise = one_shot_table.noise_for(epsilon)
    assert gaussian.epsilon(noise, one_shot_table.DELTA) == pytest.approx(epsilon, rel=1e-9)
    assert noise == pytest.approx({1.0: 4.2247, 3.0: 1.5439, 10.0: 0.5411}[epsilon], abs=5e-5)


def test_the_table_draws_the_canaries_of_the_audit() -> None:
    single, double = one_shot_table.unit(3, 7, 5_000), audit.direction(3, 7, 5_000)
    np.testing.assert_allclose(single.numpy(), double.numpy(), atol=1e-6)


def test_the_table_has_a_row_for_each_epsilon(capsys: Any) -> None:
    assert one_shot_table.main(["--runs", "2", "--dimension", "5000", "--canaries", "100", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["epsilon"] for row in rows] == [1.0, 3.0, 10.0]
    shared = [row["shared"]["mean"] for row in rows]
    assert shared == sorted(shared)
    for row in rows:  # One estimate of 100 canaries errs by about .4, .5 and .7: 5.5 of that for the mean of two.
        assert abs(row["shared"]["mean"] - row["at_this_dimension"]) < 5.5 * 0.7 / 2**0.5


def test_the_fault_of_the_alarm_study_is_priced_as_if_it_were_none() -> None:
    silent = alarm.SilentSum(0.5, 10.0)
    total = torch.ones(3, dtype=torch.float64)
    assert torch.equal(silent.privatize(total, SimulatedNoise(0), stream=("noise", 1)), total)
    assert silent.event == alarm.GaussianSum(0.5, 10.0).event


def test_the_alarm_study_says_what_it_found(capsys: Any) -> None:
    assert alarm.main(["--seeds", "1", "--canaries", "200"]) == 0
    said = capsys.readouterr().out
    assert "noise removed on purpose: alarm in 1 of 1 runs" in said
    assert "right noise:              alarm in 0 of 1 runs" in said


def test_the_alarm_study_knows_examples_too(capsys: Any) -> None:
    assert alarm.main(["--unit", "example", "--seeds", "1", "--canaries", "200", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["unit"], found["caught"], found["false_alarms"]) == ("example", 1, 0)


def test_the_cost_of_canaries_is_of_paired_runs(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Accuracy .9, .8 without and .85, .79 with: differences -.05 and -.01, mean -.03, deviation .02 x 2^.5.
    accuracy = {(0, "0"): 0.9, (1, "0"): 0.8, (0, "64"): 0.85, (1, "64"): 0.79}
    runs: list[tuple[int, str]] = []

    def fake(name: str, overrides: Any, seed: int) -> tuple[float, float]:
        runs.append((seed, overrides[0].split("=")[1]))
        return accuracy[runs[-1]], 1.0 + (runs[-1][1] == "64")

    monkeypatch.setattr(canary_cost, "measured", fake)
    variants = {"quickstart": {count: [f"privacy.audit.canaries={count}"] for count in ("0", "64")}}
    monkeypatch.setattr(canary_cost, "VARIANTS", variants)
    without, found = canary_cost.study("quickstart", seeds=2)
    assert runs == [(0, "0"), (0, "0"), (0, "64"), (1, "0"), (1, "64")]  # The first is not counted.
    assert found["accuracy_difference"] == {"mean": pytest.approx(-0.03), "std": pytest.approx(0.02 * 2**0.5)}
    assert found["seconds_difference"] == {"mean": 1.0, "std": 0.0}
    assert without["accuracy_difference"] == {"mean": 0.0, "std": 0.0}
    runs.clear()
    assert canary_cost.main(["--seeds", "2", "--experiment", "quickstart"]) == 0
    assert "-0.0300 +- 0.0283" in capsys.readouterr().out


def test_the_variants_of_the_cost_study_are_experiments() -> None:
    for name, variants in canary_cost.VARIANTS.items():
        for overrides in variants.values():
            load(find(name), overrides)


def test_the_grid_prices_a_plan_in_a_process_of_its_own_against_a_reference(capsys: Any) -> None:
    plans = ["--rates", "0.01", "1", "--noises", "5", "--rounds", "100", "--format", "json"]
    assert accountant_grid.main(plans) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(found["criteria"].values())
    assert len(found["criteria"]) == 6
    sampled, exact = found["cells"]
    assert (exact["rate"], exact["method"], exact["width"]) == (1.0, "exact", 0.0)
    assert exact["upper"] == pytest.approx(9.997, abs=1e-3)
    assert sampled["reference_lower"] <= sampled["upper"] <= 1.02 * sampled["reference_upper"]
    assert 0 < sampled["seconds"] < 600
    assert 50 < sampled["peak_mb"] < 2000
    assert found["saving"]["saved"] == pytest.approx(1 - 1.030 / 1.094, abs=0.002)


GOOD = {"lower": 1.0, "upper": 1.1, "reference_lower": 1.0, "reference_upper": 1.1, "seconds": 1.0, "peak_mb": 100}


@pytest.mark.parametrize(
    ("change", "saved"),
    [
        ({"lower": 1.11}, 0.1),
        ({"upper": 0.99}, 0.1),
        ({"upper": float("nan")}, 0.1),
        ({"seconds": 61.0}, 0.1),
        ({"peak_mb": 2001}, 0.1),
        ({"reference_lower": None, "reference_upper": None}, 0.1),
        ({}, -0.01),
    ],
)
def test_one_bad_cell_fails_the_grid(change: dict[str, float], saved: float) -> None:
    assert all(accountant_grid.criteria([GOOD, GOOD], {"saved": 0.0}).values())
    passed = accountant_grid.criteria([GOOD, GOOD | change], {"saved": saved})
    assert list(passed.values()).count(False) == 1


@pytest.mark.integration
def test_all_iterates_show_more_than_the_final_model() -> None:
    # P9. The ratios at noise .25 and .5 are 20 and 3.5; the estimates at noise 2 are mostly chance.
    rows = iterates.study([0.25, 0.5, 2.0])
    assert all(row["all_iterates"] >= 3 * row["epsilon"] for row in rows[:2])
    for name in ("epsilon", "all_iterates"):
        assert rows[0][name] > rows[1][name] > rows[2][name]
    assert all(row["epsilon"] <= row["claim"] + row["upper"] - row["epsilon"] for row in rows)
