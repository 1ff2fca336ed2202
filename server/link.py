"""The seam between the round loop and whatever runs the silos: a function call, a pool of workers, a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from privacy.contributions import Partial
from privacy.mechanism import Mechanism
from strategies.base import Evaluation, Instruction, Split, State, Strategy


@dataclass(frozen=True)
class Request:
    """What some silos are asked.

    Attributes:
        instruction: of their tier.
        silos: of that tier, those in the round's cohort.
    """

    instruction: Instruction
    silos: Sequence[int]


def by_tier(strategy: Strategy, state: State, round_: int, silos: Sequence[int]) -> list[Request]:
    """What each tier of some silos is asked in a round; with no silos the first tier is, for nobody."""
    tiers: dict[int, list[int]] = {}
    for silo in silos:
        tiers.setdefault(strategy.tier(silo), []).append(silo)
    return [
        Request(strategy.instruct(state, round_, tier), asked) for tier, asked in sorted((tiers or {0: []}).items())
    ]


def chunks(requests: Sequence[Request], most: int) -> Iterator[tuple[Instruction, Sequence[int]]]:
    """The silos asked, `most` of a tier at a time: what is summed together, in every engine alike."""
    for request in requests:
        for at in range(0, len(request.silos), most):
            yield request.instruction, request.silos[at : at + most]


class Link(Protocol):
    """Asks silos and brings back their clipped sums.

    Sums are taken per chunk of a fixed number of silos, so they do not depend on who computed what.
    """

    population: int

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        """Has the silos of a cohort trained; yields chunks as they are done, in any order.

        There is one request a tier, and at least one, if for nobody, so that the round is known. `record` also brings
        back private training losses.
        """
        ...

    def evaluate(
        self, instruction: Instruction, silos: Sequence[int], *, split: Split = "test", fresh: bool = False
    ) -> Evaluation:
        """How silos are served on their own held-out rows; private numbers.

        Args:
            instruction: what they are served with.
            silos: which ones.
            split: which of the held-out rows.
            fresh: as if none of them had ever been asked: no personal state.
        """
        ...

    def stage(self) -> None:
        """Puts the personal state of the round in flight on the disk, not yet current."""
        ...

    def commit(self, round_: int) -> None:
        """Makes the staged personal state current: the round's checkpoint stands."""
        ...

    def recover(self, round_: int) -> None:
        """Brings personal state to where the checkpoint of `round_` left it."""
        ...

    def close(self) -> None:
        """Lets workers and memory go."""
        ...


class Passing:
    """A link in front of another, which it passes all on to; a subclass says what is different when silos are asked.

    Args:
        link: the one behind it.
    """

    def __init__(self, link: Link) -> None:
        self.link, self.population = link, link.population

    def evaluate(
        self, instruction: Instruction, silos: Sequence[int], *, split: Split = "test", fresh: bool = False
    ) -> Evaluation:
        """How silos are served on their own held-out rows; see `Link.evaluate`."""
        return self.link.evaluate(instruction, silos, split=split, fresh=fresh)

    def stage(self) -> None:
        """Stages personal state; see `Link.stage`."""
        self.link.stage()

    def commit(self, round_: int) -> None:
        """Makes what was staged current; see `Link.commit`."""
        self.link.commit(round_)

    def recover(self, round_: int) -> None:
        """Brings personal state to a checkpoint's round; see `Link.recover`."""
        self.link.recover(round_)

    def close(self) -> None:
        """Lets workers and memory go."""
        self.link.close()


def evaluate(
    link: Link, strategy: Strategy, state: State, round_: int, *, split: Split = "test", fresh: bool = False
) -> Evaluation:
    """How every silo of a federation is served, each as its tier is; the rest as for `Link.evaluate`."""
    parts = [
        link.evaluate(request.instruction, request.silos, split=split, fresh=fresh)
        for request in by_tier(strategy, state, round_, range(link.population))
    ]
    columns = ([value for part in parts for value in getattr(part, field.name)] for field in fields(Evaluation))
    return Evaluation(*(tuple(column) for column in columns))
