"""The audit of whole runs: scores that are kept, numbers that are recomputed, an alarm that goes off when it should."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.accountant import epsilon
from privacy.audit import score
from privacy.events import Gaussian, Repeated
from simulations import auditing
from simulations.auditing import Audited, AuditError, Record, measured, read
from simulations.cli import main
from simulations.folders import reopen
from simulations.running import ActiveRun, train
from simulations.studies.alarm import SilentSum, configuration
from simulations.studies.alarm import measured as study_measured
from strategies.experiment import Experiment
from strategies.loading import parse

DELTA, CANARIES = 1e-3, 30
SILO = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": DELTA}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 4))
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(int))
    return tmp_path / "data.npz"


def experiment(data: Path, **audit: Any) -> Experiment:
    return parse(
        {
            "rounds": 6,
            "task": {"name": "mlp", "hidden": [5]},
            "data": {"path": str(data), "silos": 8},
            "cohort": {"sampling": "all"},
            "train": {"steps": 2, "learning_rate": 0.5},
            "privacy": {"silo": SILO, "audit": {"canaries": CANARIES} | audit},
        }
    )


def go(config: Experiment, folder: Path, *, resume: bool = False, rounds: int | None = None) -> dict[str, Any]:
    done: list[int] = []
    with ActiveRun(config, folder, resume=resume) as active:
        train(active, lambda result: done.append(result.round), stop=lambda: done[-1:] == [rounds])
        return active.finish().result


def silo_record(folder: Path) -> Record:
    record = read(folder).silo
    assert record is not None
    return record


def test_everything_is_recomputed_from_the_stored_scores(data: Path, tmp_path: Path, capsys: Any) -> None:
    result = go(experiment(data), tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        if path.name not in ("audit.json", "result.json", "experiment.yaml"):
            path.unlink()
    assert main(["audit", str(tmp_path / "run"), "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {name: result["privacy"][name] for name in ("measured", "measured_example")}
    assert main(["audit", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "neither an upper nor a lower bound" in said
    assert "not quoted: a fitted spread needs 1000 canaries" in said


def test_a_resumed_run_measures_the_same(data: Path, tmp_path: Path) -> None:
    whole = go(experiment(data), tmp_path / "whole")
    assert go(experiment(data), tmp_path / "run", rounds=3)["privacy"] != whole["privacy"]
    resumed = go(reopen(tmp_path / "run"), tmp_path / "run", resume=True)
    assert resumed["privacy"] == whole["privacy"]
    assert (tmp_path / "run" / "audit.json").read_bytes() == (tmp_path / "whole" / "audit.json").read_bytes()
    assert resumed["privacy"]["measured"]["all_iterates"] is not None


def test_scoring_rounds_changes_no_bit_of_the_model(data: Path, tmp_path: Path) -> None:
    on, off = go(experiment(data), tmp_path / "on"), go(experiment(data, iterates="off"), tmp_path / "off")
    assert on["model"] == off["model"]
    found = off["privacy"]["measured"]
    assert (found["all_iterates"], found["iterates_off"]) == (None, "privacy.audit.iterates is off")
    assert on["privacy"]["measured"]["iterates_off"] == ""


def test_rounds_that_are_too_much_work_are_not_scored_and_that_is_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.iterates.WORK_LIMIT", 100)
    found = go(experiment(data), tmp_path / "run")["privacy"]["measured"]
    assert found["all_iterates"] is None
    assert found["iterates_off"] == (
        f"scoring a round takes {2 * CANARIES * found['dimension']:,} numbers (2 x canaries x parameters), "
        "above the limit of 100"
    )


def test_by_coins_canaries_compare_with_the_claim_of_the_run(data: Path, tmp_path: Path) -> None:
    privacy = go(experiment(data), tmp_path / "run")["privacy"]
    assert privacy["measured"]["claim"] == privacy["silo"]["epsilon_upper"]
    assert privacy["measured"]["compared_with"] == "the run's claim"


def test_on_a_schedule_canaries_compare_with_the_gaussian_without_amplification(data: Path, tmp_path: Path) -> None:
    config = experiment(data, participation="spread", repeats=4)
    found = go(config, tmp_path / "run")["privacy"]["measured"]
    assert found["claim"] == pytest.approx(epsilon(Repeated(Gaussian(2.0), 4), DELTA).upper, rel=1e-9)
    assert found["compared_with"] == "the unsampled Gaussian of noise multiplier 1 (each canary in 4 rounds)"
    with ActiveRun(config, tmp_path / "again") as active:
        assert active.training.expected == 8 + CANARIES * 4 / 6


def test_the_reference_is_the_start_or_zero(data: Path, tmp_path: Path) -> None:
    for reference in ("start", "zero"):
        folder = tmp_path / reference
        with ActiveRun(experiment(data, reference=reference), folder) as active:
            train(active)
            active.finish()
            checkpoint = active.store.load()
            assert checkpoint is not None
            final = active.experiment.strategy.predictor(checkpoint.state)
            change = final - active.model.start if reference == "start" else final
        found = silo_record(folder).final.seen
        np.testing.assert_array_equal(found, score(change, seed=0, canaries=CANARIES).seen)


def test_an_alarm_is_one_line_and_exit_code_4(
    data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of a run, with canaries moved far from the null, as a run without noise would move them."""
    go(experiment(data), tmp_path / "run")
    record = silo_record(tmp_path / "run")
    moved = replace(record, final=replace(record.final, seen=np.full(CANARIES, 0.9)))
    (tmp_path / "run" / "audit.json").write_text(auditing.encode(Audited(moved, {})))
    assert main(["audit", str(tmp_path / "run")]) == 4
    error = capsys.readouterr().err
    assert error.startswith("confide: ALARM: canaries show epsilon ")
    assert error.count("\n") == 1
    assert "noise is missing or mis-scaled" in error


def test_a_run_without_its_noise_ends_with_exit_code_4(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privacy.mechanism.GaussianSum.privatize", SilentSum.privatize)
    argv = ["run", "quickstart", "--quiet", "--out", str(tmp_path / "run")]
    options = ["rounds=5", "data.silos=40", "cohort.rate=1.0", "privacy.silo.noise_multiplier=10"]
    options += ["privacy.silo.delta=1e-3", "privacy.audit.canaries=200"]
    for option in options:
        argv += ["--set", option]
    assert main(argv) == 4
    said = capsys.readouterr()
    assert said.err.startswith("confide: ALARM: ")
    assert "ALARM" in " ".join(said.out.split())
    assert "ALARM" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("noise", [True, False])
def test_the_named_configuration_alarms_without_noise_only(noise: bool) -> None:
    # P8 at one seed; all 20: confide study alarm. By chance 1 right run in 10,000 alarms.
    config = replace(configuration(100, canaries=200), rounds=10)
    found = study_measured(config, noise=noise)
    assert found["alarm"] is not noise
    assert found["claim"] < found["detectable"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: "", "audit.json: cannot be read"),
        (lambda text: text[:100], "audit.json: cannot be read"),
        (lambda text: "[]", "audit.json: cannot be read"),
        (lambda text: text.replace('"version": 2', '"version": 1'), "version 1, this confide reads 2"),
        (lambda text: text.replace('"delta": 0.001', '"delta": 2'), "delta 2.0"),
        (lambda text: text.replace('"final"', '"finale"'), "'final' is missing"),
        (lambda text: text.replace('"seen": [', '"seen": [7.5, '), "seen must hold cosines"),
        (lambda text: text.replace('"seen": [', '"seen": ["a", '), "audit.json: cannot be read"),
        (None, "audit.json: missing; audit a run that had canaries"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    data: Path, tmp_path: Path, capsys: Any, change: Any, says: str
) -> None:
    go(experiment(data), tmp_path / "run", rounds=1)
    path = tmp_path / "run" / "audit.json"
    path.unlink() if change is None else path.write_text(change(path.read_text()))
    with pytest.raises(AuditError):
        read(tmp_path / "run")
    assert main(["audit", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_no_round_leaves_no_audit(data: Path, tmp_path: Path) -> None:
    with ActiveRun(experiment(data), tmp_path / "run") as active:
        train(active, stop=lambda: True)
        assert active.finish().result["privacy"]["measured"] is None
    assert not (tmp_path / "run" / "audit.json").exists()


def test_an_infinite_claim_survives_the_file(data: Path, tmp_path: Path) -> None:
    go(experiment(data), tmp_path / "run", rounds=1)
    record = replace(silo_record(tmp_path / "run"), claim=math.inf)
    (tmp_path / "run" / "audit.json").write_text(auditing.encode(Audited(record, {})))
    assert silo_record(tmp_path / "run").claim == math.inf
    assert measured(silo_record(tmp_path / "run"))["claim"] is None
