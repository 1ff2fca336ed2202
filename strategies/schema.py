"""The strict experiment schema: frozen dataclasses are the YAML schema, and every problem is reported at once.

    yaml_text.read_yaml -> override -> codec.decode -> a frozen dataclass -> codec.encode      describe: a table

Everything a file can get wrong is a `ConfigError`, one line per problem: where, what was found, what to do.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Variants = Callable[[], Mapping[str, type[Any]]]

MISSING: Any = dataclasses.MISSING  # The one value that no file can hold.


class ConfigError(ValueError):
    """What is wrong with an experiment: one line per problem (where, what was found, what to do)."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        """From another process it comes with its problems, not with the letters of its text."""
        return type(self), (self.problems,)


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


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The value of a key that is left out; `MISSING` where it must be given."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def types_of(cls: type[Any]) -> dict[str, Any]:
    """The types of the plain fields; variant fields are named after classes that only a type checker imports."""
    plain = {field.name for field in dataclasses.fields(cls) if not field.metadata.get("variants")}
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        own = {name: kind for name, kind in inspect.get_annotations(base).items() if name in plain}
        found |= typing.get_type_hints(types.SimpleNamespace(__annotations__=own), vars(sys.modules[base.__module__]))
    return found


def optional(kind: Any) -> tuple[Any, bool]:
    """`X | None` gives `(X, True)`, `X | Y | None` gives `(X | Y, True)`, any other type `(type, False)`."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind, False
    inner = tuple(each for each in typing.get_args(kind) if each is not types.NoneType)
    return (typing.Union[inner], True) if len(inner) < len(typing.get_args(kind)) else (kind, False)  # noqa: UP007


def either(kind: Any) -> tuple[Any, Any]:
    """`float | Section` gives `(float, Section)`: a plain value or a section of keys; another type `(type, None)`."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    sections = [each for each in kinds if dataclasses.is_dataclass(each)]
    if len(kinds) != 2 or len(sections) != 1:
        return kind, None
    return kinds[0] if kinds[1] is sections[0] else kinds[1], sections[0]


def worded(kind: Any) -> tuple[tuple[Any, ...], Any]:
    """`tuple[float, ...] | Literal["auto"]` gives `(("auto",), tuple[float, ...])`; another type `((), type)`."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    words = [each for each in kinds if typing.get_origin(each) is typing.Literal]
    if len(kinds) != 2 or len(words) != 1:
        return (), kind
    return typing.get_args(words[0]), kinds[0] if kinds[1] is words[0] else kinds[1]
