"""How fast rounds are: the engines, as a user runs them, against a plain PyTorch loop over the same silos.

    python -m simulations.benchmarks.engine [--workload W2l ...] [--rounds 9] [--format json]

All contestants are held as live processes and run one round each in turn, so ratios are paired and a machine that
slows down slows all of them. The engines run whole: shuffling, clipping, noise, ledger, checkpoint, rounds.jsonl,
epsilon. The loop has none of the last four, and takes whichever number of threads is faster for it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from client.tables import Table
from server.loop import RoundResult
from simulations.benchmarks.plain import PlainLoop
from simulations.running import ActiveRun
from strategies.experiment import Experiment
from strategies.loading import parse

CLIP_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 0.5, 1.0, 0.1
STORE_PHASES = ("reserve", "account", "store")


@dataclass(frozen=True)
class Workload:
    """Equal silos of random rows; every silo takes part and trains one epoch.

    Attributes:
        name: as in `--workload`.
        about: what it is.
        task: the experiment's `task` section.
        silos: how many.
        rows: of each silo.
        features: shape of a row.
        classes: of the targets.
        batch: rows per step.
    """

    name: str
    about: str
    task: dict[str, Any]
    silos: int
    rows: int
    features: tuple[int, ...]
    classes: int
    batch: int

    def table(self) -> Table:
        """Random rows, the same on every call."""
        rng = torch.Generator().manual_seed(0)
        features = torch.randn((self.silos * self.rows, *self.features), generator=rng)
        targets = torch.randint(0, self.classes, (len(features),), generator=rng)
        return Table("classification", features, targets, classes=self.classes)

    def experiment(self, engine: dict[str, Any]) -> Experiment:
        """The workload as an experiment that never ends by itself."""
        privacy = {"clip_norm": CLIP_NORM, "noise_multiplier": NOISE_MULTIPLIER, "delta": 1e-6}
        return parse(
            {
                "name": self.name,
                "rounds": 1000,
                "task": self.task,
                "data": {"name": "dataset", "silos": self.silos, "public_test": 0.0},
                "cohort": {"sampling": "all"},
                "train": {"epochs": 1, "batch_size": self.batch, "learning_rate": LEARNING_RATE},
                "privacy": {"silo": privacy},
                "engine": engine,
            }
        )


_CNN = {"name": "cnn", "channels": [32, 64], "hidden": 384}
_SMALL_CNN = {"name": "cnn", "channels": [8, 16], "hidden": 64}
WORKLOADS = (
    Workload("W2l", "logistic regression, 100 features", {"name": "logistic"}, 1000, 50, (100,), 2, 10),
    Workload("W2m", "MLP 100-128-64-2", {"name": "mlp", "hidden": [128, 64]}, 1000, 50, (100,), 2, 10),
    Workload("W1s", "CNN of 55k parameters, 28x28", _SMALL_CNN, 100, 100, (1, 28, 28), 62, 20),
    Workload("W1", "CNN of 1.2M parameters, 28x28", _CNN, 100, 100, (1, 28, 28), 62, 20),
)


class Contestant:
    """A live engine that runs a round at a call and asserts that it really did."""

    def __init__(self, workload: Workload, active: ActiveRun) -> None:
        self.active, self.silos, self.rounds = active, workload.silos, iter(active)
        self.last: RoundResult | None = None

    def round(self) -> int:
        """One round; an engine that errs looks fast, so arrivals are checked."""
        self.last = next(self.rounds)
        row = self.last.row
        if row["arrived"] != self.silos or row["failures"]:
            raise RuntimeError(f"{row['arrived']} of {self.silos} silos arrived, {row['failures']} failed")
        return self.silos


def engines_of(workload: Workload, stack: ExitStack, workers: Sequence[int]) -> dict[str, Contestant]:
    """The local engine, and pools."""
    table, runs = workload.table(), {}
    engines: dict[str, dict[str, Any]] = {"local": {"kind": "local"}}
    engines |= {f"pool {count}": {"kind": "pool", "workers": count} for count in workers}
    for name, engine in engines.items():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        active = stack.enter_context(ActiveRun(workload.experiment(engine), folder, table=table))
        runs[name] = Contestant(workload, active)
    return runs


def loops_of(workload: Workload, active: ActiveRun) -> dict[str, PlainLoop]:
    """The plain loop over the same silos, at one and at all threads."""
    task, shape, shards = active.experiment.task, active.model.shape, active.federation.train
    return {
        f"loop, {threads} threads": PlainLoop(
            task,
            shape,
            shards,
            batch=workload.batch,
            learning_rate=LEARNING_RATE,
            clip_norm=CLIP_NORM,
            noise_multiplier=NOISE_MULTIPLIER,
            threads=threads,
        )
        for threads in sorted({1, os.cpu_count() or 1})
    }


def measure(workload: Workload, *, rounds: int, workers: Sequence[int]) -> dict[str, Any]:
    """Times rounds in turn after one warm-up each; medians in seconds, ratios paired."""
    with ExitStack() as stack:
        runs = engines_of(workload, stack, workers)
        loops = loops_of(workload, runs["local"].active)
        calls: dict[str, Callable[[], int]] = {name: contestant.round for name, contestant in (loops | runs).items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        rows: list[dict[str, float]] = []
        for number in range(rounds + 1):
            for name, call in calls.items():
                before = time.perf_counter()
                call()
                if number:
                    times[name].append(time.perf_counter() - before)
            last = runs["local"].last
            if number > 1 and last is not None:
                rows.append(dict(last.row["seconds"]))
    fastest = min(loops, key=lambda name: statistics.median(times[name]))
    ratios = {
        name: statistics.median(loop / own for loop, own in zip(times[fastest], values))
        for name, values in times.items()
        if name not in loops
    }
    share = [sum(row[phase] for phase in STORE_PHASES) / sum(row.values()) for row in rows]
    scaling = None
    if {"pool 1", "pool 2"} <= times.keys():
        scaling = statistics.median(one / two for one, two in zip(times["pool 1"], times["pool 2"]))
    return {
        "workload": workload.name,
        "about": f"{workload.about}, {workload.silos} silos x {workload.rows}",
        "rounds": rounds,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "reference": fastest,
        "faster_than_loop": ratios,
        "pool_2_over_1": scaling,
        "epsilon_and_store_share": statistics.median(share) if share else None,
    }


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The results as lines of text."""
    for result in results:
        yield f"{result['workload']}: {result['about']} (median of {result['rounds']} paired rounds)"
        for name, seconds in result["seconds"].items():
            ratio = result["faster_than_loop"].get(name)
            note = f"{ratio:6.2f}x the loop" if ratio is not None else ""
            yield f"  {name:16} {seconds * 1000:10.1f} ms  {note}"
        if result["pool_2_over_1"] is not None:
            yield f"  two workers are {result['pool_2_over_1']:.2f}x one"
        if result["epsilon_and_store_share"] is not None:
            yield f"  ledger, epsilon and store: {100 * result['epsilon_and_store_share']:.1f}% of a local round"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; prints a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.engine", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workload", nargs="*", default=[workload.name for workload in WORKLOADS])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    results = []
    for workload in WORKLOADS:
        if workload.name in options.workload:
            print(f"{workload.name} ...", file=sys.stderr, flush=True)
            results.append(measure(workload, rounds=options.rounds, workers=options.workers))
    print(json.dumps(results, indent=2) if options.format == "json" else "\n".join(table(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
