"""The post of Flower: letters are messages of a Grid, and travel over gRPC to the nodes of a federation.

All contact of the server with flwr's moving parts is here and in `server.app`. A letter is one opaque array of bytes.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.post import POLL_S, Answer

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

NAME, STYPE = "envelope", "confide.envelope"
MESSAGE = "query.confide"  # What the relay on the other side listens to.
PLACE = "place"  # Of simulated silos alone: where they keep what they know.
WAYS = 8  # Threads that look for answers at a time: one that breaks off holds up those that are looked for with it.


def letter(data: bytes, folder: Path | None = None) -> RecordDict:
    """Bytes as Flower carries them: an array of a type that nobody but confide reads."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    found = RecordDict({NAME: ArrayRecord({NAME: Array("uint8", (len(data),), STYPE, data)})})
    if folder is not None:
        found[PLACE] = ConfigRecord({"folder": str(folder)})
    return found


def opened(content: RecordDict) -> bytes | None:
    """The inverse of `letter`; None of a record of any other form."""
    record = content.array_records.get(NAME)
    array = record.get(NAME) if record is not None else None
    if len(content) != 1 or array is None or array.stype != STYPE or not isinstance(array.data, bytes):
        return None
    return array.data


class GridPost:
    """Carries letters by a Flower Grid.

    Attributes:
        grid: it.
        folder: of simulated silos, who are told it with each letter; None for real ones.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.folder: Path | None = None
        self._pulled: set[str] = set()
        self._came: dict[str, Answer] = {}
        self._broken: list[Exception] = []

    @property
    def simulated(self) -> bool:
        """Whether all nodes are those of Flower's own simulation, which has them from its start to its end."""
        from flwr.superlink.grid import InMemoryGrid

        return isinstance(self.grid, InMemoryGrid)

    def nodes(self) -> Sequence[int]:
        """The nodes that are online."""
        return sorted(self.grid.get_node_ids())

    def send(self, letters: Mapping[int, bytes], *, ttl_s: float) -> Mapping[str, int]:
        """Sends; see `server.post.Post`."""
        from flwr.app import Message

        # A list: the grid goes through it twice. Time to live is in whole seconds there, and must outlast ours.
        ttl = math.ceil(ttl_s) + 1.0
        messages = [Message(letter(data, self.folder), node, MESSAGE, ttl=ttl) for node, data in letters.items()]
        sent = list(self.grid.push_messages(messages)) if messages else []
        return {found: node for found, node in zip(sent, letters) if found}  # None: that node was not to be reached.

    def fetch(self, letters: Collection[str]) -> Sequence[Answer]:
        """Answers so far. They are told apart by the letter they answer: an error comes from no node of its own.

        Flower looks for them in threads: it waits by itself, for up to two hours, for the rest of an answer that broke
        off on its way. So its letter is never looked for again, and the others' answers and the deadline do not wait.
        """
        if not letters or self.simulated:  # In one process nothing breaks off.
            return [_answer(message) for message in self.grid.pull_messages(list(letters))] if letters else []
        idle = sorted(set(letters) - self._pulled)
        self._pulled.update(idle)
        pulls = [threading.Thread(target=self._pull, args=[idle[way::WAYS]], daemon=True) for way in range(WAYS)]
        for pull in pulls[: len(idle)]:
            pull.start()
        until = time.monotonic() + POLL_S
        for pull in pulls[: len(idle)]:
            pull.join(max(until - time.monotonic(), 0.0))
        if self._broken:
            raise self._broken.pop()
        return [self._came.pop(each) for each in letters if each in self._came]

    def _pull(self, letters: list[str]) -> None:
        """Looks for the answers to some letters once; they may be looked for again as soon as that is over."""
        try:
            for message in self.grid.pull_messages(letters):
                found = _answer(message)
                self._came[found.letter] = found
        except Exception as error:  # Raised where somebody hears it.
            self._broken.append(error)
        finally:
            self._pulled.difference_update(letters)


def _answer(message: Message) -> Answer:
    data = None if message.has_error() else opened(message.content)
    return Answer(message.metadata.reply_to_message_id, data)
