"""The local engine: silos run in this process, chunk after chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from client.host import SiloHost
from privacy.contributions import Partial
from privacy.mechanism import Mechanism
from server.link import Request, chunks
from simulations.data.shifts import Changing
from strategies.base import Evaluation, Instruction, Split


class LocalLink:
    """Asks silos by a function call.

    Args:
        host: the silos.
        chunk: silos summed together.
        rows: gives the host the rows of a round, where they change; None: they do not.
    """

    def __init__(self, host: SiloHost, *, chunk: int, rows: Changing | None = None) -> None:
        self.host, self.chunk, self.population, self.rows = host, chunk, len(host.shards), rows

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        """Trains the cohort; see `server.link.Link`."""
        for number, (instruction, silos) in enumerate(chunks(requests, self.chunk)):
            if self.rows is not None:
                self.rows.to(instruction.round)
            yield self.host.contribute(instruction, silos, mechanisms, chunk=number, record=record)

    def evaluate(
        self, instruction: Instruction, silos: Sequence[int], *, split: Split = "test", fresh: bool = False
    ) -> Evaluation:
        """Evaluates silos on their held-out rows."""
        if self.rows is not None:
            self.rows.to(instruction.round - 1)  # It is what silos are served after the round before.
        return self.host.evaluate(instruction, silos, split=split, fresh=fresh)

    def stage(self) -> None:
        """Flushes staged personal state."""
        if self.host.personal is not None:
            self.host.personal.flush()

    def commit(self, round_: int) -> None:
        """Commits staged personal state."""
        if self.host.personal is not None:
            self.host.personal.commit(round_)

    def recover(self, round_: int) -> None:
        """Brings personal state to a checkpoint's round."""
        if self.host.personal is not None:
            self.host.personal.recover(round_)

    def close(self) -> None:
        """Nothing to let go."""
