"""Runs side by side: what is one experiment, how differences pair seed by seed, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from simulations.comparing import Difference, Group, Member, cautions, grouped, paired, unpaired
from simulations.report.letters import APART, spread
from strategies.schema import ConfigError

SETTINGS = {"name": "a", "data.name": "digits", "data.silos": 40, "train.learning_rate": 0.1, "strategy.name": "fedavg"}


def member(seed: int, accuracy: float | None = 0.5, *, folder: str = "", **changes: Any) -> Member:
    keys = {key.replace("__", "."): value for key, value in changes.items() if key not in ("stopped", "metric")}
    result = {
        "name": "a",
        "seed": seed,
        "data": "digits",
        "stopped": changes.get("stopped"),
        "seconds": 1.0,
        "metrics": {changes.get("metric", "accuracy"): accuracy, "loss": 2.0 - (accuracy or 0.0)},
        "privacy": {"silo": None, "local": None, "example": None, "measured": None},
        "communication": {"bytes_up": 100, "bytes_down": 300},
        "versions": {"torch": "2"},
    }
    where = folder or f"{seed}-{sorted(keys.items())}"
    return Member(Path(where), result, {**SETTINGS, "seed": seed, **keys})


def two(*pairs: tuple[float | None, float | None]) -> tuple[Group, Group]:
    """An experiment and another one, with an accuracy each for seeds 0, 1, ..."""
    members = [each for seed, (one, _) in enumerate(pairs) for each in [member(seed, one)]]
    members += [member(seed, other, train__learning_rate=0.3) for seed, (_, other) in enumerate(pairs)]
    base, other = grouped(members)
    return base, other


def test_runs_that_differ_in_seed_and_name_are_one_experiment() -> None:
    groups = grouped([member(0), member(1, name="b"), member(0, train__learning_rate=0.3)])
    assert [(group.letter, len(group.members)) for group in groups] == [("A", 2), ("B", 1)]
    assert [group.label for group in groups] == ["learning_rate 0.1", "learning_rate 0.3"]


def test_experiments_are_called_by_the_fewest_keys_that_tell_them_apart() -> None:
    keys = [{}, {"strategy__name": "median", "strategy__trim": 2}, {"strategy__name": "median", "strategy__trim": 3}]
    groups = grouped([member(0, **each) for each in keys])
    assert [group.label for group in groups] == ["fedavg", "median, trim 2", "median, trim 3"]
    off = grouped([member(0, privacy__silo__clip_norm=0.5), member(0, privacy__silo=None)])
    assert [group.label for group in off] == ["clip_norm 0.5", "no privacy.silo"]


def test_a_mean_difference_has_students_interval() -> None:
    # Differences 0.1 and 0.3: mean 0.2, standard error 0.1, and t is 12.706 at one degree of freedom.
    base, other = two((0.5, 0.6), (0.4, 0.7))
    score, loss, sent = paired(base, other)
    assert (score.column, loss.column, sent.column) == ("accuracy", "loss", "bytes")
    assert score.seeds == (0, 1)
    assert score.mean == pytest.approx(0.2)
    assert score.interval == pytest.approx((0.2 - 1.2706, 0.2 + 1.2706), abs=1e-4)
    assert loss.mean == pytest.approx(-0.2)
    assert (sent.mean, sent.interval) == (0.0, (0.0, 0.0))


def test_three_seeds_have_the_quantile_of_two_degrees_of_freedom() -> None:
    # Values 1, 2, 3: standard deviation 1, so the half width is 4.3027 / sqrt(3).
    low, high = Difference("loss", (0, 1, 2), (1.0, 2.0, 3.0)).interval or (math.nan, math.nan)
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_pairing_takes_out_what_seeds_share() -> None:
    """Seeds differ by 0.3 and the experiments by 0.01 in each: unpaired, that could not be seen."""
    score = paired(*two((0.2, 0.21), (0.5, 0.51), (0.8, 0.81)))[0]
    low, high = score.interval or (math.nan, math.nan)
    assert (low, high) == pytest.approx((0.01, 0.01), abs=1e-9)


def test_one_seed_has_a_difference_and_no_interval() -> None:
    score = paired(*two((0.5, 0.6)))[0]
    assert score.mean == pytest.approx(0.1)
    assert score.interval is None


def test_only_seeds_that_both_have_are_paired() -> None:
    members = [member(seed) for seed in (0, 1, 2)] + [member(seed, train__learning_rate=1.0) for seed in (2, 5, 1)]
    assert paired(*grouped(members))[0].seeds == (1, 2)


def test_a_number_that_some_run_has_not_is_not_paired() -> None:
    found = paired(*two((0.5, 0.6), (None, 0.7)))
    assert [each.column for each in found] == ["loss", "bytes"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__silos": 80}, "data.silos differs, so a seed stands for other rows or other silos"),
        ({"metric": "mse", "task__name": "linear"}, "A is scored by accuracy, B by mse"),
        ({"stopped": "interrupted", "rounds": 9}, "was stopped before its last round"),
    ],
)
def test_what_does_not_compare_is_not_paired(changes: dict[str, Any], says: str) -> None:
    base, other = grouped([member(0), member(0, **changes)])
    assert says in (unpaired(base, other) or "")


def test_a_seed_that_is_there_twice_has_no_partner() -> None:
    members = [member(0, folder="x"), member(0, folder="y"), member(0, train__learning_rate=0.3)]
    assert unpaired(*grouped(members)) == "A has seed 0 more than once"


def test_no_seed_in_common_is_said() -> None:
    assert unpaired(*grouped([member(0), member(1, train__learning_rate=0.3)])) == "they have no seed in common"


def test_a_budget_that_is_spent_is_a_part_of_the_experiment() -> None:
    members = [member(0), member(0, stopped="budget: spent", train__learning_rate=0.3)]
    assert unpaired(*grouped(members)) is None


def test_a_run_is_no_repetition_of_itself() -> None:
    with pytest.raises(ConfigError, match="is given twice"):
        grouped([member(0, folder="x"), member(0, folder="./x")])


def test_more_experiments_than_letters_are_refused() -> None:
    with pytest.raises(ConfigError, match="27 different experiments"):
        grouped([member(0, train__steps=steps) for steps in range(27)])


def test_other_versions_are_a_caution() -> None:
    one, other = member(0).result, dict(member(1).result)
    assert cautions([one, other]) == []
    other["versions"] = {"torch": "3"}
    assert cautions([one, other]) == ["the runs were made by different versions of torch"]


def test_letters_of_one_place_end_up_apart_and_in_their_order() -> None:
    found = [y for _, y in spread([(10.0, 90.0), (12.0, 91.0), (11.0, 90.5), (80.0, 90.0)], top=0.0, bottom=100.0)]
    assert found[3] == 90.0
    first, second, third = found[0], found[2], found[1]
    assert second - first >= APART - 0.1
    assert third - second >= APART - 0.1
    assert max(found) <= 100.0
