"""The axes of plots: linear or logarithmic, with ticks that are chosen or given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simulations.report.axes import tick_labels, ticks


@dataclass(frozen=True)
class Axis:
    """One of the two axes.

    Attributes:
        label: what it counts, with its unit.
        log: logarithmic; values must be > 0.
        marks: (value, text) instead of ticks that are chosen.
        low: the least value to show, where that is not the data's.
        high: the largest, likewise.
    """

    label: str
    log: bool = False
    marks: Sequence[tuple[float, str]] = ()
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scale:
    """Values to parts of an axis from 0 to 1, and its ticks."""

    low: float
    high: float
    log: bool
    marks: Sequence[tuple[float, str]]

    def at(self, value: float) -> float:
        """Which part of the axis."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def scale_of(axis: Axis, values: Sequence[float]) -> Scale:
    """What an axis shows, given all values on it."""
    held = [*values, *(value for value, _ in axis.marks)]
    low = min(held) if axis.low is None else axis.low
    high = max(held) if axis.high is None else axis.high
    if axis.log:
        if not low > 0:
            raise ValueError(f"axis {axis.label}: a logarithmic one needs values > 0, got {low!r}")
        high = high if high > low else 2 * low
        return Scale(low, high, True, axis.marks or powers(low, high))
    if axis.marks:
        return Scale(low, high if high > low else low + 1, False, axis.marks)
    levels = ticks(low, high)
    fixed = axis.high is not None and axis.low is not None
    levels = [level for level in levels if not fixed or low <= level <= high]
    ends = (low, high) if fixed else (levels[0], levels[-1])
    return Scale(*ends, False, list(zip(levels, tick_labels(levels))))


def powers(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks at 1, 2 and 5 times powers of ten with their names; of powers alone where that would be too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(decades) <= 3 else (1,)
    found = [digit * 10.0**power for power in decades for digit in digits]
    return [(value, f"{value:g}") for value in found if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)]
