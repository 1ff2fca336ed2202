"""From a YAML file, and what the command line changes of it, to an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strategies.codec import build, decode_parts
from strategies.experiment import Experiment
from strategies.rules import broken
from strategies.schema import ConfigError
from strategies.yaml_text import override, read_text, read_yaml


def parse(mapping: Mapping[str, Any]) -> Experiment:
    """Reads an experiment from plain YAML values.

    Raises:
        ConfigError: every problem, of single keys and between them.
    """
    parts, lines = decode_parts(Experiment, mapping)
    lines += broken(parts)
    if lines:
        raise ConfigError(lines)
    return build(Experiment, parts)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads a YAML file, with `--set` overrides such as `train.learning_rate=0.3` in their order.

    Raises:
        ConfigError: every problem; of the file itself, or of the override texts, before those of keys.
    """
    return _changed(read_yaml(path), overrides)


def load_text(text: str, overrides: Sequence[str] = (), *, where: str) -> Experiment:
    """Reads YAML that is no file, as `load` does; `where` is its name in messages."""
    return _changed(read_text(text, where), overrides)


def _changed(mapping: Mapping[str, Any], overrides: Sequence[str]) -> Experiment:
    lines: list[str] = []
    for assignment in overrides:
        try:
            mapping = override(mapping, assignment)
        except ConfigError as error:
            lines += error.problems
    if lines:
        raise ConfigError(lines)
    return parse(mapping)
