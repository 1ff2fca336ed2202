"""What a silo remembers of a run on disk: what it was asked last, and what it answered.

The answer is on the disk before it is sent. Whoever asks the same again gets the same bytes, also after a restart, and
nothing is trained or charged twice; whoever asks what is over is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from client.errors import DataError
from privacy.durable import atomic_write

MOST_ROUNDS = 1000  # Of which attempts are known one by one; older rounds are over.


@dataclass
class Memory:
    """The answers of one run.

    Attributes:
        path: of the file.
        digest: of the experiment; the same as long as the run lasts.
        round: that was answered last, 0 for none.
        attempt: at it.
        attempts: round to the last attempt at it that was answered.
        over: this round and those before it are over, whatever their attempt; -1 for none.
        answer: the reply that was sent last.
    """

    path: Path
    digest: str
    round: int = 0
    attempt: int = 0
    attempts: dict[int, int] = field(default_factory=dict)
    over: int = -1
    answer: bytes = b""

    @classmethod
    def open(cls, path: Path, digest: str) -> Memory:
        """What is known of a run, or a new page.

        Raises:
            DataError: of another experiment, or not written by this.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return cls(path, digest)
        line, _, answer = path.read_bytes().partition(b"\n")
        try:
            facts: Mapping[str, Any] = json.loads(line)
            attempts = {int(round_): int(attempt) for round_, attempt in facts["attempts"].items()}
            found = cls(path, facts["digest"], facts["round"], facts["attempt"], attempts, facts["over"], answer)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: is damaged; restore it, or start a new run") from error
        if found.digest != digest:
            raise DataError(f"{path}: this run has another experiment here; start a new run")
        return found

    def judge(self, round_: int, attempt: int) -> Literal["new", "same", "over"]:
        """Whether a question is new, the one that was answered last, or over."""
        if (round_, attempt) == (self.round, self.attempt):
            return "same"
        if round_ <= self.over or attempt <= self.attempts.get(round_, 0):
            return "over"
        return "new"

    def keep(self, round_: int, attempt: int, answer: bytes) -> None:
        """Puts an answer on the disk, in place of the one before."""
        self.round, self.attempt, self.answer = round_, attempt, answer
        self.attempts[round_] = attempt
        for old in sorted(self.attempts)[:-MOST_ROUNDS]:
            del self.attempts[old]
            self.over = max(self.over, old)
        facts = {"digest": self.digest, "round": round_, "attempt": attempt, "over": self.over}
        line = json.dumps(facts | {"attempts": {str(key): value for key, value in self.attempts.items()}})
        atomic_write(self.path, line.encode() + b"\n", answer)
