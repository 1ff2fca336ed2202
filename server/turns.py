"""Silos that take turns: what each round is charged, and that nobody's turn comes too soon.

A cycle is as many rounds as there are groups. Its first round is charged, for all silos; the others of it are written
to the ledger as paid. A round that was reserved before, because a crash broke it off, is charged again: see
`privacy.banded` for why that covers correlated noise, too, which tells of silos that are not asked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from privacy.banded import BandedSum
from privacy.events import Event, Turn
from privacy.ledger import Entry
from privacy.mechanism import Mechanism
from server.sampler import CyclicCohort, Sampler
from server.store import StoreError


class TooSoon(Exception):
    """A silo's turn came before its separation was over: nothing was charged or asked, as no price covers that."""


def charged(sampler: Sampler, rounds: int) -> int:
    """How many of `rounds` rounds are charged, when none is done again."""
    return -(-rounds // sampler.separation) if isinstance(sampler, CyclicCohort) else rounds


def events(event: Event) -> tuple[Event, ...]:
    """All that rounds of a run may be charged, where `event` is what one that pays is charged."""
    return (event, replace(event, charged=False)) if isinstance(event, Turn) else (event,)


def again(entries: Iterable[Entry], unit: str) -> int:
    """How many charges are for a round that had one already; a torn line may have been of any round."""
    mine = [entry for entry in entries if entry.unit == unit and (entry.torn or entry.round > 0)]
    return len(mine) - len({entry.round for entry in mine if not entry.torn})


@dataclass
class Charges:
    """Which event the next round is charged, and how many of a run's charges cost nothing.

    Attributes:
        event: what a round that pays is charged.
        sampler: who is asked.
        reserved: rounds that the ledger knows.
        free: charges so far that cost nothing.
    """

    event: Event
    sampler: Sampler
    reserved: set[int] = field(default_factory=set)
    free: int = 0

    @classmethod
    def of(cls, event: Event, sampler: Sampler, entries: Iterable[Entry], unit: str) -> Charges:
        """As a ledger's entries tell; a torn line may be of any round, and stays charged beside them."""
        mine = [entry for entry in entries if entry.unit == unit and not entry.torn]
        free = sum(entry.event != event and entry.event in events(event) for entry in mine)
        return cls(event, sampler, {entry.round for entry in mine}, free)

    def next(self, round_: int) -> Event:
        """What to reserve for a round: to be called once for each attempt, before it."""
        opens = not isinstance(self.sampler, CyclicCohort) or (round_ - 1) % self.sampler.separation == 0
        found = self.event if opens or round_ in self.reserved else events(self.event)[-1]
        self.reserved.add(round_)
        self.free += found != self.event
        return found


class Carried:
    """What turns and correlated noise have to know of earlier rounds; it is in every checkpoint, and back at resume.

    Args:
        sampler: who is asked.
        mechanisms: channel to its mechanism.
        rounds: of the run.

    Raises:
        ValueError: banded noise over silos that may come back sooner than it has bands.
    """

    def __init__(self, sampler: Sampler, mechanisms: Mapping[str, Mechanism], rounds: int) -> None:
        self.rounds = rounds
        self.separation = sampler.separation if isinstance(sampler, CyclicCohort) else 0
        self._banded = {name: each for name, each in mechanisms.items() if isinstance(each, BandedSum)}
        self._free_from = np.ones(sampler.population, dtype=np.int64)  # The first round that may ask a silo.
        for name, mechanism in self._banded.items():
            if mechanism.band.bands > self.separation:
                raise ValueError(
                    f"{name}: noise of {mechanism.band.bands} bands has a price for turns as many rounds apart; "
                    "use cohort.sampling: cyclic with that separation or more"
                )

    def admit(self, round_: int, cohort: Sequence[int]) -> None:
        """Takes note of a round's cohort, before it is charged.

        Raises:
            TooSoon: one of its silos was in a round less than `separation` rounds ago.
            RuntimeError: correlated noise stands at another round.
        """
        if not self.separation:
            return
        early = [silo for silo in cohort if not self._free_from[silo] <= round_]
        if early:
            raise TooSoon(
                f"round {round_}: silo {early[0]} may be asked again from round {self._free_from[early[0]]} on; "
                f"its price is for turns {self.separation} rounds apart"
            )
        for name, mechanism in self._banded.items():
            if mechanism.tail.round != round_ - 1:
                raise RuntimeError(f"{name}: noise stands at round {mechanism.tail.round}, not before round {round_}")
        self._free_from[list(cohort)] = round_ + self.separation

    def kept(self, round_: int) -> Mapping[str, Tensor]:
        """What the checkpoint of a round has to hold; after the last one no noise, which would take off the run's."""
        if not self.separation:
            return {}
        kept = {"free_from": torch.from_numpy(self._free_from.copy())}
        if round_ < self.rounds:
            kept |= {
                f"noise/{name}": each.tail.rows for name, each in self._banded.items() if each.tail.rows is not None
            }
        return kept

    def restore(self, round_: int, kept: Mapping[str, Tensor]) -> None:
        """Goes back to the end of a round; to the start for round 0.

        Raises:
            StoreError: something is missing that the checkpoint of the round must hold.
        """
        if not self.separation:
            return
        begun, under_way = round_ > 0, 0 < round_ < self.rounds
        wanted = {"free_from"} if begun else set()
        wanted |= {f"noise/{name}" for name in self._banded} if under_way else set()
        if wanted - kept.keys():
            raise StoreError(
                f"checkpoint of round {round_}: lacks {', '.join(sorted(wanted - kept.keys()))}; restore it"
            )
        self._free_from = kept["free_from"].numpy().copy() if begun else np.ones_like(self._free_from)
        for name, mechanism in self._banded.items():
            mechanism.tail.round = round_
            mechanism.tail.rows = kept[f"noise/{name}"].clone() if under_way else None
