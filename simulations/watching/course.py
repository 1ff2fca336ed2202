"""What a run's folder says of its course: the exporter's replay of it, and the numbers of every round."""

from __future__ import annotations

import os
import statistics
import time
from array import array
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from simulations.metrics.replay import Replay, number

SCORES = ("accuracy", "mse")
RECENT = 20  # Rounds that a pace is taken from.
LEAST_S, TIMES = 30.0, 5.0
"""A run stalls when its next round takes longer than this, and so many times the longest of recent ones."""

LATE, SPARE = "no answer by the deadline", "enough silos had answered"
GONE = ("silo is not connected", "relay of the silo failed", "silo did not join again", "refused: silo_unreachable")
"""Reasons of failure as `server.exchange` has them, which loads torch; all others are refusals."""


class Course(Replay):
    """One run, brought up to date by `refresh`.

    Args:
        folder: of the run; it holds an experiment.yaml.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._born = _identity(folder / "experiment.yaml")

    @property
    def replaced(self) -> bool:
        """Whether the folder holds another run by now, or none."""
        return _identity(self.folder / "experiment.yaml") != self._born

    @property
    def rounds(self) -> int:
        """Of the whole experiment; 0 where its file does not say."""
        return int(number(self.experiment.get("rounds")) or 0)

    @property
    def done(self) -> int:
        """Committed rounds."""
        return int(self.last.get("round", 0))

    @property
    def ended(self) -> bool:
        """Whether there is a result and nobody goes on from it, or still writes beside it."""
        return self.state != "open" and not self.held

    @property
    def held(self) -> bool | None:
        """Whether a process of this machine has the run open; None where that cannot be known.

        The kernel lists who holds the lock of a file, so that nobody has to try it.
        """
        try:
            lock = (self.folder / "lock").stat().st_ino
        except OSError:
            return False
        try:
            lines = Path("/proc/locks").read_text().splitlines()
        except OSError:
            return None
        return any(f":{lock} " in line for line in lines)

    @property
    def pace_s(self) -> float | None:
        """Seconds of a recent round; the first one, which loads code and prices the run, counts only alone."""
        seconds = list(self.recent)
        if len(seconds) > 1 and len(seconds) == self.done:
            del seconds[0]
        return statistics.fmean(seconds) if seconds else None

    @property
    def stalled_since(self) -> float | None:
        """When the last round was committed, Unix seconds, where the next one is long overdue; else None."""
        since = self.touched("rounds.jsonl") if self.done else self.touched("experiment.yaml")
        if since is None or self.state != "open":
            return None
        engine = self.section("engine")
        first = number(engine.get("deadline_s")) if engine.get("kind") == "flower" and not self.done else None
        patience = max(LEAST_S, TIMES * max(self.recent, default=0.0), first or 0.0)
        return since if time.time() - since > patience else None

    @property
    def cohort(self) -> Mapping[str, int]:
        """Silos of the last round by what became of their answers."""
        reasons = {str(why): int(times) for why, times in (self.last.get("failure_reasons") or {}).items()}
        late, spare = reasons.pop(LATE, 0), reasons.pop(SPARE, 0)
        gone = sum(reasons.pop(why, 0) for why in GONE)
        arrived = int(self.last.get("arrived", 0))
        states = {"answered": arrived, "late": late, "refused": sum(reasons.values()), "failed": gone, "spare": spare}
        return {"asked": int(self.last.get("cohort", 0)), **states}

    @property
    def score(self) -> str:
        """What the public score is called here."""
        return next((name for name in SCORES if self.series[name]), SCORES[0])

    def _forget_rounds(self) -> None:
        super()._forget_rounds()
        self.series: dict[str, array[float]] = {name: array("d") for name in (*SCORES, "loss", "train_loss", "seconds")}
        self.recent: deque[float] = deque(maxlen=RECENT)

    def _add(self, row: Mapping[str, Any]) -> None:
        super()._add(row)
        spent = sum(float(seconds) for seconds in row["seconds"].values())
        self.recent.append(spent)
        self.series["seconds"].append(spent)
        for name in (*SCORES, "loss", "train_loss"):
            if name in self.withheld:  # Lines of a strict run hold none; if they did, they would not be shown.
                continue
            if (value := number(row.get(name))) is not None:
                self.series[name].append(value)


def _identity(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.stat(path)
        return found.st_ino, found.st_mtime_ns
    return None
