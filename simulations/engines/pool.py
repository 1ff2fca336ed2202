"""The pool engine: warm worker processes, one thread each, that share vectors in memory.

A worker is a process of its own (`python -m simulations.engines.worker`), so it inherits neither the run's lock nor the
state of the parent's threads. Orders and answers are JSON over a pipe; vectors go through shared memory, so nothing is
pickled. Workers exit when the pipe closes or the parent is gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from privacy.contributions import Failure, Partial
from privacy.mechanism import Mechanism
from server.link import Request, chunks
from simulations.data.federation import Federation
from simulations.engines import setup
from simulations.engines.exchange import RowSlots, SumSlots, instruction_path, shared_folder, write_instruction
from simulations.engines.wire import mechanisms_to_json
from strategies.base import Evaluation, Instruction, Split
from strategies.codec import encode
from strategies.experiment import Experiment

SLOTS = 2  # Orders in flight per worker: one at work, one waiting, so that no worker idles while the server adds up.


class WorkerError(RuntimeError):
    """A worker died or raised."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    free: list[int]


class PoolLink:
    """Asks silos through worker processes.

    Args:
        experiment: what to train; workers build their own model from it.
        federation: the rows; written once to shared memory.
        personal: folder of the personal vectors.
        workers: processes.
        plugins: modules that workers import as this process did.
        noise: every silo's noise multiplier under example-level privacy.
    """

    def __init__(
        self,
        experiment: Experiment,
        federation: Federation,
        *,
        personal: Path,
        workers: int,
        plugins: Sequence[str] = (),
        noise: Sequence[float] | None = None,
    ) -> None:
        self.population = len(federation.train)
        built = setup.model(experiment, federation)
        size = built.start.numel()
        self._chunk = setup.chunk(experiment, built)
        self._shared = shared_folder()
        folder = Path(self._shared.name)
        federation.save(folder / "federation")
        self._folder = folder
        sizes, slots = experiment.strategy.channels(size), workers * SLOTS
        self._slots = SumSlots(folder / "sums", slots=slots, sizes=sizes)
        self._rows = None
        if experiment.strategy.reveals:
            self._rows = RowSlots(folder / "rows", slots=slots, rows=self._chunk, sizes=sizes)
        self._personal = setup.personal_store(experiment, built, personal, silos=self.population)
        order = {
            "experiment": encode(experiment),
            "folder": str(folder),
            "personal": str(personal),
            "slots": slots,
            "rows": self._chunk,
            "plugins": list(plugins),
            "noise": None if noise is None else list(noise),
        }
        self._workers: list[_Worker] = []
        try:
            for number in range(workers):
                self._workers.append(_start(order, range(number * SLOTS, (number + 1) * SLOTS)))
            for worker in self._workers:
                _receive(worker)  # Ready: its data and model are loaded.
        except BaseException:
            self.close()
            raise

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        """Trains the cohort on whichever worker is free; see `server.link.Link`."""
        common = {"do": "contribute", "mechanisms": mechanisms_to_json(mechanisms), "record": record}
        headers = {request.instruction.tier: self._write(request.instruction) for request in requests}
        orders = [
            common | {"instruction": headers[instruction.tier], "chunk": number, "silos": list(silos)}
            for number, (instruction, silos) in enumerate(chunks(requests, self._chunk))
        ]
        for answer in self._spread(orders):
            yield Partial(
                chunk=answer["chunk"],
                sums=self._slots.take(answer["slot"]),
                weight=answer["weight"],
                arrived=answer["arrived"],
                clipped=answer["clipped"],
                payload=answer["payload"],
                bytes=answer["bytes"],
                failures=tuple(Failure(silo, reason) for silo, reason in answer["failures"]),
                losses=tuple(answer["losses"]),
                seconds=tuple(answer["seconds"]),
                votes=answer["votes"],
                revealed=None if self._rows is None else self._rows.take(answer["slot"], answer["revealed"]),
            )

    def evaluate(
        self, instruction: Instruction, silos: Sequence[int], *, split: Split = "test", fresh: bool = False
    ) -> Evaluation:
        """Evaluates silos on their held-out rows, spread over the workers."""
        common = {"do": "evaluate", "instruction": self._write(instruction), "split": split, "fresh": fresh}
        parts = [list(silos[at : at + self._chunk]) for at in range(0, len(silos), self._chunk)]
        answers = list(self._spread([common | {"chunk": number, "silos": part} for number, part in enumerate(parts)]))
        answers.sort(key=lambda answer: int(answer["chunk"]))
        columns = [tuple(value for answer in answers for value in answer[name]) for name in _EVALUATION]
        return Evaluation(*columns)

    def _write(self, instruction: Instruction) -> dict[str, Any]:
        return write_instruction(instruction_path(self._folder, instruction.tier), instruction)

    def stage(self) -> None:
        """Flushes staged personal state."""
        if self._personal is not None:
            self._personal.flush()

    def commit(self, round_: int) -> None:
        """Commits staged personal state."""
        if self._personal is not None:
            self._personal.commit(round_)

    def recover(self, round_: int) -> None:
        """Brings personal state to a checkpoint's round."""
        if self._personal is not None:
            self._personal.recover(round_)

    def close(self) -> None:
        """Ends the workers and frees the shared memory."""
        for worker in self._workers:
            worker.pipe.close()  # A worker that reads finds the end of its pipe and exits.
        for worker in self._workers:
            try:
                worker.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers = []
        self._shared.cleanup()

    def _spread(self, orders: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Hands out orders as workers become free; yields answers in the order they come."""
        waiting, due = list(reversed(orders)), len(orders)
        for _ in range(SLOTS):
            for worker in self._workers:
                _send_next(worker, waiting)
        by_pipe = {worker.pipe: worker for worker in self._workers}
        while due:
            for pipe in wait(list(by_pipe)):
                worker = by_pipe[pipe]  # type: ignore[index]
                answer = _receive(worker)
                due -= 1
                yield answer
                worker.free.append(answer["slot"])  # The consumer is done with it: the slot may be written again.
                _send_next(worker, waiting)


_EVALUATION = ("silos", "rows", "loss", "score")


def _start(order: dict[str, Any], slots: range) -> _Worker:
    ours, theirs = Pipe()
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", "simulations.engines.worker", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
    theirs.close()
    worker = _Worker(process, ours, list(slots))
    _send(worker, order)
    return worker


def _send_next(worker: _Worker, waiting: list[dict[str, Any]]) -> None:
    if waiting and worker.free:
        order = waiting.pop() | {"slot": worker.free.pop(0)}
        _send(worker, order)


def _send(worker: _Worker, order: dict[str, Any]) -> None:
    try:
        worker.pipe.send_bytes(json.dumps(order).encode())
    except OSError:
        while True:  # The worker is gone; what it still said tells why, and `_receive` raises at the end of its pipe.
            _receive(worker)


def _receive(worker: _Worker) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(worker.pipe.recv_bytes())
    except (EOFError, OSError) as error:
        raise WorkerError(f"worker {worker.process.pid} died ({_end(worker)}); see its message above") from error
    if "error" in answer:
        raise WorkerError(f"worker {worker.process.pid} failed:\n{answer['error']}")
    return answer


def _end(worker: _Worker) -> str:
    """How a worker ended whose pipe is closed; its exit may be a moment behind."""
    try:
        code = worker.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "still running"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
