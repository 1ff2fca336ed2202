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
class TimedPost:
    """A post that knows how long it took, so that what a round costs can be told from who carries it.

    Attributes:
        post: carries letters.
        seconds: that it took up to now.
    """

    post: Post
    seconds: float = 0.0

    def nodes(self) -> Sequence[int]:
        """See `Post`."""
        with self._timed():
            return self.post.nodes()

    def send(self, letters: Mapping[int, bytes], *, ttl_s: float) -> Mapping[str, int]:
        """See `Post`."""
        with self._timed():
            return self.post.send(letters, ttl_s=ttl_s)

    def fetch(self, letters: Collection[str]) -> Sequence[Answer]:
        """See `Post`."""
        with self._timed():
            return self.post.fetch(letters)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        before = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - before
