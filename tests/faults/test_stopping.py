"""A silo's own process that is asked to stop: at rest, while it trains, and while others wait for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.relay import exchange
from client.sockets import Place
from privacy.ledger import read as read_ledger
from strategies.envelope import decode_reply
from tests.simulations.silos import SILO, asked, experiment, hello, said

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
POLICY = """
silo: {epsilon: 50.0, delta: 1.0e-2}
strategies: [fedavg]
tasks: [logistic]
"""
ENDLESS = 10**7  # Steps: hours of them.


@contextmanager
def silo(folder: Path) -> Iterator[subprocess.Popen[str]]:
    (folder / "policy.yaml").write_text(POLICY)
    command = [sys.executable, "-m", "simulations", "silo", "--data", "digits", "--policy", str(folder / "policy.yaml")]
    command += ["--socket", str(folder / "s"), "--folder", str(folder / "own")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None
            assert "answers at" in process.stderr.readline()
            yield process
        finally:
            process.kill()


def alone(group: int) -> bool:
    """Whether no process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_silo_stops_in_the_middle_of_training_and_what_was_begun_stays_paid(number: signal.Signals) -> None:
    """Nobody waits for the steps to end: whoever asked is told, and the process is gone with all that it started."""
    run = experiment(privacy={"silo": SILO, "noise": "system"}, train={"steps": ENDLESS})
    with tempfile.TemporaryDirectory(prefix="cf", dir="/tmp") as name:
        folder, answers = Path(name), []
        place = Place(path=str(folder / "s"))
        with silo(folder) as process:
            assert said(exchange(hello(run), place)).status == "ok"
            task = asked(run, deadline_s=120.0)
            waits = threading.Thread(target=lambda: answers.append(exchange(task, place, connect_s=0.5)))
            waits.start()
            ledgers = folder / "own" / "ledgers"
            while not any(line["kind"] == "reserve" for path in ledgers.glob("*.jsonl") for line in read_ledger(path)):
                assert waits.is_alive()
                threading.Event().wait(0.05)
            process.send_signal(number)
            process.wait(60)  # Ten seconds would do; a loaded machine is slow, not wrong.
            assert process.returncode != 0
            assert "in the middle of a round, which stays charged" in process.stderr.read()  # type: ignore[union-attr]
            waits.join(60)
            assert alone(process.pid)
        assert decode_reply(answers[0]).code == "silo_unreachable"
        [ledger] = ledgers.glob("*.jsonl")
        assert [line["unit"] for line in read_ledger(ledger) if line["kind"] == "reserve"].count("silo") == 1


def test_a_silo_at_rest_stops_at_once_and_well() -> None:
    with tempfile.TemporaryDirectory(prefix="cf", dir="/tmp") as name, silo(Path(name)) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert alone(process.pid)


def test_a_policy_is_read_again_on_a_hangup_and_one_that_cannot_be_read_changes_nothing() -> None:
    run = experiment(privacy={"silo": SILO, "noise": "system"})
    with tempfile.TemporaryDirectory(prefix="cf", dir="/tmp") as name:
        folder = Path(name)
        place, file, audit = Place(path=str(folder / "s")), folder / "policy.yaml", folder / "own" / "audit.jsonl"

        def hung_up(process: subprocess.Popen[str], text: str) -> str:
            file.write_text(text)
            process.send_signal(signal.SIGHUP)
            assert process.stderr is not None
            return process.stderr.readline()

        with silo(folder) as process:
            assert said(exchange(hello(run), place)).status == "ok"
            for bad in ("silo: {epsilon: .nan}", "strategies: [", "unknown: 1"):
                assert "the policy stays as it was: " in hung_up(process, bad)
                assert said(exchange(hello(run), place)).status == "ok"
            assert "as it is now" in hung_up(process, POLICY.replace("fedavg", "mr_mtl"))
            assert said(exchange(hello(run), place)).code == "policy"
            assert "as it is now" in hung_up(process, POLICY)
            assert said(exchange(hello(run), place)).status == "ok"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        words = [json.loads(line)["what"] for line in audit.read_text().splitlines()]
        assert [word for word in words if word.startswith("policy")] == ["policy kept"] * 3 + ["policy read"] * 2
