"""A link whose silos keep accounts: what a round costs their examples is on the disk before a silo takes a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from privacy.events import Event
from privacy.ledger import Ledger, LedgerError
from privacy.mechanism import Mechanism
from privacy.release import Partial
from server.link import Link
from server.sampler import Sampler
from simulations.example_privacy import NEIGHBOURS, UNIT, groups, missing
from strategies.base import Evaluation, Instruction


class AccountedLink:
    """Passes on what another link does, after the silos have paid for it.

    Args:
        link: the silos.
        ledger: the silos' own, one file for all of them.
        events: what a round costs an example of each silo.
        sampler: the run's sampler, by which a ledger that lost lines is found out.
        seed: of the experiment.
    """

    def __init__(self, link: Link, *, ledger: Ledger, events: Sequence[Event], sampler: Sampler, seed: int) -> None:
        self.link, self.ledger, self.events, self.sampler, self.seed = link, ledger, tuple(events), sampler, seed
        self.population = link.population

    def ask(
        self, instruction: Instruction, cohort: Sequence[int], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        """Reserves the steps of every silo asked, then has them taken; a crash in between overcounts."""
        charges = groups(self.events, cohort)
        self.ledger.reserve_each(instruction.round, charges, unit=UNIT, neighbours=NEIGHBOURS)
        yield from self.link.ask(instruction, cohort, mechanisms, record=record)

    def evaluate(self, instruction: Instruction, silos: Sequence[int]) -> Evaluation:
        """Passes on."""
        return self.link.evaluate(instruction, silos)

    def stage(self) -> None:
        """Passes on."""
        self.link.stage()

    def commit(self, round_: int) -> None:
        """Passes on, and says in the ledger that the round came to its end."""
        self.link.commit(round_)
        self._close(round_)

    def recover(self, round_: int) -> None:
        """Passes on, and brings the ledger to a checkpoint's round.

        Raises:
            LedgerError: silos that were asked up to that round are not charged, or were charged another price.
        """
        strange = {entry.event for entry in self.ledger.entries if entry.kind == "reserve"} - set(self.events)
        if strange:
            raise LedgerError(f"{self.ledger.path}: cannot go on, since the price of a step changed; use another --out")
        lost = missing(self.ledger, {done: self.sampler.draw(self.seed, done) for done in range(1, round_ + 1)})
        if lost:
            raise LedgerError(
                f"{self.ledger.path}: round {lost[0]} is not charged; lines were cut, restore it from a copy"
            )
        self.link.recover(round_)
        self._close(round_)

    def close(self) -> None:
        """Passes on."""
        self.link.close()

    def _close(self, round_: int) -> None:
        for entry in self.ledger.open_reserves():
            if entry.round == round_:
                self.ledger.commit(entry)
