"""A worker process of the pool engine: reads orders from a pipe, trains chunks of silos, answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from client.host import SiloHost
from simulations.data.federation import Federation
from simulations.engines import setup
from simulations.engines.exchange import SumSlots, read_instruction
from simulations.engines.wire import mechanisms_from_json
from strategies.codec import decode
from strategies.experiment import Experiment
from strategies.plugins import load_entry_points, load_plugins


def main(descriptor: int) -> None:
    """Serves orders until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent ends the round.
    torch.set_num_threads(1)
    parent, pipe, shared = os.getppid(), Connection(descriptor), None
    try:
        first = json.loads(pipe.recv_bytes())
        shared = Path(first["folder"])
        _watch_parent(parent, shared)
        host, slots, instruction = _prepare(first)
        pipe.send_bytes(b"{}")
        while True:
            order = json.loads(pipe.recv_bytes())
            pipe.send_bytes(json.dumps(_serve(host, slots, instruction, order)).encode())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        _free(shared)  # The server is done, or was killed and cannot free the memory itself.
    except BaseException:
        pipe.send_bytes(json.dumps({"error": traceback.format_exc()}).encode())
        raise


def _prepare(order: dict[str, Any]) -> tuple[SiloHost, SumSlots, Path]:
    load_entry_points()
    load_plugins(order["plugins"])
    experiment: Experiment = decode(Experiment, order["experiment"])
    folder = Path(order["folder"])
    host = setup.host(
        experiment, Federation.load(folder / "federation"), personal=Path(order["personal"]), noise=order["noise"]
    )
    return host, SumSlots(folder / "sums", slots=order["slots"], sizes=host.channel_sizes), folder / "instruction"


def _serve(host: SiloHost, slots: SumSlots, path: Path, order: dict[str, Any]) -> dict[str, Any]:
    instruction = read_instruction(path, order["instruction"])
    answer: dict[str, Any] = {"chunk": order["chunk"], "slot": order["slot"]}
    if order["do"] == "evaluate":
        result = host.evaluate(instruction, order["silos"], split=order["split"], fresh=order["fresh"])
        return answer | {"silos": result.silos, "rows": result.rows, "loss": result.loss, "score": result.score}
    partial = host.contribute(
        instruction,
        order["silos"],
        mechanisms_from_json(order["mechanisms"]),
        chunk=order["chunk"],
        record=order["record"],
    )
    slots.put(order["slot"], partial.sums)
    return answer | {
        "weight": partial.weight,
        "arrived": partial.arrived,
        "clipped": partial.clipped,
        "payload": partial.payload,
        "failures": [(failure.silo, failure.reason) for failure in partial.failures],
        "losses": partial.losses,
        "votes": dict(partial.votes),
    }


def _free(shared: Path | None) -> None:
    if shared is not None:
        shutil.rmtree(shared, ignore_errors=True)


def _watch_parent(parent: int, shared: Path) -> None:
    """Ends this process when the parent is gone, also in the middle of a long chunk."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        _free(shared)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
