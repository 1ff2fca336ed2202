"""What watching costs a run: `python -m simulations.benchmarks.monitoring [--rounds 200] [--repeats 5]`.

The same run of logistic regression in 1,000 silos, whose rounds are short, three ways in turn: without monitor.jsonl,
with it, and with the inline endpoint beside it, which a thread of the same process scrapes every second. What is
compared is the processor time of the whole process, which other work on the machine moves little; within a repeat, and
the order of the three changes from repeat to repeat.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.monitor import Monitor
from simulations.running import ActiveRun
from strategies.loading import parse

WAYS = ("bare", "monitor", "inline")
EXPERIMENT: dict[str, Any] = {
    "task": "logistic",
    "data": {"name": "digits", "silos": 1000, "limit": 1700},
    "cohort": {"sampling": "all"},
    "train": {"steps": 5},
    "privacy": {"silo": {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-4}},
}


class Deaf(Monitor):
    """Writes nothing."""

    def _write(self, facts: Mapping[str, Any]) -> None:
        pass


@contextmanager
def scraped(port: int | None) -> Iterator[list[float]]:
    """Has a thread scrape a port every second; the seconds that each scrape took."""
    over, took = threading.Event(), list[float]()

    def scrape() -> None:
        while port is not None and not over.wait(1.0):
            started = time.perf_counter()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                answer.read()
            took.append(time.perf_counter() - started)

    thread = threading.Thread(target=scrape)
    thread.start()
    yield took
    over.set()
    thread.join()


def measured(way: str, rounds: int, folder: Path) -> tuple[float, list[float]]:
    """Processor seconds of a round, the mean, and seconds of scrapes."""
    metrics = {"inline": way == "inline", "port": 0}
    with ActiveRun(parse(EXPERIMENT | {"rounds": rounds, "metrics": metrics}), folder) as active:
        if way == "bare":
            active.store.monitor = Deaf(folder / "monitor.jsonl")
        with scraped(active.inline.port) as took:
            started = time.process_time()
            done = sum(1 for _ in active)
            spent = time.process_time() - started
    return spent / done, took


def main() -> None:
    """Prints seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    scrapes: list[float] = []
    for repeat in range(options.repeats):
        turn = WAYS[repeat % 3 :] + WAYS[: repeat % 3]
        for way in turn:
            with tempfile.TemporaryDirectory() as name:
                seconds, took = measured(way, options.rounds, Path(name) / "run")
            found[way].append(seconds)
            scrapes += took
    print(f"a round without watching: {1e3 * statistics.median(found['bare']):.2f} ms of processor time")
    for way in WAYS[1:]:
        ratios = [with_ / bare for with_, bare in zip(found[way], found["bare"])]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{way}: {statistics.median(ratios):.3f} times as long ({spread} in {options.repeats} pairs)")
    if scrapes:
        print(f"a scrape: {1e3 * statistics.median(scrapes):.1f} ms")


if __name__ == "__main__":
    main()
