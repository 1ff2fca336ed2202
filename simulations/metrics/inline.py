"""The endpoint of one run, in its own process: the exporter over the run's own folder, while the run is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from strategies.experiment import Metrics

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Inline:
    """What came of the endpoint.

    Attributes:
        port: that it listens on; None where it does not.
        line: for whoever started the run; empty where no endpoint was asked for.
    """

    port: int | None = None
    line: str = ""


@contextmanager
def endpoint(metrics: Metrics, folder: Path) -> Iterator[Inline]:
    """Serves a run's metrics on loopback, if it is to; whatever goes wrong with that, the run goes on.

    Args:
        metrics: what the experiment asks for.
        folder: of the run.
    """
    if not metrics.inline:
        yield Inline()
        return
    from simulations.metrics.exporter import Exporter
    from simulations.metrics.serving import Unheard, serve

    try:
        port, stop = serve(Exporter(folder, max_runs=1), address=LOOPBACK, port=metrics.port)
    except Unheard as error:
        yield Inline(line=f"metrics.inline: {error.problems[0]}; the run goes on without it")
        return
    try:
        yield Inline(port, f"metrics: http://{LOOPBACK}:{port}/metrics until the run ends")
    finally:
        stop()
