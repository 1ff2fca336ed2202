"""The scoreboard: what it runs, what it reads from runs whose numbers are known, and its pictures."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from simulations.report.heat import heat
from simulations.studies import scoreboard as study
from simulations.studies.cells import Cell
from simulations.studies.registry import load
from simulations.studies.scoreboard_cells import DEFENCES, FRACTIONS, THREATS, UNATTACKED, USUAL, experiment
from simulations.studies.scoreboard_shown import Place, Score, figures, sheets
from strategies.attacks import Poison


def cell(success: dict[str, float | None] | None, *, accuracy: float = 0.75, judged: bool = True) -> Cell:
    rates = {"rounds": 3, "recall": 0.9, "false_flag_rate": 0.1, "minority_false_flag_rate": None}
    attacks = None if success is None else {"success": success, "detection": rates if judged else None}
    return Cell({"metrics": {"accuracy": accuracy}, "attacks": attacks})


def board(success: float = 0.0, accuracy: float = 0.5) -> dict[Place, list[Score]]:
    """Every defence lets the same through, but for none, which lets all through."""
    found = {}
    for place in study.wanted(quick=False):
        planted = 1.0 if place.defence == "none" else success
        found[place] = [Score(accuracy, planted, 0.9, 0.1, 0.2 if place.silos == "skewed" else math.nan)] * 2
    return found


def test_a_backdoor_is_judged_by_its_success_and_other_attacks_by_accuracy_alone() -> None:
    planted = study.scored(cell({"pixel_patch": 0.6, "model_replacement": None}), "model replacement")
    assert (planted.success, planted.accuracy, planted.recall, planted.false_flag_rate) == (0.6, 0.75, 0.9, 0.1)
    assert math.isnan(planted.minority_false_flag_rate)
    spoiled = study.scored(cell({"min_max": None}, judged=False), "min-max")
    assert math.isnan(spoiled.success)
    assert math.isnan(spoiled.recall)
    clean = study.scored(cell(None), UNATTACKED)
    assert (clean.accuracy, math.isnan(clean.recall)) == (0.75, True)


def test_a_run_that_diverged_has_no_number_and_fails_the_study() -> None:
    places = board()
    assert [each.passed for each in study.criteria(places)] == [True] * 4
    places[Place("alike", "median", "min-max", 0.4)] = [study.scored(Cell(failed="diverged"), "min-max")]
    assert [each.passed for each in study.criteria(places)] == [True, True, False, True]


@pytest.mark.parametrize(("number", "changed"), [(0, "none"), (1, "shadow learning")])
def test_each_claim_about_the_patch_can_fail(number: int, changed: str) -> None:
    places = board()
    places[Place("alike", changed, "patch", USUAL)] = [Score(0.7, 0.5)]
    assert [at for at, each in enumerate(study.criteria(places)) if not each.passed] == [number]


def test_an_attack_that_spoils_nothing_fails_the_study() -> None:
    assert [at for at, each in enumerate(study.criteria(board(accuracy=0.75))) if not each.passed] == [3]
    quick = {place: scores for place, scores in board().items() if place in study.wanted(quick=True)}
    assert len(study.criteria(quick)) == 3


def test_tables_hold_every_defence_and_the_right_numbers() -> None:
    found = {each.title: each for each in sheets(board(success=0.25))}
    success = found["Attack success"]
    assert [row[0] for row in success.body] == list(DEFENCES)
    planted = [name for name in THREATS if THREATS[name].backdoor]
    assert len(success.header) == 1 + len(planted) * len(FRACTIONS)
    assert success.body[1][1] == "0.250 ± 0.000"
    caught = found["Left out: malicious silos / benign silos"]
    assert caught.body[0][1] == "0.900 ± 0.000 / 0.100 ± 0.000"
    skewed = found[f"Skewed silos, {USUAL:g} malicious"]
    assert skewed.body[-1][-1] == "0.200 ± 0.000"
    assert len(skewed.body) == 3 * len(DEFENCES)


def test_every_run_is_an_experiment_in_which_the_defence_is_told_the_fraction() -> None:
    assert "scoreboard" in load()
    for place in study.wanted(quick=False):
        made = experiment(place.defence, place.threat, place.fraction, 3, silos=place.silos)
        assert {each.fraction for each in made.attacks} == (set() if place.threat == UNATTACKED else {place.fraction})
        assert made.strategy.misfits(made, 200) == []
        told = getattr(made.strategy, "malicious", getattr(made.strategy, "trim", place.fraction))
        assert told == place.fraction
        if place.threat != UNATTACKED:
            assert THREATS[place.threat].backdoor in ("", *(each.name for each in made.attacks))


def test_backdoors_are_attacks_on_rows_and_the_others_are_not() -> None:
    for name, threat in THREATS.items():
        made = experiment("none", name, 0.15, 0)
        assert any(isinstance(each, Poison) for each in made.attacks) == bool(threat.backdoor)


def test_the_quick_board_is_a_part_of_the_whole_one() -> None:
    assert set(study.wanted(quick=True)) < set(study.wanted(quick=False))
    figures({place: scores for place, scores in board().items() if place in study.wanted(quick=True)}, (0,))


def numbers(svg: str) -> list[str]:
    return re.findall(r'class="number[^"]*">([^<]+)<', svg)


def drawn(**changes: Any) -> str:
    made: dict[str, Any] = {
        "told": "a line",
        "rows": ["first", "second"],
        "groups": [("one", [".05", ".15"]), ("two", [".05"])],
        "values": [[0.0, 1.0, 0.5], [0.25, math.nan, 1.0]],
        "high_is_bad": True,
    }
    return heat("key", "A title", **made | changes)


def test_a_heat_map_says_every_number_and_leaves_out_what_is_none() -> None:
    assert numbers(drawn()) == ["0", "100", "50", "25", "100"]
    assert "first: 0, 100, 50. second: 25, none, 100" in drawn()


def test_strong_colours_are_bad_ones() -> None:
    def colours(svg: str) -> list[str]:
        return re.findall(r'rx="3" class="h(\d)"', svg)

    assert colours(drawn()) == ["0", "8", "4", "2", "8"]
    assert colours(drawn(high_is_bad=False)) == ["8", "0", "4", "6", "0"]


def test_a_heat_map_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="heat key: 2 rows of 3 numbers"):
        drawn(values=[[0.0, 1.0, 0.5], [0.25]])


def test_two_pictures_are_drawn_backdoors_and_spoilers() -> None:
    pictures = {each.name: numbers(each.svg) for each in figures(board(success=0.25), (0, 1))}
    assert pictures.keys() == {"scoreboard_backdoors", "scoreboard_spoilers"}
    assert set(pictures["scoreboard_backdoors"]) == {"25", "100"}
    assert set(pictures["scoreboard_spoilers"]) == {"50"}
