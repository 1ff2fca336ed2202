"""A run whose cohorts have a cap: what it asks, charges, shows and proves, by its commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from privacy import verify
from privacy.accountant import epsilon
from privacy.events import Capped, Gaussian, Poisson, Repeated, Sampled
from privacy.ledger import load
from simulations import run
from simulations.cli import main
from simulations.report.run import read_run
from simulations.report.sections import _expected
from strategies.loading import parse

CONFIG: dict[str, Any] = {
    "rounds": 6,
    "task": "logistic",
    "data": {"name": "digits", "silos": 30, "limit": 400},
    "cohort": {"sampling": "poisson", "rate": 0.5, "cap": 14},
    "train": {"steps": 1},
    "privacy": {"silo": {"clip_norm": 0.5, "noise_multiplier": 3.0, "delta": 1e-3}},
}
EVENT = Sampled(Capped(0.5, 14, 30), Gaussian(3.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "capped"
    run(parse(CONFIG), out=path)
    return path


def said(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main([*map(str, argv)]) == 0
    return capsys.readouterr().out


def test_it_asks_no_more_than_the_cap_and_pays_for_it(folder: Path) -> None:
    sizes = [json.loads(line)["cohort"] for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert len(sizes) == 6
    assert max(sizes) == 14  # A coin of 30 comes to 14 or more with probability .71: six times less, .29^6 = 6e-4.
    assert load(folder / "ledger.jsonl").chain.spent("silo") == [EVENT] * 6
    claimed = json.loads((folder / "result.json").read_text())["privacy"]["silo"]
    assert claimed["epsilon_upper"] == epsilon(Repeated(EVENT, 6), 1e-3).upper
    assert claimed["epsilon_upper"] > epsilon(Repeated(Sampled(Poisson(0.5), Gaussian(3.0)), 6), 1e-3).upper


def test_commands_know_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claimed = json.loads((folder / "result.json").read_text())["privacy"]["silo"]
    plan = json.loads(said(capsys, "plan", folder / "experiment.yaml", "--format", "json"))
    assert plan["privacy"]["epsilon"][-1]["upper"] == claimed["epsilon_upper"]
    words = " ".join(said(capsys, "explain", folder).split())
    assert "(each was with probability 0.5, and of more than 14 only a random choice of so many)" in words
    assert "Gaussian 3, each of 30 silos with chance 0.5, 14 at most" in said(capsys, "ledger", "show", folder)
    said(capsys, "ledger", "verify", folder)
    (unit,) = json.loads(said(capsys, "ledger", "export", folder))
    assert unit["event"]["events"][0]["event"]["class_name"] == "TruncatedSubsampledGaussianDpEvent"
    (mark,) = _expected(read_run(folder))
    assert (mark.label, mark.value) == ("at most 14", 14)


def test_the_verifier_agrees(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["verify.py", str(folder / "ledger.jsonl"), "--delta", "1e-3"])
    capsys.readouterr()
    verify.main()
    found = json.loads(capsys.readouterr().out)
    upper = json.loads((folder / "result.json").read_text())["privacy"]["silo"]["epsilon_upper"]
    assert found["epsilon"] == pytest.approx(upper, rel=0.01)


def test_noise_solved_for_a_target_pays_for_the_cap(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    solved = [
        json.loads(
            said(capsys, "plan", folder / "experiment.yaml", "--set", "privacy.silo.noise_multiplier=null",
                 "--set", "privacy.silo.epsilon=4", "--set", f"cohort.cap={cap}", "--format", "json")
        )["privacy"]
        for cap in ("14", "null")
    ]  # fmt: skip
    assert solved[0]["noise_multiplier"] > solved[1]["noise_multiplier"]
    assert solved[0]["epsilon"][-1]["upper"] <= 4
