"""Plants one-line faults in a copy of the tree and requires the suite to notice each: `make mutants`.

Every guarantee of the code has a mutant here that breaks it. A mutant that survives is a guarantee that no test holds.

    python tests/mutants.py [NAME ...] [--jobs 2]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("privacy", "strategies", "client", "server", "simulations", "tests")
CORE = ("tests/privacy", "tests/client", "tests/contracts", "tests/server", "tests/simulations")


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: what it breaks.
        file: where.
        line: the text to replace; it must occur exactly once.
        fault: the text to put there.
    """

    name: str
    file: str
    line: str
    fault: str


MUTANTS = (
    Mutant(
        "noise off",
        "privacy/mechanism.py",
        "return total + noise.mul_(self.noise_multiplier * self.clip_norm)",
        "return total",
    ),
    Mutant(
        "noise halved",
        "privacy/mechanism.py",
        "noise.mul_(self.noise_multiplier * self.clip_norm)",
        "noise.mul_(0.5 * self.noise_multiplier * self.clip_norm)",
    ),
    Mutant(
        "noise without the clip norm",
        "privacy/mechanism.py",
        "noise.mul_(self.noise_multiplier * self.clip_norm)",
        "noise.mul_(self.noise_multiplier)",
    ),
    Mutant(
        "event with another noise multiplier",
        "privacy/mechanism.py",
        "return Gaussian(self.noise_multiplier)",
        "return Gaussian(1.05 * self.noise_multiplier)",
    ),
    Mutant(
        "no clip",
        "privacy/mechanism.py",
        "torch.where(norms > self.clip_norm, self.clip_norm / norms, 1.0)",
        "torch.ones_like(norms)",
    ),
    Mutant(
        "clip after the sum",
        "privacy/release.py",
        "self.sums[name] += (factors * weights[good]) @ vectors",
        "self.sums[name] += float(mechanism.factors((weights[good] @ vectors).norm())) * (weights[good] @ vectors)",
    ),
    Mutant(
        "denominator is the arrivals",
        "privacy/release.py",
        "divisors[name] = self.tally.weight if exact else self.expected",
        "divisors[name] = self.tally.weight or self.expected",
    ),
    Mutant(
        "empty cohort without noise",
        "privacy/release.py",
        "sums[name] = mechanism.privatize(self.sums[name], rng[name])",
        "sums[name] = mechanism.privatize(self.sums[name], rng[name]) if self.tally.arrived else self.sums[name]",
    ),
    Mutant(
        "weights above 1 pass",
        "privacy/release.py",
        "allowed &= weights <= 1.0",
        "allowed &= weights <= 10.0",
    ),
    Mutant(
        "updates that are not finite pass",
        "privacy/release.py",
        "finite &= torch.isfinite(norm)",
        "finite &= True",
    ),
    Mutant(
        "chunks added as they come",
        "privacy/release.py",
        "while (ready := self._waiting.pop(self._next, None)) is not None:",
        "while (ready := self._waiting.pop(partial.chunk, None)) is not None:",
    ),
    Mutant(
        "rate of another draw",
        "server/sampler.py",
        "Sampled(Poisson(self.rate), inner)",
        "Sampled(Poisson(self.rate / 2), inner)",
    ),
    Mutant(
        "cohort from the seed alone",
        "server/sampler.py",
        'coins = streams.keys(streams.derive(seed, "cohort", round_), np.arange(self.population))',
        'coins = streams.keys(streams.derive(seed, "cohort"), np.arange(self.population))',
    ),
    Mutant(
        "reserve not on the disk",
        "privacy/ledger.py",
        'durable=kind == "reserve" and not hold',
        "durable=False",
    ),
    Mutant(
        "only commits are spent",
        "privacy/ledger.py",
        "return [entry.event for entry in self._spent.values() if entry.unit == unit and entry.event is not None]",
        "return [e.event for e in self._spent.values() if e.unit == unit and e.event and e.seq not in self._open]",
    ),
    Mutant(
        "hash chain not checked",
        "privacy/ledger.py",
        'chained = record["prev_hash"] == self.head.hash and entry.seq == self.head.seq + 1',
        "chained = entry.seq == self.head.seq + 1",
    ),
    Mutant(
        "canaries missing in the denominator",
        "simulations/running.py",
        "expected=plan.sampler.expected + canaries",
        "expected=plan.sampler.expected",
    ),
    Mutant(
        "same noise every round",
        "server/loop.py",
        'streams.generator(seed, "noise", round_, name)',
        'streams.generator(seed, "noise", name)',
    ),
    Mutant(
        "budget looked at after the round",
        "server/loop.py",
        "_afford(training, odometer, charges + 1, round_)",
        "_afford(training, odometer, charges, round_)",
    ),
    Mutant(
        "damaged checkpoint accepted",
        "server/checkpoint.py",
        'if _digest(tensors, labels["confide"]) != labels.get("sha256"):',
        "if False:",
    ),
    Mutant(
        "personal state current before the commit",
        "client/personal.py",
        "self._store.staged[name][self._silos] = value.numpy().reshape(expected)",
        "self._store.current[name][self._silos] = value.numpy().reshape(expected)",
    ),
    Mutant(
        "stacked: padding counts",
        "client/stacked.py",
        "real = torch.arange(batch) < count.unsqueeze(-1)",
        "real = torch.arange(batch) < count.unsqueeze(-1).clamp(min=batch)",
    ),
    Mutant(
        "fixed-size cohorts without the factor 2",
        "privacy/terms.py",
        'Part("fixed_size", size / population, noise / 2, times)',
        'Part("fixed_size", size / population, noise, times)',
    ),
    Mutant(
        "private standardisation free of charge",
        "simulations/planning.py",
        "before = (standardization.cost(standardize),) if isinstance(standardize, Private) else ()",
        "before = ()",
    ),
    Mutant(
        "sampled Gaussians composed one by one",
        "privacy/mechanism.py",
        "return events[0] if len(events) == 1 else Composed(events)",
        "return events[0]",
    ),
    Mutant(
        "examples: noise off",
        "privacy/steps.py",
        "noise.mul_(self.noise_multiplier * self.clip_norm)",
        "noise.mul_(0.0)",
    ),
    Mutant(
        "examples: no clip",
        "privacy/steps.py",
        "torch.where(norms > self.clip_norm, self.clip_norm / norms, 1.0)",
        "torch.ones_like(norms)",
    ),
    Mutant(
        "examples: price at another rate than the draw",
        "privacy/steps.py",
        "Sampled(Poisson(self.rate), step)",
        "Sampled(Poisson(self.rate / 2), step)",
    ),
    Mutant(
        "examples: rate from the rows that a silo holds",
        "client/dpsgd.py",
        "[self.silos[silo].rate for silo in silos]",
        "[min(1.0, self.silos[silo].batch / max(int(size), 1)) for silo, size in zip(silos, sizes)]",
    ),
    Mutant(
        "examples: empty batch without noise",
        "client/private.py",
        "descent.step(steps.release(torch.cat([part.reshape(-1) for part in sums]), noise))",
        "len(losses) and descent.step(steps.release(torch.cat([part.reshape(-1) for part in sums]), noise))",
    ),
    Mutant(
        "examples: bias left out of the norm",
        "client/private_stacked.py",
        "(values[number].square().sum(-1) + 1.0)",
        "values[number].square().sum(-1)",
    ),
    Mutant(
        "examples: padding of a stack counts",
        "client/private_stacked.py",
        "factors = steps[0].factors(_norms(values, slopes)) * real",
        "factors = steps[0].factors(_norms(values, slopes))",
    ),
    Mutant(
        "examples: fixed batches",
        "client/poisson.py",
        "joins[:, step] = present & (coins < np.asarray(rates, dtype=np.float64)[:, None])",
        "joins[:, step] = present & (np.argsort(coins) < (np.asarray(rates) * sizes)[:, None])",
    ),
    Mutant(
        "examples: silos pay after the round",
        "simulations/engines/accounts.py",
        """self.ledger.reserve_each(instruction.round, charges, unit=UNIT, neighbours=NEIGHBOURS)
        yield from self.link.ask(instruction, cohort, mechanisms, record=record)""",
        """yield from self.link.ask(instruction, cohort, mechanisms, record=record)
        self.ledger.reserve_each(instruction.round, charges, unit=UNIT, neighbours=NEIGHBOURS)""",
    ),
    Mutant(
        "examples: one fit too many is free",
        "client/dpsgd.py",
        "if not fit < self.fits:",
        "if not fit <= self.fits:",
    ),
    Mutant(
        "examples: all silos get the same noise",
        "client/dpsgd.py",
        'streams.generator(self.seed, "example noise", round_, fit, silo)',
        'streams.generator(self.seed, "example noise", round_, fit)',
    ),
    Mutant(
        "examples: reserves not on the disk",
        "privacy/ledger.py",
        "hold=at < last",
        "hold=True",
    ),
    Mutant(
        "delta measured from zero",
        "strategies/fedavg.py",
        'Update({"delta": after - start}',
        'Update({"delta": after}',
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the mutants; 0 when the suite killed every one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args(argv)
    chosen = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    healthy = _run(None)
    if healthy is not None:
        print(f"the suite fails without any fault; mend that first:\n{healthy}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(options.jobs) as pool:
        survivors = [name for name in pool.map(_judge, chosen) if name is not None]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed")
    return 1 if survivors else 0


def _judge(mutant: Mutant) -> str | None:
    """The mutant's name if it survived."""
    before = time.perf_counter()
    killed = _run(mutant)
    seconds = time.perf_counter() - before
    print(f"{'killed' if killed else 'SURVIVED':9} {mutant.name:45} {seconds:5.1f} s  {killed or ''}", flush=True)
    return None if killed else mutant.name


def _run(mutant: Mutant | None) -> str | None:
    """Runs the core tests on a copy with the fault; the first failing test, or None if all pass."""
    with tempfile.TemporaryDirectory(prefix="confide-mutant-") as name:
        copy = Path(name)
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if mutant is not None:
            _plant(mutant, copy / mutant.file)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:doctest"]
        command += ["-o", "addopts=--strict-markers --import-mode=importlib", "-m", "not integration", *CORE]
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 1 or not failed:
        raise RuntimeError(f"pytest did not run (exit {done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[0]


def _plant(mutant: Mutant, path: Path) -> None:
    text = path.read_text()
    if text.count(mutant.line) != 1:
        raise SystemExit(f"{mutant.name}: its line occurs {text.count(mutant.line)} times in {mutant.file}; update it")
    path.write_text(text.replace(mutant.line, mutant.fault))


if __name__ == "__main__":
    sys.exit(main())
