"""What a run with malicious silos says to people: on the command line, and in its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacked") / "run"


def test_a_shipped_attack_is_told_on_the_command_line_and_in_the_report(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "digits_attacked", "--set", "rounds=3", "--quiet", "--out", str(folder)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "pixel patch succeeds on 0." in words
    assert "of triggered rows of other classes" in words
    assert "of benign silos" in words
    page = (folder / "report.html").read_text()
    for part in ("Malicious silos", "Attack success", "pixel patch", "In the 3 rounds in which it judged silos"):
        assert part in page
    assert "Of 60 answers asked for, over all rounds" in page


def test_a_run_that_nobody_attacked_says_nothing_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "digits_attacked", "--set", "rounds=1", "--set", "attacks=[]", "--quiet", "--out"]
    assert main([*argv, str(tmp_path / "run")]) == 0
    assert "triggered" not in capsys.readouterr().out
    assert "Malicious silos" not in (tmp_path / "run" / "report.html").read_text()


def test_an_attack_without_a_trigger_and_without_judges_is_told_as_such(tmp_path: Path) -> None:
    sets = ["attacks=[{name: sign_flip, fraction: 0.2}]", "strategy=median", "rounds=1"]
    argv = [part for each in sets for part in ("--set", each)]
    assert main(["run", "digits_attacked", *argv, "--quiet", "--out", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not tested" in page
    assert "The strategy judged no silo" in page
