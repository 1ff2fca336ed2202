"""What a scrape of many runs costs: `python -m simulations.benchmarks.exporter [--runs 100] [--rounds 1000]`.

Run folders are made up of lines as a run of `--silos` writes them, with rounds, ledger and monitor. The first scrape
reads everything, the next only what is new; between them every run commits a round.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from server.monitor import tallied
from simulations.metrics.exporter import Exporter

EXPERIMENT = """name: made-up
rounds: 1000
task: logistic
data: {name: digits, silos: SILOS}
privacy: {silo: {clip_norm: 0.5, noise_multiplier: 1.0, delta: 0.001}}
"""
PHASES = ("reserve", "train", "aggregate", "account", "evaluate", "store")


def line(round_: int, silos: int) -> str:
    """A round, of which each tenth silo failed for one of twenty reasons."""
    failed = silos // 10
    row = {
        "round": round_,
        "cohort": silos,
        "arrived": silos - failed,
        "failures": failed,
        "failure_reasons": {f"reason {at}": failed // 20 for at in range(20)},
        "bytes_up": 4_000_000,
        "bytes_down": 4_000_000,
        "parameters_up": 1_000_000,
        "parameters_down": 1_000_000,
        "clip_norms": {"delta": 0.5},
        "clip_fraction": None,
        "train_loss": None,
        "accuracy": 0.9,
        "loss": 0.3,
        "epsilon": 4.0,
        "seconds": dict.fromkeys(PHASES, 0.1),
    }
    return json.dumps(row) + "\n"


def charges(round_: int) -> str:
    """A round's two lines in the ledger."""
    event = {"kind": "gaussian", "noise_multiplier": 1.0}
    same = {"run": "0" * 64, "dataset": "0" * 64, "round": round_, "unit": "silo", "prev_hash": "0" * 64}
    lines = [same | {"kind": "reserve", "event": event}, same | {"kind": "commit", "reserve": 2 * round_ - 1}]
    return "".join(json.dumps(each) + "\n" for each in lines)


def monitored(round_: int, silos: int) -> str:
    """A round's two lines of the monitor."""
    done = {"round": round_, "fsync": tallied([0.003]), "trained": tallied([0.02] * silos)}
    return json.dumps({"round": round_, "reserved": 4.0}) + "\n" + json.dumps(done) + "\n"


def extend(folder: Path, rounds: range, silos: int) -> None:
    """Adds rounds to a run's folder."""
    for name, lines in (
        ("rounds.jsonl", (line(at, silos) for at in rounds)),
        ("ledger.jsonl", (charges(at) for at in rounds)),
        ("monitor.jsonl", (monitored(at, silos) for at in rounds)),
    ):
        with open(folder / name, "a") as file:
            file.writelines(lines)


def main() -> None:
    """Prints seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--silos", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / f"run-{at}" for at in range(options.runs)]
        for folder in folders:
            folder.mkdir()
            (folder / "experiment.yaml").write_text(EXPERIMENT.replace("SILOS", str(options.silos)))
            extend(folder, range(1, options.rounds + 1), options.silos)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Exporter(Path(name), max_runs=options.runs))
        for label in ("first scrape", "next scrape"):
            start = time.perf_counter()
            text = generate_latest(registry).decode()
            series = sum(not each.startswith("#") for each in text.splitlines()) / options.runs
            print(f"{label}: {time.perf_counter() - start:.3f} s, {len(text):,} bytes, {series:.0f} series a run")
            for folder in folders:
                extend(folder, range(options.rounds + 1, options.rounds + 2), options.silos)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    what = f"{options.runs} runs of {options.rounds} rounds, {options.silos} silos"
    print(f"memory: {grown / 1024:.1f} MiB more for {what}")


if __name__ == "__main__":
    main()
