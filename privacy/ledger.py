"""The ledger: what was promised to be released, written down before it happens.

One line per entry, appended and hash-chained. A `reserve` is on the disk, fsynced, before anything leaves a silo;
`commit` says the round came to an end; `void` that provably nothing was released. Spent is every reserve without a
void, and a torn last line counts as the dearest that it may have been, so a crash can only overcount.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from privacy.chain import GENESIS, Chain, Entry, Head, Kind, LedgerError, Loaded, load, read
from privacy.events import Event
from privacy.torn import Charge, worst

__all__ = ["GENESIS", "Charge", "Entry", "Head", "Ledger", "LedgerError", "Loaded", "load", "read"]

TORN = "(torn)"  # The run that a torn line is booked to: whose it was cannot be known.
PATIENCE_S = 60.0  # A reserve in a shared ledger takes milliseconds; who holds it longer hangs.
_POLL_S = 0.005
_WAITS = 10_000  # Remembered for whoever watches; without one the oldest are forgotten.


class Reserve(Protocol):
    """Something that has to be paid before a ledger's own reserve, such as a budget that several runs share."""

    def __call__(self, round_: int, event: Event, /, *, unit: str, neighbours: str) -> object: ...


class Ledger(Chain):
    """An append-only file of entries, held by one process at a time.

    Args:
        path: the file; made when missing.
        run: which run it is, on every line.
        dataset: fingerprint of the data set, on every line.
        told: what a torn last line may have reserved, besides what other lines of the file did.
        first: paid before every reserve; what it raises, the reserve raises, and nothing is written.
        shared: for several processes at a time: written only inside `locked`, and read there first.

    Raises:
        LedgerError: held by another process, damaged in the middle, torn with nobody knowing what it may have
            reserved, or not writable.
    """

    def __init__(
        self,
        path: Path,
        *,
        run: str,
        dataset: str,
        told: Sequence[Charge] = (),
        first: Reserve | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.path, self.run, self.dataset = path, run, dataset
        self._told, self._first = tuple(told), first
        self._end = 0  # Of the last line that was read or written.
        self._broken = self._held = False
        self._waits: deque[float] = deque(maxlen=_WAITS)
        self._file = _opened(path)
        try:
            if not shared:
                self._hold()
            _fsync_folder(path.parent)
            if not shared:
                self._read()
        except OSError as error:
            self._file.close()
            raise LedgerError(f"{path}: cannot be used ({error.strerror}); mend the disk or choose another") from error
        except LedgerError:
            self._file.close()
            raise

    def reserve(
        self, round_: int, event: Event, *, unit: str, neighbours: str, silos: Sequence[int] | None = None
    ) -> Entry:
        """Writes down what a round will cost, and which silos (None: every one); returns when it is on the disk."""
        if self._first is not None:
            self._first(round_, event, unit=unit, neighbours=neighbours)
        return self._append("reserve", round_, unit=unit, neighbours=neighbours, event=event, silos=silos)

    def reserve_each(
        self,
        round_: int,
        charges: Sequence[tuple[Event, Sequence[int] | None]],
        *,
        unit: str,
        neighbours: str,
        deal: str = "",
    ) -> list[Entry]:
        """Writes down what a round will cost the units of some silos, a line per event and its silos.

        Returns only when all lines are on the disk; one wait for it does for all.
        """
        same: dict[str, Any] = {"unit": unit, "neighbours": neighbours, "deal": deal}
        last = len(charges) - 1
        return [
            self._append("reserve", round_, event=event, silos=silos, hold=at < last, **same)
            for at, (event, silos) in enumerate(charges)
        ]

    def commit(self, entry: Entry) -> Entry:
        """Says that the round of a reserve came to its end."""
        return self._close("commit", entry)

    def void(self, entry: Entry) -> Entry:
        """Takes a reserve back; only where provably nothing was released."""
        return self._close("void", entry)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds a shared ledger alone, and knows what others have written to it meanwhile; within itself it is free.

        Raises:
            LedgerError: held for a minute by another process, damaged, or replaced by another file.
        """
        if self._held:  # Two accounts of one run look at the same lines, and are charged together or not at all.
            yield
            return
        self._wait()
        try:
            self._held = True
            if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                raise LedgerError(f"{self.path}: was replaced while a run used it; restore it and resume the run")
            self._read()
            yield
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be used ({error.strerror}); mend the disk or restore it") from error
        finally:
            self._held = False
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def waited(self) -> list[float]:
        """Seconds of each wait for the disk since the last call."""
        found = list(self._waits)
        self._waits.clear()
        return found

    def close(self) -> None:
        """Lets the file and its lock go."""
        self._file.close()

    def _close(self, kind: Kind, entry: Entry) -> Entry:
        if self._open.get(entry.seq) != entry:
            raise LedgerError(f"{self.path}: seq {entry.seq} is no open reserve; it cannot take a {kind}")
        return self._append(kind, entry.round, unit=entry.unit, neighbours=entry.neighbours, reserve=entry.seq)

    def _append(
        self,
        kind: Kind,
        round_: int,
        *,
        unit: str,
        neighbours: str,
        event: Event | None = None,
        reserve: int | None = None,
        silos: Sequence[int] | None = None,
        deal: str = "",
        hold: bool = False,
    ) -> Entry:
        seq, whose = self.head.seq + 1, None if silos is None else tuple(silos)
        entry = Entry(seq, kind, round_, unit, neighbours, event, reserve, self.run, silos=whose, deal=deal)
        line = self.line(entry, dataset=self.dataset)
        # A commit or a void that a crash takes back only overcounts, and the next reserve makes it durable too.
        self._write(line + b"\n", durable=kind == "reserve" and not hold)
        self.record(entry, line)
        return entry

    def _write(self, data: bytes, *, durable: bool) -> None:
        """Appends a line, and waits for the disk if it is to be `durable`.

        After a failure the ledger takes no other line, for its end is then unknown.
        """
        if self._broken:
            raise LedgerError(f"{self.path}: an earlier write failed; open the ledger anew before anything is released")
        try:
            self._put(data)
            if durable:
                started = time.perf_counter()
                os.fsync(self._file.fileno())
                self._waits.append(time.perf_counter() - started)
        except OSError as error:
            self._broken = True
            with contextlib.suppress(OSError):  # If the line stays, it counts: too much, never too little.
                self._file.truncate(self._end)
            raise LedgerError(f"{self.path}: write failed ({error.strerror}); nothing was released") from error
        self._end += len(data)

    def _put(self, data: bytes) -> None:
        self._file.seek(self._end)
        written = 0
        while written < len(data):  # A disk that fills up takes a part of it.
            written += self._file.write(data[written:])

    def _read(self) -> None:
        """Takes in what was added to the file since the last look."""
        self._file.seek(0, os.SEEK_END)
        if self._file.tell() < self._end:
            raise LedgerError(f"{self.path}: lines were cut while a run used it; restore the file from a copy")
        self._file.seek(self._end)
        *whole, torn = self._file.read().split(b"\n")
        for line in whole:
            self.record(self.parse(line, f"{self.path}:{self.head.seq + 1}"), line)
            self._end += len(line) + 1
        if torn:
            self._settle(torn)

    def _settle(self, torn: bytes) -> None:
        """Charges what a torn last line may have reserved, in its place: at no instant is it neither torn nor charged.

        A copy of it is kept in a file of its own for a reader who wants to see it.
        """
        known = [Charge(entry.unit, entry.neighbours, entry.event) for entry in self.entries if entry.event is not None]
        charges = worst([*known, *self._told])
        if not charges:
            raise LedgerError(
                f"{self.path}: the last line is torn, and nothing says what it may have reserved; "
                f"charge it with: confide ledger mend {self.path} --as EVENT"
            )
        with open(self.path.with_name(self.path.name + ".torn"), "ab") as aside:
            aside.write(torn + b"\n")
        start, round_ = self._end, self.entries[-1].round if self.entries else 0
        data = b""
        for charge in charges:
            entry = Entry(
                self.head.seq + 1, "reserve", round_, charge.unit, charge.neighbours, charge.event, None, TORN, True
            )
            line = self.line(entry, dataset=self.dataset)
            self.record(entry, line)
            data += line + b"\n"
        self._put(data)
        self._end = start + len(data)
        self._file.truncate(self._end)
        os.fsync(self._file.fileno())

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LedgerError(f"{self.path}: another process holds this ledger; wait for it or stop it") from error

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._hold()
            except LedgerError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)


def _opened(path: Path) -> BinaryIO:
    try:
        # Unbuffered: a line that failed to reach the disk must not stay behind in a buffer, to be written when nobody
        # expects it. Not in append mode: a torn line is written over.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return cast(BinaryIO, os.fdopen(descriptor, "r+b", buffering=0))
    except OSError as error:
        raise LedgerError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
