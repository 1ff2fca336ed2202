"""Charts as inline SVG: small, without scripts, with text that keeps its size whatever the width of the page.

Curves lie in an inner picture that is stretched while their strokes are not; for the rest see `report.frame`. So one
drawing serves a telephone, a wide screen and paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulations.report.axes import POINTS, Point, thin, tick_labels, ticks
from simulations.report.frame import BOLD, HEIGHT, LETTER, figure, level, notch, percent, short
from simulations.report.markup import Html, Value, element

DOTTED = 40  # Up to so many points each is shown as a dot, too.
CROWDED = 200  # From so many points on a curve is drawn finer.
_WIDE = 1000  # Units of the stretched picture.
_GAP = 15  # Pixels between two labels at the ends of lines.


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        label: written at its end, beside the last value.
        points: (x, y), x rising.
        band: (x, lowest, highest) of a spread around it, or empty.
    """

    label: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Mark:
    """A level that a curve is to be seen against.

    Attributes:
        label: what it is, written beside the title.
        value: where on the y axis.
    """

    label: str
    value: float


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
    values += [value for line in lines for _, *edges in line.band for value in edges]
    levels = ticks(min(values + [0.0] * from_zero), max(values))
    across = [x for x in ticks(0, rounds, 4) if x <= rounds and x == int(x)]

    def left(x: float) -> float:
        return x / rounds

    def down(y: float) -> float:
        return HEIGHT * (levels[-1] - y) / (levels[-1] - levels[0])

    names = tick_labels(levels)
    parts = [
        *(level(down(y), name) for y, name in zip(levels, names)),
        *(notch(left(x), name, HEIGHT) for x, name in zip(across, tick_labels(across))),
        element("text", {"x": -8, "y": HEIGHT + 19, "text-anchor": "end"}, "round"),
        _curves(
            [[(left(x), down(y)) for x, y in thin(line.points)] for line in lines],
            [[(left(x), down(low), down(high)) for x, low, high in line.band] for line in lines],
        ),
        *(_mark(down(mark.value)) for mark in marks),
        *_ends([(line.label, left(line.points[-1][0]), down(line.points[-1][1])) for line in lines]),
    ]
    margins = (
        max(44.0, 14 + LETTER * max(map(len, names))),
        16 + BOLD * max(2, *(len(line.label) for line in lines)),
    )
    described = ". ".join(_told(line) for line in lines)
    beside = "; ".join([unit, *(f"dotted: {mark.label}" for mark in marks)])
    return figure(key, title, beside, described, margins, HEIGHT, parts)


def _mark(y: float) -> Html:
    return element("line", {"x1": 0, "x2": "100%", "y1": short(y), "y2": short(y), "class": "mark"})


def _curves(curves: Sequence[Sequence[Point]], bands: Sequence[Sequence[tuple[float, float, float]]]) -> Html:
    """The stretched picture; a dot is a stroke of no length with round ends, which stretching leaves round."""
    paths = [_band(band, colour) for band, colour in zip(bands, "ab") if band]
    for points, colour in zip(curves, "ab"):
        at = [f"{short(_WIDE * x)} {short(y)}" for x, y in points]
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


def _band(band: Sequence[tuple[float, float, float]], colour: str) -> Html:
    """A spread, below all curves; of a long one every so many points, for its edges are smooth or noise."""
    kept = band[:: -(-len(band) // POINTS)]
    edge = [(x, high) for x, _, high in kept] + [(x, low) for x, low, _ in reversed(kept)]
    drawn = "L".join(f"{short(_WIDE * x)} {short(y)}" for x, y in edge)
    return element("path", {"class": f"band {colour}", "d": f"M{drawn}Z"})


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
        place: dict[str, Value] = {"x": percent(x), "dx": 8, "y": short(y + 4), "class": f"value {'ab'[index]}"}
        texts.append(element("text", place, label))
    return texts


def _told(line: Line) -> str:
    """A curve in words, for who cannot see it."""
    (x, y), (last_x, last_y) = line.points[0], line.points[-1]
    values = [value for _, value in line.points]
    start = f"{line.label}: from {y:.4g} in round {x:g} to {last_y:.4g} in round {last_x:g}"
    spread = f", its band at the end {line.band[-1][1]:.4g} to {line.band[-1][2]:.4g}" if line.band else ""
    return f"{start}, lowest {min(values):.4g}, highest {max(values):.4g}{spread}"
