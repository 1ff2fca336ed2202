"""When a shadow model starts, stops and starts again: the decisions of shadow learning, from accuracies alone.

Source: Wang, Hayase, Fanti, Oh, "Towards a Defense Against Federated Backdoor Attacks Under Continuous Training", TMLR
2023, arXiv 2205.11736, algorithms 1 and 2. There, accuracies of single rounds are compared, by one threshold for
settling and for a shift. A few hundred rows tell no accuracies apart that are nearer than a point or two; so here means
over `window` rounds are compared with those over the `window` rounds before, and a shift has a threshold of its own.
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
        shift: a larger change afterwards is a shift of the data.
        stop_window: rounds of the shadow that are averaged.
        stop: the shadow is done where its accuracy changes by less,
        stop_floor: and is above this.
    """

    window: int
    settle: float
    floor: float
    shift: float
    stop_window: int
    stop: float
    stop_floor: float

    def next(self, phase: Phase, backbone: Sequence[float], shadow: Sequence[float]) -> Phase:
        """The phase after a round.

        Args:
            phase: before it.
            backbone: its accuracies since the start or the last shift, this round's last.
            shadow: those of the shadow since it started.
        """
        change = _change(backbone, self.window)
        if phase == Phase.GROWING:
            settled = change is not None and change < self.settle and _mean(backbone, self.window) > self.floor
            return Phase.FILTERING if settled else phase
        if change is not None and change > self.shift:
            return Phase.GROWING
        slow, window = _change(shadow, self.stop_window), self.stop_window
        if (
            phase == Phase.FILTERING
            and slow is not None
            and slow < self.stop
            and _mean(shadow, window) > self.stop_floor
        ):
            return Phase.STOPPED
        return phase


def _change(accuracies: Sequence[float], window: int) -> float | None:
    """How far the last window's mean is from that before; None before there are two windows."""
    if len(accuracies) < 2 * window:
        return None
    return abs(_mean(accuracies, window) - fmean(accuracies[-2 * window : -window]))


def _mean(accuracies: Sequence[float], window: int) -> float:
    return fmean(accuracies[-window:])
