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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from client.host import SiloHost
from simulations.data.federation import Federation
from simulations.data.shifts import Changing
from simulations.engines import setup
from simulations.engines.exchange import RowSlots, SumSlots, instruction_path, read_instruction
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
        holder, shared_with = _prepare(first)
        pipe.send_bytes(b"{}")
        while True:
            order = json.loads(pipe.recv_bytes())
            pipe.send_bytes(json.dumps(_serve(holder, shared_with, order)).encode())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        _free(shared)  # The server is done, or was killed and cannot free the memory itself.
    except BaseException:
        pipe.send_bytes(json.dumps({"error": traceback.format_exc()}).encode())
        raise


@dataclass(frozen=True)
class _Shared:
    """What this process shares with the server: a folder, places for sums, and for updates where they are seen."""

    folder: Path
    sums: SumSlots
    rows: RowSlots | None


@dataclass(frozen=True)
class _Holder:
    """Silos, and what gives them the rows of a round."""

    host: SiloHost
    changing: Changing


def _prepare(order: dict[str, Any]) -> tuple[_Holder, _Shared]:
    load_entry_points()
    load_plugins(order["plugins"])
    experiment: Experiment = decode(Experiment, order["experiment"])
    folder = Path(order["folder"])
    federation = Federation.load(folder / "federation")
    host = setup.host(experiment, federation, personal=Path(order["personal"]), noise=order["noise"])
    slots, sizes, rows = order["slots"], host.channel_sizes, None
    if experiment.strategy.reveals:
        rows = RowSlots(folder / "rows", slots=slots, rows=order["rows"], sizes=sizes)
    holder = _Holder(host, Changing(host, federation, experiment.data.shift))
    return holder, _Shared(folder, SumSlots(folder / "sums", slots=slots, sizes=sizes), rows)


def _serve(holder: _Holder, shared: _Shared, order: dict[str, Any]) -> dict[str, Any]:
    host = holder.host
    header = order["instruction"]
    instruction = read_instruction(instruction_path(shared.folder, header["tier"]), header)
    answer: dict[str, Any] = {"chunk": order["chunk"], "slot": order["slot"]}
    if order["do"] == "evaluate":
        holder.changing.to(instruction.round - 1)  # It is what silos are served after the round before.
        result = host.evaluate(instruction, order["silos"], split=order["split"], fresh=order["fresh"])
        return answer | {"silos": result.silos, "rows": result.rows, "loss": result.loss, "score": result.score}
    holder.changing.to(instruction.round)
    partial = host.contribute(
        instruction,
        order["silos"],
        mechanisms_from_json(order["mechanisms"]),
        chunk=order["chunk"],
        record=order["record"],
    )
    shared.sums.put(order["slot"], partial.sums)
    if shared.rows is not None and partial.revealed is not None:
        answer["revealed"] = shared.rows.put(order["slot"], partial.revealed)
    return answer | {
        "weight": partial.weight,
        "arrived": partial.arrived,
        "clipped": partial.clipped,
        "payload": partial.payload,
        "bytes": partial.bytes,
        "failures": [(failure.silo, failure.reason) for failure in partial.failures],
        "losses": partial.losses,
        "seconds": partial.seconds,
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
