"""Vectors that the server's process and its workers share in memory-mapped files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privacy.revealed import Revealed
from strategies.base import Instruction

_DTYPES = {"torch.float32": np.float32, "torch.float64": np.float64, "torch.int64": np.int64}


def shared_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where the system has one (/dev/shm), else on the disk."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="confide-", dir=memory if memory.is_dir() else None)


def instruction_path(folder: Path, tier: int) -> Path:
    """Where the vectors for a tier of silos are."""
    return folder / f"instruction.{tier}"


def write_instruction(path: Path, instruction: Instruction) -> dict[str, Any]:
    """Writes an instruction's vectors one after the other; returns the JSON that `read_instruction` needs."""
    layout: list[dict[str, Any]] = []
    at = 0
    for name, vector in instruction.items():
        layout.append({"name": name, "shape": list(vector.shape), "dtype": str(vector.dtype), "at": at})
        at += vector.numel() * vector.element_size()
    if not path.exists() or path.stat().st_size < max(at, 1):
        with open(path, "ab") as file:
            file.truncate(max(at, 1))
    table = np.memmap(path, dtype=np.uint8, mode="r+")
    for entry, vector in zip(layout, instruction.values()):
        data = vector.contiguous().reshape(-1).view(torch.uint8).numpy()
        table[entry["at"] : entry["at"] + data.size] = data
    facts = {"round": instruction.round, "tier": instruction.tier, "kept": dict(instruction.kept)}
    return facts | {"vectors": layout}


def read_instruction(path: Path, header: Mapping[str, Any]) -> Instruction:
    """Reads an instruction back as copies: what a strategy does to them stays in its process."""
    table = np.memmap(path, dtype=np.uint8, mode="r")
    vectors: dict[str, Tensor] = {}
    for entry in header["vectors"]:
        count = int(np.prod(entry["shape"], dtype=np.int64))
        values = np.frombuffer(table, dtype=_DTYPES[entry["dtype"]], count=count, offset=entry["at"])
        vectors[entry["name"]] = torch.from_numpy(values.reshape(entry["shape"]).copy())
    return Instruction(int(header["round"]), vectors, int(header["tier"]), header["kept"])


class SumSlots:
    """Places for the float64 sums of chunks; each holds one chunk's channels, one after the other."""

    def __init__(self, path: Path, *, slots: int, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        width = max(sum(sizes.values()), 1)
        if not path.exists():
            with open(path, "wb") as file:
                file.truncate(slots * width * 8)
        self._table = np.memmap(path, dtype=np.float64, mode="r+", shape=(slots, width))

    def put(self, slot: int, sums: Mapping[str, Tensor]) -> None:
        """Writes a chunk's sums."""
        at = 0
        for name, size in self.sizes.items():
            self._table[slot, at : at + size] = sums[name].numpy()
            at += size

    def take(self, slot: int) -> dict[str, Tensor]:
        """A copy of a chunk's sums, so that the slot is free again."""
        sums, at = {}, 0
        for name, size in self.sizes.items():
            sums[name] = torch.from_numpy(np.array(self._table[slot, at : at + size]))
            at += size
        return sums


class RowSlots:
    """Places for the single updates of chunks, where the strategy must see them.

    Args:
        path: of the file, made when missing.
        slots: places.
        rows: updates of a chunk, at most.
        sizes: channel to the length of its vectors.
    """

    def __init__(self, path: Path, *, slots: int, rows: int, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        width = max(sum(sizes.values()), 1)
        if not path.exists():
            with open(path, "wb") as file:
                file.truncate(slots * rows * width * 4)
        self._table = np.memmap(path, dtype=np.float32, mode="r+", shape=(slots, rows, width))

    def put(self, slot: int, revealed: Revealed) -> dict[str, Any]:
        """Writes a chunk's updates; returns the JSON that `take` needs."""
        at = 0
        for name, size in self.sizes.items():
            self._table[slot, : len(revealed.silos), at : at + size] = revealed.channels[name].numpy()
            at += size
        return {"silos": list(revealed.silos), "weights": revealed.weights.tolist()}

    def take(self, slot: int, header: Mapping[str, Any]) -> Revealed:
        """A copy of a chunk's updates, so that the slot is free again."""
        channels, at, count = {}, 0, len(header["silos"])
        for name, size in self.sizes.items():
            channels[name] = torch.from_numpy(np.array(self._table[slot, :count, at : at + size]))
            at += size
        return Revealed(tuple(header["silos"]), torch.tensor(header["weights"], dtype=torch.float64), channels)
