"""From plain YAML values to frozen dataclasses and back: `decode(type(x), encode(x)) == x`.

Reading goes on after a problem, so that a person sees all of them: every inner function adds to `problems` and returns
MISSING for what it could not read.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from strategies.schema import MISSING, ConfigError, Variants, default_of, either, optional, types_of, worded
from strategies.words import (
    NOUNS,
    OR_SECTION,
    bounds,
    bracket,
    choose,
    closest,
    cut,
    expected,
    found,
    join,
    listed,
    perhaps,
    remedy,
    show,
)

T = TypeVar("T")

LARGEST = 3.4028234663852886e38  # float32's: sooner or later every number meets a vector.


def decode(cls: type[T], mapping: object, *, path: str = "") -> T:
    """Reads a mapping into the dataclass `cls`; unknown and missing keys, wrong types and bounds are all reported.

    Raises:
        ConfigError: with every problem; `path` goes before each key.
    """
    problems: list[str] = []
    value = _section(cls, mapping, path, problems)
    if problems:
        raise ConfigError(problems)
    return typing.cast(T, value)


def decode_parts(cls: type[Any], mapping: object, *, path: str = "") -> tuple[dict[str, Any], list[str]]:
    """The keys of `cls` that could be read (defaults included), and what is wrong with the others."""
    problems: list[str] = []
    return _keys(cls, mapping, path, problems), problems


def build(cls: type[T], values: Mapping[str, Any], *, path: str = "") -> T:
    """Calls `cls`; a ValueError of its own checks becomes a ConfigError at `path`."""
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        line = " ".join(str(error).split())
        raise ConfigError([f"{path}: {line}" if path else line]) from error


def _section(cls: type[Any], raw: object, path: str, problems: list[str]) -> Any:
    before = len(problems)
    values = _keys(cls, raw, path, problems)
    if len(problems) > before:
        return MISSING
    try:
        return build(cls, values, path=path)
    except ConfigError as error:
        problems.extend(error.problems)
        return MISSING


def _keys(cls: type[Any], raw: object, path: str, problems: list[str]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        problems.append(f"{path or 'experiment'}: expected a section of keys, found {found(raw)}")
        return {}
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = types_of(cls)
    misspelt = set()
    for name in raw:
        if name not in known:
            close = closest(name, known)
            misspelt.update(close)
            hint = f"did you mean {close[0]!r}?" if close else choose(known) if known else "remove it"
            problems.append(f"{join(path, name)}: unknown key, {hint}")
    values = {}
    for name, field in known.items():
        at = join(path, name)
        if name in raw:
            value = _field(field, hints.get(name), raw[name], at, problems)
        else:
            value = default_of(field)
            if value is MISSING and name not in misspelt:  # One mistake is one line.
                wanted = expected(hints.get(name), field.metadata)
                problems.append(f"{at}: missing, give {wanted}{_help(field)}")
        if value is not MISSING:
            values[name] = value
    return values


def _field(field: dataclasses.Field[Any], kind: Any, raw: object, at: str, problems: list[str]) -> Any:
    variants = field.metadata.get("variants")
    if variants is None:
        return _value(kind, raw, at, field.metadata, problems)
    if raw is None and field.default is None:
        return None
    if isinstance(field.default, tuple):
        return _variant_items(variants(), raw, at, problems)
    return _variant(variants(), raw, at, problems)


def _variant_items(registry: Mapping[str, type[Any]], raw: object, at: str, problems: list[str]) -> Any:
    if not isinstance(raw, list | tuple):
        problems.append(f"{at}: expected a list of sections with a name, found {found(raw)}{bracket(raw)}")
        return MISSING
    values = [_variant(registry, each, f"{at}[{index}]", problems) for index, each in enumerate(raw)]
    return MISSING if any(value is MISSING for value in values) else tuple(values)


def _variant(registry: Mapping[str, type[Any]], raw: object, at: str, problems: list[str]) -> Any:
    """One of several dataclasses: `{name: dirichlet, alpha: 0.1}`, or only the name."""
    if not isinstance(raw, str | Mapping):
        problems.append(f"{at}: expected a name or a section with a name, found {found(raw)}; {choose(registry)}")
        return MISSING
    name = raw if isinstance(raw, str) else raw.get("name")
    if isinstance(name, str) and name in registry:
        rest = {} if isinstance(raw, str) else {k: v for k, v in raw.items() if k != "name"}
        return _section(registry[name], rest, at, problems)
    if name is None:
        problems.append(f"{at}.name: missing, {choose(registry)}")
    elif isinstance(name, str) and ":" in name:  # A file is data: what runs is chosen by the person at the keyboard.
        module = show(name.partition(":")[0])
        problems.append(f"{at}.name: {cut(name)} would import code; give it on the command line: --plugin {module}")
    else:
        problems.append(f"{at}.name: unknown {cut(name)}, {choose(registry)}{perhaps(name, registry)}")
    return MISSING


def _value(kind: Any, raw: object, at: str, rules: Mapping[str, Any], problems: list[str]) -> Any:
    inner, nullable = optional(kind)
    if raw is None and nullable:
        return None
    if dataclasses.is_dataclass(inner):
        return _section(typing.cast(type[Any], inner), raw, at, problems)
    inner, section = either(inner)
    if section is not None and isinstance(raw, Mapping):
        return _section(section, raw, at, problems)
    words, inner = worded(inner)
    if words and isinstance(raw, str):
        if raw in words:
            return raw
        problems.append(f"{at}: expected {expected(kind, rules)}, found {found(raw)}{perhaps(raw, words)}")
        return MISSING
    if typing.get_origin(inner) is tuple:
        return _items(inner, raw, at, rules, problems)
    choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else rules.get("choices")
    if choices is not None:
        if any(type(raw) is type(choice) and raw == choice for choice in choices):
            return raw
        problems.append(f"{at}: must be one of {listed(choices)}, found {found(raw)}{perhaps(raw, choices)}")
        return MISSING
    return _scalar(inner, raw, at, rules, problems, instead="" if section is None else OR_SECTION)


def _items(kind: Any, raw: object, at: str, rules: Mapping[str, Any], problems: list[str]) -> Any:
    item = typing.get_args(kind)[0]
    if item in (int, float) and isinstance(raw, str | bool | int | float):  # One number is a list of one.
        value = _value(item, raw, at, rules, problems)
        return MISSING if value is MISSING else (value,)
    if not isinstance(raw, list | tuple):
        problems.append(f"{at}: expected {expected(kind, rules)}, found {found(raw)}{bracket(raw)}")
        return MISSING
    values = [_value(item, each, f"{at}[{index}]", rules, problems) for index, each in enumerate(raw)]
    return MISSING if any(value is MISSING for value in values) else tuple(values)


def _scalar(
    kind: Any, raw: object, at: str, rules: Mapping[str, Any], problems: list[str], *, instead: str = ""
) -> Any:
    if kind not in NOUNS:
        raise TypeError(f"{at}: the schema cannot read a field of type {kind!r}")
    value: Any = raw
    if kind is float and type(raw) is int and abs(raw) < 10**300:
        value = float(raw)
    if type(value) is not kind:  # Not isinstance: True is an int to Python, and a mistake here.
        problems.append(f"{at}: expected {NOUNS[kind]}{instead}, found {found(raw)}{remedy(kind, raw)}")
    elif kind is float and not math.isfinite(value):
        problems.append(f"{at}: must be finite, got {value!r}")
    elif kind is float and not abs(value) <= LARGEST:
        problems.append(f"{at}: must fit a float32, which ends at 3.4e+38, got {value!r}")
    elif not _within(value, rules):
        problems.append(f"{at}: must be {bounds(rules)}, got {cut(value)}")
    else:
        return value
    return MISSING


def _within(value: Any, rules: Mapping[str, Any]) -> bool:
    above, at_least, below, at_most = (rules.get(name) for name in ("above", "at_least", "below", "at_most"))
    return (
        (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )


def _help(field: dataclasses.Field[Any]) -> str:
    text = field.metadata.get("help")
    return f" ({text})" if text else ""


def encode(instance: Any) -> dict[str, Any]:
    """The resolved keys of a dataclass as plain YAML values; `decode(type(x), encode(x)) == x`."""
    fields = [field for field in dataclasses.fields(instance) if field.init]
    return {field.name: plain(getattr(instance, field.name), field.metadata.get("variants")) for field in fields}


def plain(value: Any, variants: Variants | None = None) -> Any:
    """One key's value as plain YAML; `variants` names a variant's class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [plain(each, variants) for each in value]
    if variants is None:
        return encode(value)
    names = [name for name, cls in variants().items() if type(value) is cls]
    if not names:
        raise ValueError(f"{type(value).__name__} is not registered; {choose(variants())}")
    return {"name": names[0], **encode(value)}
