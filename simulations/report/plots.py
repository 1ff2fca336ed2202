"""Pictures that stand alone: curves with their spread, as one SVG for a report, a README or paper.

Unlike the charts of a run's report these carry many curves, a logarithmic axis where asked, and their own colours,
light and dark. A legend tells curves apart by colour and by dash, since colour alone does not reach everybody. They
are drawn narrow, so that text stays readable where a telephone shrinks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulations.report import letters
from simulations.report.axes import Point, thin
from simulations.report.markup import Html, Value, element
from simulations.report.picture import Frame
from simulations.report.scales import Axis, Scale, scale_of

WIDTH, HEIGHT = 480, 260  # Of the picture, and of the field between its axes.
LEFT, RIGHT, TOP = 54, 26, 48  # Margins; on the right there is room for half of a tick's label.
LEGEND_ROW, LEGEND_COLUMNS = 18, 2
POINTS = 80  # Of a curve, at most.
COLOURS = 8

# Okabe and Ito's palette, black first; on dark paper black is light and the blue is lifted.
CSS = """
.plot { --paper: #fdfdfc; --ink: #1c1d1f; --muted: #5d6066; --grid: #e3e2dd; --c0: #1c1d1f; --c1: #0072b2;
  --c2: #d55e00; --c3: #009e73; --c4: #cc79a7; --c5: #b07d00; --c6: #56b4e9; --c7: #7a5195;
  font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
@media screen and (prefers-color-scheme: dark) { .plot { --paper: #16181b; --ink: #e8e8e5; --muted: #a3a7ad;
  --grid: #2b2f34; --c0: #e8e8e5; --c1: #4aa8e0; --c5: #e6b422; --c7: #b79ad6; } }
.plot text { fill: var(--muted); } .plot .head { fill: var(--ink); font-weight: 600; font-size: 14px; }
.plot .letter { fill: var(--ink); font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.plot .rule { stroke: var(--grid); } .plot .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.plot .band { stroke: none; fill-opacity: .13; } .plot .level { stroke: var(--ink); stroke-dasharray: 1 4; }
""" + "".join(f".plot .c{n} {{ stroke: var(--c{n}); }} .plot .f{n} {{ fill: var(--c{n}); }}\n" for n in range(COLOURS))
DASHES = ("", "7 4", "2 3", "9 3 2 3")
FRAME = Frame("plot", CSS, WIDTH, LEFT)


@dataclass(frozen=True)
class Curve:
    """A curve.

    Attributes:
        label: in the legend.
        points: (x, y), x rising.
        spread: half the height of the band at each point, or empty.
        dots: whether every point is marked.
        bars: an interval (low, high) at each point, or empty.
        line: whether the points are joined.
        letter: written beside its last point, so that colour is not all that tells it.
        place: among colours and dashes; None: as among the curves.
    """

    label: str
    points: Sequence[Point]
    spread: Sequence[float] = ()
    dots: bool = False
    bars: Sequence[tuple[float, float]] = ()
    line: bool = True
    letter: str = ""
    place: int | None = None


def plot(key: str, title: str, *, told: str, curves: Sequence[Curve], x: Axis, y: Axis) -> Html:
    """Curves on two axes, as a whole SVG file.

    Args:
        key: unique on a page, for the picture's ids.
        title: what is shown.
        told: the line under it: data, seeds, what the bands are.
        curves: with a point each, at most 32.
        x: the axis across.
        y: the axis upwards.
    """
    if not curves or not all(curve.points for curve in curves) or len(curves) > COLOURS * len(DASHES):
        raise ValueError(f"plot {key}: 1 to 32 curves, each with a point, got {[len(c.points) for c in curves]}")
    across = scale_of(x, [value for curve in curves for value, _ in curve.points])
    upwards = scale_of(y, [value for curve in curves for value in _heights(curve)])
    rows = -(-len(curves) // LEGEND_COLUMNS)
    height = TOP + HEIGHT + 44 + LEGEND_ROW * rows
    return FRAME.around(
        key,
        title,
        *_grid(across, upwards, x.label, y.label),
        *(
            part
            for number, curve in enumerate(curves)
            for part in _drawn(_place(number, curve), curve, across, upwards)
        ),
        *_letters(curves, across, upwards),
        *(part for number, curve in enumerate(curves) for part in _legend(number, curve)),
        told=told,
        described=". ".join(_described(curve) for curve in curves),
        height=height,
    )


def _grid(across: Scale, upwards: Scale, x: str, y: str) -> list[Html]:
    parts = []
    for value, name in upwards.marks:
        top = _y(upwards, value)
        ends: dict[str, Value] = {"x1": LEFT, "x2": WIDTH - RIGHT, "y1": top, "y2": top, "class": "rule"}
        parts.append(element("line", ends))
        parts.append(element("text", {"x": LEFT - 7, "y": _short(float(top) + 4), "text-anchor": "end"}, name))
    for value, name in across.marks:
        left = _x(across, value)
        notch: dict[str, Value] = {"x1": left, "x2": left, "y1": TOP + HEIGHT, "y2": TOP + HEIGHT + 4, "class": "rule"}
        parts.append(element("line", notch))
        parts.append(element("text", {"x": left, "y": TOP + HEIGHT + 17, "text-anchor": "middle"}, name))
    foot: dict[str, Value] = {"x": WIDTH - RIGHT, "y": TOP + HEIGHT + 34, "text-anchor": "end"}
    turned: dict[str, Value] = {"transform": f"translate(13 {TOP + HEIGHT / 2}) rotate(-90)", "text-anchor": "middle"}
    return [*parts, element("text", foot, x), element("text", turned, y)]


def _drawn(number: int, curve: Curve, across: Scale, upwards: Scale) -> list[Html]:
    parts, colour = [], number % COLOURS
    if curve.spread:
        limits = [(x, y, wide) for (x, y), wide in zip(curve.points, curve.spread)]
        kept = limits[:: max(1, len(limits) // POINTS)]
        edge = [(x, y + wide) for x, y, wide in kept] + [(x, y - wide) for x, y, wide in reversed(kept)]
        parts.append(element("path", {"class": f"band f{colour}", "d": f"M{_path(edge, across, upwards)}Z"}))
    for (x, _), (low, high) in zip(curve.points, curve.bars):
        left = _x(across, x)
        ends: dict[str, Value] = {"x1": left, "x2": left, "y1": _y(upwards, low), "y2": _y(upwards, high)}
        parts.append(element("line", {**ends, "class": f"curve c{colour}"}))
    if curve.line:
        line = _path(thin(curve.points, POINTS), across, upwards)
        parts.append(element("path", {"class": f"curve c{colour}", **_dash(number), "d": f"M{line}"}))
    if curve.dots:
        for x, y in curve.points:
            size = 2.6 if curve.line else 4
            place: dict[str, Value] = {"cx": _x(across, x), "cy": _y(upwards, y), "r": size, "class": f"f{colour}"}
            parts.append(element("circle", place))
    return parts


def _letters(curves: Sequence[Curve], across: Scale, upwards: Scale) -> list[Html]:
    lettered = [curve for curve in curves if curve.letter]
    ends = [curve.points[-1] for curve in lettered]
    wanted = [(float(_x(across, x)) + 7, float(_y(upwards, y)) + 4) for x, y in ends]
    placed = letters.spread(wanted, top=TOP + 8, bottom=TOP + HEIGHT + 4)
    return [
        element("text", {"x": _short(x), "y": _short(y), "class": "letter"}, curve.letter)
        for curve, (x, y) in zip(lettered, placed)
    ]


def _place(number: int, curve: Curve) -> int:
    return number if curve.place is None else curve.place


def _legend(number: int, curve: Curve) -> list[Html]:
    column, row = number % LEGEND_COLUMNS, number // LEGEND_COLUMNS
    left = LEFT + column * (WIDTH - LEFT - RIGHT) / LEGEND_COLUMNS
    y = TOP + HEIGHT + 52 + LEGEND_ROW * row
    number = _place(number, curve)
    sample: dict[str, Value] = {"x1": _short(left), "x2": _short(left + 26), "y1": y, "y2": y}
    named = element("text", {"x": _short(left + 33), "y": y + 4}, curve.label)
    dot: dict[str, Value] = {"cx": _short(left + 13), "cy": y, "r": 2.6, "class": f"f{number % COLOURS}"}
    marks = [element("circle", dot)] if curve.dots else []
    dash = _dash(number) if curve.line else {}  # Bars are never dashed.
    return [element("line", {**sample, "class": f"curve c{number % COLOURS}", **dash}), *marks, named]


def _dash(number: int) -> dict[str, Value]:
    dash = DASHES[(number + number // COLOURS) % len(DASHES)]  # Curves of one colour differ in their dashes.
    return {"stroke-dasharray": dash} if dash else {}


def _heights(curve: Curve) -> list[float]:
    """All that a curve shows: its points, and its band."""
    wide = curve.spread or [0.0] * len(curve.points)
    banded = [y + side * width for (_, y), width in zip(curve.points, wide) for side in (-1, 1)]
    return [*banded, *(end for bar in curve.bars for end in bar)]


def _path(points: Sequence[Point], across: Scale, upwards: Scale) -> str:
    return "L".join(f"{_x(across, x)} {_y(upwards, y)}" for x, y in points)


def _x(scale: Scale, value: float) -> str:
    return _short(LEFT + (WIDTH - LEFT - RIGHT) * scale.at(value))


def _y(scale: Scale, value: float) -> str:
    """Down from the top, held inside the field: a band may leave it where an axis is cut."""
    return _short(TOP + HEIGHT * (1 - min(max(scale.at(value), 0.0), 1.0)))


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _described(curve: Curve) -> str:
    """A curve in words, for who cannot see it."""
    (x, y), (last_x, last_y) = curve.points[0], curve.points[-1]
    return f"{curve.label}: {y:.4g} at {x:.4g} to {last_y:.4g} at {last_x:.4g}"
