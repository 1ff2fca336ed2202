"""The silo's daemon as a process of its own: what outlives it, and what code on the other side of its socket can do."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.relay import exchange
from client.sockets import Place
from privacy.accountant import upper_epsilon
from privacy.chain import load
from privacy.events import Event, Gaussian
from strategies.envelope import decode_task, encode
from tests.simulations.silos import SILO, asked, experiment, hello, said

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
POLICY = """
silo: {epsilon: 50.0, delta: 1.0e-2}
strategies: [fedavg]
tasks: [logistic]
least_examples: 5
simulated_noise: true
"""
MARK = 271828.0  # A value of one row: what it is must not be found in anything that leaves.
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, as a socket's path must be; others may pass through it, as through /run."""
    with tempfile.TemporaryDirectory(prefix="cf", dir="/tmp") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@contextmanager
def daemon(folder: Path, data: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    (folder / "policy.yaml").write_text(POLICY)
    command = [sys.executable, "-m", "simulations", "silo", "--data", data, "--policy", str(folder / "policy.yaml")]
    command += ["--socket", str(folder / "s"), "--folder", str(folder / "own"), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        try:
            assert process.stderr is not None
            said = [process.stderr.readline()]
            while "answers at" not in said[-1]:
                assert said[-1].startswith("confide: metrics"), said
                said.append(process.stderr.readline())
            (folder / "said").write_text("".join(said))
            yield process
        finally:
            process.kill()
            process.wait()


def spent(folder: Path) -> list[Event | None]:
    """What the silo's own ledger has charged for whole silos."""
    found = [load(path).chain.counted() for path in (folder / "own" / "ledgers").glob("*.jsonl")]
    return [entry.event for entries in found for entry in entries if entry.unit == "silo"]


def ask(folder: Path, data: bytes) -> bytes:
    return exchange(data, Place(path=str(folder / "s")))


def test_what_was_answered_and_charged_outlives_the_process(folder: Path) -> None:
    run = experiment(privacy={"silo": SILO, "noise": "system"})
    with daemon(folder, "digits", "--number", "3") as process:
        assert said(ask(folder, hello(run))).silo == 3
        first = ask(folder, asked(run))
        assert said(first, run).status == "ok"
        process.send_signal(signal.SIGKILL)
        process.wait()
    with daemon(folder, "digits", "--number", "3") as process:  # The socket's file is still there.
        assert said(ask(folder, asked(run))).code == "unknown_run"
        ask(folder, hello(run))
        assert ask(folder, asked(run)) == first
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert not (folder / "s").exists()
    assert spent(folder) == [Gaussian(2.0)]


def scraped(folder: Path) -> dict[str, float]:
    """The silo's own counters; nothing of its rows or paths is there."""
    [port] = re.findall(r"metrics: http://127\.0\.0\.1:(\d+)/metrics", (folder / "said").read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert str(folder) not in text
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    counted = ("_total", "_count", "_spent", "_sum")
    return {name: float(value) for name, _, value in lines if name.partition("{")[0].endswith(counted)}


def test_a_silo_tells_its_owner_what_it_did_also_after_it_was_killed(folder: Path) -> None:
    run = experiment(privacy={"silo": SILO, "noise": "system"})
    with daemon(folder, "digits", "--metrics", "127.0.0.1:0") as process:
        assert scraped(folder)['confide_silo_requests_total{outcome="answered"}'] == 0
        for task in (hello(run), asked(run), asked(run, round_=99)):
            ask(folder, task)
        before = scraped(folder)
        process.kill()
        process.wait()
    assert before['confide_silo_requests_total{outcome="answered"}'] == 2
    assert before['confide_silo_requests_total{outcome="stale"}'] == 1
    assert before["confide_silo_rounds_total"] == before["confide_silo_training_seconds_count"] == 1
    assert before['confide_silo_epsilon_spent{unit="silo"}'] == pytest.approx(upper_epsilon(Gaussian(2.0), 1e-2))
    with daemon(folder, "digits", "--metrics", "127.0.0.1:0"):
        assert scraped(folder) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)])
def test_a_round_that_was_begun_stays_charged_however_the_process_ends(number: int, code: int, folder: Path) -> None:
    """Killed within a million steps, so long after the reserve and long before an answer; then asked again."""
    run = experiment(privacy={"silo": SILO, "noise": "system"}, train={"steps": 1_000_000, "learning_rate": 0.1})
    with daemon(folder, "digits") as process:
        ask(folder, hello(run))
        caller = threading.Thread(target=ask, args=(folder, asked(run, deadline_s=30.0)))
        caller.start()
        while spent(folder) != [Gaussian(2.0)]:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    with daemon(folder, "digits"):
        caller.join()
        ask(folder, hello(run))
        assert said(ask(folder, asked(run, deadline_s=0.5))).code == "deadline"  # Nothing is known of it: trained anew.
        assert spent(folder) == [Gaussian(2.0)] * 2


# A hostile ClientApp: whoever wrote the bundle, it runs as the relay's user, and knows every path.

HOSTILE = """
import os, pickle, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import grpc
from client.relay import exchange
from client.sockets import Place
from client import chunks, proto
from client.proto import silo_pb2, silo_pb2_grpc
from strategies.envelope import encode, refusal
import strategies.signing
folder = Path({folder!r})
tasks = [path.read_bytes() for path in sorted((folder / "tasks").iterdir())]
place = Place(path=str(folder / "s"))
if os.getuid() == 0:  # The user of the node, who is not the user of the daemon.
    os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
    for path in ("rows.csv", "own", "own/ledgers", "own/audit.jsonl", "own/runs"):
        for look in (lambda: (folder / path).read_bytes(), lambda: os.listdir(folder / path)):
            try:
                print("LEAK", path, look())
            except (PermissionError, NotADirectoryError, IsADirectoryError):
                pass
    for path in ("policy.yaml", "own/audit.jsonl", "s"):
        for harm in (lambda: open(folder / path, "ab"), lambda: os.unlink(folder / path)):
            try:
                harm()
                print("HARM", path)
            except OSError:
                pass
class Bomb:
    def __reduce__(self):
        return os.system, ("touch {folder}/pickled",)
replies = [exchange(task, place) for task in tasks]
for raw in (pickle.dumps(Bomb()), b"", b"cfde", os.urandom(4096)):
    with place.channel(chunks.OPTIONS) as channel:
        answer = silo_pb2_grpc.SiloStub(channel).Exchange(chunks.pieces(raw), timeout=60)
        replies.append(chunks.joined(answer, 2**24))
for reply in replies:
    print(reply.hex())
"""


def hostile_tasks() -> list[bytes]:
    """What a bundle could try at the socket: other strategies, no privacy, paths, metrics, rounds out of any order."""
    run, bare = experiment(data=own_data(), privacy={"silo": SILO}), experiment(data=own_data())
    shown = decode_task(hello(run)).schema
    other = [
        experiment(data=own_data(), strategy="mr_mtl", privacy={"silo": SILO}),
        experiment(data=own_data(), task={"name": "lora", "base": "logistic", "weights": "/etc/passwd"}),
        bare,
    ]
    tasks = [hello(each, id_=f"{number:032x}", schema=shown) for number, each in enumerate(other)]
    tasks += [hello(run), asked(run, "evaluate"), asked(run, "evaluate", fresh=True), asked(run, record=True)]
    nan = decode_task(asked(run))
    tasks += [encode(replace(nan, vectors={"model": nan.vectors["model"] * float("nan")}))]
    return [*tasks, encode(replace(nan, round=2, vectors={})), encode(replace(nan, run="f" * 32))]


def own_data() -> dict[str, Any]:
    return {"path": os.environ["CONFIDE_TEST_PUBLIC"], "target": "ill", "silos": 2, "public_test": 0.25}


def test_code_on_the_other_side_of_the_socket_reaches_neither_rows_nor_ledger(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a user of its own where the test runs as root; what the socket gives is looked at in both cases."""
    header, rows = "age,weight,ill\n", "".join(f"{n},{2 * n},{'yes' if n % 2 else 'no'}\n" for n in range(1, 21))
    (folder / "public.csv").write_text(header + rows)
    monkeypatch.setenv("CONFIDE_TEST_PUBLIC", str(folder / "public.csv"))
    (folder / "rows.csv").write_text(f"{header}{rows}{MARK:.0f},1,yes\n")
    (folder / "rows.csv").chmod(0o600)
    (folder / "tasks").mkdir()
    for number, task in enumerate(hostile_tasks()):
        (folder / "tasks" / f"{number:02d}").write_bytes(task)
    with daemon(folder, str(folder / "rows.csv"), "--socket-mode", "666") as process:
        code = HOSTILE.format(root=str(ROOT), folder=str(folder), nobody=NOBODY)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "LEAK" not in done.stdout
        assert "HARM" not in done.stdout
        replies = [said(bytes.fromhex(line)) for line in done.stdout.splitlines()]
        codes = [reply.code for reply in replies]
        assert codes[:3] == ["policy", "unsupported", "policy"]
        assert codes[3] is None  # The one hello that the policy allows.
        assert (
            codes[4:]
            == ["policy", "policy", "policy", "training_failed", "training_failed", "unknown_run"] + ["malformed"] * 4
        )
        for reply in replies:
            assert str(int(MARK)) not in reply.reason
            assert reply.channels == {}
        assert process.poll() is None
        assert not (folder / "pickled").exists()
        assert said(ask(folder, hostile_tasks()[3])).status == "ok"  # It still answers whoever keeps to the policy.
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert str(int(MARK)) not in process.stderr.read()
    assert stat.S_IMODE((folder / "own" / "audit.jsonl").stat().st_mode) == 0o600
    assert spent(folder) == [Gaussian(2.0)] * 2  # For the rounds that failed in training: what was begun is paid.
