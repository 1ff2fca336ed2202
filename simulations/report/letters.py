"""Letters beside points: pushed apart where they would lie on each other."""

from __future__ import annotations

from collections.abc import Sequence

NEAR, APART = 14.0, 12.0  # Across and down: letters nearer than both cannot be read.
ROUNDS = 200  # Of pushing; two letters need one.


def spread(wanted: Sequence[tuple[float, float]], *, top: float, bottom: float) -> list[tuple[float, float]]:
    """Positions near the wanted ones, moved up and down only.

    Args:
        wanted: (x, y) of letters, y downwards.
        top: the least y.
        bottom: the largest y.

    >>> spread([(0.0, 50.0), (0.0, 50.0), (90.0, 50.0)], top=0.0, bottom=100.0)
    [(0.0, 44.0), (0.0, 56.0), (90.0, 50.0)]
    """
    heights = [y for _, y in wanted]
    order = sorted(range(len(wanted)), key=lambda index: heights[index])
    for _ in range(ROUNDS):
        moved = False
        for place, upper in enumerate(order):
            for lower in order[place + 1 :]:
                lack = APART - (heights[lower] - heights[upper])
                if abs(wanted[upper][0] - wanted[lower][0]) < NEAR and lack > 1e-6:
                    heights[upper] -= lack / 2
                    heights[lower] += lack / 2
                    moved = True
        heights = [min(max(height, top), bottom) for height in heights]
        if not moved:
            break
    return [(x, height) for (x, _), height in zip(wanted, heights)]
