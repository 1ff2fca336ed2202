"""Letters to silos on machines of their own, and their answers: bytes, whoever carries them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

POLL_S = 0.1


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        letter: id of the letter that it answers.
        data: of any origin; None where whoever carries letters gives up on this one.
    """

    letter: str
    data: bytes | None


class Post(Protocol):
    """Carries letters to nodes; nothing it brings is trusted."""

    def nodes(self) -> Sequence[int]:
        """The nodes that can be written to now."""
        ...

    def send(self, letters: Mapping[int, bytes], *, ttl_s: float) -> Mapping[str, int]:
        """Sends a letter to each of some nodes; returns its id, and whose it is. Who is left out gets none.

        Args:
            letters: by node.
            ttl_s: seconds after which they, and answers to them, may be thrown away.
        """
        ...

    def fetch(self, letters: Collection[str]) -> Sequence[Answer]:
        """The answers to some letters that have come since the last time; returns at once."""
        ...


@dataclass
class MeteredPost:
    """A post that knows what it carried and how long it took, so that a round's cost can be told from its carrier's.

    Attributes:
        post: carries letters.
        up: bytes of answers since `take`, whatever became of them.
        down: bytes of letters, likewise.
        seconds: that it took up to now.
    """

    post: Post
    up: int = 0
    down: int = 0
    seconds: float = 0.0

    def nodes(self) -> Sequence[int]:
        """See `Post`."""
        with self._timed():
            return self.post.nodes()

    def send(self, letters: Mapping[int, bytes], *, ttl_s: float) -> Mapping[str, int]:
        """See `Post`; counts what was taken."""
        with self._timed():
            sent = self.post.send(letters, ttl_s=ttl_s)
        self.down += sum(len(letters[node]) for node in sent.values())
        return sent

    def fetch(self, letters: Collection[str]) -> Sequence[Answer]:
        """See `Post`."""
        with self._timed():
            answers = self.post.fetch(letters)
        self.up += sum(len(answer.data) for answer in answers if answer.data is not None)
        return answers

    def take(self) -> dict[str, int]:
        """The bytes since the last time."""
        found = {"up": self.up, "down": self.down}
        self.up = self.down = 0
        return found

    @contextmanager
    def _timed(self) -> Iterator[None]:
        before = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - before
