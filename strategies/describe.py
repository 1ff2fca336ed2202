"""The schema as a table, from the dataclasses themselves: what `confide config schema` shows."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from typing import Any, Literal

from strategies.codec import plain
from strategies.schema import MISSING, Variants, default_of, either, optional, types_of
from strategies.words import bounds, expected, join, listed, spell


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
    hints = types_of(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        at, rules = join(path, field.name), field.metadata
        inner, nullable = optional(hints.get(field.name))
        variants: Variants | None = rules.get("variants")
        _, instead = either(inner)
        section = dataclasses.is_dataclass(inner) and variants is None
        if not section or nullable:
            yield _row(field, hints.get(field.name), at, open_variants)
        if section or instead is not None:
            yield from _rows(typing.cast(type[Any], inner if section else instead), at, open_variants, seen)
        item = typing.get_args(inner)[0] if typing.get_origin(inner) is tuple else None
        if dataclasses.is_dataclass(item):
            yield from _rows(typing.cast(type[Any], item), f"{at}[]", open_variants, seen)
        if variants is not None and open_variants and variants not in seen:  # A variant may hold one of its own kind.
            for name, variant in variants().items():
                yield from _rows(variant, f"{at}[{name}]", open_variants, seen | {variants})


def _row(field: dataclasses.Field[Any], kind: Any, at: str, open_variants: bool) -> Row:
    rules = field.metadata
    variants: Variants | None = rules.get("variants")
    if variants is not None:
        words = "list of variants" if isinstance(field.default, tuple) else "variant"
        allowed = listed(sorted(variants())) if open_variants else ""
    else:
        inner, nullable = optional(kind)
        choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else rules.get("choices") or ()
        words = "choice" if choices else re.sub("^an? ", "", expected(inner, {}))
        words, allowed = f"{words} or null" if nullable else words, listed(choices) or bounds(rules)
    return Row(at, words, _default_text(field), allowed, rules.get("help", ""))


def _default_text(field: dataclasses.Field[Any]) -> str:
    if "default" in field.metadata:
        return str(field.metadata["default"])
    value = default_of(field)
    if value is MISSING:
        return "required"
    words = plain(value, field.metadata.get("variants"))
    return spell(words["name"] if isinstance(words, dict) and "name" in words else words)
