"""What a sink is, and what it is told."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """What a sink learns of a run as it begins.

    Attributes:
        name: of the experiment.
        folder: of the run.
        config: the experiment's keys as `a.b`, each a plain value, without paths, machine facts and secrets.
        rows: gives the lines of all committed rounds, the first first.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    rows: Callable[[], Sequence[Row]]

    @property
    def label(self) -> str:
        """What a tracker calls the run: its folder's name; of one among several seeds, with the name of all."""
        name, above = self.folder.name, self.folder.absolute().parent.name
        return f"{above}-{name}" if name.startswith("seed-") else name


class Sink(Protocol):
    """Somewhere numbers go. Any of these may raise."""

    def open(self, told: Told, *, resumed: bool) -> None:
        """Begins, or goes on where the run was; whatever it has not got of `told.rows()` it takes now."""
        ...

    def round(self, row: Row) -> None:
        """Takes a committed round."""
        ...

    def close(self, result: Mapping[str, Any] | None) -> None:
        """Ends; `result`: what result.json will hold, None where the run was broken off."""
        ...


class Notes:
    """What a sink has to remember for when its run is resumed: a small file in the run's folder.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """What was kept; nothing where the file is missing or damaged, so that the sink begins anew."""
        try:
            found = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            found = {}
        self.kept = found if isinstance(found, dict) else {}
        return self.kept

    def keep(self, **changes: Any) -> None:
        """Adds to it; the file is old or new, but not on the disk for certain: sinks survive a note that is older."""
        self.kept |= changes
        self.path.parent.mkdir(exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text(json.dumps(self.kept))
        os.replace(temporary, self.path)

    @property
    def round(self) -> int:
        """The last round that the sink had for certain."""
        found = self.kept.get("round", 0)
        return found if isinstance(found, int) else 0


def numbers(row: Row) -> dict[str, float]:
    """The numbers of a round's line, or of a part of a result, by names such as `seconds.train`.

    Reasons of failure are left out: they are words, and there may be any number of them; `failures` counts them.

    >>> numbers({"round": 3, "accuracy": None, "failures": 1, "failure_reasons": {"late": 1}, "seconds": {"train": 2}})
    {'failures': 1.0, 'seconds.train': 2.0}
    """
    return {name: value for name, value in _leaves(row, "") if name != "round"}


def _leaves(found: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in found.items():
        if name == "failure_reasons":
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)


def summary(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a result that a tracker lists runs by: metrics, epsilons, rounds."""
    privacy = result["privacy"]
    named = ("epsilon_lower", "epsilon_upper", "epsilon", "lower", "upper")
    units = {unit: privacy.get(unit) for unit in ("silo", "local", "example", "measured")}
    epsilons = {unit: {name: found.get(name) for name in named} for unit, found in units.items() if found}
    return numbers({"rounds": result["rounds"], "metrics": result["metrics"], "privacy": epsilons})
