"""YAML in, with the parts of the language refused that an experiment has no use for; and out, for `read_yaml`."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from strategies.schema import ConfigError
from strategies.words import found, show

LARGEST_BYTES = 1_000_000  # An experiment is a page; a larger file is a mistake or an attack.
DEEPEST = 32
BOOL = "tag:yaml.org,2002:bool"


class _Strict(yaml.SafeLoader):
    """Plain mappings, lists and scalars: no tags, no aliases (a bomb is made of them), no key twice."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = typing.cast(Any, self).peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _refusal("anchors and aliases are not read, write the value out", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _refusal("tags (!...) are not read, write a plain value", event.start_mark)
        if self.depth >= DEEPEST:
            raise _refusal(f"more than {DEEPEST} levels deep, flatten it", event.start_mark)
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
                raise _refusal(f"{show(name.value)}: this key is here twice, remove one", name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


class _Typed(_Strict):
    """What is typed after `--set`: 1e-5 is a number, as everywhere else on a command line."""


# YAML 1.2's booleans: PyYAML follows 1.1, to which `stacked: off` is false.
_Strict.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Strict.add_implicit_resolver(BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
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
            data = file.read(LARGEST_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigError([f"{where}: cannot be read: {error.strerror or error}"]) from error
    except ValueError as error:
        raise ConfigError([f"{where}: not a UTF-8 text file, save it as UTF-8 YAML"]) from error
    return read_text(text, where)


def read_text(text: str, where: str) -> dict[str, Any]:
    """Reads YAML of plain keys and values; `where` is its name in messages.

    Raises:
        ConfigError: one line, as for a file.
    """
    if len(text) > LARGEST_BYTES:
        raise ConfigError([f"{where}: larger than {LARGEST_BYTES} bytes, an experiment is a page"])
    root = _parse(text, where, _Strict)
    if not isinstance(root, dict):
        raise ConfigError([f"{where}: expected keys and values (key: value), found {found(root)}"])
    return root


def yaml_of(mapping: Mapping[str, Any]) -> str:
    """Plain keys and values as YAML that `read_yaml` reads back, in their order."""
    text: str = yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True)
    if "\x85" in text:  # PyYAML writes this line break as it is, and then reads it as a space.
        text = yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=False)
    return text


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
        raise ConfigError([f"--set {show(assignment)}: write KEY=VALUE, for example train.learning_rate=0.1"])
    value = _parse(text, f"--set {show(path)}", _Typed)
    return _assigned(mapping, names, value)


def _assigned(section: object, names: Sequence[str], value: Any) -> dict[str, Any]:
    if isinstance(section, str):  # A variant in its short form.
        section = {"name": section}
    base = dict(section) if isinstance(section, Mapping) else {}
    base[names[0]] = value if len(names) == 1 else _assigned(base.get(names[0]), names[1:], value)
    return base
