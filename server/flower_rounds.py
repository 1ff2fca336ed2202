"""What a round needs in somebody else's loop: it is paid before its messages leave, and every reply is somebody's."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.account import BudgetSpent
from privacy.accountant import Neighbours, upper_epsilon
from privacy.events import Composed, Event, NonPrivate, Repeated
from privacy.ledger import Charge, Entry, Ledger, LedgerError

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

LOG = logging.getLogger("flwr")  # Where a user of Flower looks.
UNIT = "silo"
DATASET = "flower"  # Rows are at the nodes, and nobody tells a fingerprint of them.
POLL_S = 1.0


class RoundLedger:
    """A ledger of rounds that all cost the same; later runs that are given the same file add to it.

    Args:
        path: of the ledger; made when missing.
        run: which run it is.
        event: what a round costs a silo.
        neighbours: the relation that it is priced for.
        delta: of epsilon; None without privacy.
        budget: epsilon that no round may pass, or None.
        fresh: refuse a ledger that holds rounds already.

    Raises:
        LedgerError: it cannot be used, or holds rounds that this run cannot be added to.
    """

    def __init__(
        self,
        path: Path,
        *,
        run: str,
        event: Event,
        neighbours: Neighbours = "add_remove",
        delta: float | None = None,
        budget: float | None = None,
        fresh: bool = False,
    ) -> None:
        self.event, self.neighbours, self.delta, self.budget = event, neighbours, delta, budget
        self._open: Entry | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(path, run=run, dataset=DATASET, told=[Charge(UNIT, neighbours, event)])
        if problem := self._problem(fresh=fresh):
            self._ledger.close()
            raise LedgerError(f"{path}: {problem}; give a new ledger")

    def reserve(self, round_: int) -> None:
        """Charges a round; returns only when it is on the disk.

        Raises:
            BudgetSpent: it would pass the budget; nothing was charged.
        """
        after = self._price(1) if self.budget is not None else 0.0
        if self.budget is not None and not after <= self.budget:
            raise BudgetSpent(
                f"round {round_} would bring epsilon to {'infinity' if math.isinf(after) else round(after, 4)}, above "
                f"the budget of {self.budget}"
            )
        self._open = self._ledger.reserve(round_, self.event, unit=UNIT, neighbours=self.neighbours)

    def commit(self) -> None:
        """The round that was charged last has come to its end."""
        if self._open is not None:
            self._ledger.commit(self._open)
        self._open = None

    def epsilon(self) -> float | None:
        """The upper epsilon of all that the ledger holds; None without privacy."""
        return None if self.delta is None or isinstance(self.event, NonPrivate) else self._price(0)

    def close(self) -> None:
        """Lets the file and its lock go."""
        self._ledger.close()

    def _price(self, more: int) -> float:
        if self.delta is None:
            return math.inf
        counts = Counter(self._ledger.spent(UNIT))
        counts[self.event] += more
        history = Composed(tuple(Repeated(event, times) for event, times in counts.items() if times))
        return upper_epsilon(history, self.delta, neighbours=self.neighbours)

    def _problem(self, *, fresh: bool) -> str | None:
        """Rounds of different prices may have been chosen by what was seen of others: they do not just add up."""
        entries = [entry for entry in self._ledger.counted() if entry.unit == UNIT]
        if any(entry.event != self.event or entry.neighbours != self.neighbours for entry in entries):
            return "holds rounds of another noise, cohort or relation, to which these cannot be added"
        if entries and fresh:
            return "holds rounds already, whose noise the same seed would draw again"
        return None


class Roster:
    """The federation's places, and the node on each. Who leaves may be followed by a newcomer.

    Args:
        places: how many.
        wait_s: seconds that a first round waits for all of them.
        keep: places are for good, since the strategy remembers who sat there.
    """

    def __init__(self, places: int, *, wait_s: float, keep: bool = False) -> None:
        self.places, self.wait_s, self.keep = places, wait_s, keep
        self.nodes: list[int] = []

    def online(self, grid: Grid) -> dict[int, int]:
        """Place to node, of the nodes that are there now; the first time, all of them are waited for.

        Raises:
            TimeoutError: they did not come.
        """
        here = set(grid.get_node_ids()) if self.nodes else self._wait(grid)
        coming = iter(sorted(here - set(self.nodes)))
        if not self.nodes:
            self.nodes = list(islice(coming, self.places))
        elif not self.keep:
            self.nodes = [node if node in here else next(coming, node) for node in self.nodes]
        left = list(coming)
        if left:
            LOG.warning("%d nodes have no place among %d silos and are not asked", len(left), self.places)
        return {place: node for place, node in enumerate(self.nodes) if node in here}

    def _wait(self, grid: Grid) -> set[int]:
        deadline = time.monotonic() + self.wait_s
        while len(here := set(grid.get_node_ids())) < self.places:
            if not time.monotonic() < deadline:
                raise TimeoutError(
                    f"silos: {len(here)} of {self.places} nodes came in {self.wait_s:g} s; start more, or lower silos"
                )
            LOG.info("waiting for nodes: %d of %d", len(here), self.places)
            time.sleep(POLL_S)
        return here


class Asked:
    """The messages of one round, each to a node of its own.

    They are sent by Flower, which gives them their ids; a reply is told by the message that it answers, since an error
    comes from no node of its own.
    """

    def __init__(self, round_: int, messages: Sequence[Message], silos: Sequence[int]) -> None:
        self.round = round_
        self._sent = list(zip(messages, silos, strict=True))

    def sorted(self, replies: Iterable[Message]) -> Iterator[tuple[int, Message, str | None]]:
        """Each reply with its silo (-1: nobody's) and what is wrong with it as a message, in the order of silos."""
        whose = {
            message.metadata.message_id: (silo, message.metadata.dst_node_id)
            for message, silo in self._sent
            if message.metadata.message_id
        }
        judged = [self._judge(reply, whose) for reply in replies]
        yield from sorted(judged, key=lambda each: each[0])

    def _judge(self, reply: Message, whose: dict[str, tuple[int, int]]) -> tuple[int, Message, str | None]:
        silo, node = whose.get(reply.metadata.reply_to_message_id, (-1, -1))
        if silo < 0:
            return -1, reply, "reply answers no message of this round"
        if reply.has_error():
            return silo, reply, "node answered with an error"
        if not reply.has_content() or reply.metadata.src_node_id != node:
            return silo, reply, "reply is not from the node that was asked"
        return silo, reply, None
