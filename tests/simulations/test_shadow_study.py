"""The study `shadow_learning`: what its numbers mean, on cells made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from simulations.studies import shadow_learning as study
from simulations.studies.cells import Cell
from simulations.studies.shadow_learning_shown import (
    SHIFTED,
    SUCCESS,
    backbone,
    costs,
    curve,
    figures,
    recalls,
    restarts,
    rows,
    sheets,
    success,
)
from strategies.experiment import digest

DETECTION = {"recall": 0.98, "false_flag_rate": 0.1, "minority_false_flag_rate": None}


def cell(late: float, *, early: float = 0.1, accuracy: float = 0.8, shadows: float = 1.0, **detection: Any) -> Cell:
    """A run of 140 rounds that is measured in round 40, before the shift, and at its end."""
    columns: dict[str, list[Any]] = {
        name: [None] * 140 for name in (SUCCESS, "accuracy", "variants", "attackers", "seconds")
    }
    for round_, value in ((40, early), (SHIFTED - 5, early), (140, late)):
        columns[SUCCESS][round_ - 1], columns["accuracy"][round_ - 1] = value, accuracy
    columns["variants"][139] = {"backbone": {SUCCESS: 0.99, "accuracy": 0.805}}
    columns["attackers"] = [{"asked": {}} | ({"flagged": {}} if at >= 100 else {}) for at in range(140)]
    columns["seconds"] = [{"train": 1.0 + (at >= 100), "aggregate": 0.1 + (at >= 100)} for at in range(140)]
    result = {
        "metrics": {"variants": {"backbone": {SUCCESS: 0.99, "accuracy": 0.805}}},
        "attacks": {"detection": DETECTION | detection},
        "strategy_report": {"shadows": shadows},
    }
    return Cell(result, columns, seconds=2.0)


FAILED = Cell(failed="round 1: the model is no longer finite")


def runs(**changes: Any) -> dict[str, list[Cell]]:
    late = {"none": 0.99, "filter": 0.8, "shadow": 0.05, "pooled": 0.1, "shift": 0.2, "uneven": 0.1}
    shadows = {"shift": 2.0}
    found = {
        name: [cell(late[(kind := name.partition("_")[0])], shadows=shadows.get(kind, 1.0))] for name in study.methods()
    }
    return found | changes


def claims(found: dict[str, list[Cell]]) -> dict[str, bool]:
    every = [*study.least(found), *study.soon(found), *study.leaks(found), *study.most(found), *study.shift(found)]
    return {each.spec_id.partition(".")[2]: each.passed for each in every}


def test_every_claim_holds_for_runs_that_show_it_and_40_percent_is_a_goal() -> None:
    assert claims(runs()) == {str(number): True for number in range(1, 12)}
    assert [each.kind for each in study.most(runs())] == ["goal"]
    assert {
        each.kind for each in [*study.least(runs()), *study.soon(runs()), *study.leaks(runs()), *study.shift(runs())]
    } == {"required"}


@pytest.mark.parametrize(
    ("name", "bad", "claim"),
    [
        ("shadow_15", cell(0.07), "1"),
        ("shadow_15", cell(0.05, recall=0.9), "2"),
        ("none_30", cell(0.9), "3"),
        ("filter_30", cell(0.25), "4"),
        ("filter_30", cell(0.8, early=0.5), "5"),  # 1.6 times as much.
        ("shadow_30", cell(0.3), "6"),
        ("shadow_30", cell(0.05, accuracy=0.79), "7"),
        ("shadow_40", cell(0.35), "8"),
        ("shift_30", cell(0.2, shadows=3.0), "9"),
        ("shift_30", cell(0.2, shadows=1.0), "9"),
        ("shift_30", cell(0.4, shadows=2.0), "10"),
    ],
)
def test_a_run_that_shows_the_contrary_fails_its_claim_alone(name: str, bad: Cell, claim: str) -> None:
    found = claims(runs(**{name: [bad]}))
    assert [key for key, passed in found.items() if not passed] == [claim]


def test_one_restart_too_many_in_one_seed_is_not_made_good_by_another() -> None:
    found = runs(shift_30=[cell(0.2, shadows=3.0), cell(0.2, shadows=1.0)])
    assert not claims(found)["9"]


def test_accuracy_after_a_shift_is_held_against_that_before_it() -> None:
    bad = cell(0.2, shadows=2.0)
    bad.rounds["accuracy"][139] = 0.77  # type: ignore[index]
    assert [key for key, passed in claims(runs(shift_30=[bad])).items() if not passed] == ["11"]


@pytest.mark.parametrize("name", ["shadow_15", "filter_30", "none_30", "shadow_30", "shadow_40", "shift_30"])
def test_a_run_that_failed_fails_all_that_it_is_part_of(name: str) -> None:
    for order in ([FAILED, cell(0.05, shadows=2.0)], [cell(0.05, shadows=2.0), FAILED]):
        found = runs(**{name: order})
        mine = {"shadow_15": "1 2", "filter_30": "4 5", "none_30": "3", "shadow_30": "6 7", "shadow_40": "8"}
        assert not any(claims(found)[key] for key in mine.get(name, "9 10 11").split())


def test_numbers_of_a_run_are_read_where_they_stand() -> None:
    one = cell(0.3, early=0.2)
    assert success([one]) == [0.3]
    assert success([one], 40) == [0.2]
    assert math.isnan(success([one], 41)[0])  # It was not measured then.
    assert math.isnan(success([one], 141)[0])
    assert backbone([one], SUCCESS) == [0.99]
    assert (recalls([one]), restarts([cell(0.3, shadows=2.0)])) == ([0.98], [1.0])
    assert all(math.isnan(read([FAILED])[0]) for read in (success, backbone, recalls, restarts))
    # 100 rounds of 1 and .1 seconds, 40 of 2 and 1.1.
    assert costs([one]) == ("1.000", "2.000", "0.100", "1.100")


def test_a_curve_has_the_rounds_that_were_measured() -> None:
    one, other = cell(0.3, early=0.1), cell(0.5, early=0.3)
    drawn = curve("both", [one, other], SUCCESS)
    assert [x for x, _ in drawn.points] == [40.0, SHIFTED - 5, 140.0]
    assert [y for _, y in drawn.points] == [pytest.approx(0.2), pytest.approx(0.2), pytest.approx(0.4)]
    alone = curve("backbone", [one], SUCCESS, variant="backbone")
    assert [y for _, y in alone.points] == [0.1, 0.1, 0.99]  # Without a guard it is what is served.


def test_everything_is_shown_also_of_runs_that_failed() -> None:
    found = runs(filter_15=[FAILED])
    named = study.methods()
    assert len(sheets(named, found)) == 2
    assert {each.name for each in figures(found, 1)} == {"shadow_learning_leak", "shadow_learning_shift"}
    table = {row["method"]: row for row in rows(named, found, [0])}
    assert table["filter_15"]["failed"] == FAILED.failed
    assert table["filter_15"]["success"] is None
    assert table["shadow_30"]["success"] == 0.05


def test_methods_of_a_seed_differ_in_what_they_are_named_for() -> None:
    named = study.methods()
    found = {name: study.experiment(name, each, 3, study.ROUNDS) for name, each in named.items()}
    assert len({digest(each) for each in found.values()}) == len(found)
    for name, each in found.items():
        assert each.attacks[0].fraction == named[name].fraction
        assert (each.seed, each.rounds, each.metrics.every) == (3, 140, 5)
        assert getattr(each.strategy, "malicious", named[name].fraction) == named[name].fraction
    assert found["none_30"].strategy.name == "fedavg"
    assert found["shift_30"].data.shift is not None
    assert getattr(found["filter_30"].strategy, "pool", None) == 1
    assert not getattr(found["pooled_30"].strategy, "stopping", True)
