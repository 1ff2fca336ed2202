"""An exporter that is stopped while it is scraped: whoever asks gets a whole answer, or none, and nobody hangs."""

from __future__ import annotations

import http.client
import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from simulations.deploying.processes import Program, free_ports, listens
from simulations.metrics.serving import serve
from simulations.running import run
from strategies.loading import parse

WAIT_S = 60.0
CONFIG = {"rounds": 2, "task": "logistic", "data": {"name": "digits", "silos": 4, "limit": 200}}


class Slow(Collector):
    """A scrape that takes until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self.begun.set()
        assert self.go.wait(WAIT_S)
        yield GaugeMetricFamily("last", "of all", value=1.0)


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as answer:
        return str(answer.read().decode())


@contextmanager
def in_flight() -> Iterator[tuple[Slow, int, Callable[[], None], Future[str]]]:
    """A scrape that was begun: it, the exporter's port, what stops the exporter, and the answer to come."""
    slow = Slow()
    with ThreadPoolExecutor(1) as pool:
        try:
            port, stop = serve(slow, address="127.0.0.1", port=0)
            answer: Future[str] = pool.submit(scraped, port)
            assert slow.begun.wait(WAIT_S)
            yield slow, port, stop, answer
        finally:
            slow.go.set()


def test_a_scrape_in_flight_neither_holds_the_exporter_nor_is_cut_off() -> None:
    with in_flight() as (slow, port, stop, answer), ThreadPoolExecutor(1) as pool:
        pool.submit(stop).result(WAIT_S)  # It does not wait for whoever takes his time.
        assert not answer.done()
        assert not listens("127.0.0.1", port)
        slow.go.set()
        assert answer.result(WAIT_S).endswith("last 1.0\n")
        again, stop = serve(slow, address="127.0.0.1", port=port)  # The port is free at once.
        assert scraped(again).endswith("last 1.0\n")
        stop()


def test_an_answer_on_its_way_is_waited_for_a_moment() -> None:
    with in_flight() as (slow, _, stop, answer):
        threading.Timer(1.2, slow.go.set).start()
        stop()
        assert slow.go.is_set()
        assert answer.result(WAIT_S).endswith("last 1.0\n")


@pytest.mark.integration
def test_an_exporter_that_is_told_to_stop_under_scrapes_ends_well(tmp_path: Path) -> None:
    """Four threads scrape it all the time, and go on until nobody answers."""
    run(parse(CONFIG), out=tmp_path / "runs" / "one")
    [port] = free_ports(1)
    command = [sys.executable, "-m", "simulations", "metrics", "serve", "--store", str(tmp_path / "runs")]
    told = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    answers: list[str] = []

    def scrape() -> None:
        while True:
            try:
                answers.append(scraped(port))
            except (OSError, http.client.HTTPException):
                return  # Nobody is there any more, or an answer was cut off, which a reader knows by its length.

    with Program("exporter", [*command, "--port", str(port)], log=tmp_path / "log", environment=told) as program:
        program.until(lambda: listens("127.0.0.1", port), timeout_s=WAIT_S, what="it answered")
        threads = [threading.Thread(target=scrape) for _ in range(4)]
        for thread in threads:
            thread.start()
        program.until(lambda: len(answers) >= 20, timeout_s=WAIT_S, what="it was scraped")
        os.kill(program.pid, signal.SIGTERM)
        for thread in threads:
            thread.join(WAIT_S)
        program.until(lambda: program.ended is not None, timeout_s=WAIT_S, what="it ended")
    assert program.ended == 0
    assert "Traceback" not in program.printed()
    assert all('confide_round{run="one"} 2.0\n' in answer for answer in answers)
