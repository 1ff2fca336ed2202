"""The lines of a ledger: what they say, how each hangs on the one before, and what counts as spent."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
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
        unit: whose privacy it is, and seen by whom (`silo`; `example`; `silo/local`, which its silos noised).
        neighbours: the relation its price is for.
        event: what a reserve costs; None on the others.
        reserve: the seq of the reserve that a commit or void closes; None on a reserve.
        run: who wrote it.
        torn: whether it stands for a line that was found torn, and so for what that line may have reserved.
        silos: whose units a reserve charges; None: those of every silo.
        deal: what says which rows the silos of these numbers hold; empty in a ledger where they are always the same.
    """

    seq: int
    kind: Kind
    round: int
    unit: str
    neighbours: str
    event: Event | None
    reserve: int | None
    run: str = ""
    torn: bool = False
    silos: tuple[int, ...] | None = None
    deal: str = ""


class Chain:
    """The entries of a ledger, in their order; kept up to date, so that a round costs no walk over them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.head = Head()
        self.hashes: list[str] = [GENESIS]
        """SHA-256 of each line, by its seq."""
        self.runs: set[tuple[str, str]] = set()
        """The run and the data set of every line that was read; a torn line names none."""
        self._open: dict[int, Entry] = {}
        self._spent: dict[int, Entry] = {}
        self._charges: Counter[str] = Counter()

    def spent(self, unit: str) -> list[Event]:
        """Every event that counts for a unit: all reserves that were not voided, committed or not."""
        return [entry.event for entry in self._spent.values() if entry.unit == unit and entry.event is not None]

    def spent_by(self, unit: str, silos: Iterable[int]) -> dict[int, Counter[Event]]:
        """Silo to the events that count for its units, with how often; a reserve that names no silo counts for all."""
        found: dict[int, Counter[Event]] = {silo: Counter() for silo in silos}
        everyone: Counter[Event] = Counter()
        for entry in self._spent.values():
            if entry.unit == unit and entry.event is not None:
                everyone[entry.event] += entry.silos is None
                for silo in entry.silos or ():
                    found.setdefault(silo, Counter())[entry.event] += 1
        return {silo: spent + everyone for silo, spent in found.items()}

    def counted(self) -> list[Entry]:
        """The reserves that count, of all units."""
        return list(self._spent.values())

    def charges(self, unit: str) -> int:
        """How many events count for a unit."""
        return self._charges[unit]

    def open_reserves(self) -> list[Entry]:
        """Reserves neither committed nor voided."""
        return list(self._open.values())

    def holds(self, head: Head) -> bool:
        """Whether `head` is a line of this chain: what it was once must still be there."""
        return 0 <= head.seq < len(self.hashes) and self.hashes[head.seq] == head.hash

    def parse(self, line: bytes, where: str) -> Entry:
        """The entry that a line holds, if it may come next; nothing is recorded.

        Raises:
            LedgerError: not a ledger line, changed, or not the next one.
        """
        try:
            record = json.loads(line)
            entry = _entry(record)
            chained = record["prev_hash"] == self.head.hash and entry.seq == self.head.seq + 1
            whole = record.pop("check") == check(record) and isinstance(record["dataset"], str)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LedgerError(f"{where}: not a ledger line ({error}); restore the file from a copy") from error
        if not (chained and whole and self._allowed(entry)):
            raise LedgerError(f"{where}: the hash chain is broken; the file was edited, restore it from a copy")
        if not entry.torn:
            self.runs.add((entry.run, record["dataset"]))
        return entry

    def line(self, entry: Entry, *, dataset: str) -> bytes:
        """An entry as the bytes that `parse` reads, without the newline; it must be the next."""
        record: dict[str, Any] = {
            "seq": entry.seq,
            "prev_hash": self.head.hash,
            "kind": entry.kind,
            "run": entry.run,
            "round": entry.round,
            "unit": entry.unit,
            "neighbours": entry.neighbours,
            "dataset": dataset,
            "time": round(time.time(), 3),
        }
        if entry.event is not None:
            record["event"] = to_json(entry.event)
        if entry.reserve is not None:
            record["reserve"] = entry.reserve
        if entry.torn:
            record["torn"] = True
        if entry.silos is not None:
            record["silos"] = list(entry.silos)
        if entry.deal:
            record["deal"] = entry.deal
        return _dump(record | {"check": check(record)})

    def record(self, entry: Entry, line: bytes) -> None:
        """Takes an entry that is in the file."""
        self.entries.append(entry)
        self.head = Head(entry.seq, hashlib.sha256(line).hexdigest())
        self.hashes.append(self.head.hash)
        if entry.kind == "reserve":
            self._open[entry.seq] = self._spent[entry.seq] = entry
            self._charges[entry.unit] += 1
        elif entry.reserve is not None:
            self._open.pop(entry.reserve, None)
            if entry.kind == "void" and self._spent.pop(entry.reserve, None) is not None:
                self._charges[entry.unit] -= 1

    def _allowed(self, entry: Entry) -> bool:
        """Whether an entry of its kind may come here: only an open reserve takes a commit or a void."""
        if entry.kind == "reserve":
            return entry.event is not None and entry.reserve is None
        return entry.kind in ("commit", "void") and entry.event is None and entry.reserve in self._open


@dataclass(frozen=True)
class Loaded:
    """A ledger as it is in its file, read without a lock and without mending anything.

    Attributes:
        chain: its whole lines, checked.
        torn: a last line without its end; empty where there is none.
    """

    chain: Chain
    torn: bytes


def load(path: Path, *, most: int | None = None) -> Loaded:
    """Reads and checks a ledger, or only its first `most` lines.

    Raises:
        LedgerError: cannot be read, or is damaged.
    """
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror}); give a run's folder or a ledger") from error
    chain = Chain()
    for line in lines[:most]:
        chain.record(chain.parse(line, f"{path}:{chain.head.seq + 1}"), line)
    return Loaded(chain, torn)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger as plain mappings, unchecked; for showing, not for trusting."""
    with open(path, "rb") as file:
        for line in file:
            yield json.loads(line)


def check(record: dict[str, Any]) -> str:
    """A line's own check sum; the chain says nothing yet of the last line."""
    return hashlib.sha256(_dump(record)).hexdigest()[:16]


def _entry(record: dict[str, Any]) -> Entry:
    return Entry(
        record["seq"],
        record["kind"],
        record["round"],
        record["unit"],
        record["neighbours"],
        from_json(record["event"]) if "event" in record else None,
        record.get("reserve"),
        record["run"],
        record.get("torn", False) is True,
        _silos(record["silos"]) if "silos" in record else None,
        str(record.get("deal", "")),
    )


def _silos(data: Any) -> tuple[int, ...]:
    if not isinstance(data, list) or not all(type(silo) is int and silo >= 0 for silo in data):
        raise ValueError(f"silos: expected a list of numbers from 0 on, found {str(data)[:40]}")
    return tuple(data)


def _dump(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, allow_nan=False).encode()
