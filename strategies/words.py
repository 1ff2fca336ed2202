"""How values, types and bounds are named, in a problem and in the table of keys."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from strategies.schema import either, optional, worded

NOUNS: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
PLURALS: dict[Any, str] = {bool: "true or false", int: "integers", float: "numbers", str: "texts"}
OR_SECTION = " or a section of keys"
TRUE, FALSE = ("yes", "on", "y"), ("no", "off", "n")  # Booleans to YAML 1.1, texts to YAML 1.2 and here.


def spell(value: object) -> str:
    """A plain value so that YAML reads it back, where Python's own spelling would become text.

    >>> spell([1e-05, 0.5, 3])
    '[1.0e-05, 0.5, 3]'
    """
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    if isinstance(value, list):
        return f"[{', '.join(map(spell, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def expected(kind: Any, rules: Mapping[str, Any]) -> str:
    """What a key takes, by its type and its field's rules: `a list of integers >= 1`."""
    inner, nullable = optional(kind)
    inner, section = either(inner)
    names, inner = worded(inner)
    if rules.get("variants") is not None:
        words = f"one of {listed(rules['variants']())}"
    elif dataclasses.is_dataclass(inner):
        words = "a section of keys"
    elif typing.get_origin(inner) is tuple:
        item = typing.get_args(inner)[0]
        plural = "sections of keys" if dataclasses.is_dataclass(item) else expected(item, {})
        words = f"a list of {PLURALS.get(item, plural)}"
    elif typing.get_origin(inner) is Literal:
        words = f"one of {listed(typing.get_args(inner))}"
    else:
        words = f"one of {listed(rules['choices'])}" if rules.get("choices") else NOUNS.get(inner, repr(inner))
    limits = bounds(rules)
    instead = "" if section is None else OR_SECTION
    instead += f" or {' or '.join(names)}" if names else ""
    return f"{words}{' ' + limits if limits else ''}{instead}{' or null' if nullable else ''}"


def bounds(rules: Mapping[str, Any]) -> str:
    """The bounds of a field: `> 0 and <= 1`."""
    signs = {"above": ">", "at_least": ">=", "below": "<", "at_most": "<="}
    return " and ".join(f"{sign} {spell(rules[name])}" for name, sign in signs.items() if rules.get(name) is not None)


def found(raw: object) -> str:
    """What a file holds where something else was expected."""
    if isinstance(raw, str):
        return f"the text {cut(raw)}"
    if raw is None or isinstance(raw, bool):
        return json.dumps(raw)
    if isinstance(raw, Mapping):
        return "a section of keys"
    if isinstance(raw, list | tuple):
        return "a list"
    return cut(raw) if isinstance(raw, int | float) else f"the {type(raw).__name__} {show(raw)}"


def remedy(kind: Any, raw: object) -> str:
    """How to write what was probably meant."""
    if kind is bool and isinstance(raw, str) and raw.lower() in TRUE + FALSE:
        return f", write {'true' if raw.lower() in TRUE else 'false'}"
    if kind is float and isinstance(raw, str):
        try:
            number = float(raw)
        except ValueError:
            return ""
        mantissa, mark, exponent = raw.strip().lower().partition("e")
        if mark and math.isfinite(number):
            point = "" if "." in mantissa else ".0"
            sign = "" if exponent[0] in "+-" else "+"
            return f", write {mantissa}{point}e{sign}{exponent}"
        return f", write {raw.strip()} without quotes" if math.isfinite(number) else ""
    if kind is int and isinstance(raw, str) and raw.strip().isdecimal():
        return f", write {raw.strip()} without quotes"
    if kind is int and isinstance(raw, float) and raw.is_integer():
        return f", write {int(raw)}" if abs(raw) < 1e15 else ""
    return ", put it in quotes" if kind is str and not isinstance(raw, Mapping | list | None) else ""


def bracket(raw: object) -> str:
    """How to write a single value as a list."""
    return "" if isinstance(raw, Mapping | None) else f", write [{show(raw)}]"


def cut(value: object) -> str:
    """A value as Python writes it, in at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:40]}..."


def show(name: object) -> str:
    """A key, path or date as it was written; quoted where it could break the line."""
    text = str(name)
    return text if text.isprintable() and 0 < len(text) <= 100 else cut(name)


def join(path: str, name: object) -> str:
    """The path of a key below `path`."""
    return f"{path}.{show(name)}" if path else show(name)


def listed(values: Iterable[object]) -> str:
    """Values with commas."""
    return ", ".join(str(value) for value in values)


def choose(registry: Mapping[str, Any]) -> str:
    """The names to choose from."""
    return f"choose from {listed(sorted(registry))}"


def closest(name: object, known: Iterable[object]) -> list[str]:
    """The known name that is spelt most alike, if one is."""
    return difflib.get_close_matches(str(name)[:100], [str(each) for each in known], n=1)


def perhaps(name: object, known: Iterable[object]) -> str:
    """A guess at what was meant."""
    close = closest(name, known) if isinstance(name, str) else []
    return f", did you mean {close[0]!r}?" if close else ""
