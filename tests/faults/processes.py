"""A server and silos, each a process of its own, that get killed and started again; run by `python -m`.

Everything is imported once and every process is forked, so that dozens of kills cost seconds. Silos are the real
offices behind the real daemon on a Unix socket, and the server reaches them by the relay's own `exchange`; only
Flower, which carries the relay's messages, is left out.

What is done is noted beside it, so that the laws can be looked at from outside: `asked` in a run's folder (a line for
every letter that asks for training, with how many charges were on the disk before it left), `used` (whose updates a
round used), `trained` in a silo's folder (a line for every training that begins).
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from client import relay
from client.daemon import Daemon
from client.engagement import Engagement
from client.host import SiloHost
from client.memory import Memory
from client.office import Office
from client.personal import PersonalStore
from client.policy import Policy
from client.purse import Purse
from client.relay import exchange
from client.sockets import Place
from client.stacked import StackedTrainer
from privacy.accountant import epsilon
from privacy.events import Gaussian
from privacy.ledger import Ledger
from server import roll
from server.book import Book
from server.exchange import Exchange
from server.post import Answer
from server.remote import RemoteLink
from server.store import RunStore
from simulations import results
from simulations.deploying.connecting import connect
from simulations.deploying.opening import Opener
from simulations.running import ActiveRun, train
from strategies.codec import decode
from strategies.envelope import peek
from strategies.loading import parse

PAUSE_S, CONNECT_S = 1.0, 5.0  # Of the relay: time for a loaded machine to start a silo again.
AGAIN_S = 3.0  # A silo that could not be told of a run is told anew after that long, in place of half a minute.
POLICY = {
    "silo": {"epsilon": 1e5, "delta": 1e-2},
    "strategies": ["fedavg", "mr_mtl"],
    "tasks": ["logistic"],
    "simulated_noise": True,
}
Spoil = Callable[[int, bytes], bytes]


def note(path: Path, *words: object) -> None:
    """Adds a line that outlives the process, by one write."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (" ".join(map(str, words)) + "\n").encode())
    os.close(handle)


def charged(ledger: Path) -> int:
    """The charges of whole silos that are on the disk."""
    rows = [json.loads(line) for line in ledger.read_text().split("\n")[:-1]]
    return sum(row["kind"] == "reserve" and row["unit"] == "silo" for row in rows)


@dataclass
class RelayPost:
    """Carries letters as relays do: one thread for each, to the socket of its silo."""

    sockets: Mapping[int, Path]
    noted: Path
    spoil: Spoil = lambda silo, answer: answer
    _calls: dict[str, tuple[int, Future[bytes]]] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32))

    def nodes(self) -> Sequence[int]:
        return list(self.sockets)

    def send(self, letters: Mapping[int, bytes], *, ttl_s: float) -> Mapping[str, int]:
        sent = {}
        for silo, data in letters.items():
            task = peek(data)
            if task.kind == "train":
                note(self.noted, silo, task.round, task.attempt, charged(self.noted.with_name("ledger.jsonl")))
            letter = os.urandom(8).hex()
            where = Place(path=str(self.sockets[silo]))
            self._calls[letter] = silo, self._pool.submit(exchange, data, where, connect_s=CONNECT_S)
            sent[letter] = silo
        return sent

    def fetch(self, letters: Collection[str]) -> Sequence[Answer]:
        ready = [letter for letter in letters if letter in self._calls and self._calls[letter][1].done()]
        calls = [(letter, *self._calls.pop(letter)) for letter in ready]
        return [Answer(letter, self.spoil(silo, call.result())) for letter, silo, call in calls]


OWNERS = {
    owner.__name__: owner
    for owner in (
        *(Ledger, RunStore, RemoteLink, Book, Exchange, RelayPost, Path),
        *(Purse, Memory, Engagement, SiloHost, StackedTrainer, PersonalStore),
    )
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def torn(owner: Any, given: Sequence[Any]) -> None:
    """Half a line, and the end."""
    if isinstance(owner, Ledger):
        owner._file.write(b'{"kind": "reserve", "neighbours": "add_')
        owner._file.flush()
        os.fsync(owner._file.fileno())
    else:
        with open(owner.rounds, "a") as file:
            file.write(given[0][: len(given[0]) // 2])
    die()


def arm(seam: Mapping[str, Any]) -> None:
    """Lets this process kill itself around the `call`-th call of a method, whose first argument is named `target`."""
    owner, calls = OWNERS[seam["owner"]], itertools.count(1)
    original = getattr(owner, seam["name"])

    def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
        counts = seam.get("target") is None or Path(args[0]).name == seam["target"]
        now = counts and next(calls) == seam["call"]
        if now and seam["when"] == "torn":
            torn(self, args)
        if now and seam["when"] == "before":
            die()
        value = original(self, *args, **kwargs)
        if now:
            die()
        return value

    setattr(owner, seam["name"], hooked)


def forked(work: Callable[[], None]) -> int:
    """Does work in a process of its own; its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def silo(number: int, folder: Path, seam: Mapping[str, Any] | None, policy: Mapping[str, Any] = POLICY) -> int:
    """Starts a silo."""

    def work() -> None:
        before = Engagement._trained

        def noted(self: Engagement, task: Any) -> Any:
            note(folder / "trained", task.run, task.round, task.attempt)
            return before(self, task)

        Engagement._trained = noted  # type: ignore[method-assign]
        if seam is not None:
            arm(seam)
        office = Office(
            number=number, policy=decode(Policy, policy), folder=folder, open_run=Opener("digits", number, "cpu")
        )
        with Daemon(office, Place(path=str(folder.with_suffix(".s")))):
            signal.pause()

    folder.mkdir(exist_ok=True)
    return forked(work)


def server(
    config: Mapping[str, Any],
    folder: Path,
    sockets: Mapping[int, Path],
    seam: Mapping[str, Any] | None,
    spoil: Spoil = lambda silo, answer: answer,
) -> int:
    """Starts a run, or goes on with it."""

    def work() -> None:
        roll.AGAIN_S, relay.PAUSE_S = AGAIN_S, PAUSE_S
        staged = RemoteLink.stage

        def noted(self: RemoteLink) -> None:
            note(folder / "used", self.book.round, json.dumps(sorted(self._used)))
            staged(self)

        RemoteLink.stage = noted  # type: ignore[method-assign]
        if seam is not None:
            arm(seam)
        resume = (folder / "experiment.yaml").exists()
        post = RelayPost(sockets, folder / "asked", spoil)
        with ActiveRun(parse(config), folder, resume=resume, connect=connect(post)) as active:
            train(active)
            active.finish()
        sys.stdout.flush()

    folder.mkdir(exist_ok=True)
    return forked(work)


class Silos:
    """Silos that run, in a folder; each with a policy, which is the same for those that none is given for."""

    def __init__(self, folder: Path, count: int, policies: Mapping[int, Mapping[str, Any]] | None = None) -> None:
        self.folder, self.numbers, self.policies = folder, range(count), policies or {}
        self.pids = {number: self._start(number, None) for number in self.numbers}

    def _start(self, number: int, seam: Mapping[str, Any] | None) -> int:
        return silo(number, self.of(number), seam, self.policies.get(number, POLICY))

    def of(self, number: int) -> Path:
        return self.folder / f"silo{number}"

    @property
    def sockets(self) -> dict[int, Path]:
        return {number: self.of(number).with_suffix(".s") for number in self.numbers}

    def again(self, number: int, seam: Mapping[str, Any] | None = None) -> None:
        """Kills a silo if it lives, and starts it anew."""
        self.kill(number)
        self.pids[number] = self._start(number, seam)

    def kill(self, number: int) -> None:
        if number in self.pids:
            os.kill(self.pids[number], signal.SIGKILL)
            os.waitpid(self.pids.pop(number), 0)

    def died(self) -> list[int]:
        """Silos whose process ended by itself, which are no longer among ours."""
        gone = [number for number, pid in self.pids.items() if os.waitpid(pid, os.WNOHANG)[0]]
        for number in gone:
            del self.pids[number]
        return gone

    def stop(self) -> None:
        for number in list(self.pids):
            self.kill(number)


def ledgers(silos: Silos, folder: Path) -> dict[str, list[str]]:
    """The lines of all ledgers, of the server and of the silos; a torn last one is left out."""
    paths = {"server": folder / "ledger.jsonl"}
    for number in silos.numbers:
        found = sorted((silos.of(number) / "ledgers").glob("*.jsonl"))
        paths |= {str(number): found[0]} if found else {}
    return {name: path.read_text().split("\n")[:-1] for name, path in paths.items() if path.exists()}


def job(silos: Silos, config: Mapping[str, Any], folder: Path, who: str, seam: Mapping[str, Any] | None) -> Any:
    """A run, in which the server or a silo kills itself once; whoever died is started again, and it goes on."""
    if seam is not None and who != "server":
        silos.again(int(who), seam)
    before, kept = ledgers(silos, folder), {}
    deaths = []
    pid = server(config, folder, silos.sockets, seam if who == "server" else None)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended and os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
            deaths.append("server")
            kept = ledgers(silos, folder)
            rows = folder / "rounds.jsonl"
            if rows.exists():
                shutil.copy(rows, folder / "rounds-killed.jsonl")
            pid = server(config, folder, silos.sockets, None)
        elif ended:
            end = os.waitstatus_to_exitcode(status)
            return {"deaths": deaths, "end": end, "before": before, "kept": kept, "ledgers": ledgers(silos, folder)}
        for number in silos.died():
            deaths.append(str(number))
            kept = ledgers(silos, folder)
            silos.again(number)
        time.sleep(0.005)


def warm() -> None:
    """What every process would compute for itself else; what is imported here is shared."""
    torch.set_num_threads(1)
    epsilon(Gaussian(1.0), 1e-5)
    assert results is not None
    gc.freeze()


def main() -> None:
    given = json.load(sys.stdin)
    warm()
    place = Path(given["folder"])
    silos = Silos(place, given["silos"])
    try:
        for name, config, who, seam in given["jobs"]:
            print(json.dumps(job(silos, config, place / name, who, seam)), flush=True)
    finally:
        silos.stop()


if __name__ == "__main__":
    main()
