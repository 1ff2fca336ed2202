"""A payload from a relay to the silo's daemon and back, and how long a relay's process takes to start.

The daemon is in a process of its own: gRPC in chunks, with a connection made each time as relays do, against plain
copies over the same kind of socket. Part of `simulations.benchmarks.deployment`.
"""

from __future__ import annotations

import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

BLOCK = 2**20
STARTS = {"python alone": "pass", "relay": "import client.app", "relay with torch": "import client.app, torch"}
READY_S = 60.0


class Echo:
    """An office that trains nothing: what it is asked, it answers."""

    number, answered, refused = 0, 0, 0

    def __init__(self) -> None:
        from strategies.envelope import Limits

        self.limits = Limits()

    def handle(self, data: bytes, *, cancelled: Callable[[], bool]) -> bytes:
        """The same bytes."""
        return data


def listen(path: str) -> None:
    """Answers gRPC at `path` and plain copies at `path`.plain, until the end of its input."""
    from client.daemon import Daemon
    from client.office import Office
    from client.sockets import Place

    with Daemon(cast(Office, Echo()), Place(path=path)), socket.socket(socket.AF_UNIX) as plain:
        plain.bind(f"{path}.plain")
        plain.listen()
        print("ready", flush=True)
        for size in map(int, sys.stdin):
            _copy_back(plain, size)


def _copy_back(plain: socket.socket, size: int) -> None:
    with plain.accept()[0] as there:
        there.sendall(_received(there, size))


def _received(there: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    view, at = memoryview(found), 0
    while at < size:
        at += there.recv_into(view[at : at + BLOCK])
    return found


@contextmanager
def listener() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A daemon in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="cf") as folder:
        path = f"{folder}/s"
        command = [sys.executable, "-m", "simulations.benchmarks.deployment_legs", path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdout.readline()
                yield path, process
            finally:
                process.stdin.close()
                process.kill()


def legs(payloads: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Each payload there and back, both ways in turn; megabytes a second count both directions."""
    found = []
    for size in payloads:
        with listener() as (path, process):  # One for each, as memory that was had is kept.
            data, before = _envelope(size), peak(process.pid)
            times = [(_relayed(data, path), _copied(data, path, process)) for _ in range(repeats + 1)][1:]
            relayed, copied = map(statistics.median, zip(*times))
            rate = 2 * len(data) / 1e6
            found.append(
                {
                    "bytes": len(data),
                    "relay_ms": 1000 * relayed,
                    "relay_mb_s": rate / relayed,
                    "copy_mb_s": rate / copied,
                    "slower_than_copies": statistics.median(one / other for one, other in times),
                    "daemon_mb_more": (peak(process.pid) - before) / 1e6,
                }
            )
    return found


def _envelope(size: int) -> bytes:
    import torch

    from strategies.envelope import Task, encode

    task = Task(kind="train", run="ab" * 16, digest="cd" * 32, round=1, deadline_s=READY_S)
    return encode(Task(**{**vars(task), "vectors": {"model": torch.rand(size // 4)}}))


def _relayed(data: bytes, path: str) -> float:
    from client.relay import exchange
    from client.sockets import Place

    before = time.perf_counter()
    if exchange(data, Place(path=path)) != data:
        raise RuntimeError("the daemon answered with other bytes")
    return time.perf_counter() - before


def _copied(data: bytes, path: str, process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    process.stdin.write(f"{len(data)}\n")
    process.stdin.flush()
    before = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(f"{path}.plain")
        there.sendall(data)
        if _received(there, len(data)) != data:
            raise RuntimeError("other bytes came back")
    return time.perf_counter() - before


def peak(pid: int) -> int:
    """Bytes of memory that a process had at most."""
    [kilobytes] = re.findall(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    return 1024 * int(kilobytes)


def starts(repeats: int) -> dict[str, float]:
    """Seconds until a process has imported what a relay needs, in turn; medians."""
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(repeats + 1):
        for name, code in STARTS.items():
            before = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0"})
            times[name].append(time.perf_counter() - before)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


if __name__ == "__main__":
    listen(sys.argv[1])
