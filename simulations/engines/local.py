"""The local engine: silos run in this process, chunk after chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from client.host import SiloHost
from privacy.mechanism import Mechanism
from privacy.release import Partial
from server.link import Request, chunks
from strategies.base import Evaluation, Instruction, Split


class LocalLink:
    """Asks silos by a function call.

    Args:
        host: the silos.
        chunk: silos summed together.
    """

    def __init__(self, host: SiloHost, *, chunk: int) -> None:
        self.host, self.chunk, self.population = host, chunk, len(host.shards)

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        """Trains the cohort; see `server.link.Link`."""
        for number, (instruction, silos) in enumerate(chunks(requests, self.chunk)):
            yield self.host.contribute(instruction, silos, mechanisms, chunk=number, record=record)

    def evaluate(
        self, instruction: Instruction, silos: Sequence[int], *, split: Split = "test", fresh: bool = False
    ) -> Evaluation:
        """Evaluates silos on their held-out rows."""
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
