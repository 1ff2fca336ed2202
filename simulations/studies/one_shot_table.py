"""Table 1 of the one-shot audit: what it reads for the Gaussian mechanism, whose epsilon is known.

    python -m simulations.studies.one_shot_table [--runs 20] [--dimension 1000000] [--canaries 1000] [--format json]

Source: Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", ICLR 2024, arXiv 2302.03098,
table 1 (d = 1e6, k = 1,000, delta = 1e-6). Real vectors: the sum of all canaries plus noise, scored one by one. The
three noises of a run share its canaries, so columns are correlated and runs are not. Vectors are in single precision,
whose rounding moves a score by about 1e-8, a hundred-thousandth of its standard deviation.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privacy import audit, gaussian, null, streams

EPSILONS = (1.0, 3.0, 10.0)
DELTA = 1e-6
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


def study(*, runs: int, dimension: int, canaries: int) -> list[dict[str, Any]]:
    """A row per epsilon: mean and standard deviation over runs of the estimate with either spread."""
    found: dict[float, dict[str, list[float]]] = {epsilon: {"shared": [], "fitted": []} for epsilon in EPSILONS}
    for seed in range(runs):
        before = time.perf_counter()
        for epsilon, cosines in run(seed, dimension=dimension, canaries=canaries).items():
            scores = null.standard_scores(cosines, dimension)
            found[epsilon]["shared"].append(audit.shared(scores, DELTA).epsilon)
            found[epsilon]["fitted"].append(audit.fitted(scores, None, DELTA).epsilon)
        read = ", ".join(f"{columns['shared'][-1]:.3f}" for columns in found.values())
        seconds = time.perf_counter() - before
        print(f"run {seed + 1}/{runs}: shared {read} ({seconds:.1f} s)", file=sys.stderr, flush=True)
    return [_row(epsilon, columns, dimension, canaries) for epsilon, columns in found.items()]


def _row(epsilon: float, columns: dict[str, list[float]], dimension: int, canaries: int) -> dict[str, Any]:
    effective = math.hypot(noise_for(epsilon), math.sqrt(canaries / dimension))
    row: dict[str, Any] = {"epsilon": epsilon, "noise": noise_for(epsilon), "runs": len(columns["shared"])}
    row["at_this_dimension"] = gaussian.epsilon(effective, DELTA)  # Other canaries are noise too, if a little.
    for name, values in columns.items():
        row[name] = {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
    row["paper"] = dict(zip(("mean", "std"), PAPER[epsilon]))
    return row


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The rows as lines of text."""
    yield f"{'epsilon':>8}{'here':>8}{'shared':>18}{'fitted':>18}{'paper':>18}"
    for row in rows:
        cells = "".join(f"{_spread(row[name]):>18}" for name in ("shared", "fitted", "paper"))
        yield f"{row['epsilon']:>8g}{row['at_this_dimension']:>8.3f}{cells}"


def _spread(cell: dict[str, Any]) -> str:
    return f"{cell['mean']:.3f}" + ("" if cell["std"] is None else f" +- {cell['std']:.3f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; prints a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.one_shot_table", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--canaries", type=int, default=1_000)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = study(runs=options.runs, dimension=options.dimension, canaries=options.canaries)
    print(json.dumps(rows, indent=2) if options.format == "json" else "\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
