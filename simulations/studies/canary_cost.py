"""What canaries cost: accuracy and time of the shipped experiments with them, less those without.

Runs of one seed are paired: they have the same data, cohorts, batches and noise, and differ by their canaries alone.
Canary silos add nothing to the mean but enlarge its divisor; canary examples add their clip norm to the batches of the
audited silos. Seconds are those of the processor, for training and scoring in one process, after a run that is not
counted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.running import ActiveRun, train
from simulations.shipped import find
from simulations.studies.findings import Findings, Sheet
from simulations.studies.registry import Ask, study
from strategies.loading import load
from strategies.schema import ConfigError

EXAMPLES = "privacy.audit.examples"
ALL_SILOS = f"{EXAMPLES}.silos=[{','.join(map(str, range(20)))}]"
VARIANTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "quickstart": {f"{count} canaries": [f"privacy.audit.canaries={count}"] for count in (0, 64, 200, 1000)},
    "digits_example": {
        **{f"{count} in one silo": [f"{EXAMPLES}.canaries={count}"] for count in (0, 64, 200)},
        "200 in all 20 silos": [f"{EXAMPLES}.canaries=200", ALL_SILOS],
    },
}


def measured(name: str, overrides: Sequence[str], seed: int) -> tuple[float, float]:
    """Accuracy and seconds of one run."""
    experiment = load(find(name), [f"seed={seed}", *overrides])
    with tempfile.TemporaryDirectory() as folder, ActiveRun(experiment, Path(folder) / "run") as active:
        before = time.process_time()
        train(active)
        result = active.finish().result
        return result["metrics"]["accuracy"], time.process_time() - before


@study("canary_cost", about="What the audit's canaries cost in accuracy and time, in paired runs")
def canary_cost(ask: Ask) -> Findings:
    """A table per shipped experiment; it claims nothing."""
    if len(ask.seeds) < 2:
        raise ConfigError([f"--seeds: a spread needs 2 seeds or more, found {len(ask.seeds)}"])
    names = list(VARIANTS)[:1] if ask.quick else list(VARIANTS)
    found = {name: compared(name, ask) for name in names}
    left = [f"experiments: {', '.join(list(VARIANTS)[1:])}"] if ask.quick else []
    return Findings(
        sheets=[sheet(name, rows) for name, rows in found.items()],
        rows=[{"experiment": name} | row for name, rows in found.items() for row in rows],
        skipped=left,
    )


def compared(name: str, ask: Ask) -> list[dict[str, Any]]:
    """A row per number of canaries: mean and standard deviation over seeds, alone and less the run without canaries."""
    variants = VARIANTS[name]
    measured(name, variants[next(iter(variants))], ask.seeds[0])  # Imports and caches are not a cost of canaries.
    found: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for seed in ask.seeds:
        for variant, overrides in variants.items():
            ask.go_on()
            found[variant].append(measured(name, overrides, seed))
        ask.say(f"{name}, seed {seed}: {[runs[-1][0] for runs in found.values()]}")
    without = found[next(iter(variants))]
    return [{"variant": variant} | _row(runs, without) for variant, runs in found.items()]


def _row(runs: Sequence[tuple[float, float]], without: Sequence[tuple[float, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for index, name in enumerate(("accuracy", "seconds")):
        values = [run[index] for run in runs]
        row[name] = _spread(values)
        row[f"{name}_difference"] = _spread([value - other[index] for value, other in zip(values, without)])
    return row


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values)}


def sheet(name: str, rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """The rows as text."""
    keys = (("accuracy", 4), ("accuracy_difference", 4), ("seconds", 2), ("seconds_difference", 2))
    body = [
        (row["variant"], *(f"{row[key]['mean']:.{n}f} ± {row[key]['std']:.{n}f}" for key, n in keys)) for row in rows
    ]
    return Sheet(name, ("canaries", "accuracy", "less without", "seconds", "less without"), body)
