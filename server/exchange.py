"""One question to some silos, and their answers: what is not of this question is refused, and counted.

An answer is of anybody until it says the run, experiment, round, attempt and silo of its letter, has the form that was
asked, and goes on from the ledger that the silo showed before.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from privacy.chain import Head
from server.post import POLL_S
from server.roll import Roll
from strategies.envelope import EnvelopeError, Expected, Reply, Task, decode_reply, encode
from strategies.traffic import message
from strategies.wire import Values

LOG = logging.getLogger("confide.server")
ABSENT, LATE, SPARE = "silo is not connected", "no answer by the deadline", "enough silos had answered"
LOST, UNREADABLE, OUTSIDE = "relay of the silo failed", "answer cannot be read", "silo did not join again"
OTHER_RUN, OTHER_ROUND, OTHER_SILO = "answer of another run", "answer of another round", "answer of another silo"
OLD_LEDGER = "ledger of the silo is an older copy"
REASONS = (ABSENT, LATE, SPARE, LOST, UNREADABLE, OUTSIDE, OTHER_RUN, OTHER_ROUND, OTHER_SILO, OLD_LEDGER)
"""Why an answer is not used; beside these there is `refused: CODE`, by `strategies.envelope.CODES`."""


FETCHED = 2**27
"""Bytes of answers that are fetched together: of large models not all letters are held beside the models."""

PATIENT_S = 120.0
"""A question that is open for at least as long is asked once more at half time, where no answer came: whoever carries
letters may have lost one. A silo gives the same answer again, and is charged once."""


@dataclass(frozen=True)
class Clock:
    """Monotonic seconds, and how to wait some: the time of day may jump."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass
class Exchange:
    """A question under way.

    Attributes:
        asks: silo to its task, and to the form of what comes back.
        roll: of the nodes.
        knows: whether a silo's ledger goes on from where it was last seen.
        values: type that numbers travel as.
        clock: of the deadline.
        quorum: answers that end it; infinite where all are waited for.
        replies: that can be used.
        failures: silo to why its reply cannot.
        waited_s: seconds in which there was nothing to do.
    """

    asks: Mapping[int, tuple[Task, Expected]]
    roll: Roll
    knows: Callable[[int, Head | None], bool]
    values: Values
    clock: Clock
    quorum: float = math.inf
    replies: dict[int, Reply] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    waited_s: float = 0.0
    _open: dict[str, int] = field(default_factory=dict)
    _rejoining: dict[int, int] = field(default_factory=dict)
    _again: set[int] = field(default_factory=set)

    def run(self, limit_s: float) -> None:
        """Asks all who are there; returns once they answered, or enough did, or the time is up."""
        deadline = self.clock.now() + limit_s
        half = deadline - limit_s / 2 if limit_s >= PATIENT_S else math.inf
        self._send([silo for silo in self.asks if silo in self.roll.node_of], deadline)
        while self._waits() and self.clock.now() < deadline:
            self._rejoin(deadline)
            if self.clock.now() >= half:
                half = math.inf
                self._send(sorted({silo for silo in self._open.values() if silo in self.roll.node_of}), deadline)
            waited, most = list(self._open), self._at_once()
            for first in range(0, len(waited), most):
                self._hear(waited[first : first + most])
            if self._waits():
                before = self.clock.now()
                self.clock.sleep(POLL_S)
                self.waited_s += self.clock.now() - before
        self._close()

    def _at_once(self) -> int:
        """Letters whose answers are fetched together."""
        forms = (message(expected.sizes, expected.kept, expected.values) for _, expected in self.asks.values())
        return max(1, FETCHED // max([1, *(form.bytes for form in forms)]))

    def _hear(self, letters: Sequence[str]) -> None:
        for answer in self.roll.post.fetch(letters):
            silo = self._open.pop(answer.letter, None)  # A second answer to one letter finds nobody waiting.
            if silo is not None and not (answer.data is None and silo in self._open.values()):
                self._open = {letter: whose for letter, whose in self._open.items() if whose != silo}
                self._take(silo, answer.data)

    def _waits(self) -> bool:
        return bool(self._open or self._rejoining) and len(self.replies) < self.quorum

    def _rejoin(self, deadline: float) -> None:
        """Asks those anew that forgot the run and were told it again."""
        back = [silo for silo in self.roll.hear() if self._rejoining.pop(silo, None) is not None]
        self._send(back, deadline)
        for silo, node in list(self._rejoining.items()):
            if node in self.roll.refused:
                del self._rejoining[silo]
                self._fail(silo, OUTSIDE, self.roll.refused[node])

    def _send(self, silos: Iterable[int], deadline: float) -> None:
        left = max(deadline - self.clock.now(), POLL_S)
        written: dict[int, bytes] = {}  # Silos with one task get one letter: a model is written down once.
        letters: dict[int, bytes] = {}
        for silo in silos:
            task = self.asks[silo][0]
            if id(task) not in written:
                written[id(task)] = encode(replace(task, deadline_s=left), values=self.values)
            letters[self.roll.node_of[silo]] = written[id(task)]
        sent = self.roll.post.send(letters, ttl_s=left) if letters else {}
        self._open |= {letter: self.roll.silo_of[node] for letter, node in sent.items()}

    def _take(self, silo: int, data: bytes | None) -> None:
        task, expected = self.asks[silo]
        try:
            reply = decode_reply(data, expected) if data is not None else None
        except EnvelopeError as error:
            self._fail(silo, UNREADABLE, str(error))
            return
        if reply is None:
            self._fail(silo, LOST, "look at the log of its node")
        elif reply.code == "unknown_run" and silo not in self._again:  # Once, or one that forgets is asked for ever.
            self._again.add(silo)
            self._rejoining[silo] = self.roll.rejoin(silo)
        elif (problem := self._problem(reply, task, silo)) is not None:
            self._fail(silo, problem, reply.reason)
        else:
            self.replies[silo] = reply

    def _problem(self, reply: Reply, task: Task, silo: int) -> str | None:
        if reply.status == "refused":
            return f"refused: {reply.code}"
        if (reply.run, reply.digest) != (task.run, task.digest):
            return OTHER_RUN
        if (reply.round, reply.attempt) != (task.round, task.attempt):
            return OTHER_ROUND
        if reply.silo != silo:
            return OTHER_SILO
        return None if self.knows(silo, reply.ledger) else OLD_LEDGER

    def _fail(self, silo: int, reason: str, detail: str) -> None:
        LOG.warning("silo %d: %s%s", silo, reason, f": {detail}" if detail else "")
        self.failures[silo] = reason

    def _close(self) -> None:
        """Who has not answered by now is late, or to spare, or was not there."""
        due = SPARE if len(self.replies) >= self.quorum else LATE
        asked = self._rejoining.keys() | set(self._open.values())
        for silo in sorted(self.asks.keys() - self.replies.keys() - self.failures.keys()):
            self._fail(silo, due if silo in asked else ABSENT, "")
