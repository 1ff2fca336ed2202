"""The audit of single rows in whole runs: engines agree, a resume scores the same, the alarm goes off if it should."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from client.planted import direction_seed
from privacy.accountant import epsilon
from privacy.audit import score, shift_epsilon
from privacy.events import Gaussian, Poisson, Repeated, Sampled
from privacy.steps import NoisySteps
from simulations.auditing import read
from simulations.cli import main
from simulations.example_audit import share
from simulations.folders import reopen
from simulations.preparing import prepare
from simulations.running import ActiveRun, Outcome, train
from simulations.studies.alarm import example_configuration, example_measured, silent_release
from strategies.experiment import Experiment
from strategies.loading import parse
from strategies.schema import ConfigError

DELTA, CANARIES = 1e-3, 30
EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": [1.5, 3.0, 1.5, 1.5], "delta": DELTA, "rows": 40, "batch": 10}
AUDIT = {"examples": {"canaries": CANARIES, "silos": [1, 3]}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 4))
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(int))
    return tmp_path / "data.npz"


def experiment(data: Path, /, *, audit: Mapping[str, Any] = AUDIT, **changes: Any) -> Experiment:
    base: dict[str, Any] = {
        "rounds": 5,
        "task": {"name": "mlp", "hidden": [5]},
        "data": {"path": str(data), "silos": 4},
        "cohort": {"sampling": "all"},
        "train": {"steps": 3, "learning_rate": 0.5},
        "privacy": {"example": EXAMPLE, "audit": audit},
        "engine": {"chunk": 2},
    }
    return parse(base | changes)


def go(config: Experiment, folder: Path, *, resume: bool = False, rounds: int | None = None) -> Outcome:
    done: list[int] = []
    with ActiveRun(config, folder, resume=resume) as active:
        train(active, lambda result: done.append(result.round), stop=lambda: done[-1:] == [rounds])
        return active.finish()


def step(noise: float) -> Sampled:
    return Sampled(Poisson(0.25), Gaussian(noise))


def test_each_audited_silo_is_compared_with_its_own_claim(data: Path, tmp_path: Path) -> None:
    privacy = go(experiment(data), tmp_path / "run").result["privacy"]
    found = {each["silo"]: each for each in privacy["measured_example"]}
    assert list(found) == [1, 3]
    for silo, noise in ((1, 3.0), (3, 1.5)):
        assert found[silo]["claim"] == epsilon(Repeated(step(noise), 15), DELTA).upper
        assert found[silo]["compared_with"] == f"the claim for one row of silo {silo}"
        assert (found[silo]["canaries"], found[silo]["delta"]) == (CANARIES, DELTA)
    assert found[3]["claim"] == privacy["example"]["epsilon_upper"]
    assert privacy["measured"] is None


def test_what_is_scored_is_what_the_silo_changed(data: Path, tmp_path: Path) -> None:
    # One silo, no server momentum: all that the model changed is what the silo did.
    audit = {"examples": {"canaries": CANARIES}}
    example = EXAMPLE | {"noise_multiplier": 1.5, "rows": 160}
    config = experiment(
        data, audit=audit, data={"path": str(data), "silos": 1}, privacy={"example": example, "audit": audit}
    )
    with ActiveRun(config, tmp_path / "run") as active:
        train(active)
        active.finish()
        checkpoint = active.store.load()
        assert checkpoint is not None
        moved = checkpoint.state["model"] - active.model.start
    expected = score(moved, seed=direction_seed(0, 0), canaries=CANARIES)
    found = read(tmp_path / "run").examples[0].final
    np.testing.assert_allclose(found.seen, expected.seen, atol=1e-5)
    np.testing.assert_allclose(found.unseen, expected.unseen, atol=1e-5)


def test_scores_are_the_same_bits_in_every_engine(data: Path, tmp_path: Path) -> None:
    found = []
    for number, engine in enumerate(({}, {"kind": "pool", "workers": 1}, {"kind": "pool", "workers": 2})):
        folder = tmp_path / str(number)
        result = go(experiment(data, engine={"chunk": 2} | engine), folder).result
        found.append((result["model"]["sha256"], (folder / "audit.json").read_bytes()))
    assert found[0] == found[1] == found[2]


def test_one_by_one_scores_as_stacked(data: Path, tmp_path: Path) -> None:
    for stacked in ("auto", "off"):
        go(experiment(data, engine={"chunk": 2, "stacked": stacked}), tmp_path / stacked)
    for silo in (1, 3):
        ways = [read(tmp_path / stacked).examples[silo].final for stacked in ("auto", "off")]
        np.testing.assert_allclose(ways[0].seen, ways[1].seen, atol=1e-5)


def test_canaries_move_the_model_and_cost_no_epsilon(data: Path, tmp_path: Path) -> None:
    without, found = (go(experiment(data, audit=audit), tmp_path / str(len(audit))).result for audit in ({}, AUDIT))
    assert without["privacy"]["example"] == found["privacy"]["example"]
    assert without["model"]["sha256"] != found["model"]["sha256"]
    assert without["privacy"]["measured_example"] is None
    assert not (tmp_path / "0" / "audit.json").exists()


def test_a_silo_that_was_never_asked_is_not_scored(data: Path, tmp_path: Path) -> None:
    # One silo is asked in all, so at least one of the two audited ones is not.
    result = go(experiment(data, cohort={"sampling": "fixed", "size": 1}, rounds=1), tmp_path / "run").result
    found = result["privacy"]["measured_example"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "silos-ledger.jsonl").read_text().splitlines()]
    asked = {silo for line in lines if line["kind"] == "reserve" for silo in line["silos"]}
    assert {each["silo"] for each in found or []} == asked & {1, 3}


@pytest.mark.parametrize("noise", ["simulated", "system"])
def test_a_resumed_run_goes_on_measuring(data: Path, tmp_path: Path, noise: str) -> None:
    config = experiment(data, privacy={"example": EXAMPLE, "audit": AUDIT, "noise": noise})
    whole = go(config, tmp_path / "whole").result
    part = go(config, tmp_path / "run", rounds=2).result
    assert part["privacy"]["measured_example"][0]["claim"] < whole["privacy"]["measured_example"][0]["claim"]
    resumed = go(reopen(tmp_path / "run"), tmp_path / "run", resume=True).result
    ways = [(tmp_path / name / "audit.json").read_bytes() for name in ("whole", "run")]
    assert (ways[0] == ways[1]) is (noise == "simulated")
    assert (resumed["privacy"] == whole["privacy"]) is (noise == "simulated")


def test_everything_is_recomputed_from_the_stored_scores(data: Path, tmp_path: Path, capsys: Any) -> None:
    result = go(experiment(data), tmp_path / "run").result
    assert main(["audit", str(tmp_path / "run"), "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {name: result["privacy"][name] for name in ("measured", "measured_example")}
    assert main(["audit", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("neither an upper nor a lower bound") == 2
    assert "the claim for one row of silo 3" in said


def test_summary_report_and_statement_say_both_epsilons_of_a_row(data: Path, tmp_path: Path, capsys: Any) -> None:
    go(experiment(data, train={"steps": 3, "momentum": 0.9}), tmp_path / "run")
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "run")]) == 0
    explained = " ".join(capsys.readouterr().out.split())
    report = (tmp_path / "run" / "report.html").read_text()
    for text in (explained, report):
        assert "For adding or removing one example of a silo" in text
        assert "Measured for one row of silo 1, from all that its own steps changed" in text
        assert "An estimate, neither an upper nor a lower bound: nothing beyond chance contradicts" in text
        assert "canaries show at most 94% of what they would in plain steps" in text
    assert "from 30 canary examples in silo " in report
    assert "the most of 2 silos" in report


def test_the_share_of_plain_steps_is_whole_and_of_momentum_as_by_hand() -> None:
    # Three steps at momentum .9 stay with weights 1, 1.9 and 2.71: 5.61 / (3^.5 x 11.9541^.5) = .9368.
    assert share(0.0, 0.0, 7) == pytest.approx(1.0, rel=1e-12)
    assert share(0.9, 0.0, 3) == pytest.approx(5.61 / (3 * (1 + 1.9**2 + 2.71**2)) ** 0.5, rel=1e-12)
    assert share(0.0, 0.5, 2) == pytest.approx(1.5 / (2 * 1.25) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("noise", [0.6, 1.0, 5.0])
def test_what_canaries_are_expected_to_show_is_within_the_claim(rate: float, noise: float) -> None:
    # The spread of their coins is no part of a shift of Gaussians, so this is not for granted: the estimate must not
    # read a right run's epsilon too high on average. 50 steps, delta at most half the rate as the rules ask.
    for delta in (1e-5, 1e-3, rate / 2):
        claim = epsilon(Repeated(Sampled(Poisson(rate), Gaussian(noise)), 50), delta).upper
        assert shift_epsilon(rate * 50**0.5 / noise, delta) <= claim + 1e-9


@pytest.mark.parametrize("silo", [None, {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": DELTA}])
def test_a_run_without_its_inner_noise_ends_with_exit_code_4(tmp_path: Path, capsys: Any, silo: Any) -> None:
    argv = ["run", "digits_example", "--quiet", "--out", str(tmp_path / "run")]
    options = ["rounds=5", "privacy.example.epsilon=null", "privacy.example.noise_multiplier=12"]
    options += ["privacy.audit.examples.canaries=200"]
    if silo is not None:
        options += [f"privacy.silo={json.dumps(silo)}", "metrics.privacy=research"]
    for option in options:
        argv += ["--set", option]
    with patch.object(NoisySteps, "release", silent_release):
        assert main(argv) == 4
    said = capsys.readouterr()
    assert said.err.startswith("confide: ALARM: ")
    assert said.err.count("\n") == 1
    assert "the claim for one row of silo 0" in said.err
    shown = " ".join(said.out.split())
    assert "measured, silo 0" in shown
    assert "ALARM" in shown
    assert "ALARM" in (tmp_path / "run" / "report.html").read_text()
    assert main(["audit", str(tmp_path / "run")]) == 4
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "run")]) == 0
    assert "Do not trust the claim" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("noise", [True, False])
def test_the_named_configuration_alarms_without_noise_only(noise: bool) -> None:
    # One seed; all 20: confide study alarm_example. By chance 1 right run in 10,000 alarms.
    found = example_measured(example_configuration(100, canaries=200), noise=noise)
    assert found["alarm"] is not noise
    assert found["claim"] < found["detectable"]


def test_a_tenth_of_the_noise_alarms_too() -> None:
    right = NoisySteps.release

    def weak(self: NoisySteps, total: torch.Tensor, noise: Any) -> torch.Tensor:
        plain = total / self.batch
        return plain + 0.1 * (right(self, total, noise) - plain)

    with patch("simulations.studies.alarm.silent_release", weak):
        assert example_measured(example_configuration(100, canaries=200), noise=False)["alarm"]


def test_a_silo_that_the_data_does_not_have_is_refused_too(tmp_path: Path) -> None:
    lines = [f"{row},{row % 2},{row % 3}" for row in range(30)]
    (tmp_path / "rows.csv").write_text("\n".join(["x,y,owner", *lines]) + "\n")
    path = {"path": str(tmp_path / "rows.csv"), "target": "y", "silo": "owner", "partition": "column"}
    example = EXAMPLE | {"noise_multiplier": 1.5}
    config = experiment(tmp_path, data=path, privacy={"example": example, "audit": AUDIT})
    with pytest.raises(ConfigError, match="found 3, but the last of 3 silos is 2"):
        prepare(config)


def test_the_plan_says_what_canaries_can_show(tmp_path: Path, capsys: Any) -> None:
    argv = ["plan", "digits_example", "--set", "privacy.audit.examples.canaries=200"]
    argv += ["--set", "privacy.example.epsilon=null", "--set", "privacy.example.noise_multiplier=2"]
    assert main(argv) == 0
    assert "200 canary examples can show epsilon 3.983 at most" in " ".join(capsys.readouterr().out.split())
