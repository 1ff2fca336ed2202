"""Silos of Flower's own simulation: they have no daemon, and the rows of the experiment's own split.

Ray gives each message to whichever of its actors is free, so a silo's next task may reach another process. What an
actor knows of an experiment it keeps for all silos; what a silo knows is on the disk, in the run's folder, and is read
again for every message.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from client.engagement import Opened
from client.errors import Refused
from client.office import Office
from client.policy import METRICS, Policy
from privacy.durable import atomic_write
from simulations.data.federation import Federation, build
from simulations.deploying.opening import opened, read
from simulations.preparing import Prepared, prepare
from strategies.envelope import EnvelopeError, Task, peek
from strategies.experiment import Experiment
from strategies.registry import STRATEGIES
from strategies.schema import ConfigError
from strategies.tasks import TASKS

SILOS = "silos"  # In the run's folder.
HELLO, LOCK = "hello", "lock"
STEADY_S = 1.0  # Nodes of a simulation are there at once; the first look may come in the middle of it.
MOST = 2  # Experiments that an actor keeps at hand.


def federation(experiment: Experiment, nodes: Callable[[], Sequence[int]]) -> Federation:
    """The silos of a simulation, as many as it has nodes.

    Raises:
        ConfigError: it has another number of nodes, or rows that its nodes would not find.
        DataError: the rows cannot be had.
    """
    if experiment.data.path is not None:
        raise ConfigError(["data.path: Flower's simulation deals data sets by name only; use --engine pool"])
    built = build(experiment.data, seed=experiment.seed)
    found, before = len(nodes()), -1
    while found != before:
        time.sleep(STEADY_S)
        found, before = len(nodes()), found
    require_number(found, len(built.train))
    return built


def require_number(nodes: int, silos: int) -> None:
    """Requires that a simulation has a node for each silo.

    Raises:
        ConfigError: it has not.
    """
    if nodes != silos:
        remedy = f"use --federation-config 'num-supernodes={silos}', or set data.silos={nodes}"
        raise ConfigError([f"num-supernodes: the simulation has {nodes} nodes, the experiment {silos} silos; {remedy}"])


def answer(data: bytes, *, number: int, silos: int, folder: Path) -> bytes:
    """The reply of a simulated silo to a task.

    Args:
        data: the task.
        number: of the silo.
        silos: of the simulation.
        folder: of all its silos; every process that answers for them must reach it.
    """
    torch.set_num_threads(1)  # As in every engine: more would change the bits of a sum.
    own = folder / str(number)
    own.mkdir(parents=True, exist_ok=True)
    policy = Policy(
        unprotected=True,
        strategies=tuple(STRATEGIES),
        tasks=tuple(TASKS),
        metrics=METRICS,
        simulated_noise=True,
    )
    with open(own / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # One process at a time speaks for a silo.
        with closing(Office(number=number, policy=policy, folder=own, open_run=Simulated(number, silos))) as office:
            return _answered(office, data, own / HELLO)


def _answered(office: Office, data: bytes, hello: Path) -> bytes:
    try:
        kind = peek(data).kind
    except EnvelopeError:  # The office says what is wrong with it.
        return office.handle(data)
    if kind == "hello":
        atomic_write(hello, data)
    elif hello.exists():
        office.handle(hello.read_bytes())
    return office.handle(data)


@dataclass(frozen=True)
class Simulated:
    """Opens runs for one simulated silo.

    Attributes:
        number: of the silo.
        silos: of the simulation.
    """

    number: int
    silos: int

    def __call__(self, hello: Task) -> Opened:
        """What the run would do here.

        Raises:
            Refused: with the reason.
        """
        assert hello.experiment is not None
        try:
            experiment, prepared = _prepared(hello.experiment, hello.digest)
            require_number(self.silos, len(prepared.federation.train))
        except ValueError as error:  # Nothing here is anybody's secret.
            raise Refused("unsupported", error) from error
        return opened(experiment, prepared, self.number, dataset=prepared.federation.fingerprint, device="auto")


@lru_cache(maxsize=MOST)
def _prepared(text: str, digest: str) -> tuple[Experiment, Prepared]:
    experiment = read(text, digest)
    return experiment, prepare(experiment)
