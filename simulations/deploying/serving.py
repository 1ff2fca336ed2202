"""One run on the server: what its configuration says, and how its end is told to whoever asked for it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from privacy.durable import atomic_write
from server.flower import GridPost
from server.loop import RoundResult
from server.post import Post
from simulations.commands import FAILED, OK
from simulations.data.federation import Federation
from simulations.deploying import public, virtual
from simulations.deploying.connecting import connect
from simulations.folders import default_folder, reopen
from simulations.running import ActiveRun, Outcome, train
from simulations.shipped import find
from strategies.experiment import Experiment
from strategies.loading import load, load_text
from strategies.schema import ConfigError

ENGINE = "engine.kind=flower"
STOP = "stop"  # A file of this name in a run's folder ends the run after the round in flight.


@dataclass(frozen=True)
class Order:
    """What a run is asked for.

    Attributes:
        experiment: to run.
        folder: of the run.
        resume: the folder holds the run already.
    """

    experiment: Experiment
    folder: Path
    resume: bool


def order(settings: Mapping[str, object]) -> Order:
    """Reads the run's configuration, whose keys `[tool.flwr.app.config]` declares.

    `config` is a shipped experiment or a file of the bundle, changed by `set` (overrides, one a line); `experiment` is
    a whole one as text, in its place. `out` is the folder; `resume` goes on in one, where `set` may change what is no
    part of the run's digest.

    Raises:
        ConfigError: both or neither of them, or an experiment that is none.
    """
    config, text, out, resume = (str(settings.get(name, "")) for name in ("config", "experiment", "out", "resume"))
    overrides = [line.strip() for line in str(settings.get("set", "")).splitlines() if line.strip()]
    if resume:
        return Order(reopen(Path(resume), [*overrides, ENGINE]), Path(resume), True)
    if text:
        experiment = load_text(text, [*overrides, ENGINE], where="experiment")
    elif config:
        experiment = load(find(config), [*overrides, ENGINE])
    else:
        raise ConfigError(["config: names no experiment; use --run-config 'config=\"quickstart\"'"])
    return Order(experiment, Path(out) if out else default_folder(experiment), False)


def serve(post: Post, settings: Mapping[str, object]) -> None:
    """Runs an experiment with the silos that a post reaches; prints a line a round."""
    with _told(str(settings.get("status", ""))), _logged():
        asked = order(settings)
        print(f"confide: run folder {asked.folder.absolute()}", flush=True)
        outcome = _run(post, asked)
        print(f"confide: done, {outcome.result['rounds']} rounds in {outcome.folder.absolute()}", flush=True)


def _run(post: Post, asked: Order) -> Outcome:
    stop = asked.folder / STOP
    stop.unlink(missing_ok=True)
    if isinstance(post, GridPost) and post.simulated:
        here: Federation | None = virtual.federation(asked.experiment, post.nodes)
        post.folder = asked.folder.absolute() / virtual.SILOS
    else:
        here = public.federation(asked.experiment)
    opened = ActiveRun(asked.experiment, asked.folder, resume=asked.resume, connect=connect(post), federation=here)
    with opened as active:
        train(active, _say, stop=stop.exists)
        return active.finish()


def _say(result: RoundResult) -> None:
    row = result.row
    score = next((f", {name} {row[name]:.4f}" for name in ("accuracy", "mse", "loss") if row.get(name) is not None), "")
    why = "".join(f", {count} x {reason}" for reason, count in row["failure_reasons"].items())
    print(f"confide: round {result.round}: {row['arrived']} of {row['cohort']} updates{why}{score}", flush=True)


@contextmanager
def _logged() -> Iterator[None]:
    """What the link has to say of silos goes to the run's log."""
    handler, logger = logging.StreamHandler(sys.stdout), logging.getLogger("confide")
    handler.setFormatter(logging.Formatter("confide: %(message)s"))
    logger.addHandler(handler)
    level, logger.level = logger.level, logging.INFO
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level = level


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Notes how a run ended in a file; an error that a user can mend is one line there, and in the log."""
    from simulations.exits import codes

    try:
        yield
    except Exception as error:
        code = next(codes(error), FAILED)
        lines = str(error).splitlines() or [type(error).__name__]
        for line in lines:
            print(f"confide: {line}", flush=True)
        _note(path, code, lines)
        raise
    _note(path, OK, [])


def _note(path: str, code: int, lines: list[str]) -> None:
    if path:
        atomic_write(Path(path), json.dumps({"code": code, "lines": lines}).encode())
