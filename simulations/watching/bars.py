"""Bars and sparklines of text, in block characters or, where a terminal has none, in ASCII."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-:=+*#"


@dataclass(frozen=True)
class Glyphs:
    """How to draw.

    Attributes:
        ascii: in ASCII alone.
    """

    ascii: bool = False

    def spark(self, values: Sequence[float], width: int) -> str:
        """A character a value, low to high; of more values than `width`, the last of each even stretch.

        >>> Glyphs().spark([0, 1, 2, 3, 4, 5, 6, 7], 8), Glyphs(ascii=True).spark([0, 7, 3.5], 8)
        ('▁▂▃▄▅▆▇█', '_#=')
        """
        width = max(width, 1)
        if len(values) > width:
            values = [values[(at + 1) * len(values) // width - 1] for at in range(width)]
        if not values:
            return ""
        levels, low, high = PLAIN if self.ascii else BLOCKS, min(values), max(values)
        if not high > low:
            return levels[len(levels) // 2] * len(values)
        return "".join(levels[round((value - low) / (high - low) * (len(levels) - 1))] for value in values)

    def bar(self, share: float, width: int, *, mark: float | None = None) -> str:
        """A bar of exactly `width` characters, filled to a share of 1, with a mark at another where one is given.

        Something spent never looks like nothing, nor what is left of it like none; a share above 1 fills it.

        >>> Glyphs(ascii=True).bar(0.5, 8), Glyphs(ascii=True).bar(0.25, 8, mark=1.0), Glyphs().bar(0.19, 4)
        ('####----', '##-----|', '━───')
        """
        share = min(max(share, 0.0), 1.0) if math.isfinite(share) else 1.0
        full = min(max(round(share * width), int(share > 0)), width - int(share < 1))  # Not whole before it is.
        drawn = ("#" if self.ascii else "━") * full + ("-" if self.ascii else "─") * (width - full)
        if mark is None or not math.isfinite(mark) or mark > 1:
            return drawn
        at = min(int(mark * width), width - 1)
        return drawn[:at] + ("|" if self.ascii else "┃") + drawn[at + 1 :]


def needs_ascii() -> bool:
    """Whether the terminal is one of ASCII: its locale says so, or its output takes no UTF-8.

    LC_CTYPE is not asked: where LANG=C, Python sets it to C.UTF-8 for itself.
    """
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    locale = os.environ.get("LC_ALL") or os.environ.get("LANG") or "C.UTF-8"
    return encoding != "utf8" or "utf" not in locale.lower()
