"""What sparse messages cost in time: rounds of FLASC against rounds of dense LoRA, one of each in turn.

    python -m simulations.benchmarks.sparse [--config flasc_digits] [--density 0.1] [--rounds 60] [--format json]

Both runs are whole (ledger, checkpoint, counts of bytes) and share silos, cohorts and batches. The ratio is that of the
median seconds of a round, evaluation left out; by phases beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulations.running import ActiveRun
from simulations.shipped import find
from strategies.experiment import Experiment
from strategies.loading import load

FIRST = 5  # Rounds that warm up, and are not counted.


def experiment(config: str, density: float, rounds: int) -> Experiment:
    """A shipped experiment of strategy flasc at one density both ways."""
    changes = [f"strategy.density_{way}={density}" for way in ("down", "up")]
    return load(find(config), [*changes, f"rounds={rounds + FIRST}", "metrics.every=1000000"])


def measured(config: str, density: float, rounds: int) -> dict[str, Any]:
    """Median seconds of a round, dense and sparse, in all and by phase; and their ratio."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ActiveRun(experiment(config, 1.0, rounds), Path(folder) / "dense") as dense,
        ActiveRun(experiment(config, density, rounds), Path(folder) / "sparse") as sparse,
    ):
        rows = [(one.row["seconds"], other.row["seconds"]) for one, other in zip(dense, sparse)][FIRST:]
    found = {name: phases([pair[at] for pair in rows]) for at, name in enumerate(("dense", "sparse"))}
    ratio = found["sparse"]["round"] / found["dense"]["round"]
    return {"config": config, "density": density, "rounds": rounds, **found, "ratio": ratio}


def phases(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median seconds of every phase but evaluation, and of the whole round."""
    names = [name for name in rows[0] if name != "evaluate"]
    whole = statistics.median(sum(row[name] for name in names) for row in rows)
    return {name: statistics.median(row[name] for row in rows) for name in names} | {"round": whole}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.sparse", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", default="flasc_digits")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    found = measured(options.config, options.density, options.rounds)
    if options.format == "json":
        print(json.dumps(found, indent=2))
        return 0
    for name in ("dense", "sparse"):
        print(f"{name:7}" + "  ".join(f"{phase} {1000 * seconds:.2f} ms" for phase, seconds in found[name].items()))
    print(f"a round at density {found['density']:g} takes {found['ratio']:.2f} times as long as a dense one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
