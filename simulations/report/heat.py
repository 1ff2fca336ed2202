"""Tables of percentages as pictures: a coloured cell each, as one SVG for a report, a README or paper.

The number stands in every cell, so nothing is told by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from simulations.report.markup import Html, Value, element
from simulations.report.picture import Frame

WIDTH, LEFT, TOP = 560, 172, 76
ROW = 22
STEPS = 8

# One hue from pale to strong; figures of strong cells are white. On dark paper pale is dark.
CSS = """
.heat { --paper: #fdfdfc; --ink: #1c1d1f; --muted: #5d6066; --pale: #eef1f4; --strong: #b3411a;
  font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
@media screen and (prefers-color-scheme: dark) { .heat { --paper: #16181b; --ink: #e8e8e5; --muted: #a3a7ad;
  --pale: #24282d; --strong: #d0561f; } }
.heat text { fill: var(--muted); } .heat .head { fill: var(--ink); font-weight: 600; font-size: 14px; }
.heat .name { fill: var(--ink); } .heat .number { fill: var(--ink); font-size: 11px; }
.heat .number.loud { fill: #fff; }
""" + "".join(
    f".heat .h{n} {{ fill: color-mix(in oklab, var(--strong) {100 * n // STEPS}%, var(--pale)); }}\n"
    for n in range(STEPS + 1)
)
FRAME = Frame("heat", CSS, WIDTH, left=12)


def heat(
    key: str,
    title: str,
    *,
    told: str,
    rows: Sequence[str],
    groups: Sequence[tuple[str, Sequence[str]]],
    values: Sequence[Sequence[float]],
    high_is_bad: bool,
) -> Html:
    """Parts of 1 as percentages in coloured cells, as a whole SVG file; strong colours are bad.

    Args:
        key: unique on a page, for the picture's ids.
        title: what is shown.
        told: the line under it: data, seeds.
        rows: their names.
        groups: neighbouring columns under one name, with a name each.
        values: a row each, a number per column, from 0 to 1; NaN leaves the cell empty.
        high_is_bad: whether 1 is worst, or 0.
    """
    columns = [name for _, names in groups for name in names]
    if any(len(row) != len(columns) for row in values) or len(values) != len(rows) or not columns:
        raise ValueError(
            f"heat {key}: {len(rows)} rows of {len(columns)} numbers are needed, got {list(map(len, values))}"
        )
    wide, height = (WIDTH - LEFT - 10) / len(columns), TOP + ROW * len(rows) + 12
    described = ". ".join(f"{name}: {', '.join(map(percent, row))}" for name, row in zip(rows, values))
    return FRAME.around(
        key,
        title,
        *_heads(groups, wide),
        *(part for at, name in enumerate(rows) for part in _row(at, name, values[at], wide, high_is_bad)),
        told=told,
        described=described,
        height=height,
    )


def percent(value: float) -> str:
    """A part of 1 as text.

    >>> percent(0.986), percent(float("nan"))
    ('99', 'none')
    """
    return f"{100 * value:.0f}" if math.isfinite(value) else "none"


def _heads(groups: Sequence[tuple[str, Sequence[str]]], wide: float) -> list[Html]:
    parts, column = [], 0
    for group, names in groups:
        middle = LEFT + wide * (column + len(names) / 2)
        parts.append(_text(group, middle, TOP - 22, "name"))
        parts += [_text(name, LEFT + wide * (column + at + 0.5), TOP - 6, "") for at, name in enumerate(names)]
        column += len(names)
    return parts


def _row(at: int, name: str, values: Sequence[float], wide: float, high_is_bad: bool) -> list[Html]:
    y = TOP + ROW * at
    parts = [element("text", {"x": 12, "y": y + 15, "class": "name"}, name)]
    for column, value in enumerate(values):
        if not math.isfinite(value):
            continue
        bad = min(max(value if high_is_bad else 1.0 - value, 0.0), 1.0)
        left = LEFT + wide * column
        place: dict[str, Value] = {"x": f"{left + 1:.1f}", "y": y + 1, "width": f"{wide - 2:.1f}", "height": ROW - 2}
        parts.append(element("rect", {**place, "rx": 3, "class": f"h{round(STEPS * bad)}"}))
        parts.append(_text(percent(value), left + wide / 2, y + 15, "number loud" if bad > 0.6 else "number"))
    return parts


def _text(said: str, x: float, y: float, kind: str) -> Html:
    return element("text", {"x": f"{x:.1f}", "y": y, "text-anchor": "middle", "class": kind}, said)
