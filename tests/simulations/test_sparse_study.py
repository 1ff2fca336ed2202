"""The study `flasc`: what its numbers mean, on cells made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from simulations.studies import flasc, flasc_beyond
from simulations.studies.cells import Cell
from simulations.studies.flasc_shown import accuracies, at_parameters, curve, figures, ratios, rows, sheet, whole
from strategies.experiment import digest


def cell(accuracy: list[float | None], sent: int, *, held: float | None = None) -> Cell:
    """A run that sends as much in every round, half of it up; `held`: accuracy of all that the server holds."""
    rounds: dict[str, Any] = {"accuracy": accuracy}
    rounds |= dict.fromkeys(("bytes_up", "bytes_down", "parameters_up", "parameters_down"), [sent / 2] * len(accuracy))
    variants = {} if held is None else {"dense": {"accuracy": held, "loss": 1.0}}
    return Cell({"metrics": {"accuracy": accuracy[-1], "variants": variants}, "communication": {}}, rounds)


FAILED = Cell(failed="round 1: the model is no longer finite")


def runs(**changes: Any) -> dict[str, list[Cell]]:
    found = {
        "dense": [cell([0.2, 0.3, 0.9, 0.95], 100), cell([0.2, 0.4, 0.9, 0.93], 100)],
        "flasc_4": [cell([0.1, 0.1, 0.1, 0.94], 25, held=0.2), cell([0.1, 0.1, 0.1, 0.92], 25, held=0.2)],
        "flasc_10": [cell([0.1, 0.1, 0.1, 0.93], 10, held=0.2), cell([0.1, 0.1, 0.1, 0.91], 10, held=0.2)],
        "fixed_10": [cell([0.1, 0.2, 0.3, 0.8], 10), cell([0.1, 0.2, 0.3, 0.8], 10)],
    }
    return found | changes


def test_a_model_is_measured_as_silos_are_sent_it() -> None:
    sparse = cell([None, 0.1, None, 0.9], 10, held=0.2)
    assert curve(sparse) == [(1, 0.1), (3, 0.9)]
    assert accuracies([sparse]) == [0.9]
    assert whole([sparse]) == [0.2]
    assert whole([cell([0.8], 10)]) == [0.8]  # What is served is all that there is.
    assert math.isnan(accuracies([FAILED])[0])
    assert math.isnan(whole([FAILED])[0])


def test_equal_parameters_are_those_sent_before_more_were() -> None:
    dense = cell([0.2, 0.3, 0.9, 0.95], 100)
    assert [at_parameters(dense, most) for most in (100, 199, 200, 1000)] == [0.2, 0.2, 0.3, 0.95]
    assert math.isnan(at_parameters(dense, 99))
    assert math.isnan(at_parameters(dense, math.nan))


def test_ratios_are_of_all_that_was_sent_both_ways() -> None:
    assert ratios(runs(), "flasc_10") == [0.1, 0.1]
    assert ratios(runs(), "flasc_4", unit="bytes") == [0.25, 0.25]


def test_the_claims_are_paired_differences() -> None:
    found = flasc.criteria(runs())
    quarter, tenth, ratio, mask, early, *unsent = found
    assert (quarter.measured, quarter.spread) == (pytest.approx(-0.01), pytest.approx(0.0))  # .94 - .95, .92 - .93.
    assert tenth.measured == pytest.approx(-0.02)
    assert ratio.measured == pytest.approx(0.0)
    assert mask.measured == pytest.approx(0.12)  # .93 - .8 and .91 - .8.
    # FLASC 1/10 has sent 40 in all, less than dense LoRA in its first round: there is nothing to compare with.
    assert math.isnan(early.measured or 0.0)
    assert [each.passed for each in found] == [True, True, True, True, False, False, False]
    assert [each.kind for each in unsent] == ["goal", "goal"]
    more = runs(flasc_10=[cell([0.1, 0.1, 0.1, 0.93], 50), cell([0.1, 0.1, 0.1, 0.91], 50)])
    assert flasc.criteria(more)[4].measured == pytest.approx(0.57)  # .93 - .3 and .91 - .4, at 200 sent.
    assert not flasc.criteria(more)[2].passed  # Half of dense is no tenth.


@pytest.mark.parametrize("name", ["dense", "flasc_4", "flasc_10", "fixed_10"])
def test_one_run_that_failed_fails_what_it_is_part_of(name: str) -> None:
    parts = {"dense": 6, "flasc_4": 2, "flasc_10": 5, "fixed_10": 1}
    good = runs(flasc_10=[cell([0.93] * 4, 100), cell([0.91] * 4, 100)])
    for order in (0, 1):  # A NaN must not be passed over wherever it stands.
        cells = list(good[name])
        cells[order] = FAILED
        broken = [each.measured for each in flasc.criteria(good | {name: cells})]
        assert sum(value is None or math.isnan(value) for value in broken) == parts[name]
        assert sheet(flasc.METHODS, good | {name: cells}).body
        assert len(figures("f", "about", flasc.METHODS, good | {name: cells})) == 2


def test_the_table_shows_both_models_and_the_figures_have_a_curve_per_method() -> None:
    table = sheet(flasc.METHODS, runs())
    assert table.body[2][:4] == ("FLASC 1/10", "0.920 ± 0.014", "0.200 ± 0.000", "0.1000")
    by_bytes, by_rounds = figures("f", "about", flasc.METHODS, runs())
    assert (by_bytes.name, by_rounds.name) == ("f_bytes", "f_rounds")
    for figure in (by_bytes, by_rounds):
        assert all(f">{flasc.METHODS[name].label}</text>" in figure.svg for name in runs())
    (first, *_) = rows(runs(), (0, 1))
    assert first["curve"][1] == {"round": 2, "accuracy": 0.3, "bytes": 200.0}  # type: ignore[index]


def test_every_method_is_an_experiment_with_the_same_server_optimizer() -> None:
    for name, method in flasc.METHODS.items():
        made = flasc.experiment("flasc_digits", name, 3, method.changes)
        assert (made.name, made.seed, made.rounds) == (f"{name}.seed-3", 3, 200)
        server = made.strategy.server  # type: ignore[attr-defined]
        assert (server.name, server.learning_rate, server.beta2, server.eps) == ("adam", 0.005, 0.999, 1e-8)
        # alpha / rank is the same at every rank: 16 at rank 1 would diverge.
        assert made.task.alpha / made.task.rank == 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", [flasc_beyond.GARMENTS, flasc_beyond.TWEETS])
def test_the_parts_beyond_digits_differ_by_their_messages_alone(part: flasc_beyond.Part) -> None:
    methods = part.methods()
    made = {name: flasc.experiment(part.config, name, 0, method.changes) for name, method in methods.items()}
    assert [each.strategy.name for each in made.values()] == ["fedavg", "flasc", "flasc"]
    servers = {each.strategy.server for each in made.values()}  # type: ignore[attr-defined]
    assert len(servers) == 1
    assert len({digest(replace(each, strategy=made["dense"].strategy)) for each in made.values()}) == 1


def test_the_claims_beyond_digits_are_goals() -> None:
    quarter, tenth = flasc_beyond.criteria("flasc_text", flasc.METHODS, runs())
    assert (quarter.kind, quarter.measured, quarter.passed) == ("goal", pytest.approx(-0.01), True)
    assert (tenth.kind, tenth.measured, tenth.threshold) == ("goal", pytest.approx(-0.02), -0.03)
