"""The ledger: what was promised to be released, written down before it happens.

One line per entry, appended and hash-chained. A `reserve` is on the disk, fsynced, before anything leaves a silo;
`commit` says the round came to an end; `void` that provably nothing was released. Spent is every reserve without a
void, so a crash can only overcount.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from privacy.events import Event, from_json, to_json

Kind = Literal["reserve", "commit", "void"]
GENESIS = "0" * 64


class LedgerError(ValueError):
    """The ledger cannot be trusted or written; nothing may be released."""


@dataclass(frozen=True)
class Head:
    """The last line of a ledger: its number (0 for an empty ledger) and the SHA-256 of its bytes."""

    seq: int = 0
    hash: str = GENESIS


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        seq: from 1.
        kind: reserve, commit or void.
        round: the training round.
        unit: whose privacy it is (`silo` or `example`).
        neighbours: the relation its price is for.
        event: what a reserve costs; None on the others.
        reserve: the seq of the reserve that a commit or void closes; None on a reserve.
        silos: whose examples a reserve charges; empty where it charges every unit alike.
    """

    seq: int
    kind: Kind
    round: int
    unit: str
    neighbours: str
    event: Event | None
    reserve: int | None
    silos: tuple[int, ...] = ()


class Ledger:
    """An append-only file of entries, held by one process at a time.

    Args:
        path: the file; made when missing.
        run: name of the run, on every line.
        dataset: fingerprint of the data set, on every line.

    Raises:
        LedgerError: held by another process, damaged in the middle, or not writable.
    """

    def __init__(self, path: Path, *, run: str, dataset: str) -> None:
        self.path, self.run, self.dataset = path, run, dataset
        try:
            # Held for the life of the ledger: it carries the lock. Unbuffered: a line that failed to reach the disk
            # must not stay behind in a buffer, to be written when nobody expects it.
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise LedgerError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise LedgerError(f"{path}: another process holds this ledger; wait for it or stop it") from error
        self.entries: list[Entry] = []
        self.head = Head()
        self._open: dict[int, Entry] = {}  # Kept up to date by _record, so that a round costs no walk over the file.
        self._spent: dict[int, Entry] = {}
        self._charges: Counter[str] = Counter()
        self._broken = False
        try:
            _fsync_folder(path.parent)
            self._read()
        except OSError as error:
            self._file.close()
            raise LedgerError(f"{path}: cannot be used ({error.strerror}); mend the disk or choose another") from error
        except LedgerError:
            self._file.close()
            raise

    def reserve(self, round_: int, event: Event, *, unit: str, neighbours: str) -> Entry:
        """Writes down what a round will cost; returns only when it is on the disk."""
        return self._append("reserve", round_, unit=unit, neighbours=neighbours, event=event)

    def reserve_each(
        self, round_: int, charges: Sequence[tuple[Event, Sequence[int]]], *, unit: str, neighbours: str
    ) -> list[Entry]:
        """Writes down what a round will cost the units of some silos, a line per event and its silos.

        Returns only when all lines are on the disk; one wait for it does for all.
        """
        last = len(charges) - 1
        return [
            self._append("reserve", round_, unit=unit, neighbours=neighbours, event=event, silos=silos, hold=at < last)
            for at, (event, silos) in enumerate(charges)
        ]

    def commit(self, entry: Entry) -> Entry:
        """Says that the round of a reserve came to its end."""
        return self._close("commit", entry)

    def void(self, entry: Entry) -> Entry:
        """Takes a reserve back; only where provably nothing was released."""
        return self._close("void", entry)

    def spent(self, unit: str) -> list[Event]:
        """Every event that counts for a unit: all reserves that were not voided, committed or not."""
        return [entry.event for entry in self._spent.values() if entry.unit == unit and entry.event is not None]

    def spent_by(self, unit: str) -> dict[int, Counter[Event]]:
        """Silo to the events that count for its units, with how often; from reserves that name their silos."""
        found: dict[int, Counter[Event]] = {}
        for entry in self._spent.values():
            if entry.unit == unit and entry.event is not None:
                for silo in entry.silos:
                    found.setdefault(silo, Counter())[entry.event] += 1
        return found

    def charges(self, unit: str) -> int:
        """How many events count for a unit."""
        return self._charges[unit]

    def open_reserves(self) -> list[Entry]:
        """Reserves neither committed nor voided."""
        return list(self._open.values())

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
        silos: Sequence[int] = (),
        hold: bool = False,
    ) -> Entry:
        entry = Entry(self.head.seq + 1, kind, round_, unit, neighbours, event, reserve, tuple(silos))
        record: dict[str, Any] = {
            "seq": entry.seq,
            "prev_hash": self.head.hash,
            "kind": kind,
            "run": self.run,
            "round": round_,
            "unit": unit,
            "neighbours": neighbours,
            "dataset": self.dataset,
            "time": round(time.time(), 3),
        }
        if event is not None:
            record["event"] = to_json(event)
        if reserve is not None:
            record["reserve"] = reserve
        if entry.silos:
            record["silos"] = list(entry.silos)
        line = _dump(record | {"check": _check(record)})
        # A commit or a void that a crash takes back only overcounts, and the next reserve makes it durable too.
        self._write(line + b"\n", durable=kind == "reserve" and not hold)
        self._record(entry, line)
        return entry

    def _write(self, data: bytes, *, durable: bool) -> None:
        """Appends a line, and waits for the disk if it is to be `durable`.

        After a failure the ledger takes no other line, for its end is then unknown.
        """
        if self._broken:
            raise LedgerError(f"{self.path}: an earlier write failed; open the ledger anew before anything is released")
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(data):  # A disk that fills up takes a part of it.
                written += self._file.write(data[written:])
            if durable:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._broken = True
            with contextlib.suppress(OSError):  # If the line stays, it counts: too much, never too little.
                self._file.truncate(size)
            raise LedgerError(f"{self.path}: write failed ({error.strerror}); nothing was released") from error

    def _record(self, entry: Entry, line: bytes) -> None:
        self.entries.append(entry)
        self.head = Head(entry.seq, hashlib.sha256(line).hexdigest())
        if entry.kind == "reserve":
            self._open[entry.seq] = self._spent[entry.seq] = entry
            self._charges[entry.unit] += 1
        elif entry.reserve is not None:
            self._open.pop(entry.reserve, None)
            if entry.kind == "void" and self._spent.pop(entry.reserve, None) is not None:
                self._charges[entry.unit] -= 1

    def _read(self) -> None:
        self._file.seek(0)
        raw = self._file.read()
        *whole, torn = raw.split(b"\n")
        for line in whole:
            self._accept(line)
        if torn:
            self._quarantine(torn, keep=len(raw) - len(torn))

    def _accept(self, line: bytes) -> None:
        where = f"{self.path}:{self.head.seq + 1}"
        try:
            record = json.loads(line)
            event = from_json(record["event"]) if "event" in record else None
            entry = Entry(
                record["seq"],
                record["kind"],
                record["round"],
                record["unit"],
                record["neighbours"],
                event,
                record.get("reserve"),
                tuple(record.get("silos", ())),
            )
            chained = record["prev_hash"] == self.head.hash and entry.seq == self.head.seq + 1
            whole = record.pop("check") == _check(record)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LedgerError(f"{where}: not a ledger line ({error}); restore the file from a copy") from error
        if not (chained and whole and self._allowed(entry)):
            raise LedgerError(f"{where}: the hash chain is broken; the file was edited, restore it from a copy")
        self._record(entry, line)

    def _allowed(self, entry: Entry) -> bool:
        """Whether an entry of its kind may come here: only an open reserve takes a commit or a void."""
        if entry.kind == "reserve":
            return entry.event is not None and entry.reserve is None
        return entry.kind in ("commit", "void") and entry.event is None and entry.reserve in self._open

    def _quarantine(self, torn: bytes, keep: int) -> None:
        """Sets a torn last line aside.

        Every append is flushed before anything is released, so a torn line was never acted on; it is kept in a file of
        its own for a reader who wants to see it.
        """
        with open(self.path.with_name(self.path.name + ".torn"), "ab") as aside:
            aside.write(torn + b"\n")
        self._file.truncate(keep)
        os.fsync(self._file.fileno())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger as plain mappings, unchecked; for showing, not for trusting."""
    with open(path, "rb") as file:
        for line in file:
            yield json.loads(line)


def _dump(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, allow_nan=False).encode()


def _check(record: dict[str, Any]) -> str:
    """A line's own check sum; the chain says nothing yet of the last line."""
    return hashlib.sha256(_dump(record)).hexdigest()[:16]


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
