from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from privacy.accountant import epsilon
from privacy.events import Gaussian, Repeated
from privacy.ledger import LedgerError
from server.store import StoreError
from simulations import preparing
from simulations.folders import reopen
from simulations.metrics.names import WITHHELD
from simulations.running import INTERRUPTED, ActiveRun, Outcome, run, train
from strategies.experiment import Experiment, LocalPrivacy, Privacy
from strategies.loading import parse
from strategies.schema import ConfigError

DELTA = 1e-3
SILO = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": DELTA}


def price(rounds: int) -> float:
    return epsilon(Repeated(Gaussian(2.0), rounds), DELTA).upper


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_rows(tmp_path / "data.npz", seed=0)
    return tmp_path / "data.npz"


def write_rows(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(80, 4))
    np.savez(path, x=x, y=(x[:, 0] > 0).astype(int))


def experiment(data: Path, /, **changes: Any) -> Experiment:
    base: dict[str, Any] = {
        "rounds": 6,
        "task": "logistic",
        "data": {"path": str(data), "silos": 8, "public_test": 0.2, "test": 0.2},
        "cohort": {"sampling": "all"},
        "train": {"steps": 2, "learning_rate": 0.5},
        "privacy": {"silo": SILO},
    }
    return parse(base | changes)


def go(config: Experiment, folder: Path, *, resume: bool = False, rounds: int | None = None) -> Outcome:
    """Runs to the end, or until `rounds` rounds are done."""
    done: list[int] = []
    with ActiveRun(config, folder, resume=resume) as active:
        train(active, lambda result: done.append(result.round), stop=lambda: done[-1:] == [rounds])
        return active.finish()


def contents(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_leaves_its_model_its_lines_and_its_claim(data: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    outcome = run(experiment(data), out=tmp_path / "run", on_round=lambda result: seen.append(result.round))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert outcome.folder == tmp_path / "run"
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == outcome.result
    rows = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    claimed = outcome.result["privacy"]["silo"]
    assert rows[-1]["epsilon"] == claimed["epsilon_upper"] == price(6)
    assert outcome.read().series("epsilon") == [(row["round"], row["epsilon"]) for row in rows]
    assert rows[-1]["accuracy"] == outcome.result["metrics"]["accuracy"]
    assert (outcome.result["rounds"], claimed["charged_rounds"], outcome.result["stopped"]) == (6, 6, None)
    model = tmp_path / "run" / "model.safetensors"
    assert outcome.result["model"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert sum(tensor.numel() for tensor in load_file(model).values()) == 10
    assert parse(yaml.safe_load((tmp_path / "run" / "experiment.yaml").read_text())) == experiment(data)


def test_the_same_experiment_gives_the_same_bits_and_another_seed_others(data: Path, tmp_path: Path) -> None:
    models = [
        go(experiment(data, seed=seed), tmp_path / name).result["model"]["sha256"]
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert models[0] == models[1] != models[2]


def test_system_noise_gives_another_model_every_time_and_says_so(data: Path, tmp_path: Path) -> None:
    config = experiment(data, privacy={"silo": SILO, "noise": "system"})
    results = [go(config, tmp_path / name).result for name in ("a", "b")]
    assert results[0]["model"]["sha256"] != results[1]["model"]["sha256"]
    for result in results:
        assert [note.split(":")[0] for note in result["notes"] if "noise" in note] == ["system noise"]
        assert result["privacy"]["silo"]["epsilon_upper"] == price(6)  # It costs what simulated noise costs.
    page = (tmp_path / "a" / "report.html").read_text()
    assert "System noise: not reproducible" in page
    assert "trains another model" in page
    assert "trains the same model again" not in page


def test_system_noise_goes_on_after_a_stop_and_refuses_to_become_simulated(data: Path, tmp_path: Path) -> None:
    config = experiment(data, privacy={"silo": SILO, "noise": "system"}, cohort={"rate": 0.5})
    go(config, tmp_path / "run", rounds=2)
    with pytest.raises(StoreError, match="experiment changed"):
        go(experiment(data, cohort={"rate": 0.5}), tmp_path / "run", resume=True)
    result = go(config, tmp_path / "run", resume=True).result
    assert result["rounds"] == result["privacy"]["silo"]["charged_rounds"] == 6


def test_global_generators_and_threads_are_left_as_they_were(data: Path, tmp_path: Path) -> None:
    threads, state, numpy_state = torch.get_num_threads(), torch.get_rng_state(), np.random.get_state()[1]
    torch.set_num_threads(2)
    try:
        go(experiment(data), tmp_path / "run")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_a_budget_stops_the_run_before_the_round_that_would_pass_it(data: Path, tmp_path: Path) -> None:
    config = experiment(data, rounds=40, budget={"epsilon": price(3) * 1.001, "delta": DELTA})
    result = go(config, tmp_path / "run").result
    assert result["rounds"] == result["privacy"]["silo"]["charged_rounds"] == 3
    assert result["stopped"].startswith("budget: round 4 would bring epsilon to")
    assert result["privacy"]["silo"]["epsilon_upper"] == price(3)
    again = go(reopen(tmp_path / "run"), tmp_path / "run", resume=True).result
    assert again == result  # Nothing more was asked, nothing more was charged.


def test_a_run_that_was_stopped_goes_on_to_the_same_end(data: Path, tmp_path: Path) -> None:
    config = experiment(data)
    whole = go(config, tmp_path / "whole").result
    stopped = go(config, tmp_path / "run", rounds=2).result
    assert (stopped["stopped"], stopped["rounds"]) == (INTERRUPTED, 2)
    resumed = go(reopen(tmp_path / "run"), tmp_path / "run", resume=True).result
    for name in ("model", "metrics", "privacy", "communication", "rounds", "stopped"):
        assert resumed[name] == whole[name], name


def test_stopping_before_the_first_round_charges_nothing(data: Path, tmp_path: Path) -> None:
    with ActiveRun(experiment(data), tmp_path / "run") as active:
        train(active, stop=lambda: True)
        result = active.finish().result
    assert (result["stopped"], result["rounds"]) == (INTERRUPTED, 0)
    assert result["privacy"]["silo"]["epsilon_upper"] == 0
    assert go(reopen(tmp_path / "run"), tmp_path / "run", resume=True).result["rounds"] == 6


def test_a_run_that_is_done_cannot_be_resumed(data: Path, tmp_path: Path) -> None:
    go(experiment(data), tmp_path / "run")
    with pytest.raises(StoreError, match="all 6 rounds are done; nothing to resume"):
        reopen(tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate: 0.5", "learning_rate: 0.6"), ("seed: 0", "seed: 1"), ("rounds: 6", "rounds: 7")],
)
def test_an_edited_experiment_cannot_go_on(data: Path, tmp_path: Path, key: str, value: str) -> None:
    go(experiment(data), tmp_path / "run", rounds=2)
    path = tmp_path / "run" / "experiment.yaml"
    assert path.read_text().count(key) == 1
    path.write_text(path.read_text().replace(key, value))
    before = contents(tmp_path / "run")
    with pytest.raises(StoreError, match="cannot go on, since experiment changed after it was started"):
        go(reopen(tmp_path / "run"), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before


def test_another_noise_cannot_go_on(data: Path, tmp_path: Path) -> None:
    go(experiment(data), tmp_path / "run", rounds=2)
    with pytest.raises(StoreError, match="cannot go on"):
        go(experiment(data, privacy={"silo": SILO | {"noise_multiplier": 9.0}}), tmp_path / "run", resume=True)


def test_other_data_cannot_go_on(data: Path, tmp_path: Path) -> None:
    go(experiment(data), tmp_path / "run", rounds=2)
    write_rows(data, seed=1)
    with pytest.raises(StoreError, match="cannot go on, since data changed after it was started"):
        go(reopen(tmp_path / "run"), tmp_path / "run", resume=True)


def test_lines_cut_from_the_ledger_are_missed(data: Path, tmp_path: Path) -> None:
    go(experiment(data), tmp_path / "run", rounds=3)
    path = tmp_path / "run" / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    with pytest.raises(StoreError, match="lines were cut, restore it from a copy"):
        go(reopen(tmp_path / "run"), tmp_path / "run", resume=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with pytest.raises(LedgerError, match="the hash chain is broken"):
        go(reopen(tmp_path / "run"), tmp_path / "run", resume=True)
    path.write_bytes(b"".join(lines))
    assert go(reopen(tmp_path / "run"), tmp_path / "run", resume=True).result["rounds"] == 6


def test_where_and_how_it_runs_may_change(data: Path, tmp_path: Path) -> None:
    config = experiment(data)
    whole = go(config, tmp_path / "whole").result
    go(config, tmp_path / "run", rounds=2)
    moved = data.with_name("moved.npz")
    data.rename(moved)
    changed = experiment(
        moved,
        name="other",
        metrics={"every": 3},
        data={"path": str(moved), "silos": 8, "public_test": 0.2, "test": 0.2},
    )
    result = go(changed, tmp_path / "run", resume=True).result
    assert result["model"] == whole["model"]


def test_two_runs_cannot_share_a_folder(data: Path, tmp_path: Path) -> None:
    config = experiment(data)
    with ActiveRun(config, tmp_path / "run"):
        with pytest.raises(StoreError, match="holds a run already"):
            ActiveRun(config, tmp_path / "run")
        with pytest.raises(StoreError, match="another process runs here"):
            ActiveRun(config, tmp_path / "run", resume=True)
    go(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "linear", "data": {"name": "digits", "silos": 8}},  # For numbers, not for classes.
        {"data": {"path": "nowhere.npz", "silos": 8}},
        {"data": {"name": "digits", "partition": "column"}},  # It names no silos.
    ],
)
def test_a_run_that_is_refused_leaves_no_folder(data: Path, tmp_path: Path, changes: Mapping[str, Any]) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(ValueError) as caught:
        ActiveRun(experiment(data, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert torch.get_num_threads() == threads


def test_a_ledger_that_cannot_be_opened_lets_the_folder_go(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "ledger.jsonl").mkdir(parents=True)
    threads = torch.get_num_threads()
    with pytest.raises(LedgerError, match="cannot be written"):
        ActiveRun(experiment(data), tmp_path / "run")
    assert torch.get_num_threads() == threads
    (tmp_path / "run" / "ledger.jsonl").rmdir()
    assert go(reopen(tmp_path / "run"), tmp_path / "run", resume=True).result["rounds"] == 6


def test_a_task_that_does_not_fit_is_named(data: Path) -> None:
    with pytest.raises(ConfigError, match="task: linear is for regression, but the data is classification"):
        preparing.prepare(experiment(data, task="linear", data={"name": "digits", "silos": 8}))
    with pytest.raises(ConfigError, match="task: logistic is for classification, but the data is regression"):
        preparing.prepare(experiment(data, task="logistic", data={"path": str(data), "silos": 8, "kind": "regression"}))


def test_strict_metrics_hold_private_numbers_back_and_change_no_bit(data: Path, tmp_path: Path) -> None:
    strict = go(experiment(data), tmp_path / "strict").result
    research = go(experiment(data, metrics={"privacy": "research"}), tmp_path / "research").result
    assert strict["model"] == research["model"]
    assert strict["metrics"]["per_silo"] is None
    assert set(research["metrics"]["per_silo"]) == {"p10", "p50", "p90"}
    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "rounds.jsonl").read_text().splitlines()]
        for name in ("strict", "research")
    }
    assert all(row["train_loss"] is row["clip_fraction"] is None for row in rows["strict"])
    assert all(row["train_loss"] > 0 and 0 <= row["clip_fraction"] <= 1 for row in rows["research"])


def test_canaries_widen_the_divisor_and_nothing_else(data: Path, tmp_path: Path) -> None:
    plain = experiment(data)
    audited = experiment(data, privacy={"silo": SILO, "audit": {"canaries": 20}})
    with ActiveRun(plain, tmp_path / "plain") as without, ActiveRun(audited, tmp_path / "audited") as with_them:
        assert without.training.expected == 8.0
        assert with_them.training.expected == 28.0
        first, second = next(iter(without)).row, next(iter(with_them)).row
    for name in ("cohort", "arrived", "failures", "bytes_up", "bytes_down", "epsilon"):
        assert first[name] == second[name], name


def test_no_canaries_and_no_audit_are_the_same_run(data: Path, tmp_path: Path) -> None:
    nothing = go(experiment(data), tmp_path / "nothing").result
    zero = go(experiment(data, privacy={"silo": SILO, "audit": {"canaries": 0}}), tmp_path / "zero").result
    assert nothing["model"] == zero["model"]
    assert zero["privacy"]["measured"] is None


def test_without_privacy_nothing_is_claimed(data: Path, tmp_path: Path) -> None:
    result = go(experiment(data, privacy={}), tmp_path / "run").result
    names = ("silo", "local", "example", "measured", "measured_example", "cumulative", "cumulative_example")
    assert result["privacy"] == dict.fromkeys(names)
    assert result["metrics"]["accuracy"] > 0.5


@pytest.mark.parametrize("torn", ["", '{"rou'])
def test_a_resumed_run_that_is_stopped_at_once_reports_the_round_of_its_checkpoint(
    data: Path, tmp_path: Path, torn: str
) -> None:
    """Killed between the checkpoint and the round's line, or in the middle of the line."""
    whole = go(experiment(data), tmp_path / "run", rounds=3).result
    path = tmp_path / "run" / "rounds.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + torn)
    with ActiveRun(reopen(tmp_path / "run"), tmp_path / "run", resume=True) as active:
        train(active, stop=lambda: True)
        result = active.finish().result
    assert result["rounds"] == 3
    assert {name: result[name] for name in ("model", "privacy", "communication")} == {
        name: whole[name] for name in ("model", "privacy", "communication")
    }
    assert path.read_text() == "".join(lines)


def test_what_epsilon_does_not_cover_is_said(data: Path, tmp_path: Path) -> None:
    private = go(experiment(data), tmp_path / "private").result["notes"]
    assert "epsilon does not cover counts (silos, cohorts, failures, bytes) and times, which are exact" in private
    assert not any("epsilon" in note for note in go(experiment(data, privacy={}), tmp_path / "open").result["notes"])


def test_what_is_withheld_is_named_and_what_is_not_is_stamped(data: Path, tmp_path: Path) -> None:
    runs = {"strict": {}, "research": {"metrics": {"privacy": "research"}}, "none": {"privacy": {}}}
    for kind, changes in runs.items():
        result = go(experiment(data, **changes), tmp_path / kind).result
        withheld = list(WITHHELD) if kind == "strict" else []
        assert result["shown"] == {"privacy": kind, "withheld": withheld}
        words = [f"metrics.privacy is {each}" in " ".join(result["notes"]) for each in ("strict", "research")]
        assert words == [kind == "strict", kind == "research"]
        report = (tmp_path / kind / "report.html").read_text()
        assert ("metrics.privacy is research" in report.lower()) == (kind == "research")
        assert all(name in report for name in withheld)


def test_the_plan_and_the_loop_charge_the_same_event(data: Path, tmp_path: Path) -> None:
    cohorts = ({"sampling": "all"}, {"sampling": "poisson", "rate": 0.5})
    for number, (cohort, privacy) in enumerate((c, p) for c in cohorts for p in ({"silo": SILO}, {})):
        config = experiment(data, cohort=cohort, privacy=privacy)
        with ActiveRun(config, tmp_path / str(number)) as active:
            assert active.plan.event == active.training.event


def test_an_experiment_that_no_file_was_read_for_has_the_same_rules(data: Path, tmp_path: Path) -> None:
    """Against the server, add_remove would be priced as half of what a silo's other data costs."""
    local = LocalPrivacy(clip_norm=0.5, noise_multiplier=5.0, delta=DELTA, neighbours="add_remove")
    loose = replace(experiment(data), privacy=Privacy(local=local))
    with pytest.raises(ConfigError, match=r"privacy\.local\.neighbours: the server sees who answers"):
        run(loose, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
