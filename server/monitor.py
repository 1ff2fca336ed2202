"""What the machine did in a run, for monitoring alone: monitor.jsonl, a line for each reserve and each round.

Nothing here decides anything, holds a number of a model or of a row, or waits for the disk; a line that cannot be
written is lost, and the run goes on. What rounds.jsonl has follows from the experiment, these lines from the machine.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from privacy.ledger import Ledger
from server.post import Answer, Post

BUCKETS = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0)
"""Upper bounds of seconds, as Prometheus has them; what is longer is in one more bucket."""
BOUNDS = (*map(str, BUCKETS), "+Inf")


class Monitor:
    """Writes a run's monitor.jsonl.

    Args:
        path: the file; made with its first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def reserved(self, round_: int, epsilon: float | None) -> None:
        """What silos will have spent once a round is over that is charged and not done; None without a price."""
        self._write({"round": round_, "reserved": epsilon})

    def committed(
        self, round_: int, ledgers: Iterable[Ledger], *, trained: Sequence[float], wire: Mapping[str, int]
    ) -> None:
        """How long things took in a round that is done.

        Args:
            round_: its number.
            ledgers: of the run, which know how long the disk made them wait.
            trained: seconds that silos trained for, where such numbers may be recorded.
            wire: bytes `up` and `down` at the transport since the last line, where there is one.
        """
        waits = [seconds for ledger in ledgers for seconds in ledger.waited()]
        facts: dict[str, Any] = {"round": round_, "fsync": tallied(waits)}
        if trained:
            facts["trained"] = tallied(trained)
        self._write(facts | ({"wire": dict(wire)} if wire else {}))

    def failed(self) -> None:
        """The ledger could not be written; as far as this file still can."""
        self._write({"ledger": "failed"})

    def _write(self, facts: Mapping[str, Any]) -> None:
        with suppress(OSError, ValueError), open(self.path, "a") as file:
            file.write(json.dumps(facts, allow_nan=False) + "\n")


def tallied(seconds: Iterable[float]) -> dict[str, Any]:
    """How many of some durations fall into each bucket, by its upper bound, and their sum.

    >>> tallied([0.05, 0.06, 1000.0])
    {'counts': {'0.1': 2, '+Inf': 1}, 'sum': 1000.11}
    """
    counts: Counter[str] = Counter()
    total = 0.0
    for each, times in Counter(seconds).items():  # Silos of one stack have one time.
        counts[BOUNDS[bisect_left(BUCKETS, each)]] += times
        total += times * each
    return {"counts": dict(counts), "sum": round(total, 6)}


class CountedPost:
    """A post that counts the bytes of all letters and answers, whatever becomes of them.

    Args:
        post: carries them.
    """

    def __init__(self, post: Post) -> None:
        self.post = post
        self.up = self.down = 0

    def nodes(self) -> Sequence[int]:
        """The nodes that can be written to now."""
        return self.post.nodes()

    def send(self, letters: Mapping[int, bytes], *, ttl_s: float) -> Mapping[str, int]:
        """Sends, and counts what was taken."""
        sent = self.post.send(letters, ttl_s=ttl_s)
        self.down += sum(len(letters[node]) for node in sent.values())
        return sent

    def fetch(self, letters: Collection[str]) -> Sequence[Answer]:
        """Answers so far."""
        answers = self.post.fetch(letters)
        self.up += sum(len(answer.data) for answer in answers if answer.data is not None)
        return answers

    def take(self) -> dict[str, int]:
        """What was counted since the last time."""
        found = {"up": self.up, "down": self.down}
        self.up = self.down = 0
        return found
