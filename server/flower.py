"""The post of Flower: letters are messages of a Grid, and travel over gRPC to the nodes of a federation.

All contact of the server with flwr's moving parts is here and in `server.app`. A letter is one opaque array of bytes.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.post import Answer

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

NAME, STYPE = "envelope", "confide.envelope"
MESSAGE = "query.confide"  # What the relay on the other side listens to.
PLACE = "place"  # Of simulated silos alone: where they keep what they know.
ORPHAN_S = 1.0
PATIENCE = 0.25  # Of the time that an answer has: how long Flower waits for the rest of one that broke off.


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

    @property
    def simulated(self) -> bool:
        """Whether all nodes are those of Flower's own simulation, which has them from its start to its end."""
        from flwr.superlink.grid import InMemoryGrid

        return isinstance(self.grid, InMemoryGrid)

    def nodes(self) -> Sequence[int]:
        """The nodes that are online."""
        return sorted(self.grid.get_node_ids())

    def send(self, letters: Mapping[int, bytes], *, ttl_s: float) -> Mapping[str, int]:
        """Sends; see `server.post.Post`. What several get is one content, which is hashed and carried up once."""
        from flwr.app import Message

        wait_for_rest(PATIENCE * ttl_s)
        # A list: the grid goes through it twice. Time to live is in whole seconds there, and must outlast ours.
        ttl = math.ceil(ttl_s) + 1.0
        contents = {data: letter(data, self.folder) for data in set(letters.values())}
        messages = [Message(contents[data], node, MESSAGE, ttl=ttl) for node, data in letters.items()]
        sent = list(self.grid.push_messages(messages)) if messages else []
        return {found: node for found, node in zip(sent, letters) if found}  # None: that node was not to be reached.

    def fetch(self, letters: Collection[str]) -> Sequence[Answer]:
        """Answers so far. They are told apart by the letter they answer: an error comes from no node of its own."""
        return [_answer(message) for message in self.grid.pull_messages(list(letters))] if letters else []


def wait_for_rest(seconds: float) -> None:
    """Has Flower give an answer up whose pieces did not all come within so many seconds: it is lost then.

    Its own limit (1.39) is two hours, in which nobody else's answer is looked at, and no deadline.
    """
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    defaults = pull_objects.__kwdefaults__
    assert defaults is not None
    defaults["max_time"] = seconds  # The version that is pinned has it, and its grid names no other.


def end_with_parent() -> None:
    """Has this process killed, whatever it waits for, within a second of the end of whoever started it.

    Flower (1.39) looks for that, too, but then asks the main thread, which may be waiting for threads of Flower's that
    ask a dead SuperLink again and again. What a run had committed is on the disk, as after any kill.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="orphan", daemon=True).start()


def _answer(message: Message) -> Answer:
    data = None if message.has_error() else opened(message.content)
    return Answer(message.metadata.reply_to_message_id, data)
