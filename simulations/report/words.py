"""Numbers as a reader takes them in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any, Literal

from privacy.meaning import wrong_guesses
from simulations.report.markup import Html, element, join

Rounding = Literal["up", "down", "near"]

NEIGHBOURS = {
    "add_remove": "adding or removing one whole silo",
    "zero_out": "setting the update of one silo to zero",
    "replace": "replacing all data of one silo by other data",
}
_QUESTIONS = {
    "add_remove": "whether the silo took part",
    "zero_out": "whether the silo sent its update or only zeros",
    "replace": "which of two data sets the silo holds",
}
_CASES = {
    "add_remove": "with the silo as without it",
    "zero_out": "with the silo’s update as with zeros in its place",
    "replace": "with the silo’s data as with any other data in its place",
}
_POWER = "e^ε"
_ROUNDINGS = {"up": ROUND_CEILING, "down": ROUND_FLOOR, "near": ROUND_HALF_EVEN}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3, rounding: Rounding = "near") -> str:
    """A number to so many significant digits; bounds are rounded to their safe side by the caller's `rounding`.

    >>> number(8.2041), number(8.2041, rounding="up"), number(123456.7), number(0.00001234), number(None)
    ('8.20', '8.21', '123,457', '1.23×10⁻⁵', '∞')
    """
    if value is None or not math.isfinite(value):
        return "∞"
    if value == 0:
        return "0"
    exact = Decimal(repr(float(value)))
    power = exact.adjusted()
    if not -4 <= power < 9:
        mantissa = exact.scaleb(-power).quantize(Decimal(1).scaleb(1 - digits), _ROUNDINGS[rounding])
        return _power_of_ten(mantissa, power)
    return f"{exact.quantize(Decimal(1).scaleb(min(0, power - digits + 1)), _ROUNDINGS[rounding]):,f}"


def _power_of_ten(mantissa: Decimal, power: int) -> str:
    short = f"{mantissa:f}".rstrip("0").rstrip(".") if "." in f"{mantissa:f}" else f"{mantissa:f}"
    exponent = f"10{str(power).translate(_SUPERSCRIPTS)}"
    return exponent if short == "1" else f"{short}×{exponent}"


def small(value: float) -> str:
    """A small probability such as delta.

    >>> small(1e-4), small(2.5e-06), small(0.01)
    ('10⁻⁴', '2.5×10⁻⁶', '0.01')
    """
    if not 0 < value < 0.01:
        return f"{value:g}"
    exact = Decimal(f"{value:.3g}")
    return _power_of_ten(exact.scaleb(-exact.adjusted()), exact.adjusted())


def score(metric: str, value: float | None) -> str:
    """An accuracy in percent, a squared error to four digits; a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}%" if metric == "accuracy" else number(value, 4)


def scaled(bytes_: float) -> tuple[float, str]:
    """The decimal unit that suits a number of bytes.

    >>> scaled(18_200_000)
    (1000000.0, 'MB')
    """
    power = min(4, max(0, int(math.log10(max(1.0, bytes_)) / 3 + 1e-9)))
    return 1000.0**power, ("bytes", "kB", "MB", "GB", "TB")[power]


def size(bytes_: float) -> str:
    """Bytes to three digits.

    >>> size(18_240_000), size(0)
    ('18.2 MB', '0 bytes')
    """
    unit, name = scaled(bytes_)
    return f"{number(bytes_ / unit)} {name}" if unit > 1 else f"{bytes_:.0f} {name}"


def duration(seconds: float) -> str:
    """Seconds to three digits, or minutes and hours.

    >>> duration(0.0123), duration(71.2), duration(8000)
    ('0.0123 s', '1 min 11 s', '2 h 13 min')
    """
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def promise(claimed: Mapping[str, Any]) -> str:
    """What a claimed epsilon promises one silo, in two sentences."""
    epsilon, relation = claimed["epsilon_upper"], claimed["neighbours"]
    if epsilon is None:
        return "No finite ε is proved: what this run released may say everything about a silo."
    times = number(math.exp(epsilon), rounding="up") if epsilon < 700 else number(None)
    wrong = wrong_guesses(epsilon, claimed["delta"])
    return (
        f"No outcome of this run is more than {_POWER} = {times} times as likely {_CASES[relation]}, or the other "
        f"way round, apart from a probability of δ = {small(claimed['delta'])}. Somebody who knows everything else and "
        f"must guess {_QUESTIONS[relation]}, both being equally likely, is wrong at least {_share(wrong)} of the "
        "time; a coin, half of the time."
    )


def meaning(claimed: Mapping[str, Any]) -> Html:
    """`promise` for a page."""
    before, power, after = promise(claimed).partition(_POWER)
    return join([before, "e", element("sup", {}, "ε"), after]) if power else join([before])


def _share(part: float) -> str:
    """A probability in percent, rounded down."""
    return f"{number(100 * part, 3, 'down')}%"
