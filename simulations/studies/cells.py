"""The cells of a study: experiments that are run once, in parallel where asked, and remembered by what decides them.

A cell takes the path of `confide run`: the same plan, ledger, engines and result. Its run's folder is let go; what is
kept is result.json, chosen columns of rounds.jsonl and, where a study asks, what it measured on the open run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strategies.codec import encode
from strategies.experiment import Experiment, digest

if TYPE_CHECKING:
    from simulations.running import ActiveRun

Measure = Callable[["ActiveRun"], Mapping[str, Any]]
"""A module's function that looks at a run when its rounds are done; what it gives is JSON."""

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("privacy", "strategies", "client", "server", "simulations")
PLENTY_BYTES = 4_000_000_000
BESIDE = ("studies", "report", "commands", "words", "benchmarks")  # Of simulations: they change no run's numbers.


class Stopped(Exception):
    """A signal ended the study; the cells that were done are kept."""


@dataclass(frozen=True)
class Cell:
    """What is kept of a run.

    Attributes:
        result: what result.json held; empty where the run failed.
        rounds: columns of rounds.jsonl, None where a round has no such value.
        measured: what the study's own measure gave.
        failed: why the run came to no end, or None; a diverged run is a finding, too.
        seconds: that it took.
    """

    result: Mapping[str, Any] = field(default_factory=dict)
    rounds: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    failed: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Wanted:
    """A cell to be.

    Attributes:
        experiment: what to run.
        columns: of rounds.jsonl to keep.
        measure: the study's own look at the run, or None.
    """

    experiment: Experiment
    columns: tuple[str, ...] = ()
    measure: Measure | None = None

    @property
    def key(self) -> str:
        """SHA-256 of all that decides the cell: experiment, metrics, what is kept, and the code that runs it."""
        told = {
            "experiment": digest(self.experiment),
            "metrics": encode(self.experiment)["metrics"],
            "columns": self.columns,
            "measure": None if self.measure is None else f"{self.measure.__module__}:{self.measure.__qualname__}",
            "code": code(),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@cache
def code() -> str:
    """SHA-256 of the source that runs are made by: cells of other code are not taken for cells of this."""
    found = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            inside = path.relative_to(ROOT)
            if not (package == "simulations" and inside.parts[1] in BESIDE):
                found.update(f"{inside}\n".encode() + path.read_bytes())
    return found.hexdigest()


def one(wanted: Wanted) -> Cell:
    """Runs a cell here and now, in a folder that is let go."""
    from server.loop import Diverged
    from simulations.running import ActiveRun, train

    before = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="confide-cell-", dir=_quick_folder()) as folder:
        try:
            with ActiveRun(wanted.experiment, Path(folder) / "run") as active:
                train(active)
                measured = dict(wanted.measure(active)) if wanted.measure is not None else {}
                result = active.finish().result
                rows = active.store.rows()
        except Diverged as error:
            return Cell(failed=str(error), seconds=round(time.perf_counter() - before, 3))
    rounds = {name: [row.get(name) for row in rows] for name in wanted.columns}
    return Cell(result, rounds, measured, None, round(time.perf_counter() - before, 3))


def _quick_folder() -> Path | None:
    """Memory, where there is plenty: a folder that is let go need not reach a disk, which every round waits for."""
    memory = Path("/dev/shm")
    plenty = os.access(memory, os.W_OK | os.X_OK) and shutil.disk_usage(memory).free > PLENTY_BYTES
    return memory if plenty and "TMPDIR" not in os.environ else None


class Cells:
    """Runs cells and remembers them in a folder.

    Args:
        folder: of the study; cells lie in `cells` below it.
        workers: processes, each with one thread; 1 runs cells in this one.
        stop: asked between cells; true ends the study, to be gone on with.
        say: prints a line of progress.
        plugins: modules that workers import too.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 1,
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
        plugins: Sequence[str] = (),
    ) -> None:
        self.folder = folder / "cells"
        self._workers, self._stop, self._say, self._plugins = workers, stop, say, tuple(plugins)
        self.computed, self.recalled, self.seconds = 0, 0, 0.0

    def run(
        self, experiments: Sequence[Experiment], *, columns: Sequence[str] = (), measure: Measure | None = None
    ) -> list[Cell]:
        """A cell for each experiment, in their order; those that were done before are read.

        Raises:
            Stopped: a signal came; what was done is kept.
        """
        wanted = [Wanted(experiment, tuple(columns), measure) for experiment in experiments]
        keys = [each.key for each in wanted]
        found = {key: cell for key in dict.fromkeys(keys) if (cell := self._recall(key)) is not None}
        self.recalled += len(found)
        missing = {key: each for key, each in zip(keys, wanted) if key not in found}
        if missing:
            self._compute(missing, found)
        self.seconds += sum(cell.seconds for cell in found.values())
        return [found[key] for key in keys]

    def _compute(self, missing: Mapping[str, Wanted], found: dict[str, Cell]) -> None:
        from simulations.studies.workers import done

        began, self_count = time.monotonic(), len(missing)
        for number, (key, cell) in enumerate(done(missing, self._workers, self._plugins, self._stop), 1):
            found[key] = cell
            self._remember(key, missing[key], cell)
            left = (time.monotonic() - began) / number * (self_count - number)
            how = f"failed: {cell.failed}" if cell.failed else f"{cell.seconds:.1f} s"
            self._say(f"cell {number}/{self_count}  {missing[key].experiment.name}  {how}  {left:.0f} s left")
        if not all(key in found for key in missing):
            raise Stopped

    def _recall(self, key: str) -> Cell | None:
        """The cell from its file; None where there is none, or none that can be read."""
        try:
            kept = json.loads((self.folder / f"{key}.json").read_bytes())
            return Cell(**kept["cell"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, key: str, wanted: Wanted, cell: Cell) -> None:
        from privacy.durable import atomic_write

        self.computed += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {"experiment": encode(wanted.experiment), "cell": asdict(cell)}
        atomic_write(self.folder / f"{key}.json", (json.dumps(kept, allow_nan=False) + "\n").encode())
