"""What a silo's daemon shows its owner: its log and its ledgers, added up at every scrape.

The source is the silo's own folder, so that counters survive restarts. No label holds a run, a server, a data set or a
path, and nothing is told of rows but how long they took.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, cast, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from client.office import POLICY_KEPT, POLICY_READ
from client.policy import UNITS, Allowance, Policy
from privacy import account
from privacy.chain import Entry, LedgerError, load
from privacy.terms import Neighbours, Unpriceable
from simulations.metrics.names import PREFIX, RESULTS, SILO_METRICS
from simulations.metrics.replay import Durations, number
from simulations.metrics.tail import Tail
from strategies.messages import Code

OUTCOMES = ("answered", *get_args(Code))
OTHER = "other"
FAMILIES = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
Sample = tuple[str, tuple[str, ...], float]


class Ledgers:
    """All ledgers of a silo, read again where they changed.

    Args:
        folder: of the ledgers, one a data set.
        policy: whose budgets they are held against.
    """

    def __init__(self, folder: Path, policy: Policy) -> None:
        self.folder, self.policy = folder, policy
        self._known: dict[Path, tuple[tuple[int, int], Ledger | None]] = {}

    def read(self) -> list[Ledger | None]:
        """What each says; None for one that cannot be read."""
        found: dict[Path, tuple[tuple[int, int], Ledger | None]] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            with suppress(OSError):
                stat = path.stat()
                stamp, known = (stat.st_mtime_ns, stat.st_size), self._known.get(path)
                found[path] = known if known is not None and known[0] == stamp else (stamp, _read(path, self.policy))
        self._known = found
        return [ledger for _, ledger in found.values()]


class Ledger:
    """What one ledger says.

    Args:
        path: its file.
        policy: whose budgets it is held against.

    Raises:
        LedgerError: it cannot be read.
    """

    def __init__(self, path: Path, policy: Policy) -> None:
        chain = load(path).chain
        counted = chain.counted()
        self.charges = Counter(entry.unit for entry in counted)
        self.lines = Counter("torn" if entry.torn else "ok" for entry in chain.entries)
        self.spent: dict[str, float] = {}
        for unit in UNITS:
            if (allowance := policy.allowance(unit)) is not None:
                self.spent[unit] = _spent(counted, unit, allowance)


class SiloExporter(Collector):
    """Every scrape brings the silo's log and ledgers up to date.

    Args:
        folder: of the silo: audit.jsonl, ledgers.
        policy: of the data holder.
    """

    def __init__(self, folder: Path, policy: Policy) -> None:
        self.folder, self._turn = folder, Lock()
        self._log = Tail(folder / "audit.jsonl")
        self.govern(policy)
        self._forget()

    def govern(self, policy: Policy) -> None:
        """Goes by another policy from the next scrape on: its budgets, and its deltas."""
        with self._turn:
            self.policy, self._ledgers = policy, Ledgers(self.folder / "ledgers", policy)

    def describe(self) -> list[Metric]:
        """Nothing: a registry would else scrape once to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, each once."""
        with self._turn:
            if self._log.fresh():
                self._forget()
            for line in self._log.lines():
                with suppress(TypeError, ValueError):
                    self._add(line)
            made: dict[str, Any] = {
                each.name: FAMILIES[each.kind](PREFIX + each.name, each.about + ".", labels=each.labels)
                for each in SILO_METRICS
            }
            for name, labels, value in (*self._counts(), *self._budgets()):
                made[name].add_metric(labels, value)
            for name, seconds in (("silo_training_seconds", self._trained), ("silo_ledger_fsync_seconds", self._waits)):
                made[name].add_metric([], seconds.cumulative(), sum_value=seconds.sum)
        yield from made.values()

    def _forget(self) -> None:
        self._outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._bytes: Counter[str] = Counter({"in": 0, "out": 0})
        self._trained, self._waits = Durations(), Durations()
        self._rounds, self._last = 0, 0.0

    def _add(self, line: Mapping[str, Any]) -> None:
        """A line of `client.audit_log`."""
        if line.get("what") in (POLICY_READ, POLICY_KEPT):  # Nobody asked for anything.
            return
        what = str(line.get("code") if line.get("what") == "refused" else line.get("what"))
        self._outcomes[what if what in OUTCOMES else OTHER] += 1
        for way, name in (("in", "received"), ("out", "sent")):
            self._bytes[way] += int(number(line.get(name)) or 0)
        for seconds in line.get("trained", ()):
            self._trained.add(float(seconds))
            self._rounds += 1
        for seconds in line.get("waited", ()):
            self._waits.add(float(seconds))
        self._last = datetime.fromisoformat(str(line["time"])).timestamp() if "time" in line else self._last

    def _counts(self) -> Iterator[Sample]:
        for outcome, times in self._outcomes.items():
            yield "silo_requests_total", (outcome,), float(times)
        for way, total in self._bytes.items():
            yield "silo_bytes_total", (way,), float(total)
        yield "silo_rounds_total", (), float(self._rounds)
        if self._last:
            yield "silo_last_answer_timestamp_seconds", (), self._last
        yield "silo_dry_run", (), float(self.policy.dry_run)

    def _budgets(self) -> Iterator[Sample]:
        """Of several data sets the one that spent most is told."""
        found = self._ledgers.read()
        whole = [each for each in found if each is not None]
        for state, count in (("readable", len(whole)), ("unreadable", len(found) - len(whole))):
            yield "silo_ledgers", (state,), float(count)
        lines = Counter(failed=self._outcomes["ledger"])
        for each in whole:
            lines += each.lines
        for result in RESULTS:
            yield "silo_ledger_writes_total", (result,), float(lines[result])
        for unit, section in UNITS.items():
            yield "silo_charges_total", (section,), float(sum(each.charges[unit] for each in whole))
            if (allowance := self.policy.allowance(unit)) is not None:
                spent = max((each.spent[unit] for each in whole), default=0.0)
                yield "silo_epsilon_spent", (section,), spent
                yield "silo_epsilon_budget", (section,), allowance.epsilon
                yield "silo_epsilon_remaining", (section,), allowance.epsilon - spent


def _spent(counted: Sequence[Entry], unit: str, allowance: Allowance) -> float:
    """Epsilon of all runs; infinite where it has no price."""
    relation = next((entry.neighbours for entry in counted if entry.unit == unit), "add_remove")
    try:
        return account.total(
            counted,
            unit=unit,
            delta=allowance.delta,
            budget=allowance.epsilon,
            neighbours=cast(Neighbours, relation),
        ).epsilon_upper
    except Unpriceable:
        return math.inf


def _read(path: Path, policy: Policy) -> Ledger | None:
    try:
        return Ledger(path, policy)
    except (LedgerError, OSError):
        return None
