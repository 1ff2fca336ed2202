"""Counts as columns: a histogram, or one column for so many rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from simulations.report.axes import tick_labels, ticks
from simulations.report.charts import Mark
from simulations.report.frame import HEIGHT, LETTER, figure, level, notch, percent, short
from simulations.report.markup import Html, Value, element

MOST = 60  # Columns of rounds: narrower ones cannot be told apart on a telephone.


@dataclass(frozen=True)
class Stack:
    """A kind of what is counted.

    Attributes:
        label: what it is.
        counts: one a column, at least 0.
    """

    label: str
    counts: Sequence[float]


def column_chart(
    key: str,
    title: str,
    *,
    unit: str,
    edges: Sequence[float],
    stacks: Sequence[Stack],
    marks: Sequence[Mark] = (),
    axis: str = "",
) -> Html:
    """Columns between edges, as a figure.

    Args:
        key: unique on the page, for the picture's ids.
        title: what is counted.
        unit: in words, beside the title.
        edges: rising, one more than there are columns.
        stacks: one, or two where one stands on the other.
        marks: values across, drawn dotted from top to bottom.
        axis: what lies across, in a word below on the left.
    """
    if any(len(stack.counts) != len(edges) - 1 for stack in stacks) or not stacks or len(edges) < 2:
        raise ValueError(f"chart {key}: {len(edges)} edges need a count less, got {[len(s.counts) for s in stacks]}")
    levels = ticks(0.0, max(map(sum, zip(*(stack.counts for stack in stacks)))) or 1.0, 4)
    field, names = _Field(edges[0], edges[-1], levels[-1]), tick_labels(levels)
    across = [x for x in ticks(edges[0], edges[-1], 4) if edges[0] <= x <= edges[-1]]
    parts = [
        *(level(field.down(y), name) for y, name in zip(levels, names)),
        *(notch(field.left(x), name, HEIGHT) for x, name in zip(across, tick_labels(across))),
        *(column for number in range(len(edges) - 1) for column in _columns(field, edges, stacks, number)),
    ]
    if axis:
        parts.append(element("text", {"x": -8, "y": HEIGHT + 19, "text-anchor": "end"}, axis))
    for mark in marks:
        x = percent(field.left(mark.value))
        parts.append(element("line", {"x1": x, "x2": x, "y1": 0, "y2": HEIGHT, "class": "mark"}))
    margins = (max(44.0, 14 + LETTER * max(map(len, names))), 24.0)
    beside = "; ".join([unit, *_legend(stacks), *(f"dotted: {mark.label}" for mark in marks)])
    return figure(key, title, beside, _told(edges, stacks), margins, HEIGHT, parts)


def by_rounds(counts: Sequence[float]) -> tuple[list[float], list[float]]:
    """Counts of rounds 1, 2, ... as edges and sums of at most `MOST` columns of equally many rounds.

    >>> by_rounds([1, 0, 2])
    ([0.5, 1.5, 2.5, 3.5], [1, 0, 2])
    """
    wide = -(-len(counts) // MOST)
    starts = range(0, len(counts), wide)
    edges = [start + 0.5 for start in starts] + [starts[-1] + wide + 0.5]
    return edges, [sum(counts[start : start + wide]) for start in starts]


@dataclass(frozen=True)
class _Field:
    """Values to parts of the width, and to pixels from the top."""

    low: float
    high: float
    most: float

    def left(self, x: float) -> float:
        return (x - self.low) / (self.high - self.low)

    def down(self, y: float) -> float:
        return HEIGHT * (self.most - y) / self.most


def _columns(field: _Field, edges: Sequence[float], stacks: Sequence[Stack], number: int) -> Iterator[Html]:
    """What stands between two edges, from the axis upwards."""
    left, right, floor = field.left(edges[number]), field.left(edges[number + 1]), 0.0
    for stack, colour in zip(stacks, "ab"):
        count = stack.counts[number]
        if count:
            top = field.down(floor + count)
            tall = max(field.down(floor) - top, 1.0)  # Never so low that one silo cannot be seen.
            place: dict[str, Value] = {"x": percent(left), "width": percent(right - left), "y": short(top)}
            yield element("rect", {**place, "height": short(tall), "class": f"column {colour}"})
        floor += count


def _legend(stacks: Sequence[Stack]) -> list[str]:
    """Told by place, not by colour alone."""
    if len(stacks) < 2:
        return []
    return [f"below, blue: {stacks[0].label}", f"above, orange: {stacks[1].label}"]


def _told(edges: Sequence[float], stacks: Sequence[Stack]) -> str:
    """The columns in words, for who cannot see them."""
    names = [f"{edge:.6g}" for edge in edges]
    kinds = []
    for stack in stacks:
        held = [f"{count:g} from {low} to {high}" for count, low, high in zip(stack.counts, names, names[1:]) if count]
        kinds.append(f"{stack.label}: {', '.join(held) or 'none'}")
    return "; ".join(kinds)
