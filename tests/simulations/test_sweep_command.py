"""`confide sweep` as a command: what it prints, what it refuses, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulations.cli import main
from simulations.sweep import run as sweep_run

SMALL = [
    *("--over", "train.learning_rate=0.05,0.5", "--runs", "3", "--set", "rounds=1", "--set", "data.silos=30"),
    *("--set", "privacy.silo.delta=1e-3", "--set", "privacy.audit.canaries=0", "--set", "data.limit=400"),
]


def test_the_table_marks_the_choice_and_says_what_it_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["sweep", "quickstart", "--out", str(tmp_path / "s"), *SMALL]) == 0
    said = capsys.readouterr()
    memory = json.loads((tmp_path / "s" / "sweep.json").read_text())
    chosen = memory["chosen"]
    table = [line for line in said.out.splitlines() if line.startswith("run-")]
    assert len(table) == len(memory["runs"])
    assert next(line for line in table if line.startswith(f"{chosen['run']} *")).endswith(f"{chosen['score']:.4f}")
    assert sum(line.endswith("withheld") for line in table) == len(table) - 1
    words = " ".join(said.out.split())
    for part in ("post-processing", "The choice included, ε is at most", "do not publish it", "are deleted"):
        assert part in words
    assert said.err.splitlines()[0].startswith(f"run-1 of {len(table)}: train.learning_rate=")
    assert "accuracy" not in said.err  # Progress shows no scores: the operator need not see them either.
    assert main(["explain", str(tmp_path / "s" / chosen["run"])]) == 0
    assert "the sweep that it comes from included" in " ".join(capsys.readouterr().out.split())


def test_json_is_what_the_folder_remembers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "s"
    argv = ["sweep", "quickstart", "--out", str(folder), *SMALL, "--release", "all", "--select", "loss"]
    assert main([*argv, "--distribution", "poisson", "--quiet", "--format", "json"]) == 0
    said = capsys.readouterr()
    memory = json.loads((folder / "sweep.json").read_text())
    assert json.loads(said.out) == memory
    assert said.err == ""
    scores = [run["score"] for run in memory["runs"]]
    assert memory["chosen"] is None or memory["chosen"]["score"] == min(scores)


def test_a_sweep_is_never_drawn_twice_in_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"

    def interrupted(*args: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweep_run, "go_on", interrupted)
        assert main(["sweep", "quickstart", "--out", str(folder), *SMALL, "--quiet"]) == 130
    assert f"the runs stay as they were drawn, go on with: confide sweep --resume {folder}" in capsys.readouterr().err
    drawn = json.loads((folder / "sweep.json").read_text())["runs"]
    assert main(["sweep", "quickstart", "--out", str(folder), *SMALL, "--quiet"]) == 2
    assert "holds sweep.json already" in capsys.readouterr().err
    assert main(["sweep", "--resume", str(folder), "--quiet"]) == 0
    after = json.loads((folder / "sweep.json").read_text())["runs"]
    assert [(run["settings"], run["seed"]) for run in after] == [(run["settings"], run["seed"]) for run in drawn]
    assert main(["sweep", "--resume", str(folder), "--quiet"]) == 2
    assert "this sweep is complete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["quickstart"], "--over, --runs, --out missing"),
        (["--resume", "x", "--runs", "3"], "remove --runs"),
        (["--resume", "x"], "holds no sweep"),
        (["quickstart", "--out", "x", *SMALL, "--distribution", "poisson", "--eta", "1"], "--eta: only"),
        (["quickstart", "--out", "x", *SMALL, "--on", "silos", "--score-noise", "nan"], "--score-noise: must be"),
        (["quickstart", "--out", "x", *SMALL, "--over", "train.learning_rte=1,2"], "unknown key"),
        (["quickstart", "--out", "x", "--over", "rounds=1,2", "--runs", "nan"], "--runs: mean must be > 0"),
    ],
)
def test_what_cannot_be_swept_is_one_line_and_leaves_nothing(
    argv: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *argv, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert problem in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_holds_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from simulations.sweep.memory import held

    tmp_path.joinpath("s").mkdir()
    with held(tmp_path / "s"):
        assert main(["sweep", "quickstart", "--out", str(tmp_path / "s"), *SMALL, "--quiet"]) == 2
    assert "another process sweeps here" in capsys.readouterr().err
