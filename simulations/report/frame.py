"""What the charts of a report share: a figure with its caption, ticks, positions.

An SVG here is only as large as its axes. Positions along x are percentages of it, and labels hang outside of it in its
margins (overflow is visible). Colours are the page's classes `a` and `b`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from simulations.report.markup import Html, Value, element, join

HEIGHT = 170  # Pixels from the highest tick to the lowest.
LETTER = 6.8  # Pixels of a tabular digit at 12 px, rounded up;
BOLD = 7.6  # of a letter of a label at the end of a line, which is bold.


def figure(
    key: str,
    title: str,
    unit: str,
    described: str,
    margins: tuple[float, float],
    height: float,
    parts: Sequence[Html],
) -> Html:
    """A drawing with its caption, its margins in pixels left and right, and what it tells those who cannot see it."""
    left, right = (math.ceil(margin) for margin in margins)
    attributes: dict[str, Value] = {
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-told",
        "height": height,
        "style": f"width:calc(100% - {left + right}px);margin:12px {right}px 28px {left}px",
    }
    said = (
        element("title", {"id": f"{key}-title"}, f"{title} ({unit})"),
        element("desc", {"id": f"{key}-told"}, described),
    )
    caption = element("figcaption", {}, element("b", {}, title), " ", element("span", {}, unit))
    return element("figure", {"class": "chart"}, caption, element("svg", attributes, *said, *parts))


def level(y: float, name: str) -> Html:
    """A line across at a height, with its label on the left."""
    line = element("line", {"x1": 0, "x2": "100%", "y1": short(y), "y2": short(y), "class": "grid"})
    return join([line, element("text", {"x": -8, "y": short(y + 4), "text-anchor": "end"}, name)])


def notch(left: float, name: str, height: float, *, line: bool = False) -> Html:
    """A tick below the drawing at a part of its width, or a line up through it."""
    x = percent(left)
    notch = element("line", {"x1": x, "x2": x, "y1": 0 if line else height, "y2": height + 4, "class": "grid"})
    return join([notch, element("text", {"x": x, "y": height + 19, "text-anchor": "middle"}, name)])


def percent(part: float) -> str:
    """A position across.

    >>> percent(0.5)
    '50.00%'
    """
    return f"{100 * part:.2f}%"


def short(value: float) -> str:
    """A coordinate to a tenth of a pixel.

    >>> short(12.0), short(12.34)
    ('12', '12.3')
    """
    return f"{value:.1f}".removesuffix(".0")
