"""How to get a run again: the command that says all of its experiment, and which source code made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from simulations.shipped import CONFIGS, shipped
from strategies.codec import encode
from strategies.experiment import Experiment
from strategies.loading import load
from strategies.schema import ConfigError
from strategies.words import spell

PACKAGES = ("privacy", "strategies", "client", "server", "simulations")
FILES = (".py", ".yaml")  # What decides numbers: code, and shipped experiments.
MOST_KEYS = 12  # Beyond it a command is no easier to read than the file.


def command(experiment: Experiment, plugins: Sequence[str] = ()) -> list[str]:
    """The words of a command that runs the experiment again.

    Where it is a shipped one but for some keys, that and the keys are the command, which needs no file. Otherwise it
    reads the experiment.yaml of the run's folder.
    """
    words = ["confide", "run", *(_shipped(experiment) or ["experiment.yaml"])]
    words += [part for name in plugins for part in ("--plugin", name)]
    return words + (["--dataset", "MODULE:NAME"] if experiment.data.name == "dataset" else [])


def _shipped(experiment: Experiment) -> list[str] | None:
    """The shipped config and the keys to set; None where that is not the whole experiment."""
    if experiment.name not in shipped():
        return None
    path, wanted = CONFIGS / f"{experiment.name}.yaml", encode(experiment)
    assignments = [f"{key}={_flow(value)}" for key, value in _changes(encode(load(path)), wanted)]
    if len(assignments) > MOST_KEYS:
        return None
    try:
        whole = encode(load(path, assignments)) == wanted  # Said is what was tried.
    except ConfigError:
        return None
    return [experiment.name, *(part for each in assignments for part in ("--set", each))] if whole else None


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values that make one experiment the other; a section of another kind is set as a whole."""
    for name, value in after.items():
        was, key = before.get(name), f"{path}{name}"
        if was == value:
            continue
        if isinstance(was, Mapping) and isinstance(value, Mapping) and _same_kind(was, value):
            yield from _changes(was, value, f"{key}.")
        else:
            yield key, value


def _same_kind(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[name] == other[name] for name in ("name", "kind") if name in one)


def _flow(value: object) -> str:
    """A value as `--set` reads it; JSON is YAML, too."""
    nested = isinstance(value, Mapping) or (isinstance(value, list) and not all(map(_plain, value)))
    return json.dumps(value, ensure_ascii=False) if nested else spell(value)


def _plain(value: object) -> bool:
    return isinstance(value, (bool, int, float))


@cache
def source() -> str:
    """SHA-256 over this copy of confide: names and bytes of all files that decide numbers (hexadecimal)."""
    root, found = Path(__file__).resolve().parent.parent, hashlib.sha256()
    paths = [path for package in PACKAGES for path in (root / package).rglob("*") if path.suffix in FILES]
    for path in sorted(paths):
        data = path.read_bytes()
        found.update(f"{path.relative_to(root).as_posix()}\0{len(data)}\0".encode() + data)
    return found.hexdigest()
