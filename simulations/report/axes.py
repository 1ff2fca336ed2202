"""Axes that a reader can read off, and curves thinned to what a page can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

from privacy import checks

Point = tuple[float, float]

POINTS = 500  # A curve is thinned to about so many: more than the pixels it is drawn on.


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, evenly spaced, from at or below `low` to at or above `high`.

    There are at most `count` + 2 of them. A range too small to be seen (a billionth of its numbers) is widened.

    >>> ticks(0.12, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(3, 3)
    [2.8, 2.9, 3.0, 3.1, 3.2]
    """
    checks.finite(low=low, high=high)
    if not low <= high:
        raise ValueError(f"low must be <= high, got {low!r} and {high!r}")
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-12):
        low, high = (low - size / 20, high + size / 20) if size > 1e-12 else (min(low, 0.0), 1.0)
    # In decimals, since multiples of a binary 0.1 are not what a reader calls 0.3.
    step = _step((Decimal(high) - Decimal(low)) / count)
    first = math.floor(Decimal(low) / step)
    last = math.ceil(Decimal(high) / step)
    return [float(index * step) for index in range(first, last + 1)]


def _step(least: Decimal) -> Decimal:
    power = Decimal(1).scaleb(least.adjusted())
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least)


def tick_labels(values: Sequence[float]) -> list[str]:
    """The ticks as text, with as many decimals as their distance asks for.

    >>> tick_labels([0.0, 0.5, 1.0]), tick_labels([0, 5000, 10000]), tick_labels([0.0, 2e-7])
    (['0.0', '0.5', '1.0'], ['0', '5,000', '10,000'], ['0', '2e-07'])
    """
    step = min((after - before for before, after in pairwise(values)), default=1.0)
    places = max(0, -math.floor(math.log10(step) + 1e-6))
    if places > 4 or max(map(abs, values), default=0.0) >= 1e6:
        return [f"{value:.6g}" for value in values]
    return [f"{value:,.{places}f}" for value in values]


def thin(points: Sequence[Point], limit: int = POINTS) -> list[Point]:
    """At most `limit` points that look the same: of each stretch its lowest and its highest, and both ends of all.

    A mean would hide the one bad round that a reader looks for.
    """
    if len(points) <= limit:
        return list(points)
    stretches = max(1, (limit - 2) // 2)
    kept = {0, len(points) - 1}
    for number in range(stretches):
        stretch = range(number * len(points) // stretches, (number + 1) * len(points) // stretches)
        kept.add(min(stretch, key=lambda index: points[index][1]))
        kept.add(max(stretch, key=lambda index: points[index][1]))
    return [points[index] for index in sorted(kept)]
