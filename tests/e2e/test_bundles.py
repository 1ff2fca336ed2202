"""The example of deploy/: a Flower project that uses confide's strategies, in one process and over gRPC."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from privacy.chain import load
from privacy.events import Gaussian
from tests.server.flower_grid import FakeGrid, identity

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "deploy" / "examples" / "flasc_in_flower"
READY_S, RUN_S, GONE_S = 120.0, 540.0, 20.0


def app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flasc_app", PROJECT / "flasc_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def require_trained(tmp_path: Path, module: ModuleType, *, rounds: int) -> None:
    assert load(tmp_path / "ledger.jsonl").chain.spent("silo") == [Gaussian(1.0)] * rounds
    assert load(tmp_path / "ledger.jsonl").chain.open_reserves() == []
    before = {name: value.detach().numpy() for name, value in module.model().named_parameters()}
    with np.load(tmp_path / "model.npz", allow_pickle=False) as after:
        assert set(after) == set(before)
        assert all(np.isfinite(after[name]).all() and after[name].shape == before[name].shape for name in before)
        assert any((after[name] != before[name]).any() for name in before)


def test_the_example_runs_in_one_process(tmp_path: Path) -> None:
    module = app()
    config = {"silos": 2, "rounds": 2, "ledger": str(tmp_path / "ledger.jsonl"), "model": str(tmp_path / "model.npz")}

    def node(number: int, message: Message) -> Message:
        answer: Message = module.client(message, Context(7, number, {"partition-id": number}, RecordDict(), config))
        return answer

    with identity():
        grid = FakeGrid({11: lambda message: node(0, message), 12: lambda message: node(1, message)})
        module.server(grid=grid, context=Context(7, 1, {}, RecordDict(), config))
    assert len(grid.pushed) == 4
    require_trained(tmp_path, module, rounds=2)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@contextlib.contextmanager
def program(command: list[str], *, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a session of its own, of which nothing is left at the end."""
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "log", "wb") as log:
        path = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
        process = subprocess.Popen(
            path, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(home), start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GONE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),  # In place of an installed confide.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)


@pytest.mark.integration
def test_the_example_runs_over_grpc_with_two_nodes(tmp_path: Path) -> None:
    control, fleet, first, second = free_ports(4)
    link, project = tmp_path / "link", tmp_path / "flasc_in_flower"
    link.mkdir()
    (link / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{control}"\ninsecure = true\n')
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__"))
    settings = f"rounds=2 ledger='{tmp_path / 'ledger.jsonl'}' model='{tmp_path / 'model.npz'}'"
    server = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(control)]
    server += ["--fleet-api-address", f"127.0.0.1:{fleet}", "--database", str(link / "state.db")]
    with contextlib.ExitStack() as stack:
        superlink = stack.enter_context(program([*server, "--disable-runtime-dependency-installation"], home=link))
        until_listening(control, superlink, link / "log")
        until_listening(fleet, superlink, link / "log")
        for number, port in enumerate((first, second)):
            node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{fleet}", "--port", str(port)]
            node += ["--node-config", f"partition-id={number}"]
            stack.enter_context(program(node, home=tmp_path / f"node{number}"))
        flwr = [str(Path(sys.executable).with_name("flwr")), "run", str(project), "here", "--stream"]
        done = subprocess.run(
            [*flwr, "--run-config", settings],
            env=environment(link),
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told = done.stdout + done.stderr
    assert "'arrived': 2, 'refused': 0" in told, told
    require_trained(tmp_path, app(), rounds=2)
