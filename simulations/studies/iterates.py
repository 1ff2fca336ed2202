"""How much more all iterates show than the final model, in a real run.

A perceptron (64-64-10) on the digits of 200 silos, each in a round by a chance of 1/40, for 40 rounds with clip norm
0.5; 200 canaries, each in exactly one round. Somebody who sees every model sees a canary in its own round, where only
that round's noise hides it; in the final model the noise of all 40 rounds does. Source: Andrew et al., ICLR 2024, arXiv
2302.03098, section 5, where the same is seen on other data. With 200 canaries the fitted estimate reads too high (1.5
without any signal) and is not quoted in reports; here it is compared with itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from simulations.running import run
from simulations.studies.findings import Criterion, Findings, Sheet, largest
from simulations.studies.registry import Ask, study
from strategies.experiment import Experiment
from strategies.loading import parse

NOISES = (0.25, 0.5, 1.0, 2.0)
MOST_NOISE = 0.5  # Above it the final model's estimate is mostly chance, and so is a ratio to it.


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


@study("iterates", about="All models of a run show more of a canary than the last one does", seeds=(), quick_seeds=())
def iterates(ask: Ask) -> Findings:
    """A row per noise: the final model's estimate with its interval, and that of all iterates."""
    noises = NOISES[:2] if ask.quick else NOISES
    rows = []
    for noise in noises:
        ask.go_on()
        rows.append(measured(noise))
        ask.say(f"noise {noise:g}: {rows[-1]}")
    return Findings(
        criteria=criteria(rows),
        sheets=[sheet(rows)],
        rows=rows,
        skipped=[f"noise: {', '.join(f'{noise:g}' for noise in NOISES[2:])}"] if ask.quick else [],
    )


def measured(noise: float) -> dict[str, Any]:
    """The row of one noise."""
    with tempfile.TemporaryDirectory() as folder:
        found = run(configuration(noise), out=Path(folder) / "run").result["privacy"]["measured"]
    row = {"noise": noise} | {name: found[name] for name in ("epsilon", "lower", "upper", "claim")}
    return row | {"all_iterates": found["all_iterates"]["epsilon"]}


def criteria(rows: Sequence[Mapping[str, Any]]) -> list[Criterion]:
    """All iterates against the final model where noise is small; both fall with noise; the claim is not passed."""
    small = [row["all_iterates"] / row["epsilon"] for row in rows if row["noise"] <= MOST_NOISE]
    falls = [before[name] - after[name] for before, after in pairwise(rows) for name in ("epsilon", "all_iterates")]
    room = [row["claim"] + row["upper"] - 2 * row["epsilon"] for row in rows]
    return [
        Criterion(
            name=f"all iterates over the final model, least at noise up to {MOST_NOISE:g}",
            spec_id="P9",
            measured=-largest([-value for value in small]),
            threshold=3.0,
        ),
        Criterion(
            name="least fall of an estimate as noise rises",
            spec_id="P9",
            measured=-largest([-value for value in falls]),
            threshold=0.0,
        ),
        Criterion(
            name="claim and half the interval less the final model, least",
            spec_id="P9",
            measured=-largest([-value for value in room]),
            threshold=0.0,
        ),
    ]


def sheet(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """Epsilon by noise."""
    body = [
        (
            f"{row['noise']:g}",
            f"{row['claim']:.2f}",
            f"{row['all_iterates']:.2f}",
            f"{row['epsilon']:.2f}",
            f"{row['lower']:.2f} to {row['upper']:.2f}",
        )
        for row in rows
    ]
    return Sheet("Epsilon", ("noise", "analytic", "all iterates", "final", "95% interval"), body)
