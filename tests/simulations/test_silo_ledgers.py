"""`confide ledger` and the silos' ledger: shown, verified against the claim of examples, exported and mended."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.accountant import epsilon
from privacy.chain import GENESIS, check
from privacy.events import Gaussian, Poisson, Repeated, Sampled, to_json
from privacy.ledger import Ledger, load
from simulations.cli import main
from simulations.folders import reopen
from simulations.running import ActiveRun, run, train
from strategies.loading import parse

DELTA = 1e-3
STEPS = Repeated(Sampled(Poisson(0.25), Gaussian(1.5)), 2)
LOUD = Repeated(Sampled(Poisson(0.25), Gaussian(1.0)), 2)
EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": [1.5, 1.5, 1.0, 1.5], "delta": DELTA, "rows": 40, "batch": 10}
SILO = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-2, "neighbours": "replace"}
LINES = 3 * 2 * 2  # Rounds, kinds of silos, reserve and commit.


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.normal(size=(120, 4)), y=rng.integers(0, 2, size=120))
    base = {
        "rounds": 3,
        "task": "logistic",
        "data": {"path": str(folder / "data.npz"), "silos": 4, "public_test": 0.1},
        "train": {"steps": 2},
        "cohort": {"sampling": "all"},
        "privacy": {"silo": SILO, "example": EXAMPLE},
    }
    return base | changes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(parse(config(folder)), out=folder / "run")
    return folder / "run"


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
    """What is wrong, all of it about the silos' ledger."""
    verdict = found(capsys, "verify", folder, code=1)
    assert (verdict["ok"], verdict["silos"]["ok"]) == (False, False)
    assert verdict["problems"] == verdict["silos"]["problems"]
    lines = [f"wrong: {line}" for line in verdict["problems"]]
    assert [line for line in said(capsys, "verify", folder, code=1).splitlines() if line.startswith("wrong")] == lines
    return "\n".join(verdict["problems"])


def silos(folder: Path) -> Path:
    return folder / "silos-ledger.jsonl"


def worst(rounds: int, event: Repeated = LOUD) -> float:
    return epsilon(Repeated(event, rounds), DELTA).upper


def test_a_whole_run_shows_and_verifies_both_ledgers(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    verdict = found(capsys, "verify", folder)
    assert verdict["ok"] is True
    names = ["lines", "chain", "checkpoint", "result.json", "epsilon"]
    assert (verdict["checked"], verdict["silos"]["checked"]) == (names, names)
    assert verdict["charges"] == {"silo": 3}
    assert verdict["silos"]["charges"] == {"example": 6}
    assert verdict["silos"]["epsilon_upper"] == {"example/add_remove": worst(3)}
    result = json.loads((folder / "result.json").read_text())
    assert result["privacy"]["example"]["epsilon_upper"] == worst(3)
    assert result["ledgers"] == {"silos-ledger.jsonl": verdict["silos"]["head"]}
    text = said(capsys, "verify", folder)
    assert f"{silos(folder)}: whole, {LINES} lines" in text
    shown = found(capsys, "show", folder)
    assert [(unit["unit"], unit["delta"]) for unit in shown["units"]] == [("silo", 1e-2), ("example", DELTA)]
    assert shown["units"][1]["epsilon_upper"] == worst(3)  # Not of all silos' steps together.
    assert len(shown["units"][1]["events"]) == 2
    text = " ".join(said(capsys, "show", folder).split())
    assert "adding or removing one row" in text
    assert "in the silo that spent most" in text
    assert "2 times (Gaussian 1.5, each row with chance 0.25)" in text


def test_a_silos_ledger_alone_is_priced_by_its_worst_silo(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (unit,) = found(capsys, "show", silos(folder), "--delta", 1e-5)["units"]
    assert unit["epsilon_upper"] == epsilon(Repeated(LOUD, 3), 1e-5).upper
    verdict = found(capsys, "verify", silos(folder), "--delta", DELTA)
    assert (verdict["ok"], verdict["epsilon_upper"]) == (True, {"example/add_remove": worst(3)})


def test_the_ledger_of_a_data_set_is_priced_over_all_deals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "data", run="a", dataset="d")
    for deal, charged in (("x", [0]), ("x", [0]), ("x", [1]), ("y", [1])):
        ledger.reserve_each(1, [(STEPS, charged)], unit="example", neighbours="add_remove", deal=deal)
    ledger.close()
    (unit,) = found(capsys, "show", tmp_path / "data", "--delta", DELTA)["units"]
    assert unit["epsilon_upper"] == worst(3, STEPS)  # Silo 0 of x, and whatever silo of y its rows were in.


@pytest.mark.parametrize("lines", [0, 1, LINES - 3, LINES - 1])
def test_lines_that_were_cut_are_missed(capsys: pytest.CaptureFixture[str], folder: Path, lines: int) -> None:
    path = silos(folder)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    words = problem(capsys, folder)
    assert f"{path}: has {lines} lines, but result.json saw {LINES}: lines were cut" in words
    assert (f"but the checkpoint saw {LINES - 2}" in words) == (lines < LINES - 2)
    assert main(["explain", str(folder)]) == 0
    assert "silos-ledger.jsonl is not the ledger that this" in " ".join(capsys.readouterr().out.split())


def test_a_ledger_that_is_gone_is_missed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    silos(folder).unlink()
    assert f"{silos(folder)}: cannot be read" in problem(capsys, folder)
    for what in ("show", "export"):
        assert main(["ledger", what, str(folder)]) == 2
    assert main(["explain", str(folder)]) == 0
    assert "silos-ledger.jsonl is missing" in capsys.readouterr().out


def test_every_flipped_byte_is_found(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    path = silos(folder)
    data = path.read_bytes()
    for at in range(0, len(data), 211):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert found(capsys, "verify", folder, code=1)["ok"] is False, at


def rewritten(path: Path, change: Any) -> None:
    """Writes a ledger anew with changed lines and a whole chain, as an owner could."""
    before = [json.loads(line) for line in path.read_bytes().splitlines()]
    path.unlink()
    head, data = GENESIS, b""
    for line in before:
        record = {name: value for name, value in change(line).items() if name != "check"} | {"prev_hash": head}
        text = json.dumps(record | {"check": check(record)}, sort_keys=True).encode()
        head, data = hashlib.sha256(text).hexdigest(), data + text + b"\n"
    path.write_bytes(data)
    result = path.with_name("result.json")
    kept = json.loads(result.read_text())
    result.write_text(json.dumps(kept | {"ledgers": {path.name: {"seq": len(before), "hash": head}}}))
    path.with_name("checkpoint.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"silos": [2, 9]}, "charges silo 9, but result.json has 4 silos"),
        ({"silos": [0]}, "12 steps in the silo that took most, but result.json says 6"),
        ({"event": to_json(STEPS)}, "its dearest silo costs epsilon"),
        ({"event": to_json(Repeated(Sampled(Poisson(0.25), Gaussian(1.0)), 3))}, "9 steps in the silo that took most"),
        ({"neighbours": "replace"}, "holds charges for another relation than result.json's add_remove"),
    ],
)
def test_a_claim_that_the_lines_do_not_support_is_found(
    capsys: pytest.CaptureFixture[str], folder: Path, change: dict[str, Any], words: str
) -> None:
    """Even where chain and heads were made to fit."""
    rewritten(silos(folder), lambda line: line)
    assert found(capsys, "verify", folder)["ok"] is True
    dear = to_json(LOUD)
    rewritten(silos(folder), lambda line: line | change if line.get("event") == dear else line)
    assert words in problem(capsys, folder)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("epsilon_upper", 0.1, "its dearest silo costs epsilon"),
        ("epsilon_upper", None, "but result.json says inf"),
        ("steps", 5, "6 steps in the silo that took most, but result.json says 5"),
        ("per_silo", None, "its silos have 3 percentiles, but result.json says 0"),
        ("per_silo", {"p10": 0.1, "p50": 0.1, "p90": 0.1}, "the p10 of its silos is epsilon"),
        ("delta", 2.0, "delta must be in"),
        ("neighbours", "replace", "another relation than result.json's replace"),
    ],
)
def test_a_changed_claim_is_found(
    capsys: pytest.CaptureFixture[str], folder: Path, name: str, value: Any, words: str
) -> None:
    path = folder / "result.json"
    result = json.loads(path.read_text())
    result["privacy"]["example"][name] = value
    path.write_text(json.dumps(result))
    assert words in problem(capsys, folder)


def test_a_result_that_says_nothing_of_the_silos_ledger_is_found(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    path = folder / "result.json"
    result = json.loads(path.read_text())
    del result["ledgers"]
    path.write_text(json.dumps(result))
    assert "not the result of a run (KeyError('ledgers'))" in problem(capsys, folder)


def test_a_torn_line_is_found_then_counts_for_all_silos(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    with open(silos(folder), "ab") as file:
        file.write(b'{"check": "')
    assert "the last line is torn (11 bytes), and not charged yet" in problem(capsys, folder)
    assert main(["ledger", "export", str(folder)]) == 2
    event = json.dumps(to_json(STEPS))
    assert "charged as 1 reserve" in said(capsys, "mend", silos(folder), "--as", event, "--unit", "example")
    verdict = found(capsys, "verify", folder)  # The result is of the lines before it.
    assert verdict["silos"]["epsilon_upper"] == {"example/add_remove": worst(4)}  # As the dearest, on top of silo 2's.
    assert main(["explain", str(folder)]) == 0
    assert "silos-ledger.jsonl has 1 line more than this result knows of" in " ".join(capsys.readouterr().out.split())


def test_a_torn_line_of_a_killed_run_is_in_its_claim(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ActiveRun(parse(config(tmp_path)), folder) as active:
        train(active, stop=lambda: len(active.store.rows()) == 2)
    with open(silos(folder), "ab") as file:
        file.write(b"{")
    with ActiveRun(reopen(folder), folder, resume=True) as active:
        train(active)
        active.finish()
    verdict = found(capsys, "verify", folder)
    assert verdict["ok"] is True
    claimed = json.loads((folder / "result.json").read_text())["privacy"]["example"]
    assert claimed["steps"] == 2 * (3 + 1)
    assert verdict["silos"]["epsilon_upper"]["example/add_remove"] == claimed["epsilon_upper"] == worst(4)


def test_export_has_an_event_for_silos_that_spent_the_same(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    exported = json.loads(said(capsys, "export", folder))
    assert [(unit["unit"], unit.get("silos")) for unit in exported] == [
        ("silo", None), ("example", [0, 1, 3]), ("example", [2])
    ]  # fmt: skip
    noise = [unit["event"]["events"][0]["event"]["event"]["event"]["noise_multiplier"] for unit in exported[1:]]
    assert noise == [1.5, 1.0]
    assert [unit["event"]["events"][0]["count"] for unit in exported] == [3, 3, 3]


def test_export_says_what_silos_paid_that_no_line_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "data", run="a", dataset="d")
    for charged in (None, [1]):
        ledger.reserve_each(1, [(STEPS, charged)], unit="example", neighbours="add_remove", deal="x")
    ledger.close()
    exported = json.loads(said(capsys, "export", tmp_path / "data"))
    assert [(unit["silos"], unit["deal"], unit["event"]["events"][0]["count"]) for unit in exported] == [
        ([1], "x", 2), (None, "x", 1)
    ]  # fmt: skip
    assert load(tmp_path / "data").chain.spent_by("example", [0]) == {0: {STEPS: 1}, 1: {STEPS: 2}}
