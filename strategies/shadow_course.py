"""When a shadow model starts, stops and starts again: the decisions of shadow learning, from accuracies alone.

Source: Wang, Hayase, Fanti, Oh, "Towards a Defense Against Federated Backdoor Attacks Under Continuous Training", TMLR
2023, arXiv 2205.11736, algorithms 1 and 2. There, accuracies of single rounds are compared, by one threshold for
settling and for a shift. A few hundred rows tell no accuracies apart that are nearer than a point or two; so here means
over `window` rounds are compared with those over the `window` rounds before. A shift has a threshold of its own, and a
shorter window: a backbone learns a change within a few rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import fmean


class Phase(IntEnum):
    """Where a run is."""

    GROWING = 0
    """The backbone learns; nothing is filtered."""
    FILTERING = 1
    """The backbone has settled, and a shadow learns from the silos that pass the filter."""
    STOPPED = 2
    """The shadow has learnt enough, and stays as it is."""


@dataclass(frozen=True)
class Course:
    """The thresholds, on the accuracy that silos report on the target label.

    Attributes:
        window: rounds of the backbone that are averaged.
        settle: the backbone has settled where its accuracy changes by less,
        floor: and is above this.
        shift_window: rounds of the backbone that are compared with the `window` before them to find a shift,
        shift: which is a larger change.
        stop_window: rounds of the shadow that are averaged.
        stop: the shadow is done where its accuracy changes by less,
        stop_floor: and is above this.
    """

    window: int
    settle: float
    floor: float
    shift_window: int
    shift: float
    stop_window: int
    stop: float
    stop_floor: float

    @property
    def remembered(self) -> int:
        """Accuracies of the backbone that decisions are made by."""
        return self.window + max(self.window, self.shift_window)

    def next(self, phase: Phase, backbone: Sequence[float], shadow: Sequence[float]) -> Phase:
        """The phase after a round.

        Args:
            phase: before it.
            backbone: its accuracies since the start or the last shift, this round's last.
            shadow: those of the shadow since it started.
        """
        if phase == Phase.GROWING:
            change = _change(backbone, self.window, self.window)
            settled = change is not None and change < self.settle and _mean(backbone, self.window) > self.floor
            return Phase.FILTERING if settled else phase
        jump = _change(backbone, self.shift_window, self.window)
        if jump is not None and jump > self.shift:
            return Phase.GROWING
        window = self.stop_window
        slow = _change(shadow, window, window)
        if (
            phase == Phase.FILTERING
            and slow is not None
            and slow < self.stop
            and _mean(shadow, window) > self.stop_floor
        ):
            return Phase.STOPPED
        return phase


def _change(accuracies: Sequence[float], last: int, before: int) -> float | None:
    """How far the mean of the last rounds is from that of those before; None where there are not as many."""
    if len(accuracies) < last + before:
        return None
    return abs(_mean(accuracies, last) - fmean(accuracies[-last - before : -last]))


def _mean(accuracies: Sequence[float], window: int) -> float:
    return fmean(accuracies[-window:])
