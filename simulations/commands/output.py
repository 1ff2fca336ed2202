"""How the commands print: aligned facts, tables, numbers and relations in words."""

from __future__ import annotations

import json
import math
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

WIDEST = 120  # Longer lines are hard to read, however wide the window.
NARROWEST = 60

RELATIONS = {
    "add_remove": "adding or removing one whole silo",
    "zero_out": "one whole silo sending nothing instead",
    "replace": "replacing one whole silo by another",
}


def width() -> int:
    """Columns to print in: the terminal's, or 100 where there is none."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, NARROWEST), WIDEST)


def facts(pairs: Sequence[tuple[str, str]], *, columns: int | None = None) -> str:
    """Names and values in two columns, long values wrapped below themselves.

    >>> print(facts([("silos", "400"), ("expected cohort", "100")]))
    silos            400
    expected cohort  100
    """
    left = max((len(name) for name, _ in pairs), default=0) + 2
    lines: list[str] = []
    for name, value in pairs:
        room = max((columns or width()) - left, 20)
        first, *rest = textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [f"{name:<{left}}{first}".rstrip(), *(" " * left + line for line in rest)]
    return "\n".join(lines)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Rows under headers; the first `left` columns are set left, the others (numbers) right.

    >>> print(table(["seed", "accuracy"], [["0", "0.91"], ["10", "0.9"]]))
    seed  accuracy
    0         0.91
    10         0.9
    """
    lines = [list(headers), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]

    def cell(column: int, text: str) -> str:
        return f"{text:<{widths[column]}}" if column < left else f"{text:>{widths[column]}}"

    return "\n".join("  ".join(cell(column, text) for column, text in enumerate(line)).rstrip() for line in lines)


def document(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON, for `--format json`."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)


def finite(value: float | None) -> float | None:
    """The number itself, or None for an infinite one: JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None


def short(value: float | None) -> str:
    """A number in four significant digits; a dash for none.

    >>> [short(value) for value in (0.123456, 12.0, 1e-05, 123456.0, None)]
    ['0.1235', '12', '1e-05', '123456', '-']
    """
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def word(value: Any) -> str:
    """The value of a key as a config spells it; a dash for none."""
    from strategies.words import spell

    return "-" if value is None else spell(value)


def score(value: float | None) -> str:
    """A metric in four decimals, so that columns of it align; a dash for none."""
    return "-" if value is None else f"{value:.4f}"


def size(count: float) -> str:
    """Bytes in decimal units.

    >>> [size(count) for count in (999, 1_500, 31_200_000)]
    ['999 bytes', '1.5 kB', '31.2 MB']
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"


def span(seconds: float) -> str:
    """A duration.

    >>> [span(seconds) for seconds in (0.42, 8.04, 75, 3700)]
    ['0.4 s', '8.0 s', '1 min 15 s', '1 h 1 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def at_most(value: float | None) -> str:
    """An upper bound in four significant digits, rounded up: rounded down it would no longer be one.

    >>> at_most(4.19149), at_most(4.0), at_most(None)
    ('4.192', '4', 'infinite')
    """
    return "infinite" if value is None else _rounded(value, ROUND_CEILING)


def bracket(lower: float | None, upper: float | None) -> str:
    """An epsilon, or the range it lies in, rounded outwards; None stands for infinity.

    >>> bracket(4.377, 4.377), bracket(4.1911, 4.1912), bracket(1.5, None)
    ('4.377', '4.191 to 4.192', 'at least 1.5')
    """
    if upper is None:
        return "infinite" if lower is None else f"at least {_rounded(lower, ROUND_FLOOR)}"
    if lower is None or lower == upper:
        return at_most(upper)
    return f"{_rounded(lower, ROUND_FLOOR)} to {at_most(upper)}"


def _rounded(value: float, direction: str) -> str:
    exact = Decimal(repr(value))
    if not exact:
        return "0"
    digits = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 3), rounding=direction)
    return f"{digits:f}".rstrip("0").rstrip(".") if digits.adjusted() < 3 else f"{digits:f}"
