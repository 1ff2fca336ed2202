"""Independent, amplified and banded noise at one epsilon: the errors that accounting.md quotes, and what is advised."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from privacy.accountant import epsilon
from privacy.band import independent_rmse, square_root
from privacy.events import Gaussian, Poisson, Repeated, Sampled
from simulations.cli import main
from simulations.noise_choice import choices, compare, recommended
from simulations.planning import plan
from strategies.loading import parse

ROUNDS, EPSILON, DELTA = 512, 4.0, 1e-6
QUOTED = {1: (19.1, 8.6, 3.4), 4: (38.2, 10.9, 7.2), 16: (76.5, 18.4, 19.7)}
"""Prefix-sum RMSE per unit clip by participations: independent, amplified, and banded as `toeplitz_root` has it."""
OURS = {1: 3.31, 4: 7.10, 16: 18.34}
PRINTED = 0.05  # Half a unit of the last digit that is quoted,
SEARCHED = 1e-3  # and noise multipliers are found to 0.1%, from above.


def toeplitz_root(rounds: int, bands: int) -> float:
    """RMSE per unit of sensitivity of the square root of A cut to its bands, columns not normalised at the end.

    Its sensitivity is the norm of the whole first column, |c|; dense, to be redone by a reader.
    """
    coefficients = square_root(rounds, bands).coefficients
    matrix = sum(value * np.eye(rounds, k=-j) for j, value in enumerate(coefficients))
    error = np.linalg.norm(np.linalg.solve(matrix.T, np.tril(np.ones((rounds, rounds))).T)) / math.sqrt(rounds)
    return float(error * np.linalg.norm(coefficients))


@pytest.mark.parametrize("turns", QUOTED)
def test_the_nine_errors(turns: int) -> None:
    """All nine come out; the quoted banded ones are of the cut square root, which the search improves on."""
    independent, amplified, banded = compare(ROUNDS, ROUNDS // turns, epsilon=EPSILON, delta=DELTA)
    assert [each.turns for each in (independent, amplified, banded)] == [turns] * 3
    for found, quoted in zip((independent, amplified), QUOTED[turns]):
        assert found.rmse == pytest.approx(quoted, abs=PRINTED + SEARCHED * quoted)
    assert banded.noise_multiplier is not None
    assert banded.rmse is not None
    root = banded.noise_multiplier * toeplitz_root(ROUNDS, ROUNDS // turns)
    assert root == pytest.approx(QUOTED[turns][2], abs=PRINTED + SEARCHED * root)
    assert banded.rmse == pytest.approx(OURS[turns], abs=0.005 + SEARCHED * OURS[turns])
    assert banded.rmse < root


def test_each_keeps_the_same_epsilon_and_no_less_noise_would() -> None:
    rounds, separation = 64, 8
    independent, amplified, banded = compare(rounds, separation, epsilon=2.0, delta=1e-5)
    events = {
        independent: lambda noise: Repeated(Gaussian(noise), 8),
        amplified: lambda noise: Repeated(Sampled(Poisson(1 / 8), Gaussian(noise)), rounds),
        banded: lambda noise: Repeated(Gaussian(noise), 8),
    }
    for choice, event in events.items():
        assert choice.noise_multiplier is not None
        assert epsilon(event(choice.noise_multiplier), 1e-5).upper <= 2.0
        assert epsilon(event(0.998 * choice.noise_multiplier), 1e-5).upper > 2.0
    assert independent.rmse == pytest.approx((independent.noise_multiplier or 0) * independent_rmse(rounds))


def test_the_least_known_error_is_recommended() -> None:
    """1 of 512 rounds: banded, 3.3 against 8.6. 8 of 64 rounds at epsilon 2: amplified, as so often for many turns."""
    many = compare(64, 8, epsilon=2.0, delta=1e-5)
    assert recommended(many) == "amplified"
    assert recommended([replace(each, rmse=None) if each.name == "amplified" else each for each in many]) == "banded"
    assert recommended([replace(each, rmse=None) for each in many]) is None
    assert recommended(()) is None


def config(cohort: object, *, rounds: int = 30, **silo: object) -> dict[str, object]:
    return {
        "rounds": rounds,
        "task": "logistic",
        "data": {"name": "digits", "silos": 100},
        "cohort": cohort,
        "privacy": {"silo": {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3} | silo},
    }


@pytest.mark.parametrize("mechanism", ["gaussian", "banded"])
def test_turns_are_compared_at_their_own_epsilon(mechanism: str) -> None:
    found = choices(plan(parse(config({"sampling": "cyclic", "separation": 10}, mechanism=mechanism)), 100))
    assert [each.name for each in found] == ["independent", "amplified", "banded"]
    assert found[0].noise_multiplier == found[2].noise_multiplier == pytest.approx(2.0, rel=SEARCHED)


def test_a_poisson_cohort_s_own_noise_is_taken_as_it_is() -> None:
    found = choices(plan(parse(config({"sampling": "poisson", "rate": 0.1})), 100))
    assert found[1].noise_multiplier == 2.0
    assert found[1].rmse == 2.0 * independent_rmse(30)


def test_where_every_silo_is_in_every_round_there_is_nothing_to_compare() -> None:
    assert choices(plan(parse(config({"sampling": "all"})), 100)) == ()


def test_plan_compares_and_says_what_each_counts_on(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", "digits_banded", "--set", "rounds=40"]
    assert main(argv) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "independent needs that a silo is in at most 2 rounds, whichever they are" in text
    assert "amplified needs Poisson cohorts of rate 1/20 that nobody ever learns" in text
    assert "banded needs turns at least 20 rounds apart, which the server enforces" in text
    assert main([*argv, "--format", "json"]) == 0
    private = json.loads(capsys.readouterr().out)["privacy"]
    assert private["recommended"] == min(private["comparison"], key=lambda each: each["rmse"])["name"]
    assert [row["upper"] for row in private["epsilon"]][-1] == pytest.approx(2.0, rel=2e-3)
