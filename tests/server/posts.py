"""A post for tests: silos are functions of bytes, and time passes only when somebody waits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from server.exchange import Clock
from server.post import Answer
from strategies.envelope import Reply, Task, decode_task, encode, refusal

Silo = Callable[[bytes], bytes | None]


@dataclass
class Time:
    """Seconds that pass while one sleeps."""

    now: float = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sleep)


@dataclass
class FakePost:
    """Nodes of a federation; `delays` seconds after a letter its answer is there, None for never."""

    time: Time
    silos: dict[int, Silo] = field(default_factory=dict)
    delays: dict[int, float | None] = field(default_factory=dict)
    sent: list[tuple[int, Task]] = field(default_factory=list)
    twice: bool = False
    _due: list[tuple[float, Answer]] = field(default_factory=list)

    def nodes(self) -> Sequence[int]:
        return sorted(self.silos)

    def send(self, letters: Mapping[int, bytes], *, ttl_s: float) -> Mapping[str, int]:
        ids = {}
        for node, data in letters.items():
            if node not in self.silos:
                continue
            letter = f"{len(self.sent)}"
            self.note(node, data)
            ids[letter] = node
            delay = self.delays.get(node, 0.0)
            if delay is not None:
                answer = Answer(letter, self.silos[node](data))
                self._due += [(self.time.now + delay, answer)] * (2 if self.twice else 1)
        return ids

    def note(self, node: int, data: bytes) -> None:
        self.sent.append((node, decode_task(data)))

    def fetch(self, letters: Collection[str]) -> Sequence[Answer]:
        ready = [answer for at, answer in self._due if at <= self.time.now and answer.letter in letters]
        self._due = [(at, answer) for at, answer in self._due if not (at <= self.time.now and answer.letter in letters)]
        return ready

    def asked(self, kind: str) -> list[tuple[int, Task]]:
        """The tasks of a kind that were sent, with their nodes."""
        return [(node, task) for node, task in self.sent if task.kind == kind]


def silo(number: int, work: Callable[[Task], Reply], *, wrong: Callable[[Reply], Reply] = lambda reply: reply) -> Silo:
    """A silo that joins whatever run it is told of, forgets none, and does some work; `wrong` spoils its replies."""
    runs: set[str] = set()

    def handle(data: bytes) -> bytes:
        task = decode_task(data)
        if task.kind == "hello":
            runs.add(task.run)
        elif task.run not in runs:
            return encode(refusal("unknown_run", "say hello", task=task, silo=number))
        done = work(task) if task.kind in ("train", "evaluate") else Reply()
        at = {"run": task.run, "digest": task.digest, "round": task.round, "attempt": task.attempt}
        reply = replace(done, silo=number, **at)
        return encode(wrong(reply) if task.kind == "train" else reply)

    return handle
