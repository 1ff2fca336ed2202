"""Reading and checking the ledger of a run, or a ledger alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from privacy.accountant import Bracket, Neighbours, epsilon
from privacy.chain import Chain, Entry, Head, LedgerError, Loaded, load
from privacy.checks import open_unit
from privacy.events import Composed, Event, Repeated
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
        claimed: what it claims to have cost; None where it claims nothing.
        problem: why it cannot be read.
    """

    name: str
    where: str
    head: Head | None = None
    claimed: Mapping[str, Any] | None = None
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


def delta_of(place: Place) -> float | None:
    """The delta that a run reports epsilon at; None for a ledger alone, and without privacy."""
    if place.run is None or not (place.run / "experiment.yaml").is_file():
        return None
    from strategies.yaml_text import read_yaml

    silo = (read_yaml(place.run / "experiment.yaml").get("privacy") or {}).get("silo")
    return None if silo is None else float(silo["delta"])


def groups(entries: Sequence[Entry]) -> dict[tuple[str, str], dict[Event, list[Entry]]]:
    """Reserves by unit and relation, and then by event."""
    found: dict[tuple[str, str], dict[Event, list[Entry]]] = {}
    for entry in entries:
        if entry.event is not None:
            found.setdefault((entry.unit, entry.neighbours), {}).setdefault(entry.event, []).append(entry)
    return found


def price(events: Mapping[Event, Sequence[Entry]], delta: float, *, neighbours: str) -> Bracket:
    """What all entries of a unit and relation cost.

    Raises:
        Unpriceable: some event has no price under the relation, or nobody knows the relation.
    """
    open_unit(delta=delta)
    history = Composed(tuple(Repeated(event, len(entries)) for event, entries in events.items()))
    try:
        return epsilon(history, delta, neighbours=cast(Neighbours, neighbours))
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
    delta = delta if delta is not None else delta_of(place)
    spent: dict[str, float] | None = None
    try:
        if delta is not None:
            spent = {
                f"{unit}/{neighbours}": price(events, delta, neighbours=neighbours).upper
                for (unit, neighbours), events in groups(chain.counted()).items()
            }
    except Unpriceable as error:
        problems.append(f"{place.ledger}: {error}")
    counts = Counter(entry.unit for entry in chain.counted())
    return Verdict(place.ledger, tuple(problems), tuple(checked), chain.head, dict(counts), bool(loaded.torn), spent)


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
            yield Seen("result.json", "result.json", _head(result["ledger"]), result["privacy"]["silo"])
        except (ValueError, KeyError, TypeError) as error:
            yield Seen("result.json", "result.json", problem=f"{path}: not the result of a run ({error!r})")


def _head(data: Mapping[str, Any]) -> Head:
    return Head(int(data["seq"]), str(data["hash"]))


def _compared(ledger: Path, chain: Chain, seen: Seen) -> Iterator[tuple[str, str | None]]:
    """What was looked at, and what is wrong with it."""
    problem = seen.problem if seen.head is None else _missing(ledger, chain, seen.head, where=seen.where)
    yield seen.name, problem
    if problem is None and seen.head is not None and seen.claimed is not None:
        try:
            yield "epsilon", _claim(ledger, seen.claimed, seen.head.seq)
        except (ValueError, KeyError, TypeError) as error:
            yield "epsilon", f"{ledger}: result.json claims what cannot be compared ({error!r})"


def _missing(ledger: Path, chain: Chain, seen: Head, *, where: str) -> str | None:
    """Whether the line is gone, or another, that somebody saw as the last one."""
    if chain.head.seq < seen.seq:
        return f"{ledger}: has {chain.head.seq} lines, but {where} saw {seen.seq}: lines were cut, restore it"
    return None if chain.holds(seen) else f"{ledger}: line {seen.seq} is not the one that {where} saw: another ledger"


def _claim(ledger: Path, claimed: Mapping[str, Any], seq: int) -> str | None:
    """Whether the claimed epsilon is that of the lines up to a number; a run that went on has more of them."""
    spent = [entry for entry in load(ledger, most=seq).chain.counted() if entry.unit == "silo"]
    found = groups(spent)
    if {neighbours for _, neighbours in found} - {claimed["neighbours"]}:
        return f"{ledger}: holds charges for another relation than result.json's {claimed['neighbours']}"
    if len(spent) != claimed["charged_rounds"]:
        return f"{ledger}: {len(spent)} charges, but result.json says {claimed['charged_rounds']}"
    events = found.get(("silo", claimed["neighbours"]), {})
    try:
        upper = price(events, float(claimed["delta"]), neighbours=claimed["neighbours"]).upper
    except (Unpriceable, ValueError) as error:
        return f"{ledger}: {error}"
    said = math.inf if claimed["epsilon_upper"] is None else float(claimed["epsilon_upper"])
    if upper == said or math.isclose(upper, said, rel_tol=CLOSE, abs_tol=CLOSE):
        return None
    return f"{ledger}: its events cost epsilon {upper:.6g}, but result.json says {said:.6g}"
