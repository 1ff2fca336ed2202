"""Charts as inline SVG: small, without scripts, with text that keeps its size whatever the width of the page.

An SVG here is only as large as its axes. Positions along x are percentages of it, labels hang outside of it in its
margins (overflow is visible), and curves lie in an inner picture that is stretched while their strokes are not. So one
drawing serves a telephone, a wide screen and paper. Colours are the page's classes `a` and `b`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simulations.report.axes import Point, thin, tick_labels, ticks
from simulations.report.markup import Html, Value, element, join

HEIGHT = 170  # Pixels from the highest tick to the lowest.
ROW = 46  # Pixels of a span with its label.
DOTTED = 40  # Up to so many points each is shown as a dot, too.
CROWDED = 200  # From so many points on a curve is drawn finer.
_WIDE = 1000  # Units of the stretched picture.
_GAP = 15  # Pixels between two labels at the ends of lines.
_LETTER = 6.8  # Pixels of a tabular digit at 12 px, rounded up.


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        label: written at its end, beside the last value.
        points: (x, y), x rising.
    """

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Mark:
    """A level that a curve is to be seen against.

    Attributes:
        label: what it is, written beside the title.
        value: where on the y axis.
    """

    label: str
    value: float


@dataclass(frozen=True)
class Span:
    """A range on a horizontal scale.

    Attributes:
        label: what it is, with its numbers.
        low: left end.
        high: right end; infinity runs off the scale.
        middle: a dot within, or None.
    """

    label: str
    low: float
    high: float
    middle: float | None = None


def line_chart(
    key: str,
    title: str,
    *,
    unit: str,
    lines: Sequence[Line],
    rounds: int,
    marks: Sequence[Mark] = (),
    from_zero: bool = False,
) -> Html:
    """Curves over rounds, as a figure.

    Args:
        key: unique on the page, for the picture's ids.
        title: what is drawn.
        unit: in words, beside the title.
        lines: one or two, each with a point at least.
        rounds: the right end of the x axis.
        marks: levels, drawn dotted.
        from_zero: the y axis starts at 0.
    """
    if not lines or not all(line.points for line in lines):
        raise ValueError(f"chart {key}: every line needs a point, got {[len(line.points) for line in lines]}")
    values = [y for line in lines for _, y in line.points] + [mark.value for mark in marks]
    levels = ticks(min(values + [0.0] * from_zero), max(values))
    across = [x for x in ticks(0, rounds, 4) if x <= rounds and x == int(x)]

    def left(x: float) -> float:
        return x / rounds

    def down(y: float) -> float:
        return HEIGHT * (levels[-1] - y) / (levels[-1] - levels[0])

    names = tick_labels(levels)
    parts = [
        *(_level(down(y), name) for y, name in zip(levels, names)),
        *(_across(left(x), name, HEIGHT) for x, name in zip(across, tick_labels(across))),
        element("text", {"x": -8, "y": HEIGHT + 19, "text-anchor": "end"}, "round"),
        _curves([[(left(x), down(y)) for x, y in thin(line.points)] for line in lines]),
        *(_mark(down(mark.value)) for mark in marks),
        *_ends([(line.label, left(line.points[-1][0]), down(line.points[-1][1])) for line in lines]),
    ]
    margins = (
        max(44.0, 14 + _LETTER * max(map(len, names))),
        16 + _LETTER * max(2, *(len(line.label) for line in lines)),
    )
    described = ". ".join(_told(line) for line in lines)
    beside = "; ".join([unit, *(f"dotted: {mark.label}" for mark in marks)])
    return _figure(key, title, beside, described, margins, HEIGHT, parts)


def span_chart(key: str, title: str, *, unit: str, spans: Sequence[Span], limits: Sequence[float] = (0.0,)) -> Html:
    """Ranges on one horizontal scale, one below the other, as a figure; `limits` are values that the scale shows."""
    ends = [value for span in spans for value in (span.low, span.high) if math.isfinite(value)]
    scale = ticks(min([*ends, *limits]), max([*ends, *limits]), 4)
    reach, height = scale[-1] - scale[0], ROW * len(spans)

    def left(value: float) -> float:
        return (value - scale[0]) / reach if math.isfinite(value) else 1.0

    parts = [_across(left(x), name, height, line=True) for x, name in zip(scale, tick_labels(scale))]
    for number, (span, colour) in enumerate(zip(spans, "ab" * len(spans))):
        y = ROW * number + 32
        bar: dict[str, Value] = {"x1": _percent(left(span.low)), "x2": _percent(left(span.high)), "y1": y, "y2": y}
        parts.append(element("text", {"x": 0, "y": y - 14, "class": f"value {colour}"}, span.label))
        parts.append(element("line", {**bar, "class": f"bar {colour}{' wide' if span.middle is not None else ''}"}))
        if not math.isfinite(span.high):
            parts.append(element("text", {"x": "100%", "dx": 6, "y": y + 4, "class": f"value {colour}"}, "∞"))
        if span.middle is not None:
            parts.append(element("circle", {"cx": _percent(left(span.middle)), "cy": y, "r": 5, "class": colour}))
    return _figure(key, title, unit, "; ".join(span.label for span in spans), (12.0, 24.0), height, parts)


def _figure(
    key: str,
    title: str,
    unit: str,
    described: str,
    margins: tuple[float, float],
    height: float,
    parts: Sequence[Html],
) -> Html:
    left, right = (math.ceil(margin) for margin in margins)
    attributes: dict[str, Value] = {
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-told",
        "height": height,
        "style": f"width:calc(100% - {left + right}px);margin:8px {right}px 28px {left}px",
    }
    said = (
        element("title", {"id": f"{key}-title"}, f"{title} ({unit})"),
        element("desc", {"id": f"{key}-told"}, described),
    )
    caption = element("figcaption", {}, element("b", {}, title), " ", element("span", {}, unit))
    return element("figure", {"class": "chart"}, caption, element("svg", attributes, *said, *parts))


def _level(y: float, name: str) -> Html:
    line = element("line", {"x1": 0, "x2": "100%", "y1": _short(y), "y2": _short(y), "class": "grid"})
    return join([line, element("text", {"x": -8, "y": _short(y + 4), "text-anchor": "end"}, name)])


def _across(left: float, name: str, height: float, *, line: bool = False) -> Html:
    x = _percent(left)
    notch = element("line", {"x1": x, "x2": x, "y1": 0 if line else height, "y2": height + 4, "class": "grid"})
    return join([notch, element("text", {"x": x, "y": height + 19, "text-anchor": "middle"}, name)])


def _mark(y: float) -> Html:
    return element("line", {"x1": 0, "x2": "100%", "y1": _short(y), "y2": _short(y), "class": "mark"})


def _curves(curves: Sequence[Sequence[Point]]) -> Html:
    """The stretched picture; a dot is a stroke of no length with round ends, which stretching leaves round."""
    paths = []
    for points, colour in zip(curves, "ab"):
        at = [f"{_short(_WIDE * x)} {_short(y)}" for x, y in points]
        crowded = " fine" if len(points) > CROWDED else ""
        paths.append(element("path", {"class": f"line {colour}{crowded}", "d": "M" + "L".join(at)}))
        if len(points) <= DOTTED:
            paths.append(element("path", {"class": f"dots {colour}", "d": "".join(f"M{point}h0" for point in at)}))
    box: dict[str, Value] = {
        "viewBox": f"0 0 {_WIDE} {HEIGHT}",
        "preserveAspectRatio": "none",
        "width": "100%",
        "height": HEIGHT,
    }
    return element("svg", box, *paths)


def _ends(labels: Sequence[tuple[str, float, float]]) -> list[Html]:
    """Labels at the right ends of the lines, pushed apart where they would touch."""
    order = sorted(range(len(labels)), key=lambda index: labels[index][2])
    heights = [labels[index][2] for index in order]
    if len(heights) == 2 and heights[1] - heights[0] < _GAP:
        middle = min(max(sum(heights) / 2, _GAP / 2), HEIGHT - _GAP / 2)
        heights = [middle - _GAP / 2, middle + _GAP / 2]
    texts = []
    for index, y in zip(order, heights):
        label, x, _ = labels[index]
        place: dict[str, Value] = {"x": _percent(x), "dx": 8, "y": _short(y + 4), "class": f"value {'ab'[index]}"}
        texts.append(element("text", place, label))
    return texts


def _told(line: Line) -> str:
    """A curve in words, for who cannot see it."""
    (x, y), (last_x, last_y) = line.points[0], line.points[-1]
    values = [value for _, value in line.points]
    start = f"{line.label}: from {y:.4g} in round {x:g} to {last_y:.4g} in round {last_x:g}"
    return f"{start}, lowest {min(values):.4g}, highest {max(values):.4g}"


def _percent(part: float) -> str:
    return f"{100 * part:.2f}%"


def _short(value: float) -> str:
    """A coordinate to a tenth of a pixel.

    >>> _short(12.0), _short(12.34)
    ('12', '12.3')
    """
    return f"{value:.1f}".removesuffix(".0")
