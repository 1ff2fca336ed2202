"""The link to silos on machines of their own.

A round asks the silos of its cohort that are there, and ends when all have answered or at the deadline; without privacy
also when enough have. Updates are clipped here, last, on the decoded vector, as in every engine. Who does not answer is
counted, and changes neither the divisor nor the noise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from privacy.chain import Head
from privacy.contributions import Contributions, Failure, Partial
from privacy.mechanism import Mechanism
from server.book import Book
from server.exchange import OLD_LEDGER, OTHER_RUN, Clock, Exchange
from server.link import Request, chunks
from server.post import POLL_S, MeteredPost, Post
from server.roll import Roll
from server.store import StoreError
from server.terms import Terms
from strategies.base import Evaluation, Instruction, Split
from strategies.envelope import Expected, Reply, Task, encode
from strategies.messages import MOMENTS
from strategies.traffic import message

LOG = logging.getLogger("confide.server")
CLOSING_S = 15.0
SILENT = 3  # Rounds in a row without one usable answer, after which a run stops: each is paid, and adds noise alone.


class Unreachable(RuntimeError):
    """No silo takes part; one line."""


class RemoteLink:
    """Asks silos through a post; see `server.link.Link`.

    Args:
        post: carries letters.
        book: what outlives a restart.
        terms: of the run.
        clock: of deadlines.
        metered: what tells of the post's bytes and seconds, or None.
    """

    def __init__(
        self,
        post: Post,
        book: Book,
        terms: Terms,
        *,
        clock: Clock = Clock(),  # noqa: B008  # Frozen.
        metered: MeteredPost | None = None,
    ) -> None:
        self.metered = metered
        self.book, self.terms, self.population, self._clock = book, terms, terms.population, clock
        self.roll = Roll(post, self._hello, self._problem, terms.population, clock.now, terms.deadline_s)
        self._used: set[int] = set()
        self._heads: dict[int, Head] = {}
        self._met, self._silent = False, 0
        self._constants: Mapping[str, Tensor] = {}

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        """Has the silos of a cohort trained that are there; yields their sums, chunk after chunk."""
        self._meet()
        self._used, self._heads = set(), {}
        began, carried = self._clock.now(), self._carried()
        attempt = self.book.begin(requests[0].instruction.round)  # On the disk first: no attempt is made twice.
        asks: dict[int, tuple[Task, Expected]] = {}
        for request in requests:
            task = replace(self._task(request.instruction), kind="train", attempt=attempt, record=record)
            expected = self.terms.expected(request.instruction)
            asks |= {silo: (own, expected) for silo, own in self._each(task, request.silos).items()}
        done = self._exchange(asks, quorum=self.terms.enough(len(asks), mechanisms))
        self._require_somebody(done)
        for number, (instruction, silos) in enumerate(chunks(requests, self.terms.chunk)):
            yield self._summed(done, instruction, silos, mechanisms, chunk=number, record=record)
        facts = self.book.round, self._clock.now() - began, self._carried() - carried, done.waited_s
        LOG.info("round %d: asked and summed in %.3f s, %.3f of them in the post, %.3f waiting", *facts)

    def _carried(self) -> float:
        return 0.0 if self.metered is None else self.metered.seconds

    def everybody(self, expected: Expected) -> Exchange:
        """Asks all silos for their moments, in round 0, which comes once: an attempt at it like at any round."""
        self._meet()
        task = self._bare("moments", attempt=self.book.begin(0))
        return self._exchange(dict.fromkeys(range(self.population), (task, expected)))

    def tell(self, constants: Tensor) -> None:
        """Says from now on, with every hello, what features are standardised with; who was greeted before is again."""
        self._constants, self._met = {MOMENTS: constants}, False
        for silo in list(self.roll.node_of):
            self.roll.rejoin(silo)

    def evaluate(
        self, instruction: Instruction, silos: Sequence[int], *, split: Split = "test", fresh: bool = False
    ) -> Evaluation:
        """How those of some silos are served that are there; see `server.link.Link`."""
        self._look() if self._met else self._meet()
        task = replace(self._task(instruction), kind="evaluate", split=split, fresh=fresh)
        done = self._exchange({silo: (own, Expected({})) for silo, own in self._each(task, silos).items()})
        found = [(silo, done.replies[silo].evaluation) for silo in silos if silo in done.replies]
        held = [(silo, each) for silo, each in found if each is not None]
        return Evaluation(
            tuple(silo for silo, _ in held),
            tuple(each.rows for _, each in held),
            tuple(_number(each.loss) for _, each in held),
            tuple(_number(each.score) for _, each in held),
        )

    def stage(self) -> None:
        """Notes whose updates the round in flight used; what silos keep of it, they keep themselves."""
        self.book.stage(self._used, self._heads)

    def commit(self, round_: int) -> None:
        """The round's checkpoint stands; silos learn it with their next task."""
        self.book.commit(round_)

    def recover(self, round_: int) -> None:
        """Goes on from the checkpoint of a round.

        Raises:
            StoreError: what silos keep is not of that round.
        """
        if round_ and self.book.fresh:
            if self.terms.keeps:
                raise StoreError(
                    f"{self.book.path}: is missing, so what silos keep is not of this run; resume with its engine"
                )
            self.book.adopt(round_)
        self.book.recover(round_)

    def close(self) -> None:
        """Tells the silos that are there which round stands."""
        task = self._bare()
        asks = {silo: (own, Expected({})) for silo, own in self._each(task, list(self.roll.node_of)).items()}
        self._exchange(asks, limit_s=CLOSING_S)

    def _exchange(
        self, asks: Mapping[int, tuple[Task, Expected]], *, quorum: float = math.inf, limit_s: float = math.inf
    ) -> Exchange:
        done = Exchange(asks, self.roll, self.book.knows, self.terms.values, self._clock, quorum)
        done.run(min(limit_s, self.terms.deadline_s))
        return done

    def _meet(self) -> None:
        """At first waits for all silos, until the deadline; later for one, and looks who came and who left.

        Raises:
            Unreachable: nobody is there.
        """
        deadline = self._clock.now() + self.terms.deadline_s
        wanted = 1 if self._met else self.population
        self._look()
        while len(self.roll.node_of) < wanted and self._clock.now() < deadline:
            self._clock.sleep(POLL_S)
            self._look()
        if not self.roll.node_of:
            why = "; ".join(sorted(set(self.roll.refused.values()))) or "no node is connected"
            raise Unreachable(f"no silo takes part after {self.terms.deadline_s:g} s: {why}")
        self._met = True

    def _look(self) -> None:
        self.roll.look()
        self.roll.hear()

    def _require_somebody(self, done: Exchange) -> None:
        """Counts rounds in which silos were asked and none answered.

        Raises:
            Unreachable: too many in a row.
        """
        if done.asks:
            self._silent = 0 if done.replies else self._silent + 1
        if self._silent >= SILENT:
            why = "; ".join(sorted(set(done.failures.values())))
            raise Unreachable(f"no silo answered in {SILENT} rounds in a row: {why}; look at the silos, then resume")

    def _summed(
        self,
        done: Exchange,
        instruction: Instruction,
        silos: Sequence[int],
        mechanisms: Mapping[str, Mechanism],
        *,
        chunk: int,
        record: bool,
    ) -> Partial:
        strategy, expected = self.terms.strategy, self.terms.expected(instruction)
        out = Contributions(mechanisms, expected.sizes, reveals=strategy.reveals, heaviest=strategy.heaviest)
        size = message(expected.sizes, expected.kept, expected.values)
        losses: list[float] = []
        seconds: list[float] = []
        for silo in silos:
            reply = done.replies.pop(silo, None)  # Its memory is free again.
            if reply is None:
                out.failures.append(Failure(silo, done.failures[silo]))
                continue
            if reply.ledger is not None:
                self._heads[silo] = reply.ledger
            before = out.arrived
            out.add(reply.channels, _number(reply.weight), [silo], size)
            if out.arrived > before:
                self._used.add(silo)
            losses += [_number(loss) for loss in reply.losses] if record else []
            seconds.append(reply.seconds)
        return replace(out.partial(chunk, losses), seconds=tuple(seconds))

    def _task(self, instruction: Instruction) -> Task:
        """What a tier of silos is asked, but for who they are and what they do."""
        where = {"round": instruction.round, "tier": instruction.tier}
        return replace(self._bare("train", **where), vectors=instruction.vectors, kept=instruction.kept)

    def _bare(self, kind: str = "close", **facts: int) -> Task:
        terms = self.terms
        return Task(kind=kind, run=self.book.run, digest=terms.digest, deadline_s=terms.deadline_s, **facts)  # type: ignore[arg-type]

    def _each(self, task: Task, silos: Sequence[int]) -> dict[int, Task]:
        """With the last round that used each silo's update: what it staged in another was of no use to anybody.

        Silos of whom that is the same have one task.
        """
        used = {silo: self.book.page.used.get(silo, 0) for silo in silos}
        of = {round_: replace(task, committed=round_) for round_ in set(used.values())}
        return {silo: of[round_] for silo, round_ in used.items()}

    def _hello(self) -> bytes:
        told = {"experiment": self.terms.experiment, "schema": self.terms.schema, "vectors": self._constants}
        return encode(replace(self._bare(), kind="hello", **told))  # type: ignore[arg-type]

    def _problem(self, reply: Reply) -> str | None:
        if (reply.run, reply.digest) != (self.book.run, self.terms.digest):
            return OTHER_RUN
        return None if reply.ledger is None or self.book.knows(reply.silo, reply.ledger) else OLD_LEDGER


def _number(value: float | None) -> float:
    """JSON has no NaN: None stands for it on the way, and NaN is refused by whoever sums."""
    return math.nan if value is None else value
