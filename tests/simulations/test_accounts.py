"""Budgets of data sets, as runs of them see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.account import BudgetSpent
from privacy.accountant import epsilon
from privacy.events import Composed, Event, Gaussian, Repeated
from privacy.ledger import LedgerError, load
from simulations.accounts import home, ledger_of
from simulations.folders import reopen
from simulations.running import ActiveRun, train
from strategies.experiment import Experiment
from strategies.loading import parse

DELTA = 1e-3
ROUND = Gaussian(2.0)


def price(*events: Event) -> float:
    return epsilon(Composed(events), DELTA).upper


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 4))
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(int))
    return tmp_path / "data.npz"


def experiment(data: Path, /, *, rounds: int = 4, budget: float | None = None, **changes: Any) -> Experiment:
    base: dict[str, Any] = {
        "rounds": rounds,
        "task": "logistic",
        "data": {"path": str(data), "silos": 8, "public_test": 0.2} | changes.pop("data", {}),
        "cohort": {"sampling": "all"},
        "train": {"steps": 1},
        "privacy": {"silo": {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": DELTA} | changes.pop("silo", {})},
        "budget": None if budget is None else {"epsilon": budget, "delta": DELTA},
    }
    return parse(base | changes)


def go(config: Experiment, folder: Path, *, rounds: int | None = None) -> dict[str, Any]:
    done: list[int] = []
    with ActiveRun(config, folder, resume=(folder / "experiment.yaml").exists()) as active:
        train(active, lambda result: done.append(result.round), stop=lambda: done[-1:] == [rounds])
        return active.finish().result


def shared() -> Path:
    (path,) = (home() / "ledgers").iterdir()
    return path


def test_two_runs_add_up_and_the_second_gets_what_is_left(data: Path, tmp_path: Path) -> None:
    budget = price(Repeated(ROUND, 6)) * (1 + 1e-9)
    first = go(experiment(data, budget=budget), tmp_path / "first")
    second = go(experiment(data, budget=budget, seed=1), tmp_path / "second")
    assert (first["rounds"], second["rounds"]) == (4, 2)
    assert first["privacy"]["cumulative"] == {
        "epsilon_upper": price(Repeated(ROUND, 4)),
        "delta": DELTA,
        "runs": 1,
        "charges": 4,
        "method": "exact",
        "budget": budget,
    }
    assert second["privacy"]["cumulative"]["runs"] == 2
    assert second["privacy"]["cumulative"]["epsilon_upper"] == price(Repeated(ROUND, 6)) <= budget
    assert second["privacy"]["silo"]["epsilon_upper"] == price(Repeated(ROUND, 2))  # Its own.
    assert "charged to this data set by other runs: first-" in second["stopped"]
    third = go(experiment(data, budget=budget, seed=2), tmp_path / "third")
    assert (third["rounds"], third["privacy"]["silo"]["epsilon_upper"]) == (0, 0)


def test_runs_without_a_budget_keep_no_account(data: Path, tmp_path: Path) -> None:
    assert go(experiment(data), tmp_path / "run")["privacy"]["cumulative"] is None
    assert not (home() / "ledgers").exists()


def test_the_account_is_of_the_data_whoever_deals_it(data: Path, tmp_path: Path) -> None:
    budget = price(Repeated(ROUND, 20))
    go(experiment(data, budget=budget), tmp_path / "first")
    go(experiment(data, budget=budget, data={"silos": 5}), tmp_path / "second")
    other = tmp_path / "other.npz"
    arrays = dict(np.load(data))
    np.savez(other, x=arrays["x"] + 1, y=arrays["y"])
    assert go(experiment(other, budget=budget), tmp_path / "third")["privacy"]["cumulative"]["runs"] == 1
    assert len(list((home() / "ledgers").iterdir())) == 2
    with ActiveRun(experiment(data, budget=budget), tmp_path / "fourth") as active:
        assert load(ledger_of(active.federation.fingerprint)).chain.charges("silo") == 8


def test_a_resumed_run_is_not_charged_twice(data: Path, tmp_path: Path) -> None:
    config = experiment(data, budget=price(Repeated(ROUND, 4)) * (1 + 1e-9))
    go(config, tmp_path / "run", rounds=2)
    result = go(reopen(tmp_path / "run"), tmp_path / "run")
    assert (result["rounds"], result["stopped"]) == (4, None)
    assert result["privacy"]["cumulative"]["charges"] == result["privacy"]["silo"]["charged_rounds"] == 4
    assert result["privacy"]["cumulative"]["runs"] == 1


def test_a_run_that_goes_on_elsewhere_counts_there_in_full(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment(data, budget=price(Repeated(ROUND, 4)) * (1 + 1e-9))
    go(config, tmp_path / "run", rounds=3)
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "elsewhere"))
    result = go(reopen(tmp_path / "run"), tmp_path / "run")
    cumulative = result["privacy"]["cumulative"]
    assert (cumulative["epsilon_upper"], cumulative["runs"], cumulative["charges"]) == (price(Repeated(ROUND, 4)), 1, 4)
    assert shared().is_relative_to(tmp_path / "elsewhere")


STANDARDIZE = {"standardize": {"name": "private", "low": -4.0, "high": 4.0, "noise_multiplier": 5.0}}


def test_private_standardisation_is_charged_to_the_data_first(data: Path, tmp_path: Path) -> None:
    before = Gaussian(5.0)
    config = experiment(data, budget=price(before, Repeated(ROUND, 4)) * (1 + 1e-9), data=STANDARDIZE)
    result = go(config, tmp_path / "first")
    assert (result["rounds"], result["privacy"]["cumulative"]["charges"]) == (4, 5)
    assert result["privacy"]["cumulative"]["epsilon_upper"] == result["privacy"]["silo"]["epsilon_upper"]
    with pytest.raises(BudgetSpent, match=r"round 0 would bring .*other runs: first-"):
        ActiveRun(config, tmp_path / "second")
    lines = (tmp_path / "second" / "ledger.jsonl").read_bytes()
    assert lines == b""  # Nothing was released, nothing is charged.


def test_another_relation_is_refused(data: Path, tmp_path: Path) -> None:
    go(experiment(data, budget=9.0), tmp_path / "first")
    with pytest.raises(LedgerError, match="does not add up with replace"):
        ActiveRun(experiment(data, budget=9.0, silo={"neighbours": "replace"}), tmp_path / "second")


def test_a_home_that_cannot_be_made_is_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "file"))
    with pytest.raises(LedgerError, match=r"cannot be made .*; set CONFIDE_HOME"):
        ActiveRun(experiment(data, budget=9.0), tmp_path / "run")


def test_where_the_ledgers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ledger_of("abc") == home() / "ledgers" / "abc.jsonl"
    monkeypatch.delenv("CONFIDE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert home() == Path("/data/confide")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert home() == Path.home() / ".local/share/confide"


def test_the_lines_name_the_run_and_the_data(data: Path, tmp_path: Path) -> None:
    go(experiment(data, budget=9.0, rounds=1), tmp_path / "my run")
    (line,) = map(json.loads, shared().read_text().splitlines())
    assert line["run"].startswith("my_run-")
    assert line["run"] == (tmp_path / "my run" / "account").read_text().strip()
    assert line["dataset"] == shared().stem
