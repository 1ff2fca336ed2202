"""Ranges and amounts on one horizontal scale, one below the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from simulations.report.axes import tick_labels, ticks
from simulations.report.charts import Mark
from simulations.report.frame import figure, notch, percent
from simulations.report.markup import Html, Value, element

ROW = 46  # Pixels of a span with its label.


@dataclass(frozen=True)
class Span:
    """A range on a horizontal scale.

    Attributes:
        label: what it is, with its numbers.
        low: left end.
        high: right end; infinity runs off the scale.
        middle: a dot within, or None.
        colour: of the page's two; empty: they take turns.
    """

    label: str
    low: float
    high: float
    middle: float | None = None
    colour: Literal["a", "b", ""] = ""


def span_chart(
    key: str,
    title: str,
    *,
    unit: str,
    spans: Sequence[Span],
    limits: Sequence[float] = (0.0,),
    marks: Sequence[Mark] = (),
) -> Html:
    """Ranges on one horizontal scale, one below the other, as a figure.

    Args:
        key: unique on the page, for the picture's ids.
        title: what is drawn.
        unit: in words, beside the title.
        spans: from top to bottom.
        limits: values that the scale shows.
        marks: values of the scale, drawn dotted from top to bottom.
    """
    held = [*limits, *(mark.value for mark in marks)]
    held += [value for span in spans for value in (span.low, span.high) if math.isfinite(value)]
    scale = ticks(min(held), max(held), 4)
    reach, height = scale[-1] - scale[0], ROW * len(spans)

    def left(value: float) -> float:
        return (value - scale[0]) / reach if math.isfinite(value) else 1.0

    parts = [notch(left(x), name, height, line=True) for x, name in zip(scale, tick_labels(scale))]
    for mark in marks:
        x = percent(left(mark.value))
        parts.append(element("line", {"x1": x, "x2": x, "y1": 0, "y2": height, "class": "mark"}))
    for number, (span, turn) in enumerate(zip(spans, "ab" * len(spans))):
        parts += _drawn(span, span.colour or turn, ROW * number + 32, left(span.low), left(span.high))
        if span.middle is not None:
            place: dict[str, Value] = {"cx": percent(left(span.middle)), "cy": ROW * number + 32, "r": 5}
            parts.append(element("circle", {**place, "class": span.colour or turn}))
    beside = "; ".join([unit, *(f"dotted: {mark.label}" for mark in marks)])
    return figure(key, title, beside, "; ".join(span.label for span in spans), (12.0, 24.0), height, parts)


def _drawn(span: Span, colour: str, y: float, low: float, high: float) -> list[Html]:
    bar: dict[str, Value] = {"x1": percent(low), "x2": percent(high), "y1": y, "y2": y}
    parts = [
        element("text", {"x": 0, "y": y - 14, "class": f"value {colour}"}, span.label),
        element("line", {**bar, "class": f"bar {colour}{' wide' if span.middle is not None else ''}"}),
    ]
    if not math.isfinite(span.high):
        parts.append(element("text", {"x": "100%", "dx": 6, "y": y + 4, "class": f"value {colour}"}, "∞"))
    return parts
