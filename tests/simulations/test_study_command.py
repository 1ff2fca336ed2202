"""`confide study`: criteria are never hidden, cells are done once, and what a study printed can be relied on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simulations.cli import main
from simulations.report.plots import Curve, plot
from simulations.report.scales import Axis
from simulations.studies import cells as cells_
from simulations.studies.cells import Cell, Cells, Stopped, Wanted
from simulations.studies.findings import Criterion, Figure, Findings, Sheet, mean, spread, told
from simulations.studies.registry import STUDIES, Ask, study
from strategies.experiment import Experiment
from strategies.loading import parse
from strategies.schema import ConfigError
from strategies.tasks.dense import Linear

NAN = float("nan")
PICTURE = plot("p", "A line", told="two points", curves=[Curve("a", [(1, 2), (2, 3)])], x=Axis("x"), y=Axis("y"))


def small(seed: int, **changes: Any) -> Experiment:
    config = {
        "name": f"small.seed-{seed}",
        "seed": seed,
        "rounds": 2,
        "task": "logistic",
        "data": {"name": "digits", "silos": 4, "limit": 100},
    }
    return parse(config | changes)


@pytest.fixture
def register() -> Iterator[Callable[[Findings], list[Ask]]]:
    """Registers a study `probe` that finds what it is given; gives the list of what it was asked."""
    before = dict(STUDIES)

    def add(findings: Findings) -> list[Ask]:
        asked: list[Ask] = []

        @study("probe", about="A study for tests", seeds=(0, 1, 2), quick_seeds=(7,))
        def probe(ask: Ask) -> Findings:
            asked.append(ask)
            return findings

        return asked

    yield add
    STUDIES.clear()
    STUDIES.update(before)


def criterion(measured: float | None, threshold: float = 1.0, **changes: Any) -> Criterion:
    return Criterion(**({"name": "a claim", "spec_id": "t.1", "measured": measured, "threshold": threshold} | changes))


@pytest.mark.parametrize(
    ("held", "passed"),
    [
        (criterion(1.0), True),
        (criterion(0.999), False),
        (criterion(1.0, relation="<="), True),
        (criterion(1.001, relation="<="), False),
        (criterion(NAN), False),
        (criterion(NAN, relation="<="), False),
        (criterion(None, relation="<="), False),
        (criterion(1.0, NAN), False),
        (criterion(float("inf"), relation="<="), False),
    ],
)
def test_a_criterion_holds_by_its_number_alone_and_none_holds_without_one(held: Criterion, passed: bool) -> None:
    assert held.passed is passed
    assert held.row()["passed"] is passed
    assert Findings(criteria=[criterion(2.0), held]).passed is passed
    assert Findings(criteria=[criterion(2.0), replace(held, kind="goal")]).passed  # A goal does not fail a study.


def test_spreads_are_of_all_seeds_or_are_no_number() -> None:
    # Deviations -.1, 0, .1 about .5: variance .02 / 2.
    assert (mean([0.4, 0.5, 0.6]), spread([0.4, 0.5, 0.6])) == (pytest.approx(0.5), pytest.approx(0.1))
    assert told([0.4, None]) == "none"
    assert spread([0.4, None]) != spread([0.4, None])  # NaN: a run that failed is not left out of a mean.


def test_json_stands_alone_on_stdout_and_has_the_keys_that_were_promised(
    register: Callable[[Findings], list[Ask]], tmp_path: Path, capsys: Any
) -> None:
    bad = criterion(NAN, spec_id="t.2", kind="goal")
    asked = register(Findings(criteria=[criterion(1.5, spread=0.25), bad], skipped=["half of it"]))
    out = tmp_path / "study"
    assert main(["study", "probe", "--quick", "--out", str(out), "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said) == ["study", "criteria", "skipped", "seeds", "seconds"]
    good = {"name": "a claim", "spec_id": "t.1", "kind": "required", "measured": 1.5, "threshold": 1.0, "spread": 0.25}
    assert said["criteria"][0] == good | {"passed": True}
    assert said["criteria"][1] == good | {
        **{"spec_id": "t.2", "kind": "goal", "measured": None, "spread": None, "passed": False}
    }
    assert (said["study"], said["skipped"], said["seeds"]) == ("probe", ["half of it", "seeds: 1 of 3"], [7])
    assert (asked[0].quick, asked[0].seeds) == (True, (7,))
    assert json.loads((out / "study.json").read_text()).items() >= said.items()


def test_a_failing_required_criterion_is_exit_code_1_and_is_shown_everywhere(
    register: Callable[[Findings], list[Ask]], tmp_path: Path, capsys: Any
) -> None:
    sheets = [Sheet("Numbers & co", ("name", "value"), [("a<b", "1")])]
    asked = register(Findings(criteria=[criterion(0.5)], sheets=sheets, figures=[Figure("line", PICTURE)]))
    assert main(["study", "probe", "--seeds", "0,3", "--out", str(tmp_path / "s")]) == 1
    text = capsys.readouterr().out
    assert "FAILED  a claim" in text
    assert "a<b" in text
    page = (tmp_path / "s" / "report.html").read_text()
    assert "FAILED" in page
    assert "0 of 1 required criteria hold" in page
    assert "Numbers &amp; co" in page
    assert "a&lt;b" in page
    assert "confide study probe --seeds 0,3" in page
    assert (tmp_path / "s" / "line.svg").read_text() == PICTURE + "\n"
    assert asked[0].seeds == (0, 3)


def test_what_a_user_gets_wrong_is_one_line(
    register: Callable[[Findings], list[Ask]], tmp_path: Path, capsys: Any
) -> None:
    register(Findings())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.yaml").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.json").write_text('{"study": "another"}')
    for argv, line in (
        (["nope"], "study: no study 'nope'; there are: "),
        (["probe", "--seeds", "x"], "--seeds: write 0..4 or 0,3,7"),
        (["probe", "--workers", "0"], "--workers: must be 1 to 64, got 0"),
        (["--quick"], "study: NAME is missing, but --quick is given"),
        (["probe", "--out", str(tmp_path / "run")], f"{tmp_path / 'run'}: holds a run already"),
        (["probe", "--out", str(tmp_path / "other")], f"{tmp_path / 'other'}: holds the study another"),
    ):
        assert main(["study", *argv]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"confide: {line}")
        assert said.err.count("\n") == 1


def test_studies_are_listed(register: Callable[[Findings], list[Ask]], capsys: Any) -> None:
    register(Findings())
    assert main(["study"]) == 0
    assert "probe" in capsys.readouterr().out
    assert main(["list", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["studies"]["probe"] == "A study for tests"


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    ran: list[int] = []

    def fake(wanted: Wanted) -> Cell:
        ran.append(wanted.experiment.seed)
        return Cell({"metrics": {"accuracy": 0.5}}, seconds=2.0)

    monkeypatch.setattr("simulations.studies.workers.one", fake)
    return ran


def test_a_cell_is_done_once_and_a_stopped_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counting(monkeypatch)
    wanted = [small(seed) for seed in (0, 1, 2, 1)]
    with pytest.raises(Stopped):
        Cells(tmp_path, stop=lambda: len(ran) == 2).run(wanted)
    assert ran == [0, 1]
    again = Cells(tmp_path)
    found = again.run(wanted)
    assert ran == [0, 1, 2]  # Twice asked, once done; and what was done before the stop is read.
    assert (again.recalled, again.computed, len(found)) == (2, 1, 4)
    assert {cell.result["metrics"]["accuracy"] for cell in found} == {0.5}


def test_a_cell_is_known_by_all_that_decides_it_and_by_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Wanted(small(0)).key
    assert Wanted(replace(small(0), name="other")).key == key
    changed = [small(1), small(0, rounds=3), small(0, metrics={"every": 2}), small(0, train={"learning_rate": 0.2})]
    keys = [Wanted(each).key for each in changed] + [Wanted(small(0), ("accuracy",)).key, Wanted(small(0), (), len).key]
    monkeypatch.setattr(cells_, "code", lambda: "other code")
    assert len({key, *keys, Wanted(small(0)).key}) == 2 + len(keys)


def test_a_damaged_cell_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counting(monkeypatch)
    Cells(tmp_path).run([small(0)])
    (path,) = (tmp_path / "cells").iterdir()
    path.write_text(path.read_text()[:-20])
    Cells(tmp_path).run([small(0)])
    assert ran == [0, 0]


def test_a_cell_is_what_confide_run_gives(tmp_path: Path) -> None:
    from simulations import run

    (cell,) = Cells(tmp_path).run([small(3)], columns=("accuracy", "bytes_up"))
    result = run(small(3), out=tmp_path / "run").result
    assert cell.result["metrics"] == result["metrics"]
    assert cell.result["model"]["sha256"] == result["model"]["sha256"]
    assert cell.rounds["accuracy"][-1] == result["metrics"]["accuracy"]
    assert sum(value or 0 for value in cell.rounds["bytes_up"]) == result["communication"]["bytes_up"]


def test_a_run_that_diverges_is_a_finding(tmp_path: Path) -> None:
    wild = small(0, rounds=5, train={"learning_rate": 1e38, "steps": 3})  # Three rounds of nothing end it.
    (cell,) = Cells(tmp_path).run([wild])
    assert cell.failed is not None
    assert "update is not finite" in cell.failed
    (again,) = Cells(tmp_path, stop=lambda: True).run([wild])
    assert again == cell


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    wanted = [small(0), small(1)]
    one = Cells(tmp_path / "one").run(wanted)
    two = Cells(tmp_path / "two", workers=2).run(wanted)
    assert [cell.result["model"]["sha256"] for cell in one] == [cell.result["model"]["sha256"] for cell in two]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cell_that_cannot_run_is_one_line_from_a_worker_too(tmp_path: Path, workers: int) -> None:
    wrong = [replace(small(seed), task=Linear()) for seed in (0, 1)]
    with pytest.raises(ConfigError) as error:
        Cells(tmp_path, workers=workers).run(wrong)
    assert str(error.value) == "task: linear is for regression, but the data is classification"


LONG = """
from simulations.studies.findings import Findings
from simulations.studies.registry import study
from strategies.loading import parse

@study("long", about="Many cells")
def long(ask):
    config = {"rounds": 20, "task": "logistic", "data": {"name": "digits", "silos": 20}}
    ask.cells.run([parse(config | {"seed": seed}) for seed in range(5_000)])
    return Findings()
"""


def test_a_signal_keeps_what_was_done(tmp_path: Path) -> None:
    (tmp_path / "many.py").write_text(LONG)
    command = [sys.executable, "-m", "simulations", "study", "long", "--plugin", "many", "--out", "out"]
    environment = os.environ | {"PYTHONPATH": str(cells_.ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith("cell 1/5000")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert "go on with: confide study long --plugin many --out out" in error
    kept = list((tmp_path / "out" / "cells").glob("*.json"))
    assert kept
    assert all(json.loads(path.read_text())["cell"]["failed"] is None for path in kept)
