"""Flower's own simulation, with Ray: the model of one process, and nothing left running."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from simulations import run
from simulations.deploying.processes import MARKS
from simulations.deploying.submitting import BUNDLE

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="ray is not installed; use: pip install 'confide[ray]'"
    ),
]

SILOS, MARK = 4, "CONFIDE_TEST_OF_RAY"
CHANGES = [f"data.silos={SILOS}", "cohort.rate=1", "rounds=3", "engine.deadline_s=120", "privacy.noise=simulated"]


def left(mark: str) -> list[str]:
    """The processes that have a mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
            found += [(entry / "comm").read_text().strip()] if marked else []
        except OSError:
            continue
    return found


def titled(beside: str) -> set[str]:
    """The programs of Ray that gave themselves a title and are still known by both marks, ours and the test's."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name, told = (entry / "comm").read_text().strip(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if name.startswith("ray::") and f"{MARK}={beside}".encode() in told and f"{MARKS}=".encode() in told:
            found.add(name)
    return found


def test_the_quickstart_over_ray_is_that_of_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulations", "run", "quickstart", "--engine", "ray", "--quiet"]
    command += [part for change in CHANGES for part in ("--set", change)]
    seen: set[str] = set()
    with open(tmp_path / "log", "w") as log:
        running = subprocess.Popen(
            [*command, "--out", str(tmp_path / "ray"), "--format", "json"],
            cwd=tmp_path,
            env={**os.environ, MARK: tmp_path.name, "PYTHONPATH": str(BUNDLE)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while running.poll() is None:
                seen |= titled(tmp_path.name)
                time.sleep(0.2)
        finally:
            running.kill()
    assert running.returncode == 0, (tmp_path / "log").read_text()
    assert {"ray::DashboardA", "ray::RuntimeEnv"} <= seen  # Those that once outlived the run, unknown by then.
    local = run("quickstart", out=tmp_path / "local", overrides=CHANGES)
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path / "ray", local.folder))
    assert max(float((first[name] - second[name]).abs().max()) for name in first.keys() | second.keys()) <= 1e-6
    found = json.loads((tmp_path / "ray" / "result.json").read_text())
    assert found["updates"] == local.result["updates"]
    assert found["updates"]["arrived"] == 3 * SILOS
    assert found["privacy"]["silo"] == local.result["privacy"]["silo"]
    assert sorted(each.name for each in (tmp_path / "ray" / "silos").iterdir()) == ["0", "1", "2", "3"]
    assert left(tmp_path.name) == []
