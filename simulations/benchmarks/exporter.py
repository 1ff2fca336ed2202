"""What a scrape of many runs costs: `python -m simulations.benchmarks.exporter [--runs 100] [--rounds 1000]`.

Run folders are made up of lines as a run of 1,000 silos writes them. The first scrape reads everything, the next only
what is new; between them every run commits a round.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from simulations.metrics.exporter import Exporter

EXPERIMENT = "name: made-up\nrounds: 1000\ntask: logistic\ndata: {name: digits, silos: 1000}\n"
PHASES = ("reserve", "train", "aggregate", "account", "evaluate", "store")


def line(round_: int) -> str:
    """A round of 1,000 silos."""
    row = {
        "round": round_,
        "cohort": 1000,
        "arrived": 990,
        "failures": 10,
        "failure_reasons": {"update is not finite": 10},
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


def main() -> None:
    """Prints seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / f"run-{at}" for at in range(options.runs)]
        lines = "".join(line(at + 1) for at in range(options.rounds))
        for folder in folders:
            folder.mkdir()
            (folder / "experiment.yaml").write_text(EXPERIMENT)
            (folder / "rounds.jsonl").write_text(lines)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Exporter(Path(name), max_runs=options.runs))
        for label in ("first scrape", "next scrape"):
            start = time.perf_counter()
            size = len(generate_latest(registry))
            print(f"{label}: {time.perf_counter() - start:.3f} s, {size:,} bytes")
            for folder in folders:
                with open(folder / "rounds.jsonl", "a") as file:
                    file.write(line(options.rounds + 1))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"memory: {grown / 1024:.1f} MiB more for {options.runs} runs of {options.rounds} rounds")


if __name__ == "__main__":
    main()
