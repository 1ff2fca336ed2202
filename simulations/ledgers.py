"""Reading and checking the ledger of a run, or a ledger alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from privacy.accountant import Bracket, Neighbours
from privacy.chain import Chain, Entry, Head, LedgerError, Loaded, load
from privacy.checks import open_unit
from privacy.events import Event
from privacy.local import LOCAL, counts, worst_case
from privacy.terms import Unpriceable

CLOSE = 1e-9  # The same code prices the same events; only another version of a library rounds differently.


@dataclass(frozen=True)
class Place:
    """Where a ledger is.

    Attributes:
        ledger: its file.
        run: the run's folder; None for a ledger alone.
    """

    ledger: Path
    run: Path | None


@dataclass(frozen=True)
class Seen:
    """What a file of the run says of its ledger.

    Attributes:
        name: what was looked at.
        where: the file, in words.
        head: the line that it saw last; None where it cannot be read.
        claimed: what it claims that each unit has cost; units that it claims nothing of are left out.
        problem: why it cannot be read.
    """

    name: str
    where: str
    head: Head | None = None
    claimed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What was found out about a ledger.

    Attributes:
        ledger: its file.
        problems: a line each; none where all that was looked at is as it should be.
        checked: what was looked at.
        head: the last whole line.
        charges: reserves that count, by unit.
        torn: whether the last line is torn.
        epsilon: upper bound by unit and relation, as the whole file has it; None where no delta is known.
    """

    ledger: Path
    problems: tuple[str, ...]
    checked: tuple[str, ...]
    head: Head
    charges: Mapping[str, int]
    torn: bool
    epsilon: Mapping[str, float] | None


def find(path: Path) -> Place:
    """The ledger that a path means: a run's folder, or a ledger's file.

    Raises:
        LedgerError: neither.
    """
    if path.is_file():
        return Place(path, None)
    if not (path / "ledger.jsonl").is_file():
        raise LedgerError(f"{path}: holds no ledger; give the folder of a run, or a ledger's file")
    return Place(path / "ledger.jsonl", path)


def delta_of(place: Place, unit: str = "silo") -> float | None:
    """The delta that a run reports a unit's epsilon at; None for a ledger alone, and without privacy."""
    if place.run is None or not (place.run / "experiment.yaml").is_file():
        return None
    from strategies.yaml_text import read_yaml

    section = (read_yaml(place.run / "experiment.yaml").get("privacy") or {}).get("local" if unit == LOCAL else "silo")
    return None if section is None else float(section["delta"])


def groups(entries: Sequence[Entry]) -> dict[tuple[str, str], dict[Event, list[Entry]]]:
    """Reserves by unit and relation, and then by event."""
    found: dict[tuple[str, str], dict[Event, list[Entry]]] = {}
    for entry in entries:
        if entry.event is not None:
            found.setdefault((entry.unit, entry.neighbours), {}).setdefault(entry.event, []).append(entry)
    return found


def price(events: Mapping[Event, Sequence[Entry]], delta: float, *, neighbours: str) -> Bracket:
    """What all entries of a unit and relation cost; where lines name the silos that they charge, the worst silo.

    Raises:
        Unpriceable: some event has no price under the relation, or nobody knows the relation.
    """
    open_unit(delta=delta)
    charged = [entry for entries in events.values() for entry in entries]
    try:
        return worst_case(charged, delta, neighbours=cast(Neighbours, neighbours))
    except Unpriceable:
        raise
    except ValueError as error:
        raise Unpriceable(str(error)) from error


def verify(place: Place, delta: float | None = None) -> Verdict:
    """Checks lines, chain, heads and epsilon of a ledger; what is wrong is a line in the verdict.

    Args:
        place: of the ledger.
        delta: to price a ledger alone at.
    """
    seen = list(_seen(place))  # Before the ledger: a run that is under way only adds lines to it.
    try:
        loaded = load(place.ledger)
    except LedgerError as error:
        return Verdict(place.ledger, (str(error),), ("lines",), Head(), {}, False, None)
    chain, problems, checked = loaded.chain, list(_torn(place, loaded)), ["lines", "chain"]
    for name, problem in (found for one in seen for found in _compared(place.ledger, chain, one)):
        checked.append(name)
        problems += [problem] if problem else []
    spent: dict[str, float] = {}
    for (unit, neighbours), events in groups(chain.counted()).items():
        at = delta if delta is not None else delta_of(place, unit)
        try:
            spent |= {} if at is None else {f"{unit}/{neighbours}": price(events, at, neighbours=neighbours).upper}
        except Unpriceable as error:
            problems.append(f"{place.ledger}: {error}")
    counts = Counter(entry.unit for entry in chain.counted())
    return Verdict(
        place.ledger, tuple(problems), tuple(checked), chain.head, dict(counts), bool(loaded.torn), spent or None
    )


def _torn(place: Place, loaded: Loaded) -> Iterator[str]:
    if loaded.torn:
        yield (
            f"{place.ledger}: the last line is torn ({len(loaded.torn)} bytes), and not charged yet; "
            "resuming the run, or confide ledger mend, charges it"
        )


def _seen(place: Place) -> Iterator[Seen]:
    """What checkpoint and result.json say of the ledger."""
    if place.run is None:
        return
    path = place.run / "checkpoint.safetensors"
    if path.is_file():
        from server.checkpoint import CheckpointError, read

        try:
            yield Seen("checkpoint", "the checkpoint", _head(read(path).meta["ledger"]))
        except (CheckpointError, ValueError, KeyError, TypeError) as error:
            yield Seen("checkpoint", "the checkpoint", problem=str(error))
    path = place.run / "result.json"
    if path.is_file():
        try:
            result = json.loads(path.read_bytes())
            said = {"silo": result["privacy"]["silo"], LOCAL: result["privacy"].get("local")}
            claimed = {unit: values for unit, values in said.items() if values is not None}
            yield Seen("result.json", "result.json", _head(result["ledger"]), claimed)
        except (ValueError, KeyError, TypeError) as error:
            yield Seen("result.json", "result.json", problem=f"{path}: not the result of a run ({error!r})")


def _largest(entries: Sequence[Entry]) -> int:
    return max((silo for entry in entries for silo in entry.silos or ()), default=0)


def _head(data: Mapping[str, Any]) -> Head:
    return Head(int(data["seq"]), str(data["hash"]))


def _compared(ledger: Path, chain: Chain, seen: Seen) -> Iterator[tuple[str, str | None]]:
    """What was looked at, and what is wrong with it."""
    problem = seen.problem if seen.head is None else _missing(ledger, chain, seen.head, where=seen.where)
    yield seen.name, problem
    for unit, claimed in seen.claimed.items() if problem is None and seen.head is not None else ():
        assert seen.head is not None
        try:
            yield "epsilon", _claim(ledger, claimed, seen.head.seq, unit)
        except (ValueError, KeyError, TypeError) as error:
            yield "epsilon", f"{ledger}: result.json claims what cannot be compared ({error!r})"


def _missing(ledger: Path, chain: Chain, seen: Head, *, where: str) -> str | None:
    """Whether the line is gone, or another, that somebody saw as the last one."""
    if chain.head.seq < seen.seq:
        return f"{ledger}: has {chain.head.seq} lines, but {where} saw {seen.seq}: lines were cut, restore it"
    return None if chain.holds(seen) else f"{ledger}: line {seen.seq} is not the one that {where} saw: another ledger"


def _claim(ledger: Path, claimed: Mapping[str, Any], seq: int, unit: str) -> str | None:
    """Whether the claimed epsilon is that of the lines up to a number; a run that went on has more of them."""
    spent = [entry for entry in load(ledger, most=seq).chain.counted() if entry.unit == unit]
    found = groups(spent)
    if {neighbours for _, neighbours in found} - {claimed["neighbours"]}:
        return f"{ledger}: holds charges for another relation than result.json's {claimed['neighbours']}"
    lines = claimed["charged_rounds" if unit == "silo" else "charged_lines"]
    if len(spent) != lines:
        return f"{ledger}: {len(spent)} charges, but result.json says {lines}"
    if unit == LOCAL and max(counts(spent, 1 + _largest(spent)), default=0) != claimed["most_charges"]:
        return f"{ledger}: charges some silo another number of times than result.json says"
    events = found.get((unit, claimed["neighbours"]), {})
    try:
        upper = price(events, float(claimed["delta"]), neighbours=claimed["neighbours"]).upper
    except (Unpriceable, ValueError) as error:
        return f"{ledger}: {error}"
    said = math.inf if claimed["epsilon_upper"] is None else float(claimed["epsilon_upper"])
    if upper == said or math.isclose(upper, said, rel_tol=CLOSE, abs_tol=CLOSE):
        return None
    return f"{ledger}: its events cost epsilon {upper:.6g}, but result.json says {said:.6g}"
