"""What the accountant says on a grid of plans, how sure it is, and what that costs in time and memory.

Poisson rounds under add/remove at delta 1e-5, all 80 plans of rate {.001, .01, .1, 1}, noise {.5, .8, 1, 2,
5} and rounds {1, 100, 1000, 10000}. Each cell is priced in a process of its own, so its seconds and its peak memory are
those of a first question. The reference knows nothing of our code: below rate 1 it is Opacus' PRV accountant, whose
epsilon lies between its two ends (Gopi et al. 2021, theorem 5.5), asked for an error of 0.5% of epsilon, 1e-5 at least;
at rate 1 dp-accounting's closed form. Above epsilon 700, where e^epsilon is no double, Opacus has no answer.

Then the noise for epsilon 2 over 1000 rounds (rate .01, delta 1e-6), against the noise that Opacus' Renyi accountant
asks for. Passed means: no cell above 2 GB or 60 s, no lower end above the reference's upper end, no upper end below its
lower end, a reference wherever there can be one, and no more noise than the Renyi accountant.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from simulations.studies.findings import Criterion, Findings, Sheet
from simulations.studies.registry import Ask, study

DELTA = 1e-5
RATES, NOISES, ROUNDS = (0.001, 0.01, 0.1, 1.0), (0.5, 0.8, 1.0, 2.0, 5.0), (1, 100, 1000, 10_000)
QUICK = ((0.01, 1.0), (1.0, 5.0), (100,))
MOST_MB, MOST_S = 2000.0, 60.0
TARGET, TARGET_DELTA, TARGET_RATE, TARGET_ROUNDS = 2.0, 1e-6, 0.01, 1000
_ERROR = 0.005  # Of epsilon: half of what our own grids settle to.
_WORST = 3
_OVERFLOW = 700.0


def cell(rate: float, noise: float, rounds: int) -> dict[str, Any]:
    """One plan, priced here and now: its bracket, the seconds that took and the peak memory of this process in MB."""
    from privacy.accountant import epsilon
    from privacy.events import Gaussian, Poisson, Repeated, Sampled

    before = time.perf_counter()
    found = epsilon(Repeated(Sampled(Poisson(rate), Gaussian(noise)), rounds), DELTA)
    seconds = time.perf_counter() - before
    return {
        "lower": found.lower,
        "upper": found.upper,
        "method": found.method,
        "width": 1 - found.lower / found.upper if found.upper > 0 else 0.0,
        "seconds": round(seconds, 3),
        "peak_mb": round(peak_mb()),
    }


def peak_mb() -> float:
    """The most memory that this process ever held. Not `getrusage`: that counts in what its parent held at the fork."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def fresh(rate: float, noise: float, rounds: int) -> dict[str, Any]:
    """`cell` in a process of its own."""
    plan = ", ".join(repr(value) for value in (rate, noise, rounds))
    code = f"import json; from simulations.studies.accountant_grid import cell; print(json.dumps(cell({plan})))"
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path}
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def reference(rate: float, noise: float, rounds: int, about: float) -> tuple[float, float] | tuple[None, None]:
    """Between what epsilon surely is, by code that is not ours; None where that has no answer.

    Args:
        rate: of a Poisson sample.
        noise: multiplier.
        rounds: of the plan.
        about: some epsilon near it, to choose the reference's error by.
    """
    if rate == 1:
        import dp_accounting

        exact = float(dp_accounting.get_epsilon_gaussian(noise / math.sqrt(rounds), DELTA))
        return exact * (1 - 1e-9), exact * (1 + 1e-9)
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise, rate, rounds)]
    errors = {"eps_error": max(_ERROR * about, 1e-5), "delta_error": DELTA / 1000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It guesses its domain by a Renyi bound whose orders it finds too few.
        low, _, high = accountant._get_dprv(**errors).compute_epsilon(DELTA, **errors)
    return (max(0.0, float(low)), float(high)) if math.isfinite(high) else (None, None)


@study(
    "accountant_grid",
    about="What the accountant says on a grid of plans, against code not ours",
    seeds=(),
    quick_seeds=(),
)
def accountant_grid(ask: Ask) -> Findings:
    """A row for every plan, the reference beside it."""
    plans = list(itertools.product(*(QUICK if ask.quick else (RATES, NOISES, ROUNDS))))
    rows, saved = grid(ask, plans), saving()
    left = [f"plans: {80 - len(plans)} of 80"] if ask.quick else []
    return Findings(criteria=criteria(rows, saved), sheets=[*sheets(rows), _saved(saved)], rows=rows, skipped=left)


def grid(ask: Ask, plans: Sequence[tuple[float, float, int]]) -> list[dict[str, Any]]:
    """The rows."""
    rows = []
    for rate, noise, count in plans:
        ask.go_on()
        row = {"rate": rate, "noise": noise, "rounds": count} | fresh(rate, noise, count)
        low, high = reference(rate, noise, count, row["upper"])
        rows.append(row | {"reference_lower": low, "reference_upper": high})
        ask.say("  ".join(_cells(rows[-1])))
    return rows


def saving() -> dict[str, float]:
    """The noise for epsilon 2 here and by Opacus' Renyi accountant, and what share of it is saved."""
    from opacus.accountants.utils import get_noise_multiplier

    from privacy.accountant import noise_multiplier_for
    from privacy.events import Event, Gaussian, Poisson, Repeated, Sampled

    def plan(noise: float) -> Event:
        return Repeated(Sampled(Poisson(TARGET_RATE), Gaussian(noise)), TARGET_ROUNDS)

    ours = noise_multiplier_for(TARGET, TARGET_DELTA, plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_noise_multiplier(
            target_epsilon=TARGET,
            target_delta=TARGET_DELTA,
            sample_rate=TARGET_RATE,
            steps=TARGET_ROUNDS,
            accountant="rdp",
            epsilon_tolerance=1e-3,
        )
    return {"noise": ours, "opacus_rdp": float(theirs), "saved": 1 - ours / theirs}


def criteria(rows: Sequence[Mapping[str, Any]], saved: Mapping[str, float]) -> list[Criterion]:
    """What must hold, as the number of cells in which it does not; written so that NaN counts."""
    known = [row for row in rows if row["reference_upper"] is not None]
    wrong = {
        f"cells above {MOST_MB:g} MB": sum(not row["peak_mb"] <= MOST_MB for row in rows),
        f"cells above {MOST_S:g} s": sum(not row["seconds"] <= MOST_S for row in rows),
        "lower ends above the reference": sum(not row["lower"] <= row["reference_upper"] for row in known),
        "upper ends below the reference": sum(not row["upper"] >= row["reference_lower"] for row in known),
        "cells without a reference where e^epsilon is a number": sum(
            row not in known and not row["upper"] > _OVERFLOW for row in rows
        ),
    }
    found = [
        Criterion(name=name, spec_id="accounting", measured=float(count), threshold=0.0, relation="<=")
        for name, count in wrong.items()
    ]
    less = Criterion(name="noise saved against Renyi", spec_id="accounting", measured=saved["saved"], threshold=0.0)
    return [*found, less]


def sheets(rows: Sequence[Mapping[str, Any]]) -> list[Sheet]:
    """All plans, and the worst of them."""
    header = ("rate", "noise", "rounds", "epsilon from", "to", "method", "width", "reference from", "to", "s", "MB")
    worst = []
    for name in ("width", "seconds", "peak_mb"):
        for row in sorted(rows, key=lambda row: row[name])[::-1][:_WORST]:
            worst.append((name, f"{row[name]:.3g}", f"{row['rate']:g}", f"{row['noise']:g}", f"{row['rounds']}"))
    return [
        Sheet(f"Plans at delta {DELTA:g}", header, [_cells(row) for row in rows]),
        Sheet("The largest", ("what", "value", "rate", "noise", "rounds"), worst),
    ]


def _saved(saved: Mapping[str, float]) -> Sheet:
    title = f"Noise for epsilon {TARGET:g} (rate {TARGET_RATE:g}, {TARGET_ROUNDS} rounds, delta {TARGET_DELTA:g})"
    body = [(f"{saved['noise']:.3f}", f"{saved['opacus_rdp']:.3f}", f"{saved['saved']:.1%}")]
    return Sheet(title, ("here", "by Renyi in Opacus", "less"), body)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    ends = [row[name] for name in ("lower", "upper", "reference_lower", "reference_upper")]
    low, high, below, above = ("none" if end is None else f"{end:.5g}" for end in ends)
    plan = (f"{row['rate']:g}", f"{row['noise']:g}", f"{row['rounds']}")
    return (
        *plan,
        low,
        high,
        row["method"],
        f"{row['width']:.2%}",
        below,
        above,
        f"{row['seconds']:.2f}",
        f"{row['peak_mb']}",
    )
