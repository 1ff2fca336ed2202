"""Reading and checking the ledger of a run, or a ledger alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privacy.chain import Chain, Head, LedgerError, Loaded, load
from privacy.local import LOCAL
from privacy.terms import Unpriceable
from simulations.ledger_claims import contradiction, groups, price

MAIN, SILOS = "ledger.jsonl", "silos-ledger.jsonl"
SECTIONS = {"silo": "silo", LOCAL: "local", "example": "example"}  # Of privacy, for each unit of a ledger.


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
        epsilon: upper bound by unit and relation, as the whole file has it, where a delta is known; examples': of the
            silo that spent most.
    """

    ledger: Path
    problems: tuple[str, ...]
    checked: tuple[str, ...]
    head: Head
    charges: Mapping[str, int]
    torn: bool
    epsilon: Mapping[str, float]


def find(path: Path) -> list[Place]:
    """The ledgers that a path means: those of a run's folder, or a ledger's file.

    Raises:
        LedgerError: neither.
    """
    if path.is_file():
        return [Place(path, None)]
    if not (path / MAIN).is_file():
        raise LedgerError(f"{path}: holds no ledger; give the folder of a run, or a ledger's file")
    promised = (path / "experiment.yaml").is_file() and _privacy(path).get("example") is not None
    silos = [Place(path / SILOS, path)] if promised or (path / SILOS).exists() else []  # Missing is damaged too.
    return [Place(path / MAIN, path), *silos]


def _privacy(run: Path) -> Mapping[str, Any]:
    from strategies.yaml_text import read_yaml

    found: Mapping[str, Any] = read_yaml(run / "experiment.yaml").get("privacy") or {}
    return found


def deltas_of(place: Place) -> dict[str, float]:
    """The deltas that a run reports epsilon at, by unit; none for a ledger alone, and without privacy."""
    if place.run is None or not (place.run / "experiment.yaml").is_file():
        return {}
    privacy = _privacy(place.run)
    return {unit: float(privacy[key]["delta"]) for unit, key in SECTIONS.items() if privacy.get(key) is not None}


def verify(place: Place, delta: float | None = None) -> Verdict:
    """Checks lines, chain, heads and epsilon of a ledger; what is wrong is a line in the verdict.

    Args:
        place: of the ledger.
        delta: to price at; None for those of the run.
    """
    seen = list(_seen(place))  # Before the ledger: a run that is under way only adds lines to it.
    try:
        loaded = load(place.ledger)
    except LedgerError as error:
        return Verdict(place.ledger, (str(error),), ("lines",), Head(), {}, False, {})
    chain, problems, checked = loaded.chain, list(_torn(place, loaded)), ["lines", "chain"]
    for name, problem in (found for one in seen for found in _compared(place.ledger, chain, one)):
        checked.append(name)
        problems += [problem] if problem else []
    deltas, spent = deltas_of(place), dict[str, float]()
    try:
        for (unit, neighbours), entries in groups(chain.counted()).items():
            if (own := delta if delta is not None else deltas.get(unit)) is not None:
                spent[f"{unit}/{neighbours}"] = price(entries, own, neighbours=neighbours).upper
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
            yield Seen("checkpoint", "the checkpoint", _head(read(path).meta, place))
        except (CheckpointError, ValueError, KeyError, TypeError) as error:
            yield Seen("checkpoint", "the checkpoint", problem=_unread(path, error))
    path = place.run / "result.json"
    if path.is_file():
        try:
            result = json.loads(path.read_bytes())
            yield Seen("result.json", "result.json", _head(result, place), _claimed(result, place))
        except (ValueError, KeyError, TypeError) as error:
            yield Seen("result.json", "result.json", problem=f"{path}: not the result of a run ({error!r})")


def _unread(path: Path, error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{path}: does not say which line it saw ({error!r})"


def _head(data: Mapping[str, Any], place: Place) -> Head:
    """The last line of a ledger that a checkpoint's notes, or a result, saw."""
    seen = data["ledger"] if place.ledger.name == MAIN else data["ledgers"][place.ledger.name]
    return Head(int(seen["seq"]), str(seen["hash"]))


def _claimed(result: Mapping[str, Any], place: Place) -> Mapping[str, Mapping[str, Any]]:
    """What a result claims of a ledger's units."""
    privacy = result["privacy"]
    if place.ledger.name != MAIN:
        return {"example": {**privacy["example"], "silos": result["silos"]}}
    return {unit: privacy[SECTIONS[unit]] for unit in ("silo", LOCAL) if privacy.get(SECTIONS[unit]) is not None}


def _compared(ledger: Path, chain: Chain, seen: Seen) -> Iterator[tuple[str, str | None]]:
    """What was looked at, and what is wrong with it."""
    problem = seen.problem if seen.head is None else _missing(ledger, chain, seen.head, where=seen.where)
    yield seen.name, problem
    for unit, claimed in seen.claimed.items() if problem is None and seen.head is not None else ():
        assert seen.head is not None
        try:
            yield "epsilon", contradiction(ledger, claimed, seen.head.seq, unit=unit)
        except (ValueError, KeyError, TypeError) as error:
            yield "epsilon", f"{ledger}: result.json claims what cannot be compared ({error!r})"


def _missing(ledger: Path, chain: Chain, seen: Head, *, where: str) -> str | None:
    """Whether the line is gone, or another, that somebody saw as the last one."""
    if chain.head.seq < seen.seq:
        return f"{ledger}: has {chain.head.seq} lines, but {where} saw {seen.seq}: lines were cut, restore it"
    return None if chain.holds(seen) else f"{ledger}: line {seen.seq} is not the one that {where} saw: another ledger"
