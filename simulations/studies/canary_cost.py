"""What canaries cost: accuracy and time of the shipped experiments with them, less those without.

    python -m simulations.studies.canary_cost [--seeds 5] [--experiment quickstart] [--format json]

Runs of one seed are paired: they have the same data, cohorts, batches and noise, and differ by their canaries alone.
Canary silos add nothing to the mean but enlarge its divisor; canary examples add their clip norm to the batches of the
audited silos. Seconds are those of the processor, for training and scoring in one process, after a run that is not
counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.running import ActiveRun, train
from simulations.shipped import find
from strategies.loading import load

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


def study(name: str, *, seeds: int) -> list[dict[str, Any]]:
    """A row per number of canaries: mean and standard deviation over seeds, alone and less the run without canaries."""
    variants = VARIANTS[name]
    measured(name, variants[next(iter(variants))], 0)  # Imports and caches are not a cost of canaries.
    found: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for seed in range(seeds):
        for variant, overrides in variants.items():
            found[variant].append(measured(name, overrides, seed))
        print(f"{name}, seed {seed}: {[runs[-1][0] for runs in found.values()]}", file=sys.stderr, flush=True)
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


def table(name: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The rows as lines of text."""
    titles = ("accuracy", "less without", "seconds", "less without")
    yield f"{name:22}" + "".join(f"{title:>18}" for title in titles)
    for row in rows:
        names = ("accuracy", "accuracy_difference", "seconds", "seconds_difference")
        cells = [f"{row[each]['mean']:.4f} +- {row[each]['std']:.4f}" for each in names[:2]]
        cells += [f"{row[each]['mean']:.2f} +- {row[each]['std']:.2f}" for each in names[2:]]
        yield f"{row['variant']:22}" + "".join(f"{cell:>18}" for cell in cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; prints a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.canary_cost", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--experiment", choices=tuple(VARIANTS), action="append", help="default: all of them")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    if options.seeds < 2:
        parser.error(f"--seeds: a spread needs 2 seeds or more, found {options.seeds}")
    found = {name: study(name, seeds=options.seeds) for name in options.experiment or VARIANTS}
    if options.format == "json":
        print(json.dumps(found, indent=2))
    else:
        print("\n\n".join("\n".join(table(name, rows)) for name, rows in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
