"""The strict experiment schema: frozen dataclasses are the YAML schema, and every problem is reported at once.

    read_yaml  ->  override  ->  decode  ->  a frozen dataclass  ->  encode        describe: the schema as a table

Everything a file can get wrong is a `ConfigError`, one line per problem: where, what was found, what to do.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")
Variants = Callable[[], Mapping[str, type[Any]]]

_MISSING: Any = dataclasses.MISSING
_LARGEST_BYTES = 1_000_000  # An experiment is a page; a larger file is a mistake or an attack.
_DEEPEST = 32
_NOUNS: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
_PLURALS: dict[Any, str] = {bool: "true or false", int: "integers", float: "numbers", str: "texts"}


class ConfigError(ValueError):
    """What is wrong with an experiment: one line per problem (where, what was found, what to do)."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def key(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002  # The word that every command line uses for it.
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: Sequence[Any] | None = None,
    variants: Variants | None = None,
) -> Any:
    """A dataclass field that is a key of the YAML file; bounds and choices also hold for each item of a tuple.

    Args:
        default: left out, the key is required. With `variants`, a name stands for that variant with its defaults.
        help: one line, shown by `confide config schema`.
        above: the value must be > this.
        at_least: the value must be >= this.
        below: the value must be < this.
        at_most: the value must be <= this.
        choices: the only values allowed.
        variants: called when a value is read (so that registries may import slow modules); name -> dataclass.
    """
    metadata = {
        "help": help,
        "above": above,
        "at_least": at_least,
        "below": below,
        "at_most": at_most,
        "choices": None if choices is None else tuple(choices),
        "variants": variants,
    }
    if variants is not None and isinstance(default, str):
        name = default
        return dataclasses.field(default_factory=lambda: variants()[name](), metadata={**metadata, "default": name})
    return dataclasses.field(default=default, metadata=metadata)


# Decoding: every function adds to `problems` and returns _MISSING for what it could not read.


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
        return _MISSING
    try:
        return build(cls, values, path=path)
    except ConfigError as error:
        problems.extend(error.problems)
        return _MISSING


def _keys(cls: type[Any], raw: object, path: str, problems: list[str]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        problems.append(f"{path or 'experiment'}: expected a section of keys, found {_found(raw)}")
        return {}
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = _hints(cls)
    misspelt = set()
    for name in raw:
        if name not in known:
            close = _close(name, known)
            misspelt.update(close)
            hint = f"did you mean {close[0]!r}?" if close else _choose(known) if known else "remove it"
            problems.append(f"{_join(path, name)}: unknown key, {hint}")
    values = {}
    for name, field in known.items():
        at = _join(path, name)
        if name in raw:
            value = _field(field, hints.get(name), raw[name], at, problems)
        else:
            value = _default(field)
            if value is _MISSING and name not in misspelt:  # One mistake is one line.
                expected = _expected(hints.get(name), field.metadata)
                problems.append(f"{at}: missing, give {expected}{_help(field)}")
        if value is not _MISSING:
            values[name] = value
    return values


def _field(field: dataclasses.Field[Any], kind: Any, raw: object, at: str, problems: list[str]) -> Any:
    variants = field.metadata.get("variants")
    if variants is None:
        return _value(kind, raw, at, field.metadata, problems)
    if raw is None and field.default is None:
        return None
    return _variant(variants(), raw, at, problems)


def _variant(registry: Mapping[str, type[Any]], raw: object, at: str, problems: list[str]) -> Any:
    """One of several dataclasses: `{name: dirichlet, alpha: 0.1}`, or only the name."""
    if not isinstance(raw, str | Mapping):
        problems.append(f"{at}: expected a name or a section with a name, found {_found(raw)}; {_choose(registry)}")
        return _MISSING
    name = raw if isinstance(raw, str) else raw.get("name")
    if isinstance(name, str) and name in registry:
        rest = {} if isinstance(raw, str) else {k: v for k, v in raw.items() if k != "name"}
        return _section(registry[name], rest, at, problems)
    if name is None:
        problems.append(f"{at}.name: missing, {_choose(registry)}")
    elif isinstance(name, str) and ":" in name:  # A file is data: what runs is chosen by the person at the keyboard.
        module = _show(name.partition(":")[0])
        problems.append(f"{at}.name: {_cut(name)} would import code; give it on the command line: --plugin {module}")
    else:
        problems.append(f"{at}.name: unknown {_cut(name)}, {_choose(registry)}{_mean(name, registry)}")
    return _MISSING


def _value(kind: Any, raw: object, at: str, rules: Mapping[str, Any], problems: list[str]) -> Any:
    inner, nullable = _optional(kind)
    if raw is None and nullable:
        return None
    if dataclasses.is_dataclass(inner):
        return _section(typing.cast(type[Any], inner), raw, at, problems)
    if typing.get_origin(inner) is tuple:
        return _items(inner, raw, at, rules, problems)
    choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else rules.get("choices")
    if choices is not None:
        if any(type(raw) is type(choice) and raw == choice for choice in choices):
            return raw
        problems.append(f"{at}: must be one of {_list(choices)}, found {_found(raw)}{_mean(raw, choices)}")
        return _MISSING
    return _scalar(inner, raw, at, rules, problems)


def _items(kind: Any, raw: object, at: str, rules: Mapping[str, Any], problems: list[str]) -> Any:
    if not isinstance(raw, list | tuple):
        problems.append(f"{at}: expected {_expected(kind, rules)}, found {_found(raw)}{_bracket(raw)}")
        return _MISSING
    item = typing.get_args(kind)[0]
    values = [_value(item, each, f"{at}[{index}]", rules, problems) for index, each in enumerate(raw)]
    return _MISSING if any(value is _MISSING for value in values) else tuple(values)


def _scalar(kind: Any, raw: object, at: str, rules: Mapping[str, Any], problems: list[str]) -> Any:
    if kind not in _NOUNS:
        raise TypeError(f"{at}: the schema cannot read a field of type {kind!r}")
    value: Any = raw
    if kind is float and type(raw) is int and abs(raw) < 10**300:
        value = float(raw)
    if type(value) is not kind:  # Not isinstance: True is an int to Python, and a mistake here.
        problems.append(f"{at}: expected {_NOUNS[kind]}, found {_found(raw)}{_remedy(kind, raw)}")
    elif kind is float and not math.isfinite(value):
        problems.append(f"{at}: must be finite, got {value!r}")
    elif not _within(value, rules):
        problems.append(f"{at}: must be {_bounds(rules)}, got {_cut(value)}")
    else:
        return value
    return _MISSING


def _within(value: Any, rules: Mapping[str, Any]) -> bool:
    above, at_least, below, at_most = (rules.get(name) for name in ("above", "at_least", "below", "at_most"))
    return (
        (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _hints(cls: type[Any]) -> dict[str, Any]:
    """The types of the plain fields; variant fields are named after classes that only a type checker imports."""
    plain = {field.name for field in dataclasses.fields(cls) if not field.metadata.get("variants")}
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        own = {name: kind for name, kind in inspect.get_annotations(base).items() if name in plain}
        found |= typing.get_type_hints(types.SimpleNamespace(__annotations__=own), vars(sys.modules[base.__module__]))
    return found


def _optional(kind: Any) -> tuple[Any, bool]:
    """`X | None` gives `(X, True)`, any other type `(type, False)`."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind, False
    inner = [each for each in typing.get_args(kind) if each is not types.NoneType]
    return (inner[0], True) if len(inner) == 1 else (kind, False)


# Words: how values, types and bounds are named in a problem and in the table.


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


def _expected(kind: Any, rules: Mapping[str, Any]) -> str:
    inner, nullable = _optional(kind)
    if rules.get("variants") is not None:
        words = f"one of {_list(rules['variants']())}"
    elif dataclasses.is_dataclass(inner):
        words = "a section of keys"
    elif typing.get_origin(inner) is tuple:
        item = typing.get_args(inner)[0]
        words = f"a list of {_PLURALS.get(item, _expected(item, {}))}"
    elif typing.get_origin(inner) is Literal:
        words = f"one of {_list(typing.get_args(inner))}"
    else:
        words = f"one of {_list(rules['choices'])}" if rules.get("choices") else _NOUNS.get(inner, repr(inner))
    bounds = _bounds(rules)
    return f"{words}{' ' + bounds if bounds else ''}{' or null' if nullable else ''}"


def _bounds(rules: Mapping[str, Any]) -> str:
    signs = {"above": ">", "at_least": ">=", "below": "<", "at_most": "<="}
    return " and ".join(f"{sign} {spell(rules[name])}" for name, sign in signs.items() if rules.get(name) is not None)


def _found(raw: object) -> str:
    if isinstance(raw, str):
        return f"the text {_cut(raw)}"
    if raw is None or isinstance(raw, bool):
        return json.dumps(raw)
    if isinstance(raw, Mapping):
        return "a section of keys"
    if isinstance(raw, list | tuple):
        return "a list"
    return _cut(raw) if isinstance(raw, int | float) else f"the {type(raw).__name__} {_show(raw)}"


def _remedy(kind: Any, raw: object) -> str:
    """How to write what was probably meant."""
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


def _bracket(raw: object) -> str:
    return "" if isinstance(raw, Mapping | None) else f", write [{_show(raw)}]"


def _cut(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:40]}..."


def _show(name: object) -> str:
    """A key, path or date as it was written; quoted where it could break the line."""
    text = str(name)
    return text if text.isprintable() and 0 < len(text) <= 100 else _cut(name)


def _join(path: str, name: object) -> str:
    return f"{path}.{_show(name)}" if path else _show(name)


def _list(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def _choose(registry: Mapping[str, Any]) -> str:
    return f"choose from {_list(sorted(registry))}"


def _close(name: object, known: Iterable[object]) -> list[str]:
    return difflib.get_close_matches(str(name)[:100], [str(each) for each in known], n=1)


def _mean(name: object, known: Iterable[object]) -> str:
    close = _close(name, known) if isinstance(name, str) else []
    return f", did you mean {close[0]!r}?" if close else ""


def _help(field: dataclasses.Field[Any]) -> str:
    text = field.metadata.get("help")
    return f" ({text})" if text else ""


# Encoding, and the schema as a table.


def encode(instance: Any) -> dict[str, Any]:
    """The resolved keys of a dataclass as plain YAML values; `decode(type(x), encode(x)) == x`."""
    fields = [field for field in dataclasses.fields(instance) if field.init]
    return {field.name: _plain(getattr(instance, field.name), field.metadata.get("variants")) for field in fields}


def _plain(value: Any, variants: Variants | None = None) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if variants is None:
        return encode(value)
    names = [name for name, cls in variants().items() if type(value) is cls]
    if not names:
        raise ValueError(f"{type(value).__name__} is not registered; {_choose(variants())}")
    return {"name": names[0], **encode(value)}


@dataclasses.dataclass(frozen=True)
class Row:
    """One key of the schema, in words; `path` of a variant's own key is like `data.partition[dirichlet].alpha`."""

    path: str
    kind: str
    default: str
    allowed: str
    help: str


def describe(cls: type[Any], *, path: str = "", open_variants: bool = True) -> list[Row]:
    """The schema as a table, from the dataclasses themselves.

    Args:
        cls: the dataclass.
        path: goes before each key.
        open_variants: also the keys of every variant, which loads their registries (and what those import).
    """
    return list(_rows(cls, path, open_variants, frozenset()))


def _rows(cls: type[Any], path: str, open_variants: bool, seen: frozenset[Variants]) -> Iterator[Row]:
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        at, rules = _join(path, field.name), field.metadata
        inner, nullable = _optional(hints.get(field.name))
        variants: Variants | None = rules.get("variants")
        section = dataclasses.is_dataclass(inner) and variants is None
        if not section or nullable:
            yield _row(field, hints.get(field.name), at, open_variants)
        if section:
            yield from _rows(typing.cast(type[Any], inner), at, open_variants, seen)
        if variants is not None and open_variants and variants not in seen:  # A variant may hold one of its own kind.
            for name, variant in variants().items():
                yield from _rows(variant, f"{at}[{name}]", open_variants, seen | {variants})


def _row(field: dataclasses.Field[Any], kind: Any, at: str, open_variants: bool) -> Row:
    rules = field.metadata
    variants: Variants | None = rules.get("variants")
    if variants is not None:
        words, allowed = "variant", _list(sorted(variants())) if open_variants else ""
    else:
        inner, nullable = _optional(kind)
        choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else rules.get("choices") or ()
        words = "choice" if choices else re.sub("^an? ", "", _expected(inner, {}))
        words, allowed = f"{words} or null" if nullable else words, _list(choices) or _bounds(rules)
    return Row(at, words, _default_text(field), allowed, rules.get("help", ""))


def _default_text(field: dataclasses.Field[Any]) -> str:
    if "default" in field.metadata:
        return str(field.metadata["default"])
    value = _default(field)
    if value is _MISSING:
        return "required"
    plain = _plain(value, field.metadata.get("variants"))
    plain = plain["name"] if isinstance(plain, dict) and "name" in plain else plain
    return spell(plain)


# YAML in, with the parts of the language refused that an experiment has no use for.


class _Strict(yaml.SafeLoader):
    """Plain mappings, lists and scalars: no tags, no aliases (a bomb is made of them), no key twice."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = typing.cast(Any, self).peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _refusal("anchors and aliases are not read, write the value out", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _refusal("tags (!...) are not read, write a plain value", event.start_mark)
        if self.depth >= _DEEPEST:
            raise _refusal(f"more than {_DEEPEST} levels deep, flatten it", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for name, _ in node.value:
            if name.tag != "tag:yaml.org,2002:str":
                raise _refusal("a key must be text, put it in quotes", name.start_mark)
            if name.value in seen:
                raise _refusal(f"{_show(name.value)}: this key is here twice, remove one", name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


class _Typed(_Strict):
    """What is typed after `--set`: 1e-5 is a number, as everywhere else on a command line."""


_Typed.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _parse(text: str, where: str, loader_type: type[_Strict]) -> Any:
    try:
        loader = loader_type(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and loader_type is _Strict else ""
        reason = ", ".join(str(part) for part in (error.context, error.problem) if part)
        raise ConfigError([f"{where}{line}: {' '.join(reason.split())}"]) from error
    except (yaml.YAMLError, ValueError) as error:  # An impossible date or a number of 5,000 digits is a ValueError.
        raise ConfigError([f"{where}: not valid YAML: {' '.join(str(error).split())}"]) from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file of plain keys and values.

    Raises:
        ConfigError: one line with the file and the line, for a file that cannot be read, is larger than 1 MB, is not
            UTF-8 YAML with a mapping at its root, or uses tags, anchors, merge keys or a key twice.
    """
    where = str(path) if str(path).isprintable() else repr(str(path))
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigError([f"{where}: cannot be read: {error.strerror or error}"]) from error
    except ValueError as error:
        raise ConfigError([f"{where}: not a UTF-8 text file, save it as UTF-8 YAML"]) from error
    if len(data) > _LARGEST_BYTES:
        raise ConfigError([f"{where}: larger than {_LARGEST_BYTES} bytes, an experiment is a page"])
    root = _parse(text, where, _Strict)
    if not isinstance(root, dict):
        raise ConfigError([f"{where}: expected keys and values (key: value), found {_found(root)}"])
    return root


def override(mapping: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """A copy of `mapping` with one `a.b=value` applied; the value is YAML, and whether the path exists shows in decode.

    >>> override({"train": {"epochs": 1}}, "train.learning_rate=1e-2")
    {'train': {'epochs': 1, 'learning_rate': 0.01}}
    >>> override({"data": {"partition": "dirichlet"}}, "data.partition.alpha=0.1")
    {'data': {'partition': {'name': 'dirichlet', 'alpha': 0.1}}}
    """
    path, equals, text = assignment.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise ConfigError([f"--set {_show(assignment)}: write KEY=VALUE, for example train.learning_rate=0.1"])
    value = _parse(text, f"--set {_show(path)}", _Typed)
    return _assigned(mapping, names, value)


def _assigned(section: object, names: Sequence[str], value: Any) -> dict[str, Any]:
    if isinstance(section, str):  # A variant in its short form.
        section = {"name": section}
    base = dict(section) if isinstance(section, Mapping) else {}
    base[names[0]] = value if len(names) == 1 else _assigned(base.get(names[0]), names[1:], value)
    return base
