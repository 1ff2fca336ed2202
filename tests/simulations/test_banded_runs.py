"""Whole runs whose silos take turns under banded noise: engines, resume, ledger, audit, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import privacy.banded
from privacy import verify
from privacy.accountant import epsilon
from privacy.band import Band
from privacy.banded import BandedSum
from privacy.events import Composed, Gaussian, Repeated, Turn
from privacy.mechanism import GaussianSum
from server.participation import InTurns
from server.sampler import CyclicCohort
from server.store import StoreError
from simulations import ledgers, planning
from simulations.cli import main
from simulations.planning import make_sampler, plan
from simulations.running import ActiveRun, train
from simulations.sweep.plan import Spec
from simulations.sweep.plan import event as sweep_event
from simulations.sweep.run import _charges
from strategies.base import Strategy
from strategies.experiment import Cohort, Experiment
from strategies.loading import parse
from strategies.rules import MOST_BANDED_ROUNDS
from strategies.schema import ConfigError

DELTA, ROUNDS, SILOS, SEPARATION = 1e-3, 7, 8, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    x = np.random.default_rng(0).normal(size=(80, 4))
    np.savez(path, x=x, y=(x[:, 0] > 0).astype(int))
    return path


def experiment(data: Path, *, silo: Mapping[str, Any] | None = None, **changes: Any) -> Experiment:
    base = {
        "rounds": ROUNDS,
        "task": "logistic",
        "data": {"path": str(data), "silos": SILOS},
        "cohort": {"sampling": "cyclic", "separation": SEPARATION},
        "train": {"steps": 2, "learning_rate": 0.5},
        "privacy": {
            "silo": {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": DELTA, "mechanism": "banded"}
            | dict(silo or {}),
            "audit": {"canaries": 5},
        },
        "engine": {"chunk": 2},
    }
    return parse(base | changes)


def go(config: Experiment, folder: Path, *, stop: int | None = None) -> dict[str, Any]:
    done: list[int] = []
    with ActiveRun(config, folder, resume=(folder / "experiment.yaml").exists()) as active:
        train(active, lambda result: done.append(result.round), stop=lambda: done[-1:] == [stop])
        return active.finish().result


def model(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    go(experiment(data), folder)
    return folder


def test_a_run_claims_one_gaussian_for_each_turn(whole: Path) -> None:
    claimed = json.loads((whole / "result.json").read_text())["privacy"]["silo"]
    assert claimed["epsilon_upper"] == epsilon(Repeated(Gaussian(2.0), 3), DELTA).upper
    assert claimed["charged_rounds"] == ROUNDS
    assert [ledgers.verify(place).problems for place in ledgers.find(whole)] == [()]


def test_the_ledger_alone_gives_epsilon_again(whole: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the library's own distributions; they are within 0.1% above the exact price here."""
    monkeypatch.setattr("sys.argv", ["verify.py", str(whole / "ledger.jsonl"), "--delta", str(DELTA)])
    verify.main()
    found = json.loads(capsys.readouterr().out)
    assert found["charges"] == ROUNDS
    assert found["epsilon"] == pytest.approx(epsilon(Repeated(Gaussian(2.0), 3), DELTA).upper, rel=1e-3)


def test_the_pool_trains_the_same_model(whole: Path, data: Path, tmp_path: Path) -> None:
    config = experiment(data, engine={"kind": "pool", "workers": 2, "chunk": 2})
    go(config, tmp_path / "run")
    assert model(tmp_path / "run") == model(whole)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_was_stopped_ends_at_the_same_model(whole: Path, data: Path, tmp_path: Path, stop: int) -> None:
    go(experiment(data), tmp_path / "run", stop=stop)
    result = go(experiment(data), tmp_path / "run")
    assert model(tmp_path / "run") == model(whole)
    assert result["privacy"]["silo"]["charged_rounds"] == ROUNDS


def test_another_matrix_cannot_go_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(experiment(data), tmp_path / "run", stop=2)
    monkeypatch.setattr(planning, "optimal", lambda rounds, separation: Band((1.0, 0.5, 0.3), rounds))
    with pytest.raises(StoreError, match="cannot go on, since matrix of the noise changed after it was started"):
        go(experiment(data), tmp_path / "run")


def test_banded_noise_trains_another_model_at_the_same_price(whole: Path, data: Path, tmp_path: Path) -> None:
    result = go(experiment(data, silo={"mechanism": "gaussian"}), tmp_path / "run")
    claimed = json.loads((whole / "result.json").read_text())["privacy"]["silo"]
    assert result["privacy"]["silo"]["epsilon_upper"] == claimed["epsilon_upper"]
    assert model(tmp_path / "run") != model(whole)


def test_canaries_take_turns_and_only_the_final_model_is_scored(whole: Path, data: Path, tmp_path: Path) -> None:
    measured = json.loads((whole / "result.json").read_text())["privacy"]["measured"]
    assert measured["all_iterates"] is None
    assert "a single step hides what sums of steps show" in measured["iterates_off"]
    with ActiveRun(experiment(data), tmp_path / "run") as active:
        assert active.link.participation == InTurns(5, SEPARATION)  # type: ignore[attr-defined]
        assert active.training.expected == pytest.approx((SILOS + 5) / SEPARATION)


def test_the_statement_says_how_turns_are_kept(whole: Path, capsys: Any) -> None:
    assert main(["explain", str(whole)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Silos take turns 3 rounds apart, so no cohort has to stay secret" in text
    assert "A silo is in at most 3 of the rounds, at least 3 apart." in text
    assert main(["ledger", "show", str(whole)]) == 0
    text = capsys.readouterr().out
    assert "Gaussian 2, silos in turn, paid by the cycle's first round" in text


def test_the_statement_warns_of_secret_noise_in_the_checkpoint(data: Path, tmp_path: Path, capsys: Any) -> None:
    silo = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": DELTA, "mechanism": "banded"}
    go(experiment(data, privacy={"silo": silo, "noise": "system"}), tmp_path / "run")
    assert main(["explain", str(tmp_path / "run")]) == 0
    assert "Delete the checkpoint of a run that will not go on." in " ".join(capsys.readouterr().out.split())


def test_a_budget_of_the_data_is_charged_by_cycles(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    limit = {"epsilon": epsilon(Repeated(Gaussian(2.0), 4), DELTA).upper * (1 + 1e-9), "delta": DELTA}
    first = go(experiment(data, budget=limit), tmp_path / "first")
    assert (first["rounds"], first["stopped"]) == (ROUNDS, None)
    second = go(experiment(data, budget=limit, seed=1), tmp_path / "second")  # One cycle is left of the four.
    assert second["rounds"] == 3
    assert "round 4 would bring epsilon of all runs on this data" in second["stopped"]


# Plans


def test_a_plan_has_a_noise_of_its_own_for_each_channel_and_prices_whole_cycles(data: Path) -> None:
    config = experiment(data)
    planned = plan(config, SILOS)
    assert make_sampler(Cohort(sampling="cyclic", separation=3), 8) == CyclicCohort(3, 8) == planned.sampler
    assert isinstance(planned.mechanisms["delta"], BandedSum)
    assert planned.mechanisms["delta"].band.bands == SEPARATION
    assert planned.mechanisms["delta"].tail is not plan(config, SILOS).mechanisms["delta"].tail  # type: ignore[union-attr]
    prices = [epsilon(planned.after(rounds), DELTA).upper for rounds in range(8)]
    turns = [epsilon(Repeated(Gaussian(2.0), k), DELTA).upper for k in range(6)]
    assert prices == [turns[k] for k in (0, 1, 1, 1, 2, 2, 2, 3)]
    assert epsilon(planned.after(9), DELTA).upper == turns[5]  # Attempts beyond the run's rounds are paid one by one.


def test_channels_share_the_price_and_not_the_noise(data: Path) -> None:
    @dataclass(frozen=True)
    class Two(Strategy):
        def channels(self, size: int) -> Mapping[str, int]:
            return {"delta": size, "control": size}

    planned = plan(replace(experiment(data), strategy=Two()), SILOS)
    one, two = planned.mechanisms.values()
    assert isinstance(one, BandedSum)
    assert isinstance(two, BandedSum)
    assert one.tail is not two.tail
    assert one.noise_multiplier == two.noise_multiplier == pytest.approx(2.0 * 2**0.5)
    assert planned.cost is not None
    assert planned.cost.upper == pytest.approx(epsilon(Repeated(Gaussian(2.0), 3), DELTA).upper, rel=1e-12)


def test_noise_is_solved_for_the_turns(data: Path) -> None:
    planned = plan(experiment(data, silo={"noise_multiplier": None, "epsilon": 2.0}), SILOS)
    assert planned.noise_multiplier is not None
    assert epsilon(Repeated(Gaussian(planned.noise_multiplier), 3), DELTA).upper <= 2.0
    assert epsilon(Repeated(Gaussian(0.998 * planned.noise_multiplier), 3), DELTA).upper > 2.0


@pytest.mark.parametrize(("neighbours", "half"), [("zero_out", 1.0), ("replace", 0.5)])
def test_other_relations_are_priced_by_how_far_a_silo_moves_a_sum(data: Path, neighbours: str, half: float) -> None:
    planned = plan(experiment(data, silo={"neighbours": neighbours}), SILOS)
    assert planned.cost is not None
    assert planned.cost.upper == pytest.approx(epsilon(Repeated(Gaussian(2.0 * half), 3), DELTA).upper, rel=1e-12)


def test_turns_without_banded_noise_cost_the_same(data: Path) -> None:
    planned = plan(experiment(data, silo={"mechanism": "gaussian"}), SILOS)
    assert planned.mechanisms == {"delta": GaussianSum(0.5, 2.0)}
    assert planned.event == Turn(Gaussian(2.0), charged=True)
    assert planned.cost == plan(experiment(data), SILOS).cost


def test_a_sweep_pays_for_rounds_that_were_done_again(data: Path, tmp_path: Path) -> None:
    with ActiveRun(experiment(data), tmp_path / "run") as active:
        for event in (active.plan.event, active.plan.event):
            active.ledger.reserve(1, event, unit="silo", neighbours="add_remove")
        paid = sweep_event(active.plan, SPEC, rounds=_charges(active))
        assert epsilon(paid, DELTA).upper == epsilon(Repeated(Gaussian(2.0), 3 + 1), DELTA).upper
        assert sweep_event(active.plan, SPEC, rounds=ROUNDS) == Composed((active.plan.after(ROUNDS),))


SPEC = Spec(("x=1,2",), "poisson", 2.0, 0.0, None, "public", None, "best")


# What is refused


@pytest.mark.parametrize(
    ("changes", "silo", "words"),
    [
        ({"cohort": {"sampling": "cyclic"}}, {}, r"cohort\.separation: missing, sampling: cyclic needs"),
        ({"cohort": {"sampling": "all", "separation": 3}}, {"mechanism": "gaussian"}, "only sampling: cyclic uses it"),
        ({"cohort": {"sampling": "cyclic", "separation": 9}}, {}, r"must be <= data\.silos = 8, got 9"),
        ({"cohort": {"sampling": "all"}}, {}, "banded noise has a price only where silos take turns, found .* all"),
        ({"cohort": {"sampling": "poisson", "rate": 0.5}}, {}, "found sampling: poisson; use cohort: "),
        ({"rounds": MOST_BANDED_ROUNDS + 1}, {}, "banded noise is for up to 10000 rounds, got 10001"),
        ({}, {"mechanism": "tree"}, r"privacy\.silo\.mechanism"),
    ],
)
def test_what_has_no_price_is_refused_in_one_line(
    data: Path, changes: Mapping[str, Any], silo: Mapping[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        experiment(data, silo=silo, **changes)
    assert len(refused.value.problems) == 1


def test_canaries_on_a_schedule_are_refused(data: Path) -> None:
    silo = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": DELTA, "mechanism": "banded"}
    audit = {"canaries": 5, "participation": "spread"}
    with pytest.raises(
        ConfigError, match=r"participation: found 'spread', but banded noise has a price for turns only"
    ):
        experiment(data, privacy={"silo": silo, "audit": audit})


def test_the_limits_of_the_schema_are_those_of_the_noise() -> None:
    from privacy.band import MOST_ROUNDS

    assert MOST_BANDED_ROUNDS == MOST_ROUNDS


def test_noise_that_takes_too_much_memory_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten numbers (4 features and a bias, 2 classes) twice."""
    monkeypatch.setattr(planning, "MOST_NUMBERS", 2 * 10 - 1)
    with pytest.raises(ConfigError, match=r"keeps \(separation - 1\) x parameters = 20 numbers, above the limit of 19"):
        go(experiment(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(planning, "MOST_NUMBERS", 2 * 10)
    go(experiment(data), tmp_path / "run", stop=1)
    assert privacy.banded.MOST_NUMBERS * 8 == 256 * 2**20
