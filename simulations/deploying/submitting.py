"""Hands an experiment to a running SuperLink, follows its rounds, and brings back what it left.

SuperLink and command are on one machine: whoever may start runs can have code run on every node, so the port for that
is on loopback alone.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.loop import RoundResult
from server.store import StoreError
from simulations import accounts
from simulations.commands import OK, REFUSED
from simulations.deploying.flower import flwr, quoted
from simulations.deploying.registering import last_json
from simulations.deploying.serving import STOP
from simulations.folders import usable
from simulations.running import Outcome
from strategies.codec import encode
from strategies.experiment import Experiment
from strategies.schema import ConfigError
from strategies.yaml_text import yaml_of

POLL_S, ASK_S = 0.2, 10.0
SUBMIT_S = 120.0
BUNDLE = Path(__file__).resolve().parents[2]  # The folder whose pyproject.toml is the Flower app.


class FederationError(RuntimeError):
    """A run across machines that failed; one line."""


@dataclass(frozen=True)
class Federation:
    """A SuperLink that runs on this machine.

    Attributes:
        name: as `confide serve --name` has it, or a connection of `flwr`.
        home: the folder that FLWR_HOME names for it.
        simulated: of a simulation: its nodes, as `flwr run --federation-config` takes them.
    """

    name: str
    home: Path
    simulated: str = ""

    @classmethod
    def find(cls, name: str) -> Federation:
        """The federation of a name: of `confide serve`, else one of `flwr`'s own connections.

        Raises:
            ConfigError: there is none.
        """
        if not name or not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError([f"--federation: use letters, digits, - or _, found {name[:40]!r}"])
        homes = [home_of(name)] + ([Path(own)] if (own := os.environ.get("FLWR_HOME")) else [])
        for home in homes:
            config = home / "config.toml"
            if config.exists() and f"[superlink.{name}]" in config.read_text():
                return cls(name, home)
        raise ConfigError([f"--federation: there is no {name!r} here; start it with: confide serve --name {name}"])


def home_of(name: str) -> Path:
    """The folder of a federation that `confide serve` runs."""
    return accounts.home() / "federations" / name


def submit(
    experiment: Experiment,
    folder: Path,
    federation: Federation,
    *,
    resume: bool = False,
    on_round: Callable[[RoundResult], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Runs an experiment in a federation, to its end or to the end of its budget.

    Args:
        experiment: to run.
        folder: of the run; the SuperLink's process writes it.
        federation: that runs it.
        resume: the folder holds the run already.
        on_round: called after every committed round, without the state.
        stop: whether the run is to end after the round in flight.

    Raises:
        ConfigError: the experiment was refused.
        FederationError: the run failed.
    """
    usable(folder, resume=resume)
    if not (BUNDLE / "pyproject.toml").exists():
        raise FederationError(f"{BUNDLE}: no pyproject.toml there; run confide from its source, which nodes are sent")
    with tempfile.TemporaryDirectory(prefix="confide-") as temporary:
        status = Path(temporary) / "status.json"
        settings = {"out": str(folder.absolute()), "status": str(status)}
        settings |= _resumed(experiment, folder) if resume else {"experiment": yaml_of(encode(experiment))}
        run = _start(federation, settings, Path(temporary))
        with _stopped_on_interrupt(federation, run):
            ended = _follow(federation, run, folder, status, on_round, stop)
    code, lines = int(ended["code"]), [str(line) for line in ended["lines"]]
    if code == REFUSED:
        raise ConfigError(lines)
    if code != OK:
        raise FederationError("\n".join(lines))
    return Outcome(folder, json.loads((folder / "result.json").read_bytes()))


def _resumed(experiment: Experiment, folder: Path) -> dict[str, str]:
    """What is asked for to go on: the folder has the experiment, but its numbers may go to other sinks now."""
    sinks = json.dumps(encode(experiment.metrics)["sinks"])
    return {"resume": str(folder.absolute()), "set": f"metrics.sinks={sinks}"}


def _start(federation: Federation, settings: Mapping[str, str], temporary: Path) -> str:
    """Starts a run; returns its id."""
    chosen = temporary / "run.toml"
    chosen.write_text("".join(f"{name} = {quoted(value)}\n" for name, value in settings.items()))
    command = ["run", str(BUNDLE), federation.name, "--run-config", str(chosen), "--format", "json"]
    command += ["--federation-config", federation.simulated] if federation.simulated else []
    done = flwr(command, home=federation.home, timeout_s=SUBMIT_S)
    told = " ".join(f"{done.stdout} {done.stderr}".split())
    if done.returncode != 0 or "run-id" not in done.stdout:
        raise FederationError(f"federation {federation.name}: the run was not taken: {told[-300:]}")
    return str(last_json(done.stdout)["run-id"])


def _follow(
    federation: Federation,
    run: str,
    folder: Path,
    status: Path,
    on_round: Callable[[RoundResult], None] | None,
    stop: Callable[[], bool],
) -> Mapping[str, Any]:
    """Shows rounds as they are committed, until the run says how it ended."""
    seen, asked = len(_rows(folder)), time.monotonic()
    while True:
        ended = json.loads(status.read_bytes()) if status.exists() else None
        rows = _rows(folder)
        for row in rows[seen:]:
            if on_round is not None:
                on_round(RoundResult(int(row["round"]), row, {}))
        seen = len(rows)
        if ended is not None:
            return dict(ended)
        if stop() and folder.exists():
            (folder / STOP).touch()
        if time.monotonic() - asked > ASK_S:
            asked = time.monotonic()
            if _over(federation, run) and not status.exists():
                raise FederationError(f"run {run} ended without a word; see: flwr log {run} {federation.name}")
        time.sleep(POLL_S)


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The committed rounds; a line that is being written is not there yet."""
    path = folder / "rounds.jsonl"
    try:
        text = path.read_text() if path.exists() else ""
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _over(federation: Federation, run: str) -> bool:
    done = flwr(["ls", federation.name, "--run-id", run, "--format", "json"], home=federation.home)
    if done.returncode != 0:
        raise FederationError(f"federation {federation.name}: its SuperLink does not answer any more")
    return any(str(each.get("status", "")).startswith("finished") for each in last_json(done.stdout).get("runs", []))


@contextmanager
def _stopped_on_interrupt(federation: Federation, run: str) -> Iterator[None]:
    """Whoever does not want to wait for the round in flight ends the run in the SuperLink, too."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, FederationError):
            flwr(["stop", run, federation.name], home=federation.home)
        raise
