"""The seam between the round loop and whatever runs the silos: a function call, a pool of workers, a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from privacy.mechanism import Mechanism
from privacy.release import Partial
from strategies.base import Evaluation, Instruction, Split


class Link(Protocol):
    """Asks silos and brings back their clipped sums.

    Sums are taken per chunk of a fixed number of silos, so they do not depend on who computed what.
    """

    population: int

    def ask(
        self, instruction: Instruction, cohort: Sequence[int], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        """Has the silos of a cohort trained; yields chunks as they are done, in any order.

        `record` also brings back private training losses.
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
