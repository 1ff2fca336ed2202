"""The verifier that knows nothing of confide, copied alone into an empty folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from privacy import verify
from privacy.accountant import Neighbours, epsilon
from privacy.chain import check
from privacy.events import Capped, Composed, Event, FixedSize, Gaussian, NonPrivate, Poisson, Sampled
from privacy.ledger import Ledger

DELTA = 1e-4
POISSON = Sampled(Poisson(0.25), Gaussian(2.0))
CAPPED = Sampled(Capped(0.25, 12, 40), Gaussian(2.0))
FIXED = Sampled(FixedSize(5, 40), Gaussian(2.0))


def write(path: Path, *events: Event, neighbours: str = "add_remove") -> bytes:
    ledger = Ledger(path, run="demo", dataset="d")
    for round_, event in enumerate(events):
        ledger.commit(ledger.reserve(round_, event, unit="silo", neighbours=neighbours))
    ledger.close()
    return path.read_bytes()


ALONE = """
import runpy, sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"privacy", "strategies", "client", "server", "simulations", "torch", "yaml"}:
            raise ImportError(name + " is not to be had here")

sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def verified(path: Path) -> subprocess.CompletedProcess[str]:
    """Runs the copy, in isolated mode: no confide on any path, and not where it is installed either, nor torch."""
    folder = path.parent / "alone"
    folder.mkdir(exist_ok=True)
    shutil.copy(verify.__file__, folder)
    command = [sys.executable, "-I", "-c", ALONE, str(folder / "verify.py"), str(path), "--delta", str(DELTA)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_it_imports_nothing_of_confide() -> None:
    text = Path(verify.__file__).read_text()
    imports = [line.split()[1] for line in text.splitlines() if line.split()[:1] in (["import"], ["from"])]
    assert {name.split(".")[0] for name in imports} - sys.stdlib_module_names == {"dp_accounting"}


CASES: list[tuple[Neighbours, list[Event]]] = [
    ("add_remove", [POISSON] * 20),
    ("add_remove", [Gaussian(8.0)] * 10),
    ("zero_out", [POISSON] * 5),
    ("replace", [Gaussian(8.0)] * 10),
    ("replace", [POISSON] * 10),
    ("replace", [FIXED] * 10),
    ("add_remove", [Gaussian(5.0), *[POISSON] * 10]),  # Private standardisation is round 0.
    ("replace", [Gaussian(5.0), *[FIXED] * 10]),
    ("add_remove", [CAPPED] * 10),
    ("zero_out", [Gaussian(5.0), CAPPED, POISSON]),
    ("replace", [CAPPED] * 10),
    ("add_remove", [Sampled(Capped(0.25, 12, 40), Composed((Gaussian(3.0), Gaussian(4.0))))] * 10),
    ("add_remove", [Sampled(Poisson(0.25), Composed((Gaussian(3.0), Gaussian(4.0))))] * 10),
]


@pytest.mark.parametrize(("neighbours", "events"), CASES)
def test_it_agrees_with_the_accountant(tmp_path: Path, neighbours: Neighbours, events: list[Event]) -> None:
    """By the same theorems, on another grid or at other orders: within 1% of what is claimed, and never below truth."""
    write(tmp_path / "ledger.jsonl", *events, neighbours=neighbours)
    records, _ = verify.reserves((tmp_path / "ledger.jsonl").read_bytes().split(b"\n")[:-1])
    counted = verify.Counter(json.dumps(record["event"], sort_keys=True) for record in records)
    bracket = epsilon(Composed(tuple(events)), DELTA, neighbours=neighbours)
    found = verify.epsilon(counted, neighbours, DELTA)
    assert max(bracket.lower * (1 - 1e-6), bracket.upper * 0.99) <= found <= bracket.upper * 1.01


def test_alone_in_an_empty_folder_it_says_epsilon_charges_and_head(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, *[POISSON] * 3)
    done = verified(path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    bracket = epsilon(Composed((POISSON,) * 3), DELTA)
    assert bracket.lower <= found["epsilon"] <= bracket.upper * 1.01
    ledger = Ledger(path, run="demo", dataset="d")
    assert (found["charges"], found["torn"], found["head"]) == (3, 0, ledger.head.hash)
    ledger.close()


def said(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], delta: float = DELTA) -> Any:
    monkeypatch.setattr(sys, "argv", ["verify.py", str(path), "--delta", str(delta)])
    verify.main()
    return json.loads(capsys.readouterr().out)


def test_a_torn_tail_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ledger"
    whole = write(path, Gaussian(8.0), Gaussian(8.0))
    path.write_bytes(whole + b"{")
    torn = said(path, monkeypatch, capsys)
    assert (torn["charges"], torn["torn"]) == (3, 1)
    Ledger(path, run="demo", dataset="d").close()  # Charges it.
    assert said(path, monkeypatch, capsys) == torn | {"head": said(path, monkeypatch, capsys)["head"]}


def test_empty_is_free_and_not_private_is_infinite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(b"")
    assert said(path, monkeypatch, capsys) == {"epsilon": 0.0, "charges": 0, "torn": 0, "head": "0" * 64}
    write(path, Gaussian(8.0), NonPrivate("exact"))
    assert said(path, monkeypatch, capsys)["epsilon"] is None


def rewritten(whole: bytes, change: dict[str, Any]) -> bytes:
    """The first line with other fields and a check sum made anew."""
    record = json.loads(whole.splitlines()[0])
    del record["check"]
    record |= change
    return json.dumps(record | {"check": check(record)}, sort_keys=True).encode() + b"\n"


COIN = {"kind": "poisson", "rate": 0.1}
CAP = {"kind": "capped", "rate": 0.1, "cap": 4, "population": 40}
GAUSSIAN = {"kind": "gaussian", "noise_multiplier": 2.0}
UNKNOWN = [
    {"event": {"kind": "laplace", "scale": 1.0}},
    {"event": {"kind": "gaussian", "noise_multiplier": 2.0, "times": 3}},
    {"event": {"kind": "gaussian", "noise_multiplier": -2.0}},
    {"event": {"kind": "gaussian", "noise_multiplier": "2"}},
    {"event": {"kind": "repeated", "event": {"kind": "gaussian", "noise_multiplier": 2.0}, "times": -1}},
    {"event": {"kind": "sampled", "sampler": {"kind": "shuffled"}, "event": GAUSSIAN}},
    {"event": {"kind": "sampled", "sampler": COIN, "event": {"kind": "composed", "events": []}}},
    {"event": {"kind": "sampled", "sampler": COIN, "event": {"kind": "non_private", "reason": ""}}},
    {"event": {"kind": "sampled", "sampler": COIN, "event": {"kind": "sampled", "sampler": COIN, "event": GAUSSIAN}}},
    {"event": {"kind": "sampled", "sampler": COIN, "event": {"kind": "sampled", "sampler": CAP, "event": GAUSSIAN}}},
    {"event": {"kind": "sampled", "sampler": CAP | {"cap": 0}, "event": GAUSSIAN}},
    {"event": {"kind": "sampled", "sampler": CAP | {"rate": 1.5}, "event": GAUSSIAN}},
    {"event": {"kind": "sampled", "sampler": CAP, "event": {"kind": "repeated", "event": GAUSSIAN, "times": 2}}},
    {"kind": "refund"},
    {"kind": "void", "reserve": 1},
    {"neighbours": "similar"},
    {"seq": 2},
]  # fmt: skip


@pytest.mark.parametrize("change", UNKNOWN)
def test_what_it_does_not_know_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(rewritten(write(path, POISSON), change))
    with pytest.raises(SystemExit) as stop:
        said(path, monkeypatch, capsys)
    assert str(stop.value).startswith("verify: ")  # sys.exit with text: printed on stderr, exit code 1.
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("touch", ["edited", "deleted", "mixed", "fixed", "torn", "delta", "missing"])
def test_what_was_touched_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], touch: str
) -> None:
    path = tmp_path / "ledger"
    whole = write(path, FIXED if touch == "fixed" else POISSON, POISSON)
    if touch == "edited":
        path.write_bytes(whole.replace(b"2.0", b"9.0"))
    elif touch == "deleted":
        path.write_bytes(b"".join(whole.splitlines(keepends=True)[1:]))
    elif touch == "mixed":
        write(path, POISSON, neighbours="replace")
    elif touch == "torn":
        path.write_bytes(whole[:40])
    elif touch == "missing":
        path.unlink()
    with pytest.raises(SystemExit) as stop:
        said(path, monkeypatch, capsys, delta=1.0 if touch == "delta" else DELTA)
    assert str(stop.value).startswith("verify: ")


def test_units_are_priced_apart_and_voids_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path, run="demo", dataset="d")
    ledger.reserve(1, Gaussian(8.0), unit="silo", neighbours="add_remove")
    ledger.void(ledger.reserve(2, Gaussian(1.0), unit="silo", neighbours="add_remove"))
    ledger.reserve(3, Gaussian(1.0), unit="example", neighbours="replace")
    ledger.close()
    found = said(path, monkeypatch, capsys)
    assert found["charges"] == 1
    assert found["epsilon"] == pytest.approx(epsilon(Gaussian(8.0), DELTA).upper, rel=0.01)


def test_a_reserve_is_closed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A void after the commit, with a right check sum and a right place in the chain, takes nothing back."""
    path = tmp_path / "ledger"
    whole = write(path, POISSON)
    record = json.loads(whole.splitlines()[1])
    del record["check"]
    record |= {"kind": "void", "seq": 3, "prev_hash": hashlib.sha256(whole.splitlines()[1]).hexdigest()}
    path.write_bytes(whole + json.dumps(record | {"check": check(record)}, sort_keys=True).encode() + b"\n")
    with pytest.raises(SystemExit, match="line 3"):
        said(path, monkeypatch, capsys)
