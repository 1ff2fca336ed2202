"""Checkpoints: a server's state after a round, in one file that is either whole or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from privacy.durable import atomic_write

WATCHED = "watched/"  # Prefix of the watcher's tensors; no strategy's state has a slash in a name.
CARRIED = "carried/"  # Prefix of what turns and correlated noise remember.


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


@dataclass(frozen=True)
class Checkpoint:
    """A server after `round`.

    Attributes:
        round: the last round done.
        state: the strategy's state.
        meta: JSON values: the ledger's head, the row of the round, what the run is.
        watched: what was kept of the models of all rounds so far.
        carried: what turns and correlated noise remember of earlier rounds; the noise is as secret as noise is.
    """

    round: int
    state: Mapping[str, Tensor]
    meta: Mapping[str, Any]
    watched: Mapping[str, Tensor] = field(default_factory=dict)
    carried: Mapping[str, Tensor] = field(default_factory=dict)


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Writes, fsyncs, renames, fsyncs the folder: a reader finds the old file or the new one, never a part."""
    # Copies: the format refuses two names for one tensor, which a state may well hold before its first step.
    named = dict(checkpoint.state)
    for prefix, values in ((WATCHED, checkpoint.watched), (CARRIED, checkpoint.carried)):
        named |= {prefix + name: value for name, value in values.items()}
    tensors = {name: value.detach().contiguous().clone() for name, value in named.items()}
    note = json.dumps({"round": checkpoint.round, "meta": checkpoint.meta}, sort_keys=True, allow_nan=False)
    data = save(tensors, metadata={"confide": note, "sha256": _digest(tensors, note)})
    atomic_write(path, data)


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint back.

    Raises:
        CheckpointError: missing, cut short, changed, or not a checkpoint.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        labels = json.loads(data[8 : 8 + size])["__metadata__"]
        note = json.loads(labels["confide"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); restore it from a copy or start a new run") from error
    if _digest(tensors, labels["confide"]) != labels.get("sha256"):
        raise CheckpointError(f"{path}: damaged (its bytes do not match its SHA-256); restore it from a copy")
    watched, carried = _below(tensors, WATCHED), _below(tensors, CARRIED)
    state = {name: value for name, value in tensors.items() if not name.startswith((WATCHED, CARRIED))}
    return Checkpoint(int(note["round"]), state, note["meta"], watched, carried)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor], note: str) -> str:
    digest = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
