"""Example-level privacy of whole runs: noise solved per silo, steps paid before they are taken, engines that agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.dpsgd import DPSGD
from privacy.accountant import epsilon
from privacy.events import Gaussian, Poisson, Repeated, Sampled, from_json
from privacy.ledger import Ledger
from privacy.steps import NoisySteps
from server.store import StoreError
from simulations.example_privacy import plan
from simulations.folders import reopen
from simulations.preparing import prepare
from simulations.running import ActiveRun, Outcome, train
from strategies.experiment import Engine, Experiment
from strategies.loading import parse
from strategies.schema import ConfigError

DELTA = 1e-3
EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": 1.5, "delta": DELTA, "rows": 40, "batch": 10}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 4))
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(int))
    return tmp_path / "data.npz"


def experiment(data: Path, example: Mapping[str, Any] = EXAMPLE, /, **changes: Any) -> Experiment:
    base: dict[str, Any] = {
        "rounds": 4,
        "task": "logistic",
        "data": {"path": str(data), "silos": 6, "public_test": 0.1, "test": 0.1},
        "cohort": {"sampling": "all"},
        "train": {"steps": 3, "learning_rate": 0.5},
        "privacy": {"example": dict(example)},
    }
    return parse(base | changes)


def go(config: Experiment, folder: Path, *, resume: bool = False, rounds: int | None = None) -> Outcome:
    done: list[int] = []
    with ActiveRun(config, folder, resume=resume) as active:
        train(active, lambda result: done.append(result.round), stop=lambda: done[-1:] == [rounds])
        return active.finish()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "silos-ledger.jsonl").read_text().splitlines()]


def reserves(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines(folder) if line["kind"] == "reserve"]


def test_what_the_ledger_holds_is_what_was_run_and_gives_the_claim(
    data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    taken: list[tuple[int, int]] = []
    original = DPSGD.fit

    def counted(self: DPSGD, *args: Any, **kwargs: Any) -> Any:
        charged = {
            silo for line in reserves(tmp_path / "run") for silo in line["silos"] if line["round"] == kwargs["round_"]
        }
        assert charged >= set(kwargs["silos"])  # Paid before the first step.
        taken.extend((kwargs["round_"], silo) for silo in kwargs["silos"] for _ in range(self.steps))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DPSGD, "fit", counted)
    result = go(experiment(data, cohort={"sampling": "poisson", "rate": 0.5}), tmp_path / "run").result
    step = Sampled(Poisson(0.25), Gaussian(1.5))
    assert {from_json(line["event"]) for line in reserves(tmp_path / "run")} == {Repeated(step, 3)}
    paid = [(line["round"], silo) for line in reserves(tmp_path / "run") for silo in line["silos"] for _ in range(3)]
    assert sorted(paid) == sorted(taken)
    worst = max(sum(silo == each for _, each in taken) for silo in range(6))
    claimed = result["privacy"]["example"]
    assert claimed["epsilon_upper"] == epsilon(Repeated(step, worst), DELTA).upper
    assert claimed["steps"] == worst
    assert claimed["per_silo"]["p10"] <= claimed["per_silo"]["p50"] <= claimed["per_silo"]["p90"]
    assert (claimed["neighbours"], claimed["delta"]) == ("add_remove", DELTA)


def test_sampling_silos_saves_an_asked_silo_nothing(data: Path, tmp_path: Path) -> None:
    # Cohort amplification for the asked rounds alone would be below the truth.
    result = go(experiment(data, cohort={"sampling": "fixed", "size": 1}, rounds=1), tmp_path / "run").result
    step = Sampled(Poisson(0.25), Gaussian(1.5))
    assert result["privacy"]["example"]["epsilon_upper"] == epsilon(Repeated(step, 3), DELTA).upper
    assert result["privacy"]["example"]["per_silo"]["p50"] == 0.0


@pytest.mark.parametrize("targets", [[3.0], [1.0, 1.0, 8.0, 8.0, 1.0, 8.0]], ids=["one", "per silo"])
def test_each_silos_epsilon_is_within_half_a_percent_below_its_target(data: Path, targets: list[float]) -> None:
    example = {name: value for name, value in EXAMPLE.items() if name != "noise_multiplier"}
    found = plan(experiment(data, example | {"epsilon": targets}), 6)
    assert found is not None
    for target, event in zip(targets * (6 // len(targets)), found.events):
        spent = epsilon(Repeated(event, 4), DELTA).upper
        assert 0.995 * target <= spent <= target


def test_one_silos_target_changes_no_other_silos_noise(data: Path) -> None:
    example = {name: value for name, value in EXAMPLE.items() if name != "noise_multiplier"}
    plans = [plan(experiment(data, example | {"epsilon": [2.0] * 5 + [last]}), 6) for last in (2.0, 5.0)]
    assert plans[0] is not None
    assert plans[1] is not None
    assert plans[0].noise[:5] == plans[1].noise[:5]
    assert plans[0].noise[5] > plans[1].noise[5]


def test_the_rate_is_public_and_the_same_however_many_rows_a_silo_holds(data: Path) -> None:
    skewed = experiment(data, data={"path": str(data), "silos": 6, "partition": {"name": "quantity", "alpha": 0.5}})
    even = experiment(data)
    assert len(set(prepare(skewed).federation.train.sizes.tolist())) > 1
    assert prepare(skewed).plan.example == prepare(even).plan.example
    own = plan(experiment(data, EXAMPLE | {"rows": [40, 20, 40, 80, 40, 10]}), 6)
    assert own is not None
    assert [silo.rate for silo in own.silos] == [0.25, 0.5, 0.25, 0.125, 0.25, 1.0]


@pytest.mark.parametrize("task", ["logistic", {"name": "mlp", "hidden": [5]}], ids=["logistic", "mlp"])
def test_engines_agree_to_the_bit(data: Path, tmp_path: Path, task: Any) -> None:
    config = experiment(data, EXAMPLE | {"noise_multiplier": [1.0, 2.0, 1.0, 3.0, 1.0, 1.5]}, task=task)
    config = replace(config, engine=Engine(chunk=2))
    pool = replace(config, engine=Engine(kind="pool", workers=2, chunk=2))
    results = [go(each, tmp_path / name).result for name, each in (("local", config), ("pool", pool))]
    assert results[0]["model"]["sha256"] == results[1]["model"]["sha256"]
    assert results[0]["privacy"] == results[1]["privacy"]


def test_resumed_runs_end_with_the_same_model_and_the_same_claim(data: Path, tmp_path: Path) -> None:
    config = experiment(data)
    whole = go(config, tmp_path / "whole").result
    go(config, tmp_path / "run", rounds=2)
    resumed = go(reopen(tmp_path / "run"), tmp_path / "run", resume=True).result
    assert resumed["model"]["sha256"] == whole["model"]["sha256"]
    assert resumed["privacy"] == whole["privacy"]
    assert [line["kind"] for line in lines(tmp_path / "run")] == ["reserve", "commit"] * 4


def test_a_round_that_was_paid_and_broken_off_is_paid_again(data: Path, tmp_path: Path) -> None:
    config, event = experiment(data), Repeated(Sampled(Poisson(0.25), Gaussian(1.5)), 3)
    go(config, tmp_path / "run", rounds=2)
    with ActiveRun(reopen(tmp_path / "run"), tmp_path / "run", resume=True) as active:
        assert active.silo_ledger is not None
        active.silo_ledger.reserve_each(3, [(event, range(6))], unit="example", neighbours="add_remove")
    resumed = go(reopen(tmp_path / "run"), tmp_path / "run", resume=True).result
    assert resumed["privacy"]["example"]["epsilon_upper"] == epsilon(Repeated(event, 5), DELTA).upper
    assert resumed["model"]["sha256"] == go(config, tmp_path / "whole").result["model"]["sha256"]


def test_a_silos_ledger_that_lost_lines_or_changed_price_is_refused(data: Path, tmp_path: Path) -> None:
    config = experiment(data)
    go(config, tmp_path / "run", rounds=3)
    path = tmp_path / "run" / "silos-ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"\n".join(whole.split(b"\n")[:4]) + b"\n")
    with pytest.raises(StoreError, match=r"silos-ledger.jsonl: not the ledger that the checkpoint knows"):
        go(config, tmp_path / "run", resume=True)
    path.write_bytes(whole)
    other = experiment(data, EXAMPLE | {"noise_multiplier": 3.0})
    with pytest.raises(ValueError, match=r"cannot go on"):
        go(other, tmp_path / "run", resume=True)


def test_both_units_are_reported_side_by_side_and_never_added(data: Path, tmp_path: Path) -> None:
    silo = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": DELTA}
    both = go(experiment(data, privacy={"silo": silo, "example": EXAMPLE}), tmp_path / "both").result["privacy"]
    alone = go(experiment(data), tmp_path / "alone").result["privacy"]
    assert both["silo"]["epsilon_upper"] == epsilon(Repeated(Gaussian(2.0), 4), DELTA).upper
    assert both["example"] == alone["example"]
    assert alone["silo"] is None


def test_strict_metrics_hold_back_numbers_of_private_rows(data: Path, tmp_path: Path) -> None:
    strict = go(experiment(data), tmp_path / "strict")
    rows = [json.loads(line) for line in (strict.folder / "rounds.jsonl").read_text().splitlines()]
    assert strict.result["metrics"]["per_silo"] is None
    assert {row["train_loss"] for row in rows} == {None}
    research = go(experiment(data, metrics={"privacy": "research"}), tmp_path / "research")
    assert research.result["metrics"]["per_silo"] is not None
    assert research.result["model"]["sha256"] == strict.result["model"]["sha256"]
    assert any("research" in note for note in research.result["notes"])


@pytest.mark.parametrize("task", [{"name": "cnn", "channels": [4], "hidden": 8}], ids=["cnn"])
def test_models_of_other_layers_run_too(tmp_path: Path, task: Any) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(240, 1, 8, 8)), y=rng.integers(0, 3, size=240))
    result = go(experiment(tmp_path / "data.npz", task=task, rounds=2), tmp_path / "run").result
    assert result["privacy"]["example"]["steps"] == 6


REFUSED = [
    ({"train": {"epochs": 1}}, {}, "train.steps: missing"),
    ({"train": {"steps": 2, "batch_size": 5}}, {}, "train.batch_size: found 5, but privacy.example.batch"),
    ({}, {"epsilon": 3.0}, "give one of noise_multiplier and epsilon, found both"),
    ({}, {"noise_multiplier": None}, "give one of noise_multiplier and epsilon, found neither"),
    ({}, {"batch": 41}, "privacy.example.batch: must be <= rows = 40, got 41.0"),
    ({}, {"delta": 0.025}, "privacy.example.delta: must be < 1 / rows = 0.025, got 0.025"),
    ({}, {"rows": [40, 41]}, "privacy.example.rows: found 2 numbers for 6 silos"),
    ({}, {"rows": []}, "privacy.example.rows: found an empty list"),
    ({"strategy": {"name": "fedavg", "weighting": "examples"}}, {}, "strategy.weighting: 'examples' counts"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "example", "message"), REFUSED, ids=[row[2][:40] for row in REFUSED])
def test_what_cannot_be_priced_is_refused_in_one_line(
    data: Path, changes: dict[str, Any], example: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(data, EXAMPLE | example, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_large_delta_can_be_insisted_on(data: Path) -> None:
    assert experiment(data, EXAMPLE | {"delta": 0.5, "allow_large_delta": True}).privacy.example is not None


@pytest.mark.parametrize("standardize", ["own"])
def test_scaling_by_private_rows_is_refused(data: Path, standardize: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.standardize: own looks at all rows of a silo"):
        experiment(data, data={"path": str(data), "silos": 6, "standardize": standardize})


def test_lists_are_checked_against_the_silos_that_the_data_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(60, 4)), y=rng.integers(0, 2, size=60), silo=np.arange(60) % 3)
    named = {"path": str(tmp_path / "d.npz"), "partition": "column"}
    with pytest.raises(ConfigError, match=r"rows: found 2 numbers for 3 silos; give one, or one per silo"):
        prepare(experiment(tmp_path / "d.npz", EXAMPLE | {"rows": [40, 41]}, data=named))


def test_one_wait_for_the_disk_does_for_all_reserves_of_a_round(tmp_path: Path, monkeypatch: Any) -> None:
    ledger, waits = Ledger(tmp_path / "ledger.jsonl", run="r", dataset="d"), []
    monkeypatch.setattr("privacy.ledger.os.fsync", lambda _: waits.append(ledger.path.read_bytes().count(b"\n")))
    ledger.reserve_each(1, [(Gaussian(z), [0]) for z in (1.0, 2.0, 3.0)], unit="example", neighbours="add_remove")
    assert waits == [3]  # All lines were there by then.
    ledger.close()


def test_spent_by_counts_each_silos_events_once_each(tmp_path: Path) -> None:
    first, second = Gaussian(1.0), Gaussian(2.0)
    ledger = Ledger(tmp_path / "ledger.jsonl", run="r", dataset="d")
    entries = ledger.reserve_each(1, [(first, [0, 2]), (second, [1])], unit="example", neighbours="add_remove")
    ledger.reserve_each(2, [(first, [0])], unit="example", neighbours="add_remove")
    ledger.void(entries[1])
    ledger.close()
    again = Ledger(tmp_path / "ledger.jsonl", run="r", dataset="d")
    assert again.spent_by("example", range(3)) == {0: {first: 2}, 1: {}, 2: {first: 1}}
    assert again.spent_by("silo", range(2)) == {0: {}, 1: {}}
    again.reserve(3, second, unit="example", neighbours="add_remove")  # It names no silo: all of them pay.
    assert again.spent_by("example", range(3)) == {0: {first: 2, second: 1}, 1: {second: 1}, 2: {first: 1, second: 1}}
    again.close()


def test_a_torn_line_is_charged_to_every_silo_at_the_dearest_price(data: Path, tmp_path: Path) -> None:
    """What silo the line was for is lost with it."""
    noise = {"noise_multiplier": [1.0] + [2.0] * 5}
    before = go(experiment(data, EXAMPLE | noise), tmp_path / "run", rounds=2).result["privacy"]["example"]
    path = tmp_path / "run" / "silos-ledger.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"check": "12')
    after = go(experiment(data, EXAMPLE | noise), tmp_path / "run", resume=True).result["privacy"]["example"]
    steps = NoisySteps(1.0, 1.0, 10.0, 40)
    assert before["steps"] == 2 * 3
    assert after["steps"] == (4 + 1) * 3
    assert after["epsilon_upper"] == epsilon(Repeated(steps.event(3), 5), DELTA).upper


def test_secret_noise_and_batches_are_not_drawn_twice(data: Path, tmp_path: Path) -> None:
    config = experiment(data, privacy={"example": EXAMPLE, "noise": "system"})
    one, two = go(config, tmp_path / "a"), go(config, tmp_path / "b")
    assert one.result["model"]["sha256"] != two.result["model"]["sha256"]
    assert one.result["privacy"]["example"] == two.result["privacy"]["example"]
    assert any(stamp.startswith("system noise") for stamp in one.result["notes"])
