"""Whole silos for tests: offices with rows, policies and ledgers of their own, and runs that reach them by bytes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.office import Office
from client.policy import Policy
from simulations.deploying.connecting import connect, public, schema
from simulations.deploying.opening import Opener
from simulations.preparing import prepare
from simulations.running import ActiveRun, train
from strategies.codec import decode, encode
from strategies.envelope import Expected, Reply, Task, decode_reply
from strategies.envelope import encode as packed
from strategies.experiment import Experiment, digest
from strategies.loading import parse
from strategies.yaml_text import yaml_of
from tests.server.posts import FakePost, Time

RUN = "0123456789abcdef" * 2
OPEN = {"unprotected": True, "strategies": ["fedavg"], "tasks": ["logistic"]}
SILO = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-2}
DIGITS = {
    "rounds": 3,
    "task": "logistic",
    "data": {"name": "digits", "silos": 4, "test": 0.1, "limit": 400},
    "train": {"steps": 2, "learning_rate": 0.5},
}


def experiment(**changes: Any) -> Experiment:
    """A small run on digits, with some keys changed."""
    return parse({**DIGITS, **changes})


def policy(**changes: Any) -> Policy:
    """A policy that allows what is not protected, with some keys changed."""
    return decode(Policy, {**OPEN, **changes})


def office(folder: Path, rules: Policy, *, number: int = 0, data: str = "digits") -> Office:
    """A silo."""
    return Office(number=number, policy=rules, folder=folder, open_run=Opener(data, number, "cpu", rules))


def hello(run: Experiment, *, id_: str = RUN, **changes: Any) -> bytes:
    """The hello of a server with the same data set."""
    facts = {"experiment": yaml_of(encode(public(run))), **changes}
    facts.setdefault("schema", None if "schema" in facts else schema(prepare(run).federation))
    return packed(Task(kind="hello", run=id_, digest=digest(run), **facts))


def asked(run: Experiment, kind: str = "train", *, id_: str = RUN, round_: int = 1, **facts: Any) -> bytes:
    """A task with the model that the run starts from."""
    start = prepare(run).model.start
    task = Task(kind=kind, run=id_, digest=digest(run), round=round_, vectors={"model": start}, **facts)  # type: ignore[arg-type]
    return packed(task, values=run.wire.values)


def said(data: bytes, run: Experiment | None = None) -> Reply:
    """A reply, with the update of a run where it has one."""
    if run is None:
        return decode_reply(data)
    size = prepare(run).model.start.numel()
    return decode_reply(data, Expected(run.strategy.channels(size), values=run.wire.values))


def apart(
    run: Experiment, folder: Path, rules: Policy, opened: ExitStack, out: Path | None = None
) -> tuple[Mapping[str, Any], FakePost]:
    """A whole run in which every silo is an office of its own; its result, and what was sent."""
    time = Time()
    post = FakePost(time)
    for number in range(4):
        silo = opened.enter_context(closing(office(folder / f"silo{number}", rules, number=number)))
        post.silos[number] = silo.handle
    remote = replace(run, engine=replace(run.engine, kind="flower"))

    with ActiveRun(remote, out or folder / "run", connect=connect(post, clock=time.clock)) as active:
        train(active)
        return active.finish().result, post
