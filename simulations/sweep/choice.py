"""The choice at the end of a sweep, what it cost, and what is left of the runs that were not chosen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from privacy.durable import atomic_write
from simulations.report.page import write_report
from simulations.report.words import number
from simulations.sweep.memory import DONE, WITHHELD, privacy, remember
from simulations.sweep.sweep import Sweep

KEPT = frozenset({"experiment.yaml", "ledger.jsonl", "lock"})  # Of a run not chosen: what it was and what it cost.
LOWER_IS_BETTER = frozenset({"loss", "mse"})


def best(runs: Sequence[Mapping[str, Any]], select: str) -> int | None:
    """The place of the best run, the first among equals; None where none has a score.

    Runs that diverged have none: they are the worst.
    """
    scored = [(run["score"], place) for place, run in enumerate(runs) if run["score"] is not None]
    if not scored:
        return None
    sign = 1 if select in LOWER_IS_BETTER else -1
    return min(scored, key=lambda pair: (sign * pair[0], pair[1]))[1]


def choose(sweep: Sweep, memory: dict[str, Any], folder: Path) -> None:
    """Chooses, prices what was charged, and removes what is not released; may be done again after a crash."""
    runs = memory["runs"]
    if memory["chosen"] is None:
        place = best(runs, str(sweep.spec.select))
        if place is not None:
            memory["chosen"] = {key: runs[place][key] for key in ("run", "settings", "seed", "score")}
        memory["privacy"] = privacy(sweep.price(runs))
        remember(folder, memory)  # The choice stands before the scores it was made from are gone.
    only_best = sweep.spec.release == "best"
    chosen = memory["chosen"]["run"] if memory["chosen"] is not None else None
    for run in runs:
        if run["state"] == DONE and (run["run"] == chosen or not only_best):
            _stamp(folder / run["run"], memory)
        elif only_best:
            _withhold(folder / run["run"])
            run |= {"state": WITHHELD, "score": None}
    memory["complete"] = True
    remember(folder, memory)


def selection(memory: Mapping[str, Any]) -> dict[str, Any]:
    """What a released run's result says of the sweep that it comes from; neither the number of runs nor the others."""
    spec = memory["spec"]
    facts = {key: spec[key] for key in ("select", "on", "score_noise", "release")}
    law = {"distribution": memory["distribution"], "settings": memory["settings"]}
    return {**facts, **law, **(memory["privacy"] or {})}


def _stamp(folder: Path, memory: Mapping[str, Any]) -> None:
    """Adds to a released run what its choice cost: alone, its own epsilon would promise too much."""
    path = folder / "result.json"
    result = json.loads(path.read_bytes())
    if result["privacy"]["silo"] is None or "selection" in result["privacy"]:
        return
    found = selection(memory)
    result["privacy"]["selection"] = found
    result["notes"] = [_note(found), *result["notes"]]
    atomic_write(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    write_report(folder)


def _note(found: Mapping[str, Any]) -> str:
    upper = found["epsilon_upper"]
    whole = "without bound" if upper is None else f"at most {number(upper, 4, 'up')}"
    what = "the choice of this run included" if found["release"] == "best" else "with all runs of its sweep released"
    return f"this run is of a sweep: {what}, epsilon is {whole}; the epsilon of the run alone leaves that out"


def _withhold(folder: Path) -> None:
    """Removes all that a run that is not released could tell."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in KEPT:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
