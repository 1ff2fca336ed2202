"""Personal vectors that silos keep between rounds: staged while a round runs, committed with it.

Every named vector has two memory-mapped tables of one row per silo, `current` and `staged`. A round writes to `staged`
only. When the server's checkpoint stands on the disk the staged rows are copied over; the number of the last round
copied is written last, so a crash in between is mended by copying again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class PersonalStore:
    """The personal vectors of every silo, in a folder; several processes may open the same one.

    Args:
        folder: where the tables are; made when missing.
        silos: rows of every table.
        sizes: name to length of the vector.
    """

    def __init__(self, folder: Path, *, silos: int, sizes: Mapping[str, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.sizes = folder, dict(sizes)
        self.current = {name: _table(folder / f"{name}.current", (silos, size)) for name, size in sizes.items()}
        self.staged = {name: _table(folder / f"{name}.staged", (silos, size)) for name, size in sizes.items()}
        self.present = {name: _table(folder / f"{name}.present", (silos,), np.uint8) for name in sizes}
        self.marks = {name: _table(folder / f"{name}.marks", (silos,), np.uint8) for name in sizes}

    def rows(self, silos: Sequence[int], *, stacked: bool) -> PersonalRows:
        """The vectors of some silos, as the silo half of a strategy sees them."""
        return PersonalRows(self, np.asarray(silos, dtype=np.int64), stacked=stacked)

    def unwritten(self, silos: Sequence[int]) -> PersonalRows:
        """The vectors of one silo as if it had never been asked; nothing can be written to them."""
        return PersonalRows(self, np.asarray(silos, dtype=np.int64), stacked=False, fresh=True)

    def forget(self, silos: Sequence[int]) -> None:
        """Takes back what silos staged in this round, because their update was refused."""
        for marks in self.marks.values():
            marks[list(silos)] = 0

    def discard(self) -> None:
        """Takes back everything staged."""
        for marks in self.marks.values():
            marks[:] = 0

    def flush(self) -> None:
        """Puts what was staged on the disk; called before the checkpoint that commits the round."""
        for name in self.sizes:
            for table in (self.staged[name], self.marks[name]):
                table.flush()

    def commit(self, round_: int) -> None:
        """Makes what was staged in `round_` current; may be called again after a crash."""
        for name in self.sizes:
            rows = np.flatnonzero(self.marks[name])
            self.current[name][rows] = self.staged[name][rows]
            self.present[name][rows] = 1
            self.current[name].flush()
            self.present[name].flush()
        marker = self.folder / "round.tmp"
        with open(marker, "w") as file:
            file.write(str(round_))
            file.flush()
            os.fsync(file.fileno())
        marker.replace(self.folder / "round")
        _fsync_folder(self.folder)  # Before the next round stages anything: its rows must not pass for this round's.
        self.discard()

    @property
    def committed(self) -> int:
        """The last round whose vectors are current; 0 for none."""
        marker = self.folder / "round"
        return int(marker.read_text()) if marker.exists() else 0

    def recover(self, round_: int) -> None:
        """After a restart from the checkpoint of `round_`: finishes that round's commit, drops a later round's rows.

        Raises:
            ValueError: the vectors are neither of that round nor of the one before; one of the two is an older copy.
        """
        done = self.committed
        if done not in (round_, round_ - 1):
            raise ValueError(
                f"{self.folder}: personal vectors are of round {done}, the checkpoint of round {round_}; "
                "restore both from one copy"
            )
        if done < round_:
            self.commit(round_)
        else:
            self.discard()


class PersonalRows(MutableMapping[str, Tensor]):
    """Named vectors of one silo `(N,)`, or of a stack `(silos, N)`. Reading sees the last committed round."""

    def __init__(
        self,
        store: PersonalStore,
        silos: np.ndarray[tuple[int], np.dtype[np.int64]],
        *,
        stacked: bool,
        fresh: bool = False,
    ):
        self._store, self._silos, self._stacked, self._fresh = store, silos, stacked, fresh

    def _present(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        if self._fresh:
            return np.zeros(len(self._silos), dtype=np.bool_)
        return np.asarray(self._store.present[name][self._silos] != 0)

    def get(self, name: str, default: Tensor) -> Tensor:  # type: ignore[override]
        """The vectors; `default` `(N,)` for silos that never wrote one, as a late joiner."""
        present = torch.from_numpy(self._present(name))
        rows = torch.from_numpy(np.array(self._store.current[name][self._silos]))
        values = torch.where(present[:, None], rows, default)
        return values if self._stacked else values[0]

    def __getitem__(self, name: str) -> Tensor:
        if not self._present(name).all():
            raise KeyError(f"{name}: never written by some of these silos; use get(name, default)")
        values = torch.from_numpy(np.array(self._store.current[name][self._silos]))
        return values if self._stacked else values[0]

    def __setitem__(self, name: str, value: Tensor) -> None:
        if self._fresh:
            raise TypeError(f"personal vector {name!r} is of a silo that was never asked, and stays unwritten")
        expected = (len(self._silos), self._store.sizes[name])
        if tuple(value.shape) != (expected if self._stacked else expected[1:]):  # Never broadcast.
            raise ValueError(f"personal vector {name!r} has shape {tuple(value.shape)} where {expected} was declared")
        self._store.staged[name][self._silos] = value.numpy().reshape(expected)
        self._store.marks[name][self._silos] = 1

    def __delitem__(self, name: str) -> None:
        raise TypeError("a personal vector cannot be taken away, only written anew")

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.sizes)

    def __len__(self) -> int:
        return len(self._store.sizes)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _table(
    path: Path, shape: tuple[int, ...], dtype: type[np.generic] = np.float32
) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not path.exists():
        with open(path, "wb") as file:
            file.truncate(max(size, 1))  # Sparse: rows never written take no space.
    elif path.stat().st_size != max(size, 1):
        raise ValueError(f"{path}: holds {path.stat().st_size} bytes where {size} are needed; it is of another run")
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)
