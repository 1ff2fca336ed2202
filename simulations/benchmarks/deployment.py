"""What running across machines costs beside the work itself, on one machine, in one run.

    python -m simulations.benchmarks.deployment [--repeats 5] [--silos 2] [--wide 0] [--format json]

Three measurements. A payload goes from a relay to the silo's daemon and back, in a process of its own: gRPC in chunks,
with a connection made each time as relays do, against plain copies over the same kind of socket. A relay's process
starts, without torch and with it. Rounds of a real federation over TLS, against the same rounds in one process; with
`--silos 0` they are left out, and `--wide 32768` makes the model a network of 9.8 MB.
"""

from __future__ import annotations

import argparse
import json
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

PAYLOADS = (4_000, 10_000_000, 100_000_000)
BLOCK = 2**20
STARTS = {"python alone": "pass", "relay": "import client.app", "relay with torch": "import client.app, torch"}
POLICY = "unprotected: true\nstrategies: [fedavg]\ntasks: [logistic, mlp]\n"
ROUNDS = 4
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
        command = [sys.executable, "-m", "simulations.benchmarks.deployment", "--listen", path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdout.readline()
                yield path, process
            finally:
                process.stdin.close()
                process.kill()


def legs(repeats: int) -> list[dict[str, Any]]:
    """Each payload there and back, both ways in turn; megabytes a second count both directions."""
    found = []
    for size in PAYLOADS:
        with listener() as (path, process):  # One for each, as memory that was had is kept.
            data, before = _envelope(size), _peak(process.pid)
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
                    "daemon_mb_more": (_peak(process.pid) - before) / 1e6,
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


def _peak(pid: int) -> int:
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


def rounds(silos: int, wide: int) -> dict[str, Any]:
    """Seconds of a round of a federation, and of the same in one process; medians, without the first."""
    from simulations import run
    from simulations.deploying.rehearsal import Stage, running
    from simulations.deploying.submitting import submit
    from simulations.shipped import find
    from strategies.loading import load

    changes = [f"data.silos={silos}", "cohort.rate=1", f"rounds={ROUNDS}", "engine.deadline_s=120"]
    changes += ["privacy.silo=null", "privacy.audit.canaries=0"]
    changes += [f"task={{name: mlp, hidden: [{wide}]}}"] if wide else []
    with tempfile.TemporaryDirectory(prefix="confide-") as name:
        folder = Path(name)
        with running(Stage(folder / "stage", [POLICY] * silos, ["digits"] * silos)) as there:
            asked = load(find("quickstart"), [*changes, "engine.kind=flower"])
            result = submit(asked, folder / "there", there.federation).result
        run("quickstart", out=folder / "here", overrides=changes)
        there_s, here_s = (_median(folder / each) for each in ("there", "here"))
    sent = result["communication"]
    return {
        "silos": silos,
        "model_bytes": sent["bytes_down"] // (silos * ROUNDS),
        "arrived": result["updates"]["arrived"],
        "federation_s": there_s,
        "one_process_s": here_s,
    }


def _median(folder: Path) -> float:
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return statistics.median(float(sum(line["seconds"].values())) for line in lines[1:])


def table(found: dict[str, Any]) -> Iterator[str]:
    """The results as lines of text."""
    yield "relay to daemon and back, medians"
    for each in found["legs"]:
        yield (
            f"  {each['bytes']:>11,} bytes {each['relay_ms']:8.1f} ms {each['relay_mb_s']:7.1f} MB/s, plain copies "
            f"{each['copy_mb_s']:7.1f} MB/s ({each['slower_than_copies']:.1f}x); "
            f"daemon's peak +{each['daemon_mb_more']:.0f} MB"
        )
    for name, seconds in found["starts"].items():
        yield f"start of {name:17} {seconds:6.2f} s"
    if (each := found.get("rounds")) is not None:
        yield (
            f"a round of {each['silos']} silos, model of {each['model_bytes']:,} bytes: {each['federation_s']:.2f} s "
            f"in a federation, {each['one_process_s']:.3f} s in one process"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; prints a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.deployment", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--silos", type=int, default=2, help="of the federation; 0: none")
    parser.add_argument("--wide", type=int, default=0, help="hidden units of its model; 0: logistic regression")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--listen", metavar="PATH", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.listen is not None:
        listen(options.listen)
        return 0
    found: dict[str, Any] = {"legs": legs(options.repeats), "starts": starts(options.repeats)}
    if options.silos:
        found["rounds"] = rounds(options.silos, options.wide)
    print(json.dumps(found, indent=2) if options.format == "json" else "\n".join(table(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
