"""Table 1 of the one-shot audit: what it reads for the Gaussian mechanism, whose epsilon is known.

Source: Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", ICLR 2024, arXiv 2302.03098,
table 1 (d = 1e6, k = 1,000, delta = 1e-6). Real vectors: the sum of all canaries plus noise, scored one by one. The
three noises of a run share its canaries, so columns are correlated and runs are not. Vectors are in single precision,
whose rounding moves a score by about 1e-8, a hundred-thousandth of its standard deviation.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privacy import audit, gaussian, null, streams
from simulations.studies.findings import Criterion, Findings, Sheet
from simulations.studies.registry import Ask, study

EPSILONS = (1.0, 3.0, 10.0)
DELTA = 1e-6
WHOLE, QUICK = (1_000_000, 1_000), (100_000, 1_000)  # Dimension and canaries.
COLUMNS = ("shared", "fitted", "paper")
PAPER = {1.0: (0.972, 0.148), 3.0: (3.04, 0.137), 10.0: (9.98, 0.190)}


def noise_for(epsilon: float) -> float:
    """The noise whose analytic Gaussian mechanism costs exactly epsilon."""
    from scipy.optimize import brentq

    return float(brentq(lambda noise: gaussian.epsilon(noise, DELTA) - epsilon, 0.05, 50.0, xtol=1e-12))


def unit(seed: int, canary: int, dimension: int) -> Tensor:
    """`audit.direction` in single precision, `(dimension,)`."""
    vector = torch.randn(dimension, generator=streams.generator(seed, "canary", canary))
    return vector.div_(torch.linalg.vector_norm(vector))


def run(seed: int, *, dimension: int, canaries: int) -> dict[float, np.ndarray[Any, np.dtype[np.float64]]]:
    """One run at every noise: epsilon to the cosines of its canaries, `(canaries,)`; no two are held at once."""
    total = torch.zeros(dimension)
    for canary in range(canaries):
        total += unit(seed, canary, dimension)
    released = []
    for epsilon in EPSILONS:
        rng = streams.generator(seed, "noise", int(1000 * epsilon))
        noisy = total + noise_for(epsilon) * torch.randn(dimension, generator=rng)
        released.append(noisy / torch.linalg.vector_norm(noisy))
    units = torch.stack(released)
    cosines = torch.stack([units @ unit(seed, canary, dimension) for canary in range(canaries)])
    return {epsilon: cosines[:, index].double().numpy() for index, epsilon in enumerate(EPSILONS)}


@study(
    "one_shot_table",
    about="What the audit reads for the Gaussian mechanism, whose epsilon is known (table 1 of the paper)",
    seeds=range(40),
    quick_seeds=range(10),
)
def one_shot_table(ask: Ask) -> Findings:
    """A row per epsilon: mean and standard deviation over runs of the estimate with either spread."""
    size = QUICK if ask.quick else WHOLE
    torch.set_num_threads(1)
    rows = table(ask, dimension=size[0], canaries=size[1])
    left = [f"dimension: {size[0]:,} of {WHOLE[0]:,}"] if ask.quick else []
    return Findings(criteria=criteria(rows), sheets=[sheet(rows)], rows=rows, skipped=left)


def table(ask: Ask, *, dimension: int, canaries: int) -> list[dict[str, Any]]:
    """The rows, a run per seed."""
    found: dict[float, dict[str, list[float]]] = {epsilon: {"shared": [], "fitted": []} for epsilon in EPSILONS}
    for seed in ask.seeds:
        ask.go_on()
        before = time.perf_counter()
        for epsilon, cosines in run(seed, dimension=dimension, canaries=canaries).items():
            scores = null.standard_scores(cosines, dimension)
            found[epsilon]["shared"].append(audit.shared(scores, DELTA).epsilon)
            found[epsilon]["fitted"].append(audit.fitted(scores, None, DELTA).epsilon)
        read = ", ".join(f"{columns['shared'][-1]:.3f}" for columns in found.values())
        ask.say(f"run {seed}: shared {read} ({time.perf_counter() - before:.1f} s)")
    return [_row(epsilon, columns, dimension, canaries) for epsilon, columns in found.items()]


def criteria(rows: Sequence[Mapping[str, Any]]) -> list[Criterion]:
    """The estimate that runs report comes back as what it should; of 1,000 studies of 40 runs one fails by chance."""
    found = []
    for row in rows:
        std, runs = row["shared"]["std"], row["runs"]
        error = math.nan if std is None else std / math.sqrt(runs)
        found.append(
            Criterion(
                name=f"epsilon {row['epsilon']:g}: estimate less truth, in standard errors",
                spec_id="P5",
                measured=abs(row["shared"]["mean"] - row["at_this_dimension"]) / error,
                threshold=4.0,
                relation="<=",
            )
        )
    return found


def _row(epsilon: float, columns: dict[str, list[float]], dimension: int, canaries: int) -> dict[str, Any]:
    effective = math.hypot(noise_for(epsilon), math.sqrt(canaries / dimension))
    row: dict[str, Any] = {"epsilon": epsilon, "noise": noise_for(epsilon), "runs": len(columns["shared"])}
    row["at_this_dimension"] = gaussian.epsilon(effective, DELTA)  # Other canaries are noise too, if a little.
    for name, values in columns.items():
        row[name] = {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
    row["paper"] = dict(zip(("mean", "std"), PAPER[epsilon]))
    return row


def sheet(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """The rows as text."""
    body = [
        (f"{row['epsilon']:g}", f"{row['at_this_dimension']:.3f}", *(_spread(row[name]) for name in COLUMNS))
        for row in rows
    ]
    remark = "The paper's row is written from memory and not checked against it."
    return Sheet("Measured epsilon", ("epsilon", "with other canaries", *COLUMNS), body, remark)


def _spread(cell: Mapping[str, Any]) -> str:
    return f"{cell['mean']:.3f}" + ("" if cell["std"] is None else f" ± {cell['std']:.3f}")
