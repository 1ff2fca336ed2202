"""How much more all iterates show than the final model, in a real run.

    python -m simulations.studies.iterates [--noise 0.25 0.5 1 2] [--format json]

A perceptron (64-64-10) on the digits of 200 silos, each in a round by a chance of 1/40, for 40 rounds with clip norm
0.5; 200 canaries, each in exactly one round. Somebody who sees every model sees a canary in its own round, where only
that round's noise hides it; in the final model the noise of all 40 rounds does. Source: Andrew et al., ICLR 2024, arXiv
2302.03098, section 5, where the same is seen on other data. With 200 canaries the fitted estimate reads too high (1.5
without any signal) and is not quoted in reports; here it is compared with itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from simulations.running import run
from strategies.experiment import Experiment
from strategies.loading import parse

NOISES = (0.25, 0.5, 1.0, 2.0)


def configuration(noise: float) -> Experiment:
    """The configuration at a noise multiplier."""
    return parse(
        {
            "name": "iterates",
            "rounds": 40,
            "task": {"name": "mlp", "hidden": [64]},
            "data": {"name": "digits", "silos": 200, "public_test": 0.2},
            "cohort": {"sampling": "poisson", "rate": 1 / 40},
            "train": {"steps": 5, "learning_rate": 0.1},
            "privacy": {
                "silo": {"clip_norm": 0.5, "noise_multiplier": noise, "delta": 1e-3},
                "audit": {"canaries": 200, "participation": "spread"},
            },
            "metrics": {"every": 40},
        }
    )


def study(noises: Sequence[float] = NOISES) -> list[dict[str, Any]]:
    """A row per noise: the final model's estimate with its interval, and that of all iterates."""
    rows = []
    for noise in noises:
        with tempfile.TemporaryDirectory() as folder:
            found = run(configuration(noise), out=Path(folder) / "run").result["privacy"]["measured"]
        names = ("epsilon", "lower", "upper", "claim")
        row = {"noise": noise} | {name: found[name] for name in names}
        rows.append(row | {"all_iterates": found["all_iterates"]["epsilon"]})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The rows as lines of text."""
    yield f"{'noise':>6}{'analytic':>10}{'all iterates':>14}{'final':>8}  95% interval"
    for row in rows:
        interval = f"{row['lower']:.2f} to {row['upper']:.2f}"
        numbers = f"{row['claim']:>10.2f}{row['all_iterates']:>14.2f}{row['epsilon']:>8.2f}"
        yield f"{row['noise']:>6g}{numbers}  {interval}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; prints a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.iterates", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--noise", type=float, nargs="*", default=NOISES)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    rows = study(options.noise)
    print(json.dumps(rows, indent=2) if options.format == "json" else "\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
