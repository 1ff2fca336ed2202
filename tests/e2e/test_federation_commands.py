"""The commands that a federation is run with, as a reader of the README types them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from simulations.deploying.certificates import Folder, public_hex
from simulations.deploying.processes import Program, free_ports, listens
from simulations.deploying.submitting import BUNDLE

pytestmark = pytest.mark.integration

SILOS = 2
POLICY = "silo: {epsilon: 20, delta: 0.0001}\nstrategies: [fedavg]\ntasks: [logistic]\n"


def start(folder: Path, name: str, arguments: Sequence[str]) -> Program:
    """A command of confide, run from the source."""
    told = {"PYTHONPATH": str(BUNDLE), "CONFIDE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return Program(
        name, [sys.executable, "-m", "simulations", *arguments], log=folder / f"{name}.log", environment=told
    )


def done(folder: Path, name: str, arguments: Sequence[str], *, timeout_s: float = 60) -> tuple[int | None, str]:
    with start(folder, name, arguments) as program:
        program_ended(program, timeout_s)
        return program.ended, program.printed()


def program_ended(program: Program, timeout_s: float) -> None:
    program.until(lambda: program.ended is not None, timeout_s=timeout_s, what="it ended")


def test_a_run_by_the_commands_of_the_readme(tmp_path: Path) -> None:
    certs = ["certs", "--out", str(tmp_path / "certs"), "--node", "silo-0", "--node", "silo-1"]
    code, told = done(tmp_path, "certs", certs)
    files = Folder(tmp_path / "certs")
    assert code == 0
    assert public_hex(files.signing_key) in told
    fleet, control = free_ports(2)
    serve = ["serve", "quickstart", "--certs", str(files.path), "--address", f"127.0.0.1:{fleet}"]
    serve += ["--control-port", str(control), "--name", "tested", "--out", str(tmp_path / "run"), "--quiet"]
    for change in (f"data.silos={SILOS}", "cohort.rate=1", "rounds=2", "privacy.audit.canaries=0"):
        serve += ["--set", change]
    with ExitStack() as opened:
        server = opened.enter_context(start(tmp_path, "serve", serve))
        (tmp_path / "policy.yaml").write_text(f"{POLICY}server_keys: [{public_hex(files.signing_key)}]\n")
        sockets = [tmp_path / f"{number}.sock" for number in range(SILOS)]
        for number, socket in enumerate(sockets):
            silo = ["silo", "--data", "digits", "--number", str(number), "--policy", str(tmp_path / "policy.yaml")]
            silo += ["--socket", str(socket), "--folder", str(tmp_path / f"silo-{number}")]
            daemon = opened.enter_context(start(tmp_path, f"silo-{number}", silo))
            daemon.until(lambda daemon=daemon: "answers at" in daemon.printed(), timeout_s=90, what="it answered")  # type: ignore[misc]
        server.until(lambda: "confide: federation tested at" in server.printed(), timeout_s=90, what="it served")
        nodes = []
        for number, socket in enumerate(sockets):
            join = ["join", "--server", f"127.0.0.1:{fleet}", "--socket", str(socket)]
            join += ["--ca", str(files.authority), "--key", str(files.node_key(f"silo-{number}"))]
            nodes.append(opened.enter_context(start(tmp_path, f"join-{number}", join)))
        program_ended(server, 240)
        assert server.ended == 0, server.printed()
        assert server.family() == []  # It stops what it started.
        for node in nodes:
            os.kill(node.pid, signal.SIGTERM)
            program_ended(node, 30)
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (found["engine"], found["rounds"], found["updates"]["arrived"]) == ("flower", 2, 2 * SILOS)
    assert all(len(list((tmp_path / f"silo-{number}" / "ledgers").glob("*.jsonl"))) == 1 for number in range(SILOS))


def test_a_signal_stops_a_server_and_all_that_it_started(tmp_path: Path) -> None:
    fleet, control = free_ports(2)
    serve = ["serve", "--insecure", "--address", f"127.0.0.1:{fleet}", "--control-port", str(control)]
    with start(tmp_path, "serve", serve) as server:
        server.until(lambda: "start runs with" in server.printed(), timeout_s=90, what="it served")
        assert len(server.family()) >= 2
        os.kill(server.pid, signal.SIGTERM)
        program_ended(server, 30)
        assert server.ended == 0
        assert server.family() == []


KILLED_S = 30  # It takes a second or two; a loaded machine is slow, not wrong.
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="this machine cannot: no kernel but Linux ties programs")


@LINUX
def test_who_is_killed_leaves_nobody_that_listens(tmp_path: Path) -> None:
    """SIGKILL of `join`, then of `serve`: what they started is gone with them, though nobody could ask it to stop."""
    fleet, control = free_ports(2)
    serve = ["serve", "--insecure", "--address", f"127.0.0.1:{fleet}", "--control-port", str(control)]
    (tmp_path / "policy.yaml").write_text(POLICY)
    socket = str(tmp_path / "s")
    silo = ["silo", "--data", "digits", "--policy", str(tmp_path / "policy.yaml"), "--socket", socket]
    join = ["join", "--server", f"127.0.0.1:{fleet}", "--socket", socket, "--insecure"]
    with ExitStack() as opened:
        server = opened.enter_context(start(tmp_path, "serve", serve))
        daemon = opened.enter_context(start(tmp_path, "silo", [*silo, "--folder", str(tmp_path / "silo")]))
        daemon.until(lambda: "answers at" in daemon.printed(), timeout_s=90, what="it answered")
        server.until(lambda: "start runs with" in server.printed(), timeout_s=90, what="it served")
        node = opened.enter_context(start(tmp_path, "join", join))
        node.until(lambda: "confide: joined" in node.printed(), timeout_s=120, what="it joined")
        for program in (node, server):
            assert len(program.family()) >= 3  # Itself, Flower's program, and what that started.
            os.kill(program.pid, signal.SIGKILL)
            daemon.until(lambda program=program: not program.family(), timeout_s=KILLED_S, what="all were gone")  # type: ignore[misc]
        assert not listens("127.0.0.1", fleet)
        assert not listens("127.0.0.1", control)
        assert daemon.ended is None  # A silo is nobody's child here: it stays for the next node.


@LINUX
def test_a_demo_that_is_killed_in_a_round_leaves_nobody(tmp_path: Path) -> None:
    """Server app, node apps, silos: all of them at work, and none of them asked."""
    told = {"PYTHONPATH": str(BUNDLE), "CONFIDE_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "simulations.deploying.demo", str(tmp_path / "demo")]
    with Program("demo", command, log=tmp_path / "log", environment=told) as demo:
        rounds = tmp_path / "demo" / "rounds.jsonl"
        demo.until(rounds.exists, timeout_s=240, what="a round was committed")
        assert len(demo.family()) >= 1 + 3 + 2 * (1 + 3)  # Silos, and Flower's programs with one of their own each.
        os.kill(demo.pid, signal.SIGKILL)
        deadline = time.monotonic() + KILLED_S
        while demo.family() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in demo.family()] == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["serve"], "give one of --certs DIR (made by confide certs) and --insecure, found neither"),
        (["serve", "--insecure", "--address", "0.0.0.0:9092"], "can be reached from outside, which needs TLS"),
        (["serve", "--certs", "nowhere"], "nowhere/server.key: cannot be read"),
        (["join", "--server", "127.0.0.1:9", "--socket", "x"], "join: give --ca and --key"),
        (["join", "--server", "10.0.0.1:9", "--socket", "x", "--insecure"], "is not on this machine"),
        (["join", "--server", "127.0.0.1:9", "--socket", "x", "--insecure"], "x: no silo answers there"),
        (["run", "quickstart", "--engine", "flower", "--federation", "nobody"], "there is no 'nobody' here; start it"),
        (["run", "quickstart", "--set", "engine.kind=flower", "--plugin", "json"], "--plugin, --dataset: stay in this"),
    ],
)
def test_what_a_user_can_mend_is_one_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    code, told = done(tmp_path, "refused", arguments)
    assert code == 2
    assert line in told
    assert len(told.splitlines()) == 1
