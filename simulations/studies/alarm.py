"""Whether the audit's alarm catches a run whose noise is missing, and leaves right runs alone.

    python -m simulations.studies.alarm [--unit silo|example] [--seeds 20] [--canaries 400] [--format json]

The named configuration for silos: a perceptron (64-64-10, 4,810 parameters) on the digits of 100 silos that take part
in all of 10 rounds with noise multiplier 10, so that epsilon is 0.78 at delta 1e-3, and 400 canaries. The one for
examples: the same model on the digits of 20 silos, 72 rows each at most, every row in a batch with chance 1/2, 50 steps
in all with noise multiplier 12, so that epsilon is 0.73 at delta 1e-3, and 400 canary examples in one silo. Every seed
is run twice through the whole of confide: once as it is, once with the noise taken out of the mechanism while its price
stays. The alarm has to go off in the second run only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Generator, Tensor

from privacy.mechanism import GaussianSum, Mechanism
from privacy.noise import NoiseSource, SystemNoise
from privacy.steps import NoisySteps
from simulations.running import ActiveRun, train
from strategies.experiment import Experiment
from strategies.loading import parse


@dataclass(frozen=True)
class SilentSum(GaussianSum):
    """The fault: priced and clipped as the Gaussian sum that it is not."""

    def privatize(self, total: Tensor, source: NoiseSource, *, stream: Sequence[int | str]) -> Tensor:
        """The sum without its noise."""
        return total


def configuration(seed: int, *, canaries: int) -> Experiment:
    """The named configuration."""
    return parse(
        {
            "name": "alarm",
            "seed": seed,
            "rounds": 10,
            "task": {"name": "mlp", "hidden": [64]},
            "data": {"name": "digits", "silos": 100, "public_test": 0.2},
            "cohort": {"sampling": "all"},
            "train": {"steps": 5, "learning_rate": 0.1},
            "privacy": {
                "silo": {"clip_norm": 0.5, "noise_multiplier": 10.0, "delta": 1e-3},
                "audit": {"canaries": canaries},
            },
            "metrics": {"every": 10},
        }
    )


def example_configuration(seed: int, *, canaries: int) -> Experiment:
    """The named configuration for examples."""
    return parse(
        {
            "name": "alarm_example",
            "seed": seed,
            "rounds": 10,
            "task": {"name": "mlp", "hidden": [64]},
            "data": {"name": "digits", "silos": 20, "public_test": 0.2},
            "cohort": {"sampling": "all"},
            "train": {"steps": 5, "learning_rate": 0.1},
            "privacy": {
                "example": {"clip_norm": 1.0, "noise_multiplier": 12.0, "delta": 1e-3, "rows": 72, "batch": 36},
                "audit": {"examples": {"canaries": canaries}},
            },
            "metrics": {"every": 10},
        }
    )


def silent_release(self: NoisySteps, total: Tensor, noise: Generator | SystemNoise) -> Tensor:
    """The fault in DP-SGD: a batch's clipped sum, divided but not noised, at the price of noise."""
    return total / self.batch


def example_measured(experiment: Experiment, *, noise: bool) -> dict[str, Any]:
    """As `measured`, of a row of the one audited silo."""
    release = NoisySteps.release if noise else silent_release
    with tempfile.TemporaryDirectory() as folder, ActiveRun(experiment, Path(folder) / "run") as active:
        with patch.object(NoisySteps, "release", release):
            train(active)
        (found,) = active.finish().result["privacy"]["measured_example"]
        return dict(found)


def measured(experiment: Experiment, *, noise: bool) -> dict[str, Any]:
    """Runs it, and gives what result.json says was measured."""
    with tempfile.TemporaryDirectory() as folder, ActiveRun(experiment, Path(folder) / "run") as active:
        if not noise:
            silent: dict[str, Mechanism] = {
                name: SilentSum(mechanism.clip_norm, mechanism.noise_multiplier)
                for name, mechanism in active.training.mechanisms.items()
                if isinstance(mechanism, GaussianSum)
            }
            active.training = replace(active.training, mechanisms=silent)
        train(active)
        found: dict[str, Any] = active.finish().result["privacy"]["measured"]
        return found


UNITS = {"silo": (configuration, measured), "example": (example_configuration, example_measured)}


def study(*, seeds: int, canaries: int, unit: str = "silo") -> dict[str, Any]:
    """How often the alarm went off with and without noise, and what was measured."""
    (configured, run), rows = UNITS[unit], []
    for seed in range(seeds):
        experiment = configured(seed, canaries=canaries)
        for noise in (True, False):
            found = run(experiment, noise=noise)
            names = ("epsilon", "lower_bound", "shared_bound", "claim", "detectable", "ks_pvalue", "alarm")
            rows.append({"seed": seed, "noise": noise} | {name: found[name] for name in names})
        print(f"seed {seed}: {'; '.join(_line(row) for row in rows[-2:])}", file=sys.stderr, flush=True)
    caught = sum(row["alarm"] for row in rows if not row["noise"])
    false = sum(row["alarm"] for row in rows if row["noise"])
    return {"unit": unit, "seeds": seeds, "canaries": canaries, "caught": caught, "false_alarms": false, "runs": rows}


def _line(row: dict[str, Any]) -> str:
    measured_, bounds = row["epsilon"], f"{row['lower_bound']:.2f}/{row['shared_bound']:.2f}"
    words = f"measured {measured_:.2f}, bounds {bounds}, claim {row['claim']:.3f}"
    return f"{'right' if row['noise'] else 'silent'}: {words}{', ALARM' if row['alarm'] else ''}"


def table(result: dict[str, Any]) -> Iterator[str]:
    """The result as lines of text."""
    yield f"noise removed on purpose: alarm in {result['caught']} of {result['seeds']} runs"
    yield f"right noise:              alarm in {result['false_alarms']} of {result['seeds']} runs"
    for noise in (False, True):
        runs = [row for row in result["runs"] if row["noise"] is noise]
        for name in ("epsilon", "lower_bound", "shared_bound"):
            values = [row[name] for row in runs]
            word = f"{'right' if noise else 'silent'} {name}"
            yield f"{word:24}  {min(values):.3f} to {max(values):.3f}  (claim {runs[0]['claim']:.3f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; 0 when every fault was caught and no right run was blamed."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.alarm", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--unit", choices=tuple(UNITS), default="silo")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--canaries", type=int, default=400)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    result = study(seeds=options.seeds, canaries=options.canaries, unit=options.unit)
    print(json.dumps(result, indent=2) if options.format == "json" else "\n".join(table(result)))
    return 0 if result["caught"] == result["seeds"] and not result["false_alarms"] else 1


if __name__ == "__main__":
    sys.exit(main())
