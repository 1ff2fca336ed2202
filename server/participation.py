"""In which rounds canaries take part.

Where silos take turns, canaries do, too.

What a canary measures depends on it. By coins of the silos' rate it is as amplified as a silo, and compares with the
run's epsilon. On a fixed schedule nothing amplifies: it compares with the unsampled Gaussian, and with that only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from privacy import streams


@dataclass(frozen=True)
class Coins:
    """Every canary flips its own coin in every round; one that no round drew counts as seen all the same.

    Attributes:
        canaries: how many.
        rate: the chance, as that of a silo.
        seed: of the experiment.
    """

    canaries: int
    rate: float
    seed: int

    @property
    def expected(self) -> float:
        """Canaries expected in a round: they add to the constant divisor of the mean."""
        return self.rate * self.canaries

    def drawn(self, round_: int) -> list[int]:
        """The canaries of a round."""
        coins = streams.keys(streams.derive(self.seed, "canary cohort", round_), np.arange(self.canaries))
        return np.flatnonzero(streams.uniforms(coins, 1)[:, 0] < self.rate).tolist()


@dataclass(frozen=True)
class Spread:
    """Every canary takes part exactly `repeats` times, evenly over the rounds, and every round has about as many.

    Attributes:
        canaries: how many.
        repeats: rounds of each.
        rounds: of the run.
    """

    canaries: int
    repeats: int
    rounds: int

    def __post_init__(self) -> None:
        if not 1 <= self.repeats <= self.rounds:
            raise ValueError(f"repeats must be between 1 and the {self.rounds} rounds, got {self.repeats}")

    @property
    def expected(self) -> float:
        """Canaries in a round, on average over the run: a constant."""
        return self.canaries * self.repeats / self.rounds

    def drawn(self, round_: int) -> list[int]:
        """The canaries of a round, in rising order.

        Turn i of canary j is slot n = i * canaries + j; the middle of each slot falls into one round.
        """
        slots = range(self._first(round_), self._first(round_ + 1))
        return sorted(slot % self.canaries for slot in slots)

    def _first(self, round_: int) -> int:
        """The first slot whose middle (n + 1/2) * rounds / (canaries * repeats) is in `round_` or later."""
        total = 2 * self.canaries * self.repeats
        return max(0, -((self.rounds - (round_ - 1) * total) // (2 * self.rounds)))


@dataclass(frozen=True)
class InTurns:
    """Canaries take turns as silos do, so that none is in more rounds than a silo, nor sooner again.

    Attributes:
        canaries: how many.
        separation: groups, and rounds from a canary's turn to its next.
    """

    canaries: int
    separation: int

    @property
    def expected(self) -> float:
        """Canaries in a round, on average over a cycle: a constant."""
        return self.canaries / self.separation

    def drawn(self, round_: int) -> list[int]:
        """The canaries of a round, in rising order."""
        return list(range((round_ - 1) % self.separation, self.canaries, self.separation))


Participation = Coins | Spread | InTurns
