"""The study `mr_mtl`: what is chosen by what, and what its claims mean, on errors made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.data import carriers
from simulations.studies import mr_mtl, mr_mtl_shown
from simulations.studies.cells import Cell, Cells
from simulations.studies.findings import Criterion
from simulations.studies.mr_mtl_cells import FEDAVG, LOCAL, NO_PRIVACY, ROUNDS, SCHOOLS, Setting, errors, experiment
from simulations.studies.mr_mtl_relatives import RELATIVES
from simulations.studies.mr_mtl_shown import Grid, claims, excess, figures, sheets
from simulations.studies.registry import Ask

PATH = (LOCAL, 0.1, 1.0, 10.0, FEDAVG)
SEEDS = (0, 1, 2, 3, 4)
EPSILONS = (0.5, 2.0, 8.0, NO_PRIVACY)
BEST = {0.5: 3, 2.0: 2, 8.0: 1, NO_PRIVACY: 1}  # The place of the path with the least error, by epsilon.


def made(error: Callable[[float, int, int], float]) -> Grid:
    """A grid where a place's validation and test errors are `error(epsilon, index, seed)`."""
    grid = Grid(("exam",), EPSILONS, PATH, (0.1,), SEEDS)
    found = {
        ("exam", epsilon, lam, seed): [(error(epsilon, index, seed),) * 2]
        for epsilon in EPSILONS
        for index, lam in enumerate(PATH)
        for seed in SEEDS
    }
    return grid.filled(found)


def valley(epsilon: float, index: int, seed: int) -> float:
    """Least at `BEST`, half a step of the way to the left more expensive than to the right."""
    return 0.5 + 0.01 * seed + 0.1 * abs(index - BEST[epsilon]) + (0.05 if index < BEST[epsilon] else 0.0)


def named(grid: Grid, spec_id: str) -> Criterion:
    return next(each for each in claims(grid, "exam") if each.spec_id == spec_id)


def test_rate_and_lambda_are_chosen_by_validation_rows_alone() -> None:
    grid = Grid(("exam",), (2.0,), PATH, (0.01, 0.1), (7,))
    pairs = {lam: [(0.5, 0.1), (0.4, 0.9)] for lam in PATH} | {1.0: [(0.3, 0.8), (0.3, 0.2)]}
    grid = grid.filled({("exam", 2.0, lam, 7): found for lam, found in pairs.items()})
    assert grid.tests("exam", 2.0, LOCAL) == [0.9]  # The rate with .4 on validation rows, whatever the test says.
    assert grid.chosen("exam", 2.0) == [0.8]  # Of equals the first: a lower test error is no reason.
    assert grid.best("exam", 2.0) == 2


def test_a_valley_that_moves_left_holds_every_claim() -> None:
    grid = made(valley)
    assert all(each.passed for each in claims(grid, "exam"))
    assert [grid.wins("exam", epsilon) for epsilon in EPSILONS] == [1.0] * 4
    # At epsilon .5 local is 3 steps and .05 from the least, FedAvg one step: .35 - .1.
    assert named(grid, "mr_mtl.3").measured == pytest.approx(0.25)
    assert named(grid, "mr_mtl.2").measured == 0.0


def test_a_best_lambda_that_rises_by_two_steps_fails() -> None:
    turned = dict(zip((0.5, 2.0, 8.0), (1, 2, 3))) | {NO_PRIVACY: 1}
    grid = made(lambda epsilon, index, seed: 0.5 + 0.1 * abs(index - turned[epsilon]))
    assert named(grid, "mr_mtl.2").measured == 2.0
    assert not named(grid, "mr_mtl.2").passed
    assert not named(grid, "mr_mtl.3").passed  # And at the least epsilon local training is better.


def test_an_end_of_the_path_beats_nobody() -> None:
    assert [
        made(lambda e, index, s: 0.1 * index).wins("exam", 2.0),
        made(lambda e, i, s: -0.1 * i).wins("exam", 2.0),
    ] == [
        0.0,
        0.0,
    ]
    flat = made(lambda epsilon, index, seed: 0.5)
    assert flat.wins("exam", 2.0) == 0.0  # A tie is no win.
    assert not named(flat, "mr_mtl.1").passed


def test_seeds_that_win_count_only_where_an_inner_lambda_is_best_over_all() -> None:
    # In four seeds the middle is better by .01, in the fifth the left end by 1: over all five the end is best.
    grid = made(lambda e, index, seed: 2.0 - (index == 0) if seed == 4 else 1.0 - 0.01 * (index == 2))
    assert sum(own < end for own, end in zip(grid.chosen("exam", 2.0), grid.tests("exam", 2.0, LOCAL))) == 4
    assert (grid.best("exam", 2.0), grid.wins("exam", 2.0)) == (0, 0.0)


def test_three_of_five_seeds_are_too_few() -> None:
    def lucky(count: int) -> Grid:
        def error(epsilon: float, index: int, seed: int) -> float:
            return valley(epsilon, index, seed) if seed < count or index in (0, 4) else 0.9

        grid = made(error)
        inner = {place: pair for place, pair in grid.found.items() if place[2] not in (LOCAL, FEDAVG)}
        # Validation rows see the valley in every seed; the test rows only in some.
        seen = {place: (valley(place[1], PATH.index(place[2]), place[3]), pair[1]) for place, pair in inner.items()}
        return grid.filled({place: [seen.get(place, pair)] for place, pair in grid.found.items()})

    assert (lucky(4).wins("exam", 2.0), named(lucky(4), "mr_mtl.1").passed) == (0.8, True)
    assert (lucky(3).wins("exam", 2.0), named(lucky(3), "mr_mtl.1").passed) == (pytest.approx(0.6), False)


def test_the_goal_allows_one_standard_error() -> None:
    # Over five seeds the difference is 0, 0, 0, 0, .05: mean .01, standard error .01.
    def error(epsilon: float, index: int, seed: int) -> float:
        return {0: 0.9, 4: 0.5}.get(index, 0.95)

    grid = made(error)
    found = dict(grid.found) | {("exam", 2.0, 1.0, 4): (0.1, 0.55)}  # Validation rows of one seed err.
    grid = grid.filled({place: [pair] for place, pair in found.items()})
    assert excess(grid, "exam", 2.0) == pytest.approx(0.0, abs=1e-12)
    assert excess(grid, "exam", 0.5) == 0.0


def test_a_run_that_diverged_has_an_infinite_error_and_is_never_chosen() -> None:
    assert errors(Cell(failed="round 3: the model is no longer finite")) == (math.inf, math.inf)
    metrics = {"validation": {"mse": 0.5}, "test": {"mse": None}}
    assert errors(Cell({"metrics": metrics})) == (0.5, math.inf)
    lost = made(lambda epsilon, index, seed: math.inf)
    assert not any(each.passed for each in claims(lost, "exam") if each.spec_id != "mr_mtl.2")
    assert sheets(lost, {"exam": "about"})[0].body[0][1] == "none"
    assert figures(lost, {"exam": "about"}) == []


def test_the_figure_has_a_curve_per_epsilon_between_its_two_ends() -> None:
    (figure,) = figures(made(valley), {"exam": "about"})
    words = [f">{word}</text>" for word in ("local", "FedAvg", "0.1", "10", "epsilon 0.5", "epsilon 8", "no privacy")]
    assert all(word in figure.svg for word in words)
    assert len(mr_mtl_shown.rows(made(valley))) == 4 * 5 * 5


@pytest.mark.parametrize("data", SCHOOLS)
def test_every_cell_is_an_experiment_of_the_same_price(data: str) -> None:
    for method in (LOCAL, 0.3, FEDAVG, *RELATIVES.values()):
        own = experiment(Setting(data, 2.0, method, 0.03), 4)
        example = own.privacy.example
        assert example is not None
        rows = SCHOOLS[data].rows
        assert (example.epsilon, example.delta, example.rows, example.batch) == ((2.0,), 1e-3, (rows,), rows)
        assert example.delta < 1 / rows
        assert (own.rounds, own.train.steps, own.seed, own.data.public_test) == (ROUNDS, 1, 4, 0.0)
    assert experiment(Setting(data, NO_PRIVACY, 0.3, 0.03), 4).privacy.example is None


def test_unstable_pairs_are_left_out_for_everybody_alike() -> None:
    grid = Grid(("exam",), (2.0,), (LOCAL, 3.0, 10.0, FEDAVG), (0.03, 0.1, 0.3), (0,))
    kept = {(lam, setting.rate) for setting, lam in mr_mtl.settings(grid)}
    assert (10.0, 0.3) not in kept
    assert {(3.0, 0.3), (10.0, 0.1), (LOCAL, 0.3), (FEDAVG, 0.3)} <= kept
    assert len(kept) == 11


@pytest.mark.carrier
@pytest.mark.skipif(not (carriers.cache() / "schools").is_dir(), reason="needs: confide data fetch schools")
def test_a_tiny_grid_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.studies.mr_mtl_cells.ROUNDS", 2)
    ask = Ask(True, (0,), Cells(tmp_path), lambda line: None)
    grid = mr_mtl.trained(ask, Grid(("exam",), (8.0,), (LOCAL, 1.0, FEDAVG), (0.1,), (0,)))
    found = [grid.tests("exam", 8.0, lam)[0] for lam in grid.lambdas]
    assert all(0.3 < error < 1.5 for error in found)
    assert len(set(found)) == 3
