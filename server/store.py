"""The run's folder: what it was, every round's line, its checkpoint and its result."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privacy.durable import atomic_write
from server.checkpoint import Checkpoint, read, write
from server.monitor import Monitor


class StoreError(ValueError):
    """A run's folder that cannot be used."""


class RunStore:
    """A folder that one process at a time writes a run to.

    Args:
        folder: made when missing.
        resume: the folder must hold a run; otherwise it must not.

    Raises:
        StoreError: the folder holds a run (or none), cannot be written, or another process has it.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self.folder, self.monitor = folder, Monitor(folder / "monitor.jsonl")
        if resume and not self.experiment.exists():
            raise StoreError(f"{folder}: holds no run (no experiment.yaml); start one with 'confide run CONFIG'")
        if not resume and self.experiment.exists():
            raise StoreError(f"{folder}: holds a run already; choose another --out, or --resume {folder}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / "lock", "a")  # noqa: SIM115  Held for the life of the store.
        except OSError as error:
            raise StoreError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StoreError(f"{folder}: another process runs here; wait for it or stop it") from error

    @property
    def experiment(self) -> Path:
        """The resolved experiment."""
        return self.folder / "experiment.yaml"

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.folder / "ledger.jsonl"

    @property
    def silo_ledger(self) -> Path:
        """The file of the silos' own ledgers, which charge their examples."""
        return self.folder / "silos-ledger.jsonl"

    @property
    def rounds(self) -> Path:
        """One line a round."""
        return self.folder / "rounds.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The server's state after the last round."""
        return self.folder / "checkpoint.safetensors"

    @property
    def personal(self) -> Path:
        """The folder of the silos' personal vectors."""
        return self.folder / "personal"

    def begin(self, experiment: str) -> None:
        """Writes the resolved experiment, which makes the folder a run's."""
        atomic_write(self.experiment, experiment.encode())

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces the checkpoint; the round is committed from here on."""
        write(self.checkpoint, checkpoint)

    def load(self) -> Checkpoint | None:
        """The last checkpoint; None before the first round is done."""
        return read(self.checkpoint) if self.checkpoint.exists() else None

    def append(self, line: str) -> None:
        """Adds a round's line, on the disk when this returns."""
        with open(self.rounds, "a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def cut(self, checkpoint: Checkpoint | None) -> None:
        """Brings rounds.jsonl to the checkpoint: later and torn lines go, a missing last line is written again."""
        done = checkpoint.round if checkpoint is not None else 0
        lines = self.rounds.read_bytes().split(b"\n")[:-1] if self.rounds.exists() else []
        if len(lines) < done - 1:
            raise StoreError(f"{self.rounds}: has {len(lines)} lines for {done} rounds; restore it from a copy")
        kept = lines[:done]
        if checkpoint is not None and len(kept) < done:
            kept.append(str(checkpoint.meta["line"]).encode())
        atomic_write(self.rounds, b"".join(line + b"\n" for line in kept))

    def rows(self) -> list[dict[str, Any]]:
        """Every round's line."""
        return [json.loads(line) for line in self.rounds.read_text().splitlines()] if self.rounds.exists() else []

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json."""
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        atomic_write(self.folder / "result.json", text.encode())

    def close(self) -> None:
        """Lets the lock go."""
        self._lock.close()
