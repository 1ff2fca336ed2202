"""`confide ledger`: what a person and a program can ask of a ledger."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from privacy.accountant import epsilon
from privacy.chain import check
from privacy.events import Gaussian, Poisson, Repeated, Sampled
from privacy.ledger import Ledger
from simulations.cli import main

SET = ("rounds=4", "data.silos=40", "privacy.silo.delta=1e-3", "privacy.audit.canaries=0")
EVENT = Sampled(Poisson(0.25), Gaussian(2.0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    argv = ["run", "quickstart", "--out", str(path), "--quiet", "--format", "json"]
    assert main([*argv, *(word for key in SET for word in ("--set", key))]) == 0
    return path


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def said(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["ledger", *map(str, argv)]) == code
    return capsys.readouterr().out


def found(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> Any:
    return json.loads(said(capsys, *argv, "--format", "json", code=code))


def problem(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """The one thing that is wrong."""
    verdict = found(capsys, "verify", folder, code=1)
    assert verdict["ok"] is False
    (line,) = verdict["problems"]
    assert "\n" not in line
    assert f"wrong: {line}" in said(capsys, "verify", folder, code=1)
    return str(line)


def test_show_groups_charges_and_prices_them(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (unit,) = found(capsys, "show", folder)["units"]
    (row,) = unit["events"]
    names = ("first_round", "last_round", "charges", "open", "torn", "runs")
    assert [row[name] for name in names] == [1, 4, 4, 0, 0, 1]
    claimed = json.loads((folder / "result.json").read_text())["privacy"]["silo"]
    assert (unit["epsilon_lower"], unit["epsilon_upper"]) == (claimed["epsilon_lower"], claimed["epsilon_upper"])
    text = said(capsys, "show", folder)
    assert "Gaussian 2, each silo with chance 0.25" in text
    assert "at delta 0.001" in text


def test_show_of_a_file_says_what_is_open_and_torn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    ledger = Ledger(path, run="a", dataset="d")
    ledger.commit(ledger.reserve(1, EVENT, unit="silo", neighbours="replace"))
    ledger.reserve(2, EVENT, unit="silo", neighbours="replace")
    ledger.close()
    with open(path, "ab") as file:
        file.write(b"{")
    assert "give --delta" in said(capsys, "show", path)
    assert found(capsys, "show", path)["torn_line"] is True
    Ledger(path, run="a", dataset="d").close()
    (unit,) = found(capsys, "show", path, "--delta", 1e-3)["units"]
    assert [unit["events"][0][name] for name in ("charges", "open", "torn")] == [3, 2, 1]
    assert unit["epsilon_upper"] == epsilon(Repeated(EVENT, 3), 1e-3, neighbours="replace").upper


def test_a_whole_run_is_verified(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    verdict = found(capsys, "verify", folder)
    assert verdict["ok"] is True
    assert verdict["checked"] == ["lines", "chain", "checkpoint", "result.json", "epsilon"]
    assert verdict["charges"] == {"silo": 4}
    claimed = json.loads((folder / "result.json").read_text())["privacy"]["silo"]
    assert verdict["epsilon_upper"] == {"silo/add_remove": claimed["epsilon_upper"]}
    assert "whole, 8 lines" in said(capsys, "verify", folder)
    alone = found(capsys, "verify", folder / "ledger.jsonl", "--delta", 1e-3)
    assert (alone["ok"], alone["checked"]) == (True, ["lines", "chain"])


def test_a_ledger_that_went_on_after_the_result_is_verified(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """A run that was resumed and killed: its result is of the lines that were there when it was written."""
    ledger = Ledger(folder / "ledger.jsonl", run="a", dataset="d")
    ledger.reserve(5, EVENT, unit="silo", neighbours="add_remove")
    ledger.close()
    assert found(capsys, "verify", folder)["charges"] == {"silo": 5}


@pytest.mark.parametrize("lines", [0, 1, 6, 7])
def test_lines_that_were_cut_are_missed(capsys: pytest.CaptureFixture[str], folder: Path, lines: int) -> None:
    path = folder / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    verdict = found(capsys, "verify", folder, code=1)
    assert any(f"has {lines} lines, but result.json saw 8: lines were cut" in line for line in verdict["problems"])
    if lines < 7:
        assert any(f"has {lines} lines, but the checkpoint saw 7" in line for line in verdict["problems"])


def test_every_flipped_byte_is_found(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    path = folder / "ledger.jsonl"
    data = path.read_bytes()
    for at in range(0, len(data), 97):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert found(capsys, "verify", folder, code=1)["ok"] is False, at


def test_another_ledger_is_found(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    path = folder / "ledger.jsonl"
    path.unlink()
    ledger = Ledger(path, run="a", dataset="d")
    for round_ in range(1, 5):
        ledger.commit(
            ledger.reserve(round_, Sampled(Poisson(0.25), Gaussian(9.0)), unit="silo", neighbours="add_remove")
        )
    ledger.close()
    problems = found(capsys, "verify", folder, code=1)["problems"]
    assert ["is not the one that" in line for line in problems] == [True, True]


def test_a_claim_that_the_events_do_not_support_is_found(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    path = folder / "result.json"
    result = json.loads(path.read_text())
    for name, value, words in (
        ("epsilon_upper", 0.1, "its events cost epsilon"),
        ("epsilon_upper", None, "but result.json says inf"),
        ("charged_rounds", 3, "4 charges, but result.json says 3"),
        ("neighbours", "replace", "another relation than result.json's replace"),
        ("delta", 2.0, "delta must be in"),
    ):
        changed = result | {"privacy": result["privacy"] | {"silo": result["privacy"]["silo"] | {name: value}}}
        path.write_text(json.dumps(changed))
        assert words in problem(capsys, folder)
    path.write_text("{}")
    assert "not the result of a run" in problem(capsys, folder)


def test_a_torn_line_and_a_damaged_checkpoint_are_found(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    with open(folder / "ledger.jsonl", "ab") as file:
        file.write(b"{")
    assert "the last line is torn (1 bytes)" in problem(capsys, folder)
    assert main(["ledger", "export", str(folder)]) == 2
    Ledger(folder / "ledger.jsonl", run="a", dataset="d").close()
    assert found(capsys, "verify", folder)["charges"] == {"silo": 5}
    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    assert "damaged" in problem(capsys, folder)


def test_events_and_relations_without_a_price_are_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path, run="a", dataset="d")
    ledger.reserve(1, EVENT, unit="silo", neighbours="similar")
    ledger.close()
    verdict = found(capsys, "verify", path, "--delta", 1e-3, code=1)
    assert "unknown 'similar'" in verdict["problems"][0]
    assert main(["ledger", "show", str(path), "--delta", "1e-3"]) == 2


def test_export_is_json_of_named_tuples(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (unit,) = json.loads(said(capsys, "export", folder))
    event = unit["event"]
    assert (event["module_name"], event["class_name"]) == ("dp_accounting.dp_event", "ComposedDpEvent")
    (repeated,) = event["events"]
    assert (repeated["class_name"], repeated["count"]) == ("SelfComposedDpEvent", 4)
    assert repeated["event"]["sampling_probability"] == 0.25


def test_mend_charges_a_torn_first_line_as_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(b'{"check"')
    event = '{"kind": "gaussian", "noise_multiplier": 2.0}'
    assert "charged as 1 reserve" in said(capsys, "mend", path, "--as", event)
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["torn"], line["event"]["noise_multiplier"]) == (True, 2.0)
    assert line["check"] == check({name: value for name, value in line.items() if name != "check"})
    for argv in (["--as", event], ["--as", "{}"], ["--as", "nothing"]):
        assert main(["ledger", "mend", str(path), *argv]) == 2


@pytest.mark.parametrize(
    "argv", [["show", "nowhere"], ["verify", "."], ["export", "nowhere"], ["verify", "nowhere", "--delta", "nan"]]
)
def test_what_is_no_ledger_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ledger", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("confide: ")
    assert error.count("\n") == 1
