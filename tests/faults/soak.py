"""`make soak`: a server and silos, eight processes, that are killed at random until a budget of 200 rounds is spent.

Victims and times follow from a seed; where in its work a victim is, does not. The server reaches silos' daemons on
their sockets as relays do, without Flower between them, whose polls would make hours of 200 rounds. The last silo is
hostile: whatever it answers arrives spoilt. The first silo's own budget lasts for a quarter of the rounds. Both budgets
are reached, whoever is killed around the last round that they allow. Then the books are read: the invariants I1 to I4
must hold, at every letter that left, and the model must be, bit for bit, that of a run in peace in which the same silos
answered in the same rounds.

- I1: every attempt that anybody was asked for was paid before, on either side, and what is reported is what was paid.
- I2: no attempt was asked for that the budget did not cover, and the budget was used to its end: by nobody more.
- I3: no line that was ever on the disk is lost, every round is there once, and summed as it is counted.
- I4: what the hostile silo sent was in no sum, and stopped nothing.

    python -m tests.faults.soak [--rounds 200] [--silos 7] [--every 4] [--down 1] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from client.office import Office
from client.policy import Policy
from privacy.accountant import epsilon
from privacy.events import Gaussian, Repeated
from simulations.deploying.connecting import connect
from simulations.deploying.opening import Opener
from simulations.running import ActiveRun, train
from strategies.codec import decode
from strategies.envelope import decode_task, encode, refusal
from strategies.loading import parse
from tests.faults.processes import POLICY, Silos, ledgers, server, warm
from tests.faults.test_apart import CONFIG, charges
from tests.server.posts import FakePost, Silo, Time

LARGE = 2000  # Bytes: only updates are longer.
NOISE, DELTA = 2.0, 1e-2
POOR = 0  # The silo whose own budget ends first.


def spoilt(data: bytes, rng: random.Random) -> bytes:
    """An update as a hostile silo would send it; of every kind that is refused, whatever the numbers were."""
    nan = data[:-4] + b"\x00\x00\xc0\x7f"
    return rng.choice([nan, data[:-1], data + b"\x00", b"", os.urandom(64), b"\x80\x05cos\nsystem\n"])


@dataclass
class Soak:
    """A run under kills.

    Attributes:
        folder: of everything; short, as sockets' paths must be.
        rounds: that the budget lasts for; twice as many are planned.
        silos: of the federation.
        every: mean seconds from kill to kill.
        down: a silo that was killed stays away for as many seconds at most.
        rng: of victims and times.
        kills: who was killed, in order.
        seen: ledgers and committed rounds, as they were at every kill.
    """

    folder: Path
    rounds: int
    silos: int
    every: float
    down: float
    rng: random.Random
    kills: list[str] = field(default_factory=list)
    seen: list[dict[str, list[str]]] = field(default_factory=list)
    _back: dict[int, float] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def bad(self) -> int:
        return self.silos - 1

    @property
    def poor(self) -> int:
        """Attempts that the poor silo's own budget lasts for: few, as it is asked in none while it is down."""
        return self.rounds // 4

    @property
    def config(self) -> dict[str, Any]:
        data = CONFIG["data"] | {"silos": self.silos}  # type: ignore[operator]
        budget = {"epsilon": lasting(self.rounds), "delta": DELTA}
        return CONFIG | {"rounds": 2 * self.rounds, "data": data, "budget": budget}

    def go(self) -> None:
        """Runs to the end, whoever is killed on the way."""
        poor = POLICY | {"silo": {"epsilon": lasting(self.poor), "delta": DELTA}}
        silos = Silos(self.folder, self.silos, {POOR: poor})
        pid, due = self._start(silos), self._due()
        try:
            while True:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    assert os.waitstatus_to_exitcode(status) == 0, "the server failed by itself"
                    return
                assert silos.died() == [], "a silo failed by itself"
                if time.monotonic() >= due:
                    pid, due = self._kill(silos, pid), self._due()
                for number in [number for number, at in self._back.items() if at <= time.monotonic()]:
                    del self._back[number]
                    silos.again(number)
                time.sleep(0.005)
        finally:
            silos.stop()

    def _start(self, silos: Silos) -> int:
        spoils = random.Random(self.rng.random())

        def spoil(silo: int, data: bytes) -> bytes:
            return spoilt(data, spoils) if silo == self.bad and len(data) > LARGE else data

        return server(self.config, self.run, silos.sockets, None, spoil)

    def _due(self) -> float:
        return time.monotonic() + self.rng.expovariate(1 / self.every)

    def _kill(self, silos: Silos, pid: int) -> int:
        """Kills the server, a silo, or all of them at once; the pid of the server from here on."""
        victim = self.rng.choice(["server", "server", "all", *map(str, silos.numbers)])
        numbers = list(silos.numbers) if victim == "all" else [int(victim)] if victim != "server" else []
        if victim in ("server", "all"):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for number in numbers:
            silos.kill(number)
            self._back[number] = time.monotonic() + self.rng.uniform(0, self.down)
        self.kills.append(victim)
        self.seen.append(ledgers(silos, self.run) | {"rounds": lines(self.run / "rounds.jsonl")})
        return self._start(silos) if victim in ("server", "all") else pid

    def used(self) -> dict[int, set[int]]:
        """Round to the silos whose updates its checkpoint holds: what the last attempt at it said."""
        words = [line.split(" ", 1) for line in lines(self.run / "used")]
        return {int(round_): set(json.loads(silos)) for round_, silos in words}

    def problems(self) -> Iterator[str]:
        """What of the invariants does not hold."""
        result = json.loads((self.run / "result.json").read_text())
        last = ledgers_of(self.folder, self.run, self.silos) | {"rounds": lines(self.run / "rounds.jsonl")}
        for before in self.seen:
            for name, kept in before.items():
                if last[name][: len(kept)] != kept:
                    yield f"I1, I3: {name} lost a line that was on the disk"
        paid = charges(last["server"]).total()
        yield from self._asked(paid)
        if paid != result["privacy"]["silo"]["charged_rounds"]:
            yield f"I1: paid {paid} times, {result['privacy']['silo']['charged_rounds']} are reported"
        if result["privacy"]["silo"]["epsilon_upper"] != epsilon(Repeated(Gaussian(NOISE), paid), DELTA).upper:
            yield "I1: what is reported is not the price of what was paid"
        for number in range(self.silos):
            began, there = len(lines(self.folder / f"silo{number}" / "trained")), charges(last[str(number)]).total()
            if not there >= began:
                yield f"I1: silo {number} began to train {began} times and paid {there} times"
            if number == POOR and there != self.poor:
                yield f"I2: silo {number} paid {there} times, its budget lasts for {self.poor}"
        if not result["privacy"]["silo"]["epsilon_upper"] <= lasting(self.rounds):
            yield "I2: more than the budget"
        if not str(result["stopped"]).startswith("budget:"):
            yield "I2: the budget was not reached, so nothing was tried"
        if [json.loads(line)["round"] for line in last["rounds"]] != list(range(1, result["rounds"] + 1)):
            yield "I3: not every round is there once"
        if any(self.bad in silos for silos in self.used().values()):
            yield "I4: the hostile silo was summed"
        if sum(map(len, self.used().values())) != result["updates"]["arrived"]:
            yield "I3, I4: updates that were summed are not those that were counted"
        if peaceful(self) != result["model"]["sha256"]:
            yield "the model is not that of a run in peace"

    def _asked(self, paid: int) -> Iterator[str]:
        """What does not hold of the letters that left, one by one, by what was on the disk when they did."""
        attempts: set[tuple[str, str]] = set()
        for line in lines(self.run / "asked"):
            _, round_, attempt, before = line.split()
            attempts.add((round_, attempt))
            if not int(before) >= len(attempts):
                yield f"I1: attempt {attempt} at round {round_} was the {len(attempts)}th, and {before} were paid"
            if not int(before) <= self.rounds:
                yield f"I2: attempt {attempt} at round {round_} was asked for beyond the budget"
        if paid != self.rounds:
            yield f"I2: {paid} attempts were paid where the budget lasts for {self.rounds}"


def lasting(rounds: int) -> float:
    """An epsilon that lasts for so many rounds and no more, half way to the next one."""
    return sum(epsilon(Repeated(Gaussian(NOISE), times), DELTA).upper for times in (rounds, rounds + 1)) / 2


def lines(path: Path) -> list[str]:
    """Whole lines of a file."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def ledgers_of(folder: Path, run: Path, silos: int) -> dict[str, list[str]]:
    """The lines of all ledgers in the end."""
    found = {"server": lines(run / "ledger.jsonl")}
    for number in range(silos):
        [path] = (folder / f"silo{number}" / "ledgers").glob("*.jsonl")
        found[str(number)] = lines(path)
    return found


def peaceful(soak: Soak) -> str:
    """The model of a run in one process, in which those silos answer a round that answered it there."""
    used, post = soak.used(), FakePost(Time())
    ends = len(lines(soak.run / "rounds.jsonl"))

    def only(number: int, handle: Silo) -> Silo:
        def answers(data: bytes) -> bytes | None:
            task = decode_task(data)
            if task.kind == "train" and number not in used[task.round]:
                return encode(refusal("busy", "it was killed then", task=task, silo=number))
            return handle(data)

        return answers

    os.environ["CONFIDE_HOME"] = str(soak.folder / "peace-home")  # A budget of its own.
    with ExitStack() as opened:
        for number in range(soak.silos):
            place, opener = soak.folder / f"peace{number}", Opener("digits", number, "cpu")
            office = Office(number=number, policy=decode(Policy, POLICY), folder=place, open_run=opener)
            post.silos[number] = only(number, opened.enter_context(closing(office)).handle)
        active = opened.enter_context(ActiveRun(parse(soak.config), soak.folder / "peace", connect=connect(post)))
        train(active, stop=lambda: len(lines(active.folder / "rounds.jsonl")) >= ends)
        found: Mapping[str, Any] = active.finish().result
        return str(found["model"]["sha256"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--silos", type=int, default=7)
    parser.add_argument("--every", type=float, default=4.0, help="mean seconds from kill to kill")
    parser.add_argument("--down", type=float, default=1.0, help="seconds that a killed silo stays away at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cf", dir="/tmp") as name:
        os.environ["CONFIDE_HOME"] = f"{name}/home"
        warm()
        soak = Soak(Path(name), args.rounds, args.silos, args.every, args.down, random.Random(args.seed))
        started = time.monotonic()
        soak.go()
        seconds, problems = time.monotonic() - started, list(soak.problems())
        result = json.loads((soak.run / "result.json").read_text())
    for line in problems:
        print(f"soak: {line}", file=sys.stderr)
    killed = {"server": 0, "silo": 0, "all": 0}
    for victim in soak.kills:
        killed[victim if victim in killed else "silo"] += 1
    facts = {
        "rounds": result["rounds"],
        "stopped": result["stopped"],
        "processes": args.silos + 1,
        "kills": killed,
        "seconds": round(seconds, 1),
    }
    facts |= {"paid": result["privacy"]["silo"]["charged_rounds"], "updates": result["updates"]}
    print(json.dumps(facts | {"problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
