"""A server and silos in processes of their own, each killed by a real SIGKILL at every seam, on either side.

Whoever died is started again: the server in the same folder, the silo on the same socket. Then the run must end with
the model of a run that nobody disturbed, and no ledger of either side may have lost a line, whence epsilon is never
lower. Training is repeated only where it must be, and paid each time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, SILOS, KILLED, SILO = 3, 4, 2, 1
CONFIG = {
    "rounds": ROUNDS,
    "task": "logistic",
    "strategy": "mr_mtl",  # Silos keep vectors, so that a commit that is lost on their side changes the model.
    "data": {"name": "digits", "silos": SILOS, "test": 0.1, "limit": 400},
    "cohort": {"sampling": "all"},
    "train": {"steps": 2, "learning_rate": 0.5},
    "privacy": {"silo": {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-2}, "noise": "simulated"},
    "engine": {"kind": "flower", "deadline_s": 60, "chunk": 2},
}


@dataclass(frozen=True)
class Case:
    """Where a process kills itself: around the `call`-th call of a method; and how often more that side then pays."""

    owner: str
    name: str
    when: str
    call: int
    extra: int
    target: str | None = None

    @property
    def seam(self) -> dict[str, Any]:
        names = ("owner", "name", "when", "call", "target")
        return {name: getattr(self, name) for name in names}


SERVER = {
    "before the reserve": Case("Ledger", "reserve", "before", KILLED, 0),
    "in the middle of the reserve": Case("Ledger", "reserve", "torn", KILLED, 1),
    "after the reserve": Case("Ledger", "reserve", "after", KILLED, 1),
    "after the attempt was noted": Case("Book", "begin", "after", KILLED, 1),
    "after the dispatch": Case("Exchange", "_take", "before", SILOS * (KILLED - 1) + 1, 1),
    "after two replies": Case("Exchange", "_take", "after", SILOS * (KILLED - 1) + 2, 1),
    "before who was used is noted": Case("RemoteLink", "stage", "before", KILLED, 1),
    "between that note's write and its rename": Case("Path", "replace", "before", 2 * KILLED, 1, "federation.json"),
    "before the checkpoint": Case("RunStore", "save", "before", KILLED, 1),
    "between the checkpoint's write and its rename": Case(
        "Path", "replace", "before", KILLED, 1, "checkpoint.safetensors"
    ),
    "after the rename": Case("Path", "replace", "after", KILLED, 0, "checkpoint.safetensors"),
    "before the silos' round is current": Case("RemoteLink", "commit", "before", KILLED, 0),
    "before the ledger's commit": Case("Ledger", "commit", "before", KILLED, 0),
    "in the middle of the round's line": Case("RunStore", "append", "torn", KILLED, 0),
    "after the last line": Case("RunStore", "append", "after", KILLED, 0),
}
UNITS = 3  # Lines of a silo's first round: what it pays, and that two other units have no protection.
AT_SILO = {
    "before its reserve": Case("Purse", "charge", "before", KILLED, 0),
    "in the middle of its reserve": Case("Ledger", "reserve", "torn", UNITS + KILLED - 1, 1),
    "after its reserve": Case("Purse", "charge", "after", KILLED, 1),
    "inside its local steps": Case("StackedTrainer", "forward", "before", 2 * KILLED, 1),
    "after its local steps": Case("Engagement", "_trained", "after", KILLED, 1),
    "before its answer is kept": Case("Memory", "keep", "before", KILLED, 1),
    "between the answer's write and its rename": Case("Path", "replace", "before", KILLED, 1, "answer"),
    "after its answer is kept": Case("Memory", "keep", "after", KILLED, 0),
    "before its personal commit": Case("PersonalStore", "commit", "before", KILLED - 1, 0),
    "after its personal commit": Case("PersonalStore", "commit", "after", KILLED - 1, 0),
}
QUICK = {"in the middle of the reserve", "after two replies", "after the rename"}
QUICK |= {"in the middle of its reserve", "inside its local steps", "after its answer is kept"}


class Place:
    """A folder with the silos, their runs, and what came of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def go(self, jobs: Sequence[tuple[str, str, Case | None]]) -> list[dict[str, Any]]:
        coded = [(name, CONFIG, who, None if case is None else case.seam) for name, who, case in jobs]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment["CONFIDE_HOME"] = str(self.folder / "home")
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.faults.processes"],
            input=json.dumps({"folder": str(self.folder), "silos": SILOS, "jobs": coded}),
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert [each["end"] for each in found] == [0] * len(jobs), done.stderr
        return found

    def result(self, name: str) -> Any:
        return json.loads((self.folder / name / "result.json").read_text())

    def lines(self, name: str, file: str = "rounds.jsonl") -> list[str]:
        path = self.folder / name / file
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def asked(self, name: str) -> set[tuple[int, int]]:
        """Rounds and attempts of letters that left."""
        words = [line.split() for line in (self.folder / name / "asked").read_text().splitlines()]
        return {(int(round_), int(attempt)) for _, round_, attempt, _ in words}

    def trained(self, name: str, silo: int) -> Counter[int]:
        """How often a silo began to train in each round of a run."""
        run = json.loads((self.folder / name / "federation.json").read_text())["run"]
        words = [line.split() for line in (self.folder / f"silo{silo}" / "trained").read_text().splitlines()]
        return Counter(int(round_) for each, round_, _ in words if each == run)


def charges(lines: Sequence[str]) -> Counter[int]:
    """Charges of the whole silo, by round."""
    rows = [json.loads(line) for line in lines]
    return Counter(row["round"] for row in rows if row["kind"] == "reserve" and row["unit"] == "silo")


def check(place: Place, name: str, found: dict[str, Any], *, who: str, case: Case) -> None:
    """The laws of a run in which somebody was killed once."""
    whole, result = place.result("whole"), place.result(name)
    assert found["deaths"] == [who], name
    assert result["model"]["sha256"] == whole["model"]["sha256"], name
    assert result["metrics"] == whole["metrics"], name
    assert result["updates"] == {"arrived": ROUNDS * SILOS, "failed": 0, "reasons": {}}, name  # None counted twice.
    assert [json.loads(line)["round"] for line in place.lines(name)] == list(range(1, ROUNDS + 1)), name
    before = place.lines(name, "rounds-killed.jsonl")
    assert place.lines(name)[: len(before)] == before, name  # A committed round is never lost.
    for side, lines in found["ledgers"].items():
        for earlier in (found["before"].get(side, []), found["kept"].get(side, [])):
            assert lines[: len(earlier)] == earlier, (name, side)  # Lines are only added, so epsilon is never lower.
        new = charges(lines[len(found["before"].get(side, [])) :])
        extra = case.extra if side == who else 0
        if side == "server":
            paid = new
            assert paid.total() == result["privacy"]["silo"]["charged_rounds"] == ROUNDS + extra, name
            assert paid.total() >= len(place.asked(name)), name  # I1, at the server.
        else:
            trained = place.trained(name, int(side))
            assert set(range(1, ROUNDS + 1)) <= trained.keys(), (name, side)
            assert new.total() >= trained.total(), (name, side)  # I1, at the silo.
            if who == "server":  # It asks once more at most, whoever it had asked before.
                assert ROUNDS <= new.total() <= ROUNDS + 1, (name, side)
            else:
                assert new.total() == ROUNDS + extra, (name, side)


def killed_all(names: Sequence[str]) -> None:
    """All in one process that imported everything, and with the same silos."""
    cases = [("server" if name in SERVER else str(SILO), (SERVER | AT_SILO)[name]) for name in names]
    folders = [f"run-{number}" for number in range(len(names))]
    with tempfile.TemporaryDirectory(prefix="cf", dir="/tmp") as folder:  # Short, as a socket's path must be.
        here = Place(Path(folder))
        jobs = [(name, who, case) for name, (who, case) in zip(folders, cases)]
        found = here.go([("whole", "server", None), *jobs])
        assert found[0]["deaths"] == []
        for name, each, (who, case) in zip(folders, found[1:], cases):
            check(here, name, each, who=who, case=case)


def test_killed_where_it_matters_on_either_side_a_run_ends_with_the_same_model() -> None:
    killed_all(sorted(QUICK))


@pytest.mark.exhaustive
@pytest.mark.parametrize("cases", [SERVER, AT_SILO], ids=["server", "silo"])
def test_killed_at_any_seam_of_either_side(cases: dict[str, Case]) -> None:
    killed_all(list(cases))
