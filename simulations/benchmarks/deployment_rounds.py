"""Rounds of a real federation over TLS on this machine: what of their time is Flower's, and what is ours.

Ours is what the server does while it neither waits nor is in Flower's calls, and the longest that a relay had to do
with its daemon (silos work side by side). The rest is Flower's: polls, processes that start, messages under way. All of
it comes from what is logged anyway: the run's log, the nodes' logs, the silos' audit logs and the run's rounds. Part of
`simulations.benchmarks.deployment`.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.loop import RoundResult
from simulations.benchmarks.deployment_legs import peak
from simulations.deploying.flower import flwr
from simulations.deploying.registering import last_json
from simulations.deploying.rehearsal import Running, Stage, running
from simulations.deploying.submitting import submit
from simulations.folders import reopen
from simulations.shipped import find
from strategies.experiment import Experiment
from strategies.loading import load

POLICY = "unprotected: true\nstrategies: [fedavg]\ntasks: [logistic, mlp]\n"
ENGINE = "engine.kind=flower"
INPUTS, CLASSES = 64, 10  # Of digits.
SERVER = re.compile(r"round (\d+): asked and summed in ([\d.]+) s, ([\d.]+) of them in the post, ([\d.]+) waiting")
RELAY = re.compile(r"confide: \d+ bytes there, (\d+) back, in ([\d.]+) s")
TORCH = """\
import sys
if any(part.endswith("flwr-clientapp") for part in sys.orig_argv):
    import torch
"""


def experiment(silos: int, size: int, rounds: int) -> Experiment:
    """One step of a network of about `size` bytes, in every silo and without privacy.

    Two hidden layers of one width: a single one would be so wide that what is measured is its activations.
    """
    wide = INPUTS + CLASSES + 2  # Numbers for each hidden unit, beside those between the two layers.
    width = round((math.sqrt(wide**2 + 4 * (size / 4 - CLASSES)) - wide) / 2)
    changes = [f"data.silos={silos}", "cohort.rate=1", f"rounds={rounds}", "engine.deadline_s=300", "train.steps=1"]
    changes += ["privacy.silo=null", "privacy.audit.canaries=0", ENGINE]
    return load(find("quickstart"), [*changes, f"task={{name: mlp, hidden: [{width}, {width}]}}"])


@dataclass
class Watch:
    """What is seen of a run while it goes on.

    Attributes:
        there: the federation.
        say: shows progress.
        peaks: the largest number of bytes that a process of a kind had.
    """

    there: Running
    say: str
    peaks: dict[str, int] = field(default_factory=dict)

    def __call__(self, result: RoundResult) -> None:
        """After each round."""
        seconds = sum(result.row["seconds"].values())
        print(f"confide: {self.say}: round {result.round} took {seconds:.1f} s", file=sys.stderr, flush=True)
        there = self.there
        kinds = {"server_app": serverapps(there), "superlink": [there.superlink.pid]}
        kinds |= {"daemon": [each.pid for each in there.silos], "supernode": [each.pid for each in there.nodes]}
        for kind, pids in kinds.items():
            self.peaks[kind] = max([self.peaks.get(kind, 0), *map(_peak, pids)])


def _peak(pid: int) -> int:
    try:
        return peak(pid)
    except (OSError, ValueError):  # It ended.
        return 0


def serverapps(there: Running) -> list[int]:
    """The processes that run a ServerApp of a federation."""
    found = []
    for pid in there.superlink.family():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(part.endswith(b"flwr-serverapp") for part in command):
            found.append(pid)
    return found


@contextmanager
def federation(silos: int, *, torch: bool = False) -> Iterator[tuple[Running, Path]]:
    """Server, silos and nodes, and a folder; with `torch`, whatever Flower starts for a message imports that first."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="cf")))
        before = os.environ.get("PYTHONPATH", "")
        if torch:
            (folder / "sitecustomize.py").write_text(TORCH)
            opened.callback(os.environ.__setitem__, "PYTHONPATH", before)
            os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}"
        yield opened.enter_context(running(Stage(folder / "stage", [POLICY] * silos, ["digits"] * silos))), folder


def measured(there: Running, folder: Path, size: int, rounds: int, say: str) -> dict[str, Any]:
    """One run: medians of a round's seconds and of its parts, without the first round; peaks of memory so far."""
    silos, stage = len(there.silos), folder / "stage"
    logs = [stage / f"node-{number}.log" for number in range(silos)]
    audits = [stage / f"silo-{number}" / "audit.jsonl" for number in range(silos)]
    marks = {path: path.stat().st_size if path.exists() else 0 for path in (*logs, *audits)}
    known, watch = runs(there), Watch(there, say)
    out = folder / f"{silos}-{size}"
    result = submit(experiment(silos, size, rounds), out, there.federation, on_round=watch).result
    new = {path: _after(path, mark) for path, mark in marks.items()}
    [run] = runs(there) - known
    rows = [json.loads(line)["seconds"] for line in (out / "rounds.jsonl").read_text().splitlines()]
    sent = result["communication"]["bytes_down"] // (silos * rounds)
    server = [_server(row, asked) for row, asked in zip(rows, _asked(there, run), strict=True)]
    relay = [max(each) for each in zip(*(_relayed(new[path], sent, rounds) for path in logs), strict=True)]
    daemon = [max(each) for each in zip(*(_worked(new[path], rounds) for path in audits), strict=True)]
    whole = [sum(row.values()) for row in rows]
    parts = {"round_s": whole, "server_s": server, "relay_and_daemon_s": relay, "of_which_daemon_s": daemon}
    parts["flower_s"] = [all_ - ours - leg for all_, ours, leg in zip(whole, server, relay, strict=True)]
    medians = {name: statistics.median(values[1:]) for name, values in parts.items()}
    peaks = {f"{kind}_peak_mb": size / 1e6 for kind, size in watch.peaks.items()}
    return {"silos": silos, "model_bytes": sent, "arrived": result["updates"]["arrived"], **medians, **peaks}


def runs(there: Running) -> set[str]:
    """The runs that the SuperLink knows."""
    done = flwr(["ls", there.server.name, "--format", "json"], home=there.server.home)
    return {str(each["run-id"]) for each in last_json(done.stdout).get("runs", [])}


def _after(path: Path, mark: int) -> str:
    return path.read_bytes()[mark:].decode(errors="replace")


def _asked(there: Running, run: str) -> list[tuple[float, ...]]:
    """Of each round: seconds from the question to the sums, in Flower's calls, and waiting."""
    done = flwr(["log", run, there.server.name, "--show"], home=there.server.home)
    found = {int(row[0]): tuple(map(float, row[1:])) for row in SERVER.findall(done.stdout)}
    return [found[round_] for round_ in sorted(found)]


def _server(row: Mapping[str, float], asked: Sequence[float]) -> float:
    whole, post, waiting = asked
    return sum(row.values()) - row["train"] + whole - post - waiting


def _relayed(log: str, size: int, rounds: int) -> list[float]:
    """Seconds of the messages that brought an update back; the others are short."""
    found = [float(seconds) for back, seconds in RELAY.findall(log) if int(back) >= size]
    if len(found) != rounds:
        raise RuntimeError(f"the node's log shows {len(found)} updates of {rounds} rounds")
    return found


def _worked(audit: str, rounds: int) -> list[float]:
    lines = [json.loads(line) for line in audit.splitlines()]
    found = [float(line["seconds"]) for line in lines if (line["what"], line.get("kind")) == ("answered", "train")]
    if len(found) != rounds:
        raise RuntimeError(f"the silo's log shows {len(found)} updates of {rounds} rounds")
    return found


class Killed(Exception):
    """The server's app is dead, and nobody waits until Flower notices."""


def resumed(there: Running, folder: Path, size: int) -> dict[str, float]:
    """Seconds from SIGKILL of the server's app to the first round that another Flower run of it committed.

    It is resumed at once; Flower itself notices after about a minute that it is gone.
    """
    times: list[float] = []

    def kill(_: RoundResult) -> None:
        for pid in serverapps(there):
            os.kill(pid, signal.SIGKILL)
        times.append(time.monotonic())
        raise Killed

    out = folder / "resumed"
    try:
        submit(experiment(len(there.silos), size, 2), out, there.federation, on_round=kill)
    except Killed:
        done = reopen(out, [ENGINE])
        submit(done, out, there.federation, resume=True, on_round=lambda _: times.append(time.monotonic()))
    return {"first_round_s": times[1] - times[0]}
