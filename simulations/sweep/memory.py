"""sweep.json: what was drawn, written down before the first run; a sweep never draws twice.

The file is written anew, whole, after every run, so that a sweep goes on after any stop.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.tables import Table
from privacy.durable import atomic_write
from server.store import StoreError
from simulations.sweep.plan import Drawn, Price, Spec, settings
from simulations.sweep.sweep import Sweep, prepared
from strategies.experiment import Experiment
from strategies.loading import parse

MEMORY = "sweep.json"
WAITING, DONE, DIVERGED, WITHHELD = "waiting", "done", "diverged", "withheld"


def begin(sweep: Sweep, folder: Path) -> dict[str, Any]:
    """Writes down what was drawn, before anything is trained; returns what sweep.json holds.

    Raises:
        StoreError: the folder holds a sweep, or a run, already.
    """
    for name in (MEMORY, "experiment.yaml"):
        if (folder / name).exists():
            how = f"go on with: confide sweep --resume {folder}" if name == MEMORY else "it is a run's folder"
            raise StoreError(f"{folder}: holds {name} already; choose another --out ({how})")
    memory: dict[str, Any] = {
        "spec": asdict(sweep.spec) | {"over": list(sweep.spec.over)},
        "config": dict(sweep.config),
        "distribution": sweep.spec.said(),
        "dataset": sweep.dataset,
        "settings": len(sweep.points),
        "runs": [_planned(sweep, run) | {"state": WAITING, "score": None} for run in sweep.drawn],
        "privacy": privacy(sweep.price()),
        "chosen": None,
        "complete": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    remember(folder, memory)
    return memory


def reopen(folder: Path, rows: Callable[[Experiment], Table | None]) -> tuple[Sweep, dict[str, Any], Table | None]:
    """A sweep that was begun, with what sweep.json holds.

    Args:
        folder: of the sweep.
        rows: gives the rows of its experiment where that says `data.name: dataset`.

    Raises:
        StoreError: no sweep, one that is complete, or one whose runs are not those that were drawn.
    """
    path = folder / MEMORY
    if not path.is_file():
        raise StoreError(f"{folder}: holds no sweep ({MEMORY} is missing); give the folder of a sweep")
    try:
        memory = json.loads(path.read_bytes())
        complete, spec = memory["complete"], Spec(**memory["spec"] | {"over": tuple(memory["spec"]["over"])})
        config, runs, dataset = memory["config"], memory["runs"], memory["dataset"]
        listed = [{key: run[key] for key in ("run", "settings", "seed")} for run in runs]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: damaged ({error}); restore it from a copy") from error
    if complete:
        raise StoreError(f"{folder}: this sweep is complete; its choice is in {path}. Runs are never drawn again")
    table = rows(parse(config))
    sweep = prepared(spec, config, table=table)
    if listed != [_planned(sweep, run) for run in sweep.drawn] or dataset != sweep.dataset:
        raise StoreError(f"{path}: not the runs that were drawn for this data; runs are never drawn again, start anew")
    return sweep, memory, table


def remember(folder: Path, memory: Mapping[str, Any]) -> None:
    """Replaces sweep.json; on the disk when this returns."""
    atomic_write(folder / MEMORY, (json.dumps(memory, indent=2, allow_nan=False) + "\n").encode())


def privacy(price: Price | None) -> dict[str, Any] | None:
    """A price for result files; None without privacy, and None for infinity, which JSON has not."""
    if price is None:
        return None
    facts = asdict(price)
    return facts | {
        name: (facts[name] if _known(facts[name]) else None) for name in ("epsilon_lower", "epsilon_upper", "one_run")
    }


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """One process at a time works on a sweep.

    Raises:
        StoreError: another one does.
    """
    with open(folder / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(f"{folder}: another process sweeps here; wait for it or stop it") from error
        yield


def _planned(sweep: Sweep, run: Drawn) -> dict[str, Any]:
    return {"run": run.name, "settings": settings(sweep.points[run.point]), "seed": run.seed}


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
