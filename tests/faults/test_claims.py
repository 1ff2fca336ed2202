"""The table of README.md is true: every fault is claimed, and by tests that exist."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.faults.claims import TABLE, claimed

TESTS = Path(__file__).resolve().parents[1]


def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_fault_is_claimed_once_and_in_order() -> None:
    faults = list(dict.fromkeys(fault for fault, _, _ in claimed()))
    assert faults == [f"F{number}" for number in range(1, 33)]
    assert f"{len(faults)} of 32 are tested." in TABLE.read_text()


def test_claims_are_of_tests_that_exist() -> None:
    for fault, file, name in claimed():
        assert (TESTS / file).is_file(), (fault, file)
        found = {each for each in names_in(TESTS / file) if each.startswith("test_")}
        assert found, (fault, file)
        assert name in found or name == "", (fault, file, name)


def test_tests_are_marked_by_the_table() -> None:
    """The names that a collection shows for one fault are those of its row."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "fault"]
    files = ["faults/test_surroundings.py", "server/test_store.py"]
    done = subprocess.run(
        [*command, *(str(TESTS / file) for file in files)], capture_output=True, text=True, cwd=TESTS.parent
    )
    assert done.returncode == 0, done.stdout
    shown = {line.split("[")[0].removeprefix("tests/") for line in done.stdout.splitlines() if "::" in line}
    named = {f"{file}::{name}" for _, file, name in claimed() if file in files}
    assert shown == named
