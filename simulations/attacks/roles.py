"""Who is malicious in which round: a function of the seed, whatever the engine and whoever is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from privacy import streams
from strategies.attacks import Attack


class Roles:
    """The parts that silos play.

    All silos stand in one ranking; a crew holds a stretch of it, from where the crews before it end. So crews never
    meet, attacks of one crew are made by the same silos, and a crew that grows keeps whom it has.

    Args:
        attacks: of the experiment.
        seed: of the experiment.
        silos: of the federation.
        rounds: of the run.
    """

    def __init__(self, attacks: Sequence[Attack], *, seed: int, silos: int, rounds: int) -> None:
        self.attacks, self.seed, self.rounds = tuple(attacks), seed, rounds
        draws = streams.uniforms(streams.keys(streams.derive(seed, "attackers"), np.arange(silos)), 1)[:, 0]
        self.ranks = draws.argsort(kind="stable").argsort(kind="stable")
        """Each silo's place in the ranking, from 0."""
        largest = {crew: max(a.most for a in attacks if a.crew == crew) for crew in {a.crew for a in attacks}}
        self._offset = {crew: sum(most for other, most in largest.items() if other < crew) for crew in largest}

    def acting(self, round_: int, cohort: Sequence[int]) -> Mapping[int, tuple[int, ...]]:
        """The malicious silos of a cohort, in its order, each with the numbers of the attacks that it makes."""
        found: dict[int, tuple[int, ...]] = {}
        whole = np.asarray(cohort, dtype=np.int64)
        taken = np.stack([self._takes(attack, round_, whole) for attack in self.attacks])
        for place, silo in enumerate(whole.tolist()):
            if taken[:, place].any():
                found[silo] = tuple(np.flatnonzero(taken[:, place]).tolist())
        return found

    def pool(self, attack: Attack) -> list[int]:
        """The silos whose rows the crew of an attack can draw on: those that it holds of all, at its largest."""
        low, high = self._stretch(attack, attack.most, len(self.ranks))
        return np.flatnonzero((low <= self.ranks) & (self.ranks < high)).tolist()

    def fraction(self, attack: Attack, round_: int) -> float:
        """The fraction that is malicious in a round; 0 before the attack starts."""
        if round_ < attack.start:
            return 0.0
        if attack.until is None:
            return attack.fraction
        length = self.rounds - attack.start
        done = min((round_ - attack.start) / length, 1.0) if length else 1.0
        return attack.fraction + done * (attack.until - attack.fraction)

    def _stretch(self, attack: Attack, fraction: float, silos: int) -> tuple[int, int]:
        """The ranks that a crew holds among some silos: from the first one up to the last, exclusive."""
        low = self._offset[attack.crew]
        return rounded(low * silos), rounded((low + fraction) * silos)

    def _takes(self, attack: Attack, round_: int, cohort: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which silos of a cohort make an attack, `(silos,)` bool."""
        fraction = self.fraction(attack, round_)
        if fraction == 0.0:
            return np.zeros(len(cohort), dtype=bool)
        if attack.draw == "binomial":
            coins = streams.uniforms(streams.keys(streams.derive(self.seed, "attackers", round_), cohort), 1)[..., 0]
            low = self._offset[attack.crew]
            return np.logical_and(low <= coins, coins < low + fraction)
        places, silos = self.ranks[cohort], len(self.ranks)
        if attack.draw == "exact":  # Of those asked, as many as the fraction says: by their order among themselves.
            places, silos = places.argsort(kind="stable").argsort(kind="stable"), len(cohort)
        low, high = self._stretch(attack, fraction, silos)
        return np.logical_and(low <= places, places < high)


def rounded(number: float) -> int:
    """The nearest integer, halves up; a sum of fractions that is a little short of a half counts as one."""
    return int(number + 0.5 + 1e-9)
