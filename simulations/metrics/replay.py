"""What a run's folder says, as numbers that are brought up to date at every scrape.

The folder is the source: a run may be live, finished, killed or resumed, and this process may be restarted, and every
counter is what the folder's lines add up to. Nothing is locked, and nothing is written.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.monitor import BOUNDS
from simulations.metrics.names import BUCKETS, GROUPS, PHASES, REASONS, WITHHELD
from simulations.metrics.tail import Tail
from strategies.yaml_text import read_yaml

OTHER = "other"
PLACE = {bound: at for at, bound in enumerate(BOUNDS)}
LEDGER_UNITS = {
    "silo": "silo",
    "silo/local": "local",
    "example": "example",
}  # As privacy.local has it, which loads torch.
SUCCESS = "attack_success."  # As `simulations.attacks.measuring` writes it, which loads torch.


class Durations:
    """A histogram of seconds."""

    def __init__(self) -> None:
        self.counts, self.sum = [0] * (len(BUCKETS) + 1), 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def join(self, tallied: object) -> None:
        """As many as `server.monitor.tallied` counted."""
        found = _mapping(tallied)
        for bound, times in _mapping(found.get("counts")).items():
            if (at := PLACE.get(bound)) is not None:
                self.counts[at] += int(times)
        self.sum += number(found.get("sum")) or 0.0

    def cumulative(self) -> list[tuple[str, float]]:
        """Upper bounds, and how many are no longer."""
        found, total = [], 0
        for bound, count in zip(BOUNDS, self.counts):
            total += count
            found.append((bound, float(total)))
        return found


class Bounded(Counter[str]):
    """Counts by names, of which only so many are told apart.

    Args:
        most: names; what comes after them counts as `other`.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def count(self, name: str, by: int) -> None:
        """More of a name."""
        self[name if name in self or len(self) < self._most else OTHER] += by


class Replay:
    """One run.

    Args:
        folder: of the run; it holds an experiment.yaml.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.experiment = _mapping(read_yaml(folder / "experiment.yaml"))
        self.result: Mapping[str, Any] = {}
        self._rounds, self._ledger = Tail(folder / "rounds.jsonl"), Tail(folder / "ledger.jsonl")
        self._monitor = Tail(folder / "monitor.jsonl")
        self._stamp = 0
        self._forget_rounds()
        self._forget_ledger()
        self._forget_monitor()

    def refresh(self) -> None:
        """Reads what is new."""
        if self._rounds.fresh():
            self._forget_rounds()
        for row in self._rounds.lines():
            with suppress(KeyError, TypeError, ValueError, AttributeError):  # A line of another version is no round.
                self._add(row)
        if self._ledger.fresh():
            self._forget_ledger()
        for entry in self._ledger.lines():
            self._book(entry)
        if self._monitor.fresh():
            self._forget_monitor()
        for line in self._monitor.lines():
            with suppress(TypeError, ValueError):
                self._watch(line)
        self._read_result()

    @property
    def state(self) -> str:
        """`finished`, `stopped` before its last round, or `open`: it runs, was killed, or goes on after a stop."""
        if not self.result or int(self.result.get("rounds", 0)) < self.last.get("round", 0):
            return "open"
        return "stopped" if self.result.get("stopped") else "finished"

    def section(self, *names: str) -> Mapping[str, Any]:
        """A section of the experiment; empty where it has none."""
        found = self.experiment
        for name in names:
            found = _mapping(found.get(name))
        return found

    @property
    def private(self) -> bool:
        """Whether anything is protected."""
        return any(self.section("privacy").get(unit) is not None for unit in ("silo", "local", "example"))

    @property
    def withheld(self) -> tuple[str, ...]:
        """Kinds of numbers that are computed on private rows and are not shown."""
        if not self.private or self.section("metrics").get("privacy") == "research":
            return ()
        return WITHHELD

    @property
    def shown(self) -> str:
        """`strict`, `research` where numbers on private rows are shown, or `none` where nothing is protected."""
        if not self.private:
            return "none"
        return "strict" if self.withheld else "research"

    def touched(self, name: str) -> float | None:
        """When a file of the run was last written, Unix seconds; None where it is not there."""
        try:
            return (self.folder / name).stat().st_mtime
        except OSError:
            return None

    def numbers(self) -> int | None:
        """Numbers of the model, from its checkpoint's header alone; None before there is one."""
        try:
            with open(self.folder / "checkpoint.safetensors", "rb") as file:
                header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 1 << 24)))
            return int(header["model"]["shape"][0])
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None

    def measured(self) -> Iterator[tuple[str, str, float]]:
        """Method, bound and value of every measured epsilon."""
        found = _mapping(_mapping(self.result.get("privacy")).get("measured"))
        for method, numbers in (("shared", found), ("fitted", _mapping(found.get("fitted")))):
            for bound, name in (("estimate", "epsilon"), ("lower", "lower"), ("upper", "upper")):
                if (value := number(numbers.get(name))) is not None:
                    yield method, bound, value

    def _forget_rounds(self) -> None:
        self.last: Mapping[str, Any] = {}
        self.outcomes: Counter[str] = Counter(used=0, empty=0, refused=0)
        self.failures = Bounded(REASONS)
        self.bytes: Counter[str] = Counter(up=0, down=0)
        self.flags: Counter[str] = Counter()
        self.durations = {phase: Durations() for phase in PHASES}
        self.scores: dict[str, float] = {}
        """The last public score, loss and attack successes that a round had, by their names in its line."""

    def _add(self, row: Mapping[str, Any]) -> None:
        arrived, failed = int(row["arrived"]), int(row["failures"])
        self.outcomes["used" if arrived else "refused" if failed else "empty"] += 1
        for reason, times in row["failure_reasons"].items():
            self.failures.count(str(reason)[:100], int(times))
        for way in ("up", "down"):
            self.bytes[way] += int(row[f"bytes_{way}"])
        for phase, seconds in row["seconds"].items():
            if phase in self.durations:
                self.durations[phase].add(float(seconds))
        self._flag(_mapping(row.get("attackers")))
        for name in ("accuracy", "mse", "loss", *(name for name in row if name.startswith(SUCCESS))):
            if (value := number(row.get(name))) is not None:
                self.scores[name] = value
        self.last = row

    def _flag(self, parts: Mapping[str, Any]) -> None:
        """Who was flagged, in a simulation that knows who is malicious."""
        if "flagged" not in parts:
            return
        asked, flagged = parts["asked"], parts["flagged"]
        for part in ("malicious", "benign"):
            self.flags[f"{part} flagged"] += int(flagged[part])
            self.flags[f"{part} passed"] += int(asked[part]) - int(flagged[part])

    def _forget_ledger(self) -> None:
        self.lines: Counter[str] = Counter(ok=0, torn=0)
        self.charges: Counter[str] = Counter()
        self.noise: float | None = None

    def _book(self, entry: Mapping[str, Any]) -> None:
        kind, unit = str(entry.get("kind")), LEDGER_UNITS.get(str(entry.get("unit")))
        if kind not in ("reserve", "commit", "void") or unit is None:
            return
        self.lines["torn" if entry.get("torn") is True else "ok"] += 1
        self.charges[unit] += {"reserve": 1, "commit": 0, "void": -1}[kind]
        if kind == "reserve" and unit == "silo":
            self.noise = _noise(entry.get("event"))

    def _forget_monitor(self) -> None:
        self.reserved: float | None = None
        """Epsilon of silos, the round in flight included; None where it has no price or nothing was charged."""
        self.fsync, self.trained = Durations(), Durations()
        self.wire: Counter[str] = Counter()
        self.unwritten = 0
        """Writes to the ledger that failed."""

    def _watch(self, line: Mapping[str, Any]) -> None:
        """A line of `server.monitor`."""
        if "reserved" in line:
            self.reserved = number(line["reserved"])
        self.fsync.join(line.get("fsync"))
        self.trained.join(line.get("trained"))
        for way, sent in _mapping(line.get("wire")).items():
            if way in ("up", "down"):
                self.wire[way] += int(sent)
        self.unwritten += line.get("ledger") == "failed"

    def _read_result(self) -> None:
        path = self.folder / "result.json"
        try:
            stamp = path.stat().st_mtime_ns
            if stamp != self._stamp:
                self.result, self._stamp = _mapping(json.loads(path.read_text(encoding="utf-8"))), stamp
        except (OSError, ValueError):  # Not there, or not whole: then there is no result yet.
            return


def groups(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values, of which only so many are shown."""
    yield from list(found.items())[:GROUPS]


def number(value: object) -> float | None:
    """A number as such; None of anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _noise(event: object) -> float | None:
    """The noise multiplier somewhere in an event as JSON; None where it has none, or several."""
    if isinstance(event, list):
        found = {_noise(each) for each in event} - {None}
        return found.pop() if len(found) == 1 else None
    if not isinstance(event, Mapping):
        return None
    own = number(event.get("noise_multiplier"))
    return own if own is not None else _noise(list(event.values()))
