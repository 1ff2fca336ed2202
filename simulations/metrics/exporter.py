"""The collector that Prometheus asks: it finds runs below a folder and says what their replays hold.

It has a registry of its own and exposes nothing of the process it runs in. What a run may not show is not there, and is
named in `confide_metrics_withheld`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from simulations.metrics.names import BY_NAME, METRICS, PREFIX, RUN
from simulations.metrics.replay import SUCCESS, Durations, Replay, groups, number
from strategies.schema import ConfigError

Sample = tuple[str, tuple[str, ...], float]
STATES = ("open", "finished", "stopped")
UNITS = ("silo", "local", "example")
UNLIMITED = math.inf


class Exporter(Collector):
    """Every scrape brings the newest runs up to date and shows them.

    Args:
        store: a folder of run folders, or of folders of them (`--seeds`, sweeps); or one run's own.
        max_runs: at most so many, the last touched.
    """

    def __init__(self, store: Path, *, max_runs: int = 100) -> None:
        self.store, self.max_runs = store, max_runs
        self._replays: dict[Path, Replay] = {}
        self._turn = threading.Lock()  # Scrapes may come together, and a replay reads each line once.

    def read(self) -> int:
        """Brings all runs up to date, which takes longest the first time; returns how many are shown."""
        with self._turn:
            self._refresh()
            return len(self._replays)

    def describe(self) -> list[Metric]:
        """Nothing: a registry would else scrape once to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, each once, with the samples of every run."""
        with self._turn:
            unreadable = self._refresh()
            families = {metric.name: _family(metric.name) for metric in METRICS}
            for folder, replay in sorted(self._replays.items()):
                run = self._name(folder)
                for name, labels, value in samples(replay):
                    families[name].add_metric([run, *labels], value)
                for name, labels, seconds in histograms(replay):
                    if sum(seconds.counts):
                        families[name].add_metric([run, *labels], seconds.cumulative(), sum_value=seconds.sum)
        yield from families.values()
        yield GaugeMetricFamily(f"{PREFIX}exporter_runs", "Runs that are shown", value=len(self._replays))
        yield GaugeMetricFamily(f"{PREFIX}exporter_unreadable_runs", "Folders that cannot be read", value=unreadable)

    def _refresh(self) -> int:
        """Finds the runs to show; returns how many folders cannot be read."""
        newest, unreadable = found(self.store)[: self.max_runs], 0
        self._replays = {folder: replay for folder, replay in self._replays.items() if folder in newest}
        for folder in newest:
            try:
                if folder not in self._replays:
                    self._replays[folder] = Replay(folder)
                self._replays[folder].refresh()
            except (ConfigError, OSError):
                self._replays.pop(folder, None)
                unreadable += 1
        return unreadable

    def _name(self, folder: Path) -> str:
        return ":".join(folder.relative_to(self.store).parts) or folder.name


def found(store: Path) -> list[Path]:
    """The folders of runs in a store, one level of folders of runs included; the last touched first."""
    folders = [path.parent for pattern in ("", "*/", "*/*/") for path in store.glob(f"{pattern}experiment.yaml")]
    return sorted(folders, key=lambda folder: (-_touched(folder), folder))


def _touched(folder: Path) -> float:
    for name in ("rounds.jsonl", "experiment.yaml"):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def _family(name: str) -> Any:
    metric = BY_NAME[name]
    kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
    return kinds[metric.kind](PREFIX + name, metric.about + ".", labels=(RUN, *metric.labels))


def samples(run: Replay) -> Iterator[Sample]:
    """What a run shows, without histograms: name, labels beside the run's, value."""
    for part in (_course, _updates, _privacy, _spent, _models, _files):
        yield from part(run)


def histograms(run: Replay) -> Iterator[tuple[str, tuple[str, ...], Durations]]:
    """What a run shows as histograms: name, labels beside the run's, seconds."""
    for phase, seconds in run.durations.items():
        yield "round_duration_seconds", (phase,), seconds
    yield "ledger_fsync_seconds", (), run.fsync
    if not run.withheld:
        yield "silo_train_duration_seconds", (), run.trained


def _course(run: Replay) -> Iterator[Sample]:
    data, strategy = run.section("data"), run.section("strategy")
    names = (run.experiment.get("name"), strategy.get("name"), data.get("name") or "file")
    engine = str(run.section("engine").get("kind", "local"))
    yield "run_info", (*map(str, names), engine, run.shown), 1.0
    for state in STATES:
        yield "run_state", (state,), float(run.state == state)
    yield "round", (), float(run.last.get("round", 0))
    if (rounds := number(run.experiment.get("rounds"))) is not None:
        yield "rounds_planned", (), rounds
    for outcome, times in run.outcomes.items():
        yield "rounds_total", (outcome,), float(times)


def _updates(run: Replay) -> Iterator[Sample]:
    population = number(run.result.get("silos")) or number(run.section("data").get("silos"))
    last = {"asked": run.last.get("cohort"), "arrived": run.last.get("arrived"), "failed": run.last.get("failures")}
    for state, count in ({"population": population} | last).items():
        if (value := number(count)) is not None:
            yield "silos", (state,), value
    for reason, times in run.failures.items():
        yield "silo_failures_total", (reason,), float(times)
    for name, counts in (("payload_bytes_total", run.bytes), ("wire_bytes_total", run.wire)):
        for way, total in counts.items():
            yield name, (way,), float(total)
    model, asked = run.numbers(), {"up": number(run.last.get("arrived")), "down": number(run.last.get("cohort"))}
    for way, silos in asked.items():
        if model and silos:
            yield "update_density_ratio", (way,), run.last[f"parameters_{way}"] / (silos * model)
    for part, times in run.flags.items():
        yield "attack_flags_total", (part,), float(times)


def _privacy(run: Replay) -> Iterator[Sample]:
    norms = {name: number(value) for name, value in groups(run.last.get("clip_norms") or {})}
    for channel, norm in norms.items():
        if norm is not None:
            yield "clip_norm", (channel,), norm
            if run.noise is not None and len(norms) == 1:  # Of several channels each has a part of the noise.
                yield "noise_stddev", (channel,), norm * run.noise
    if run.noise is not None:
        yield "noise_multiplier", (), run.noise
    if not run.withheld:
        for name, key in (("clipped_ratio", "clip_fraction"), ("train_loss", "train_loss")):
            if (value := number(run.last.get(key))) is not None:
                yield name, (), value
    for unit, charges in run.charges.items():
        yield "privacy_charges_total", (unit,), float(charges)
    for method, bound, value in run.measured():
        yield "privacy_epsilon_empirical", (method, bound), value
    measured = (run.result.get("privacy") or {}).get("measured") or {}
    if "alarm" in measured:
        yield "privacy_alarm", (), float(bool(measured["alarm"]))
    yield "privacy_stops_total", (), float(str(run.result.get("stopped") or "").startswith("budget"))
    for name in run.withheld:
        yield "metrics_withheld", (name,), 1.0


def _spent(run: Replay) -> Iterator[Sample]:
    """Claimed epsilon: of silos after every round, of what else is protected from the result."""
    sections: Mapping[str, Any] = run.result.get("privacy") or {}
    spent: dict[str, float] = {}
    if run.last:
        spent["silo"] = _or_infinite(run.last.get("epsilon"))
    for unit in UNITS[1:]:
        if sections.get(unit):
            spent[unit] = _or_infinite(sections[unit].get("epsilon_upper"))
    limits = {
        "silo": number(run.section("budget").get("epsilon")),
        "local": run.section("privacy", "local").get("budget"),
    }
    reserved = dict(spent)  # What the result alone tells counts every charge.
    if run.reserved is not None:
        reserved["silo"] = max(spent.get("silo", 0.0), run.reserved)
    for unit, value in reserved.items():
        yield "privacy_epsilon_reserved", (unit,), value
    for unit, value in spent.items():
        yield "privacy_epsilon_spent", (unit,), value
        if (limit := number(limits.get(unit))) is not None:
            yield "privacy_epsilon_budget", (unit,), limit
            yield "privacy_epsilon_remaining", (unit,), limit - value


def _models(run: Replay) -> Iterator[Sample]:
    public = {"accuracy": "model_accuracy_ratio", "mse": "model_mean_squared_error", "loss": "model_loss"}
    for name, value in groups(run.scores):
        if name.startswith(SUCCESS):
            yield "attack_success_ratio", (name.removeprefix(SUCCESS),), value
        else:
            yield public[name], (), value
    metrics: Mapping[str, Any] = run.result.get("metrics") or {}
    measured: Mapping[str, Any] = (metrics.get("groups") or {}).get("public_test") or {}
    names = list(measured.get("groups") or {})
    for name, numbers in groups(measured.get("groups") or {}):
        if (loss := number(numbers.get("loss"))) is not None:
            yield "group_loss", (name,), loss
    yield from _violations(run, names)
    if not run.withheld:
        for quantile, value in groups(metrics.get("per_silo") or {}):
            if (score := number(value)) is not None:
                yield "silo_score", (quantile,), score
        for quantile, value in groups(metrics.get("personalization_gap") or {}):
            if (gap := number(value)) is not None:
                yield "personalization_gap", (quantile,), gap


def _violations(run: Replay, names: Sequence[str]) -> Iterator[Sample]:
    """As the strategy knows them: of groups by their names, of groups within classes by their numbers."""
    found = (run.result.get("strategy_report") or {}).get("violations") or []
    labels = names if len(names) == len(found) else [str(at) for at in range(len(found))]
    for name, value in groups(dict(zip(labels, found))):
        if (above := number(value)) is not None:
            yield "group_bound_violation", (name,), above


def _files(run: Replay) -> Iterator[Sample]:
    for result, lines in {**run.lines, "failed": run.unwritten}.items():
        yield "ledger_writes_total", (result,), float(lines)
    for name, file in (
        ("round_last_commit_timestamp_seconds", "rounds.jsonl"),
        ("checkpoint_last_success_timestamp_seconds", "checkpoint.safetensors"),
    ):
        if (when := run.touched(file)) is not None:
            yield name, (), when
    with_size = run.folder / "checkpoint.safetensors"
    if with_size.exists():
        yield "checkpoint_bytes", (), float(with_size.stat().st_size)


def _or_infinite(value: object) -> float:
    found = number(value)
    return UNLIMITED if found is None else found
