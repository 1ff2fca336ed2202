"""Whether the audit's alarm catches a run whose noise is missing, and leaves right runs alone.

Two studies: `alarm` for silos, `alarm_example` for single rows.

The named configuration for silos: a perceptron (64-64-10, 4,810 parameters) on the digits of 100 silos that take part
in all of 10 rounds with noise multiplier 10, so that epsilon is 0.78 at delta 1e-3, and 400 canaries. The one for
examples: the same model on the digits of 20 silos, 72 rows each at most, every row in a batch with chance 1/2, 50 steps
in all with noise multiplier 12, so that epsilon is 0.73 at delta 1e-3, and 400 canary examples in one silo. Every seed
is run twice through the whole of confide: once as it is, once with the noise taken out of the mechanism while its price
stays. The alarm has to go off in the second run only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Generator, Tensor

from privacy.mechanism import GaussianSum, Mechanism
from privacy.noise import NoiseSource, SystemNoise
from privacy.steps import NoisySteps
from simulations.running import ActiveRun, train
from simulations.studies.findings import Criterion, Findings, Sheet, mean
from simulations.studies.registry import Ask, study
from strategies.experiment import Experiment
from strategies.loading import parse

CANARIES = 400
SHOWN = ("epsilon", "lower_bound", "shared_bound", "claim", "detectable", "ks_pvalue", "alarm")


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


@study(
    "alarm",
    about="The audit's alarm goes off where noise is missing, and only there (silos)",
    seeds=range(20),
    quick_seeds=(0, 1),
)
def alarm(ask: Ask) -> Findings:
    """Canary silos."""
    return found(ask, "silo")


@study(
    "alarm_example",
    about="The audit's alarm goes off where noise is missing, and only there (single rows)",
    seeds=range(20),
    quick_seeds=(0, 1),
)
def alarm_example(ask: Ask) -> Findings:
    """Canary examples."""
    return found(ask, "example")


def found(ask: Ask, unit: str) -> Findings:
    """How often the alarm went off with and without noise, and what was measured."""
    (configured, run), rows = UNITS[unit], []
    for seed in ask.seeds:
        experiment = configured(seed, canaries=CANARIES)
        for noise in (True, False):
            ask.go_on()
            measured_ = run(experiment, noise=noise)
            rows.append({"seed": seed, "noise": noise} | {name: measured_[name] for name in SHOWN})
        ask.say(f"seed {seed}: {'; '.join(_line(row) for row in rows[-2:])}")
    return Findings(criteria=criteria(rows), sheets=[sheet(rows)], rows=rows)


def criteria(rows: Sequence[Mapping[str, Any]]) -> list[Criterion]:
    """The part of runs with an alarm: all without noise, none with it."""
    silent, right = ([row["alarm"] for row in rows if row["noise"] is noise] for noise in (False, True))
    return [
        Criterion(name="noise removed: part of runs with an alarm", spec_id="P8", measured=mean(silent), threshold=1.0),
        Criterion(
            name="right noise: part of runs with an alarm",
            spec_id="P8",
            measured=mean(right),
            threshold=0.0,
            relation="<=",
        ),
    ]


def sheet(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """The range of what was measured, and the claim beside it."""
    body = []
    for noise, word in ((False, "removed"), (True, "right")):
        runs = [row for row in rows if row["noise"] is noise]
        ranges = [_range([row[name] for row in runs]) for name in ("epsilon", "lower_bound", "shared_bound")]
        body.append((word, *ranges, f"{runs[0]['claim']:.3f}"))
    return Sheet("Measured epsilon", ("noise", "estimate", "by counting", "by spread", "claim"), body)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def _line(row: Mapping[str, Any]) -> str:
    measured_, bounds = row["epsilon"], f"{row['lower_bound']:.2f}/{row['shared_bound']:.2f}"
    words = f"measured {measured_:.2f}, bounds {bounds}, claim {row['claim']:.3f}"
    return f"{'right' if row['noise'] else 'silent'}: {words}{', ALARM' if row['alarm'] else ''}"
