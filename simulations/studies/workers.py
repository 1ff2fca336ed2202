"""Cells one after the other in this process, or side by side in a few: one experiment per process, one thread each."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from simulations.studies.cells import Cell, Wanted, one

PATIENCE_S = 0.5  # Between two looks at whether a signal came.


def done(
    wanted: Mapping[str, Wanted], workers: int, plugins: Sequence[str], stop: Callable[[], bool]
) -> Iterator[tuple[str, Cell]]:
    """Keys and cells as they are done; ends early where `stop` says so, cells in flight being done first."""
    if workers == 1 or len(wanted) == 1:
        for key, each in wanted.items():
            if stop():
                return
            yield key, one(each)
        return
    # Spawned, not forked: a fork of a process that has used torch may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (tuple(plugins),)) as pool:
        yield from _side_by_side(pool, wanted, workers, stop)


def _side_by_side(
    pool: ProcessPoolExecutor, wanted: Mapping[str, Wanted], workers: int, stop: Callable[[], bool]
) -> Iterator[tuple[str, Cell]]:
    """No more cells are handed out than there are workers, so that a signal leaves no queue behind."""
    waiting, running = list(wanted.items()), dict[Future[Cell], str]()
    while waiting or running:
        while waiting and len(running) < workers and not stop():
            key, each = waiting.pop(0)
            running[pool.submit(one, each)] = key
        if not running:
            return
        for future in wait(running, timeout=PATIENCE_S, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def _begin(plugins: Sequence[str]) -> None:
    """Readies a worker: a signal from the keyboard reaches it too, and the parent decides what it means."""
    import os

    import torch

    from strategies.plugins import load_entry_points, load_plugins

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    load_entry_points()
    load_plugins(plugins)
