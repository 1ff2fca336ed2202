"""A change of the data in the middle of a run: what an experiment says of it; `simulations.data.shifts` does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from strategies.schema import key


@dataclass(frozen=True, kw_only=True)
class Shift:
    """From a round on, all rows are others: the silos' and the public test's, each in the same way."""

    round: int = key(at_least=2, help="the first round with the changed data")
    rotate: float = key(0.0, at_least=-180, at_most=180, help="images: degrees that each is turned, counter-clockwise")
    swap: tuple[int, ...] = key((), at_least=0, help="two classes whose labels change places")

    def problems(self) -> Iterator[str]:
        """What of it cannot be, a line each without the path of its section."""
        if self.swap and (len(self.swap) != 2 or len(set(self.swap)) != 2):
            yield f"swap: give two classes that differ, found {list(self.swap)}"
        if not self.swap and self.rotate == 0:
            yield "rotate: 0 and no swap change nothing; give one of them, or remove the shift"
