"""What the accountant says on a grid of plans, how sure it is, and what that costs in time and memory.

    python -m simulations.studies.accountant_grid [--rates .01 ...] [--noises 1 ...] [--rounds 100 ...] [--format json]

Poisson rounds under add/remove at delta 1e-5, by default all 80 plans of rate {.001, .01, .1, 1}, noise {.5, .8, 1, 2,
5} and rounds {1, 100, 1000, 10000}. Each cell is priced in a process of its own, so its seconds and its peak memory are
those of a first question. The reference knows nothing of our code: below rate 1 it is Opacus' PRV accountant, whose
epsilon lies between its two ends (Gopi et al. 2021, theorem 5.5), asked for an error of 0.5% of epsilon, 1e-5 at least;
at rate 1 dp-accounting's closed form. Above epsilon 700, where e^epsilon is no double, Opacus has no answer.

Then the noise for epsilon 2 over 1000 rounds (rate .01, delta 1e-6), against the noise that Opacus' Renyi accountant
asks for. Passed means: no cell above 2 GB or 60 s, no lower end above the reference's upper end, no upper end below its
lower end, a reference wherever there can be one, and no more noise than the Renyi accountant.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

DELTA = 1e-5
RATES, NOISES, ROUNDS = (0.001, 0.01, 0.1, 1.0), (0.5, 0.8, 1.0, 2.0, 5.0), (1, 100, 1000, 10_000)
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
    plan = [repr(value) for value in (rate, noise, rounds)]
    command = [sys.executable, "-m", "simulations.studies.accountant_grid", "--cell", *plan]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
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


def grid(rates: Sequence[float], noises: Sequence[float], rounds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for every plan, the reference beside it."""
    rows = []
    for rate, noise, count in itertools.product(rates, noises, rounds):
        row = {"rate": rate, "noise": noise, "rounds": count} | fresh(rate, noise, count)
        low, high = reference(rate, noise, count, row["upper"])
        rows.append(row | {"reference_lower": low, "reference_upper": high})
        print(_line(rows[-1]), file=sys.stderr, flush=True)
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


def criteria(rows: Sequence[Mapping[str, Any]], saved: Mapping[str, float]) -> dict[str, bool]:
    """What must hold; written so that NaN fails."""
    known = [row for row in rows if row["reference_upper"] is not None]
    return {
        f"every cell within {MOST_MB:g} MB": all(row["peak_mb"] <= MOST_MB for row in rows),
        f"every cell within {MOST_S:g} s": all(row["seconds"] <= MOST_S for row in rows),
        "no lower end above the reference": all(row["lower"] <= row["reference_upper"] for row in known),
        "no upper end below the reference": all(row["upper"] >= row["reference_lower"] for row in known),
        "a reference wherever e^epsilon is a number": all(row in known or row["upper"] > _OVERFLOW for row in rows),
        "no more noise than by Renyi": saved["saved"] >= 0,
    }


def table(rows: Sequence[Mapping[str, Any]], saved: Mapping[str, float], passed: Mapping[str, bool]) -> Iterator[str]:
    """The study as lines of text."""
    yield from map(_line, rows)
    for name, unit in (("width", ""), ("seconds", " s"), ("peak_mb", " MB")):
        worst = sorted(rows, key=lambda row: row[name])[::-1][:_WORST]
        plans = ", ".join(
            f"{row[name]:.3g}{unit} at ({row['rate']:g}, {row['noise']:g}, {row['rounds']})" for row in worst
        )
        yield f"largest {name}: {plans}"
    yield (
        f"noise for epsilon {TARGET:g}: {saved['noise']:.3f}, by Renyi in Opacus {saved['opacus_rdp']:.3f}: "
        f"{saved['saved']:.1%} less"
    )
    for name, held in passed.items():
        yield f"{'passed' if held else 'FAILED'}  {name}"


def _line(row: Mapping[str, Any]) -> str:
    low, high = row["reference_lower"], row["reference_upper"]
    between = f"{low:11.5g} to {high:11.5g}" if low is not None else f"{'none':>26}"
    return (
        f"q {row['rate']:<6g} z {row['noise']:<4g} T {row['rounds']:<6} {row['lower']:11.5g} to {row['upper']:11.5g}  "
        f"{row['method']:6} width {row['width']:7.2%}  reference {between}  "
        f"{row['seconds']:6.2f} s {row['peak_mb']:5} MB"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; 0 when all criteria are met."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.accountant_grid", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--noises", type=float, nargs="+", default=NOISES)
    parser.add_argument("--rounds", type=int, nargs="+", default=ROUNDS)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)  # One plan, for a process of its own.
    options = parser.parse_args(argv)
    if options.cell:
        rate, noise, rounds = options.cell
        print(json.dumps(cell(float(rate), float(noise), int(rounds))))
        return 0
    rows, saved = grid(options.rates, options.noises, options.rounds), saving()
    passed = criteria(rows, saved)
    found = {"delta": DELTA, "cells": rows, "saving": saved, "criteria": passed}
    print(json.dumps(found, indent=2) if options.format == "json" else "\n".join(table(rows, saved, passed)))
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
