"""Which node speaks for which silo: every node that comes is told the experiment, and says its silo's number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server.post import Answer, Post
from strategies.envelope import EnvelopeError, Reply, decode_reply

LOG = logging.getLogger("confide.server")
AGAIN_S = 30.0  # A node that did not join is asked anew after that long: its policy or its data may have been mended.


@dataclass
class Roll:
    """The silos that joined, and the letters under way to nodes that did not yet.

    Attributes:
        post: carries letters.
        hello: makes the letter to a node that nobody knows.
        problem: what is wrong with the reply to it, or None.
        silos: of the federation.
        now: monotonic seconds.
        ttl_s: of a letter.
        node_of: the node of every silo that joined.
        silo_of: the inverse.
        refused: node to why it does not take part.
    """

    post: Post
    hello: Callable[[], bytes]
    problem: Callable[[Reply], str | None]
    silos: int
    now: Callable[[], float]
    ttl_s: float
    node_of: dict[int, int] = field(default_factory=dict)
    silo_of: dict[int, int] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    _pending: dict[str, int] = field(default_factory=dict)
    _asked: dict[int, float] = field(default_factory=dict)

    def look(self) -> None:
        """Writes to the nodes that came since the last look, and forgets those that left."""
        here = list(self.post.nodes())
        for node in [node for node in self.silo_of if node not in here]:
            del self.node_of[self.silo_of.pop(node)]
        before = self.now() - AGAIN_S
        self._introduce([node for node in here if node not in self.silo_of and self._asked.get(node, before) <= before])

    def rejoin(self, silo: int) -> int:
        """A silo that forgot the run is told it again; returns its node."""
        node = self.node_of.pop(silo)
        del self.silo_of[node]
        self._introduce([node])
        return node

    def _introduce(self, nodes: Sequence[int]) -> None:
        if not nodes:
            return
        # An earlier hello to the same node is let go: it may have died with the node.
        self._pending = {letter: node for letter, node in self._pending.items() if node not in nodes}
        for node in nodes:
            self.refused.pop(node, None)
            self._asked[node] = self.now()
        self._pending |= self.post.send(dict.fromkeys(nodes, self.hello()), ttl_s=self.ttl_s)

    def hear(self) -> list[int]:
        """Takes the answers that came to hellos; the silos that joined by them."""
        heard = [self._hear(answer) for answer in self.post.fetch(list(self._pending))]
        return [silo for silo in heard if silo is not None]

    def _hear(self, answer: Answer) -> int | None:
        node = self._pending.pop(answer.letter, None)
        if node is None:
            return None
        silo, problem = self._silo(answer.data)
        if problem is None and self.node_of.get(silo, node) != node:
            problem = f"silo {silo} speaks through another node already; give each silo a number of its own"
        if problem is not None:
            self.refused[node] = problem
            LOG.warning("a node does not take part: %s", problem)
            return None
        self.node_of[silo], self.silo_of[node] = node, silo
        LOG.info("silo %d of %d takes part", silo, self.silos)
        return silo

    def _silo(self, data: bytes | None) -> tuple[int, str | None]:
        """Whose reply it is, and what is wrong with it."""
        if data is None:
            return -1, "its relay failed; look at the node's log"
        try:
            reply = decode_reply(data)
        except EnvelopeError as error:
            return -1, str(error)
        if reply.status == "refused":
            return -1, f"{reply.code}: {reply.reason}"
        if not 0 <= reply.silo < self.silos:
            return -1, f"it says that it is silo {reply.silo}, where there are 0 to {self.silos - 1}"
        return reply.silo, self.problem(reply)
