"""A link whose silos keep accounts: what a round costs their examples is on the disk before a silo takes a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from privacy.contributions import Partial
from privacy.events import Event
from privacy.ledger import Ledger, LedgerError
from privacy.mechanism import Mechanism
from server.link import Link, Passing, Request
from simulations.example_privacy import NEIGHBOURS, UNIT, groups


class AccountedLink(Passing):
    """Passes on what another link does, after the silos have paid for it.

    Args:
        link: the silos.
        ledger: the silos' own, one file for all of them.
        events: what a round costs an example of each silo.
    """

    def __init__(self, link: Link, *, ledger: Ledger, events: Sequence[Event]) -> None:
        super().__init__(link)
        self.ledger, self.events = ledger, tuple(events)

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        """Reserves the steps of every silo asked, then has them taken; a crash in between overcounts."""
        cohort = sorted(silo for request in requests for silo in request.silos)
        charges, round_ = groups(self.events, cohort), requests[0].instruction.round
        self.ledger.reserve_each(round_, charges, unit=UNIT, neighbours=NEIGHBOURS)
        yield from self.link.ask(requests, mechanisms, record=record)

    def commit(self, round_: int) -> None:
        """Says in the ledger, too, that the round came to its end."""
        super().commit(round_)
        self._close(round_)

    def recover(self, round_: int) -> None:
        """Brings the ledger to a checkpoint's round, too.

        Raises:
            LedgerError: silos were charged another price.
        """
        strange = {entry.event for entry in self.ledger.entries if entry.kind == "reserve"} - set(self.events)
        if strange:
            raise LedgerError(f"{self.ledger.path}: cannot go on, since the price of a step changed; use another --out")
        super().recover(round_)
        self._close(round_)

    def _close(self, round_: int) -> None:
        for entry in self.ledger.open_reserves():
            if entry.round == round_:
                self.ledger.commit(entry)
