"""`confide ledger`: shows, verifies, exports and mends what was charged."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from privacy.terms import Neighbours
from simulations.commands import FAILED, OK, output
from simulations.commands.shared import format_argument
from strategies.schema import ConfigError

if TYPE_CHECKING:
    from privacy.accountant import Bracket
    from privacy.chain import Chain, Entry
    from privacy.events import Event
    from simulations.ledgers import Verdict

NAME = "ledger"
HELP = "show, verify or export what was charged"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    what = parser.add_subparsers(metavar="WHAT", required=True, dest="what")
    for name, help_ in (
        ("show", "charges by unit and event, and their epsilon"),
        ("verify", "check chain, heads and epsilon; exit code 1 where something is wrong"),
        ("export", "the events as JSON of dp-accounting's named tuples"),
    ):
        sub = what.add_parser(name, help=help_, allow_abbrev=False)
        sub.add_argument("path", metavar="RUN|FILE", type=Path, help="the folder of a run, or a ledger's file")
        if name != "export":
            sub.add_argument("--delta", metavar="D", type=float, help="of epsilon; default: the run's")
            format_argument(sub)
    mend = what.add_parser("mend", help="charge a torn last line of which nothing is known", allow_abbrev=False)
    mend.add_argument("path", metavar="FILE", type=Path, help="a ledger's file")
    mend.add_argument("--as", metavar="EVENT", dest="event", required=True, help="JSON as in the lines of a ledger")
    mend.add_argument("--unit", default="silo", help="default: silo")
    mend.add_argument("--neighbours", choices=get_args(Neighbours), default="add_remove", help="default: add_remove")


def execute(args: argparse.Namespace) -> int:
    """Does what WHAT says."""
    if getattr(args, "delta", None) is not None and not 0 < args.delta < 1:
        raise ConfigError([f"--delta: must be > 0 and < 1, got {args.delta:g}"])
    return {"show": show, "verify": verify, "export": export, "mend": mend}[args.what](args)


def show(args: argparse.Namespace) -> int:
    """Prints a line per unit, relation and event, and epsilon per unit."""
    from privacy.chain import load
    from simulations.ledgers import deltas_of, find

    shown: list[dict[str, Any]] = []
    for place in find(args.path):
        loaded, deltas = load(place.ledger), deltas_of(place)
        torn = {"torn_line": bool(loaded.torn), "head": vars(loaded.chain.head)}
        shown.append({"ledger": str(place.ledger), "units": list(_units(loaded.chain, args.delta, deltas)), **torn})
    main, *silos = shown
    if args.format == "json":
        units = [unit for each in shown for unit in each["units"]]
        print(output.document({**main, "units": units, **({"silos": silos[0]} if silos else {})}))
    else:
        print("\n\n".join(part for each in shown for part in _tables(each)))
    return OK


def _units(chain: Chain, delta: float | None, deltas: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    from simulations.ledger_claims import groups, price

    still_open = {entry.seq for entry in chain.open_reserves()}
    for (unit, neighbours), entries in groups(chain.counted()).items():
        at = delta if delta is not None else deltas.get(unit)
        bracket = None if at is None else price(entries, at, neighbours=neighbours)
        by_event: dict[Event, list[Entry]] = {}
        for entry in entries:
            if entry.event is not None:
                by_event.setdefault(entry.event, []).append(entry)
        yield {
            "unit": unit,
            "neighbours": neighbours,
            "delta": at,
            "epsilon_lower": None if bracket is None else output.finite(bracket.lower),
            "epsilon_upper": None if bracket is None else output.finite(bracket.upper),
            "note": "; ".join(_notes(by_event, bracket)),
            "per_silo": any(entry.silos or entry.deal for entry in entries),
            "events": [_row(event, charged, still_open) for event, charged in by_event.items()],
        }


def verify(args: argparse.Namespace) -> int:
    """Prints what is wrong with the ledgers of a run, or with a ledger."""
    from simulations.ledgers import find
    from simulations.ledgers import verify as check

    verdicts = [check(place, args.delta) for place in find(args.path)]
    if args.format == "json":
        print(output.document(_together(verdicts)))
    else:
        for verdict in verdicts:
            lines = [f"wrong: {problem}" for problem in verdict.problems]
            print("\n".join(lines or [f"{verdict.ledger}: whole, {verdict.head.seq} lines"]))
            print(f"looked at: {', '.join(verdict.checked)}")
    return FAILED if any(verdict.problems for verdict in verdicts) else OK


def _together(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The verdict on a run: its ledger's, with what was found of the silos' ledger, where it has one."""
    main, *silos = (
        {
            "ledger": str(verdict.ledger),
            "ok": not verdict.problems,
            "problems": list(verdict.problems),
            "checked": list(verdict.checked),
            "head": vars(verdict.head),
            "charges": dict(verdict.charges),
            "torn_line": verdict.torn,
            "epsilon_upper": {name: output.finite(value) for name, value in verdict.epsilon.items()},
        }
        for verdict in verdicts
    )
    problems = [problem for verdict in verdicts for problem in verdict.problems]
    return {**main, "ok": not problems, "problems": problems, **({"silos": silos[0]} if silos else {})}


def export(args: argparse.Namespace) -> int:
    """Prints the events in dp-accounting's words."""
    from privacy.chain import load
    from privacy.export import as_json
    from simulations.ledgers import find

    loaded = [load(place.ledger) for place in find(args.path)]
    if any(each.torn for each in loaded):
        raise ConfigError([f"{args.path}: the last line is torn, and not charged yet; see: confide ledger verify"])
    print(output.document([unit for each in loaded for unit in as_json(each.chain.counted())]))
    return OK


def mend(args: argparse.Namespace) -> int:
    """Charges a torn last line as EVENT, together with all that the ledger itself knows."""
    from privacy.events import from_json
    from privacy.ledger import Charge, Ledger, load

    try:
        event = from_json(json.loads(args.event))
    except ValueError as error:
        raise ConfigError([f"--as: {error}; copy the event of a line of some ledger"]) from error
    loaded = load(args.path)
    if not loaded.torn:
        raise ConfigError([f"{args.path}: its last line is not torn; nothing to mend"])
    before = len(loaded.chain.entries)
    ledger = Ledger(args.path, run="(mend)", dataset="", told=[Charge(args.unit, args.neighbours, event)])
    charged = len(ledger.entries) - before
    ledger.close()
    print(f"{args.path}: the torn line is charged as {charged} reserve{'' if charged == 1 else 's'}")
    return OK


def _notes(events: Mapping[Event, Sequence[Entry]], bracket: Bracket | None) -> Iterator[str]:
    from privacy.filters import fixed

    if bracket is not None and bracket.note:
        yield bracket.note
    if len({entry.run for entries in events.values() for entry in entries if not entry.torn}) > 1 and not fixed(events):
        yield "runs differ in noise or sampling: added up as if planned beforehand, a budget's filter charges more"


def _row(event: Event, entries: Sequence[Entry], still_open: set[int]) -> dict[str, Any]:
    from privacy.events import to_json

    rounds = sorted(entry.round for entry in entries)
    return {
        "event": to_json(event),
        "first_round": rounds[0],
        "last_round": rounds[-1],
        "charges": len(entries),
        "open": sum(entry.seq in still_open for entry in entries),
        "torn": sum(entry.torn for entry in entries),
        "runs": len({entry.run for entry in entries if not entry.torn}),
    }


def _tables(shown: Mapping[str, Any]) -> Iterator[str]:
    for unit in shown["units"]:
        relation, delta = output.RELATIONS.get(unit["neighbours"], unit["neighbours"]), unit["delta"]
        spent = f"{output.bracket(unit['epsilon_lower'], unit['epsilon_upper'])} at delta {output.short(delta)}"
        where = ", in the silo that spent most" if unit["per_silo"] else ""
        who = "row" if unit["unit"] == "example" else "silo"
        pairs = [
            ("unit", unit["unit"]),
            ("protects", relation.replace("whole silo", who) if who == "row" else relation),
        ]
        pairs += [("epsilon", f"{spent}{where}" if delta is not None else "give --delta")]
        rows = [
            [_words(row["event"], who), _span(row), *(str(row[name]) for name in ("charges", "open", "torn", "runs"))]
            for row in unit["events"]
        ]
        table = output.table(["event", "rounds", "charges", "open", "torn", "runs"], rows, left=2)
        yield f"{output.facts(pairs + ([('note', unit['note'])] if unit['note'] else []))}\n\n{table}"
    last = "torn: not charged yet, see confide ledger verify" if shown["torn_line"] else "whole"
    yield output.facts([("ledger", shown["ledger"]), ("lines", str(shown["head"]["seq"])), ("last line", last)])


def _span(row: Mapping[str, Any]) -> str:
    first, last = row["first_round"], row["last_round"]
    return str(first) if first == last else f"{first}-{last}"


def _words(event: Mapping[str, Any], who: str = "silo") -> str:
    """An event in a few words.

    >>> _words({"kind": "gaussian", "noise_multiplier": 2.0})
    'Gaussian 2'
    """
    match event:
        case {"kind": "gaussian", "noise_multiplier": noise}:
            return f"Gaussian {output.short(noise)}"
        case {"kind": "non_private", "reason": reason}:
            return f"not private: {reason}" if reason else "not private"
        case {"kind": "sampled", "sampler": {"kind": "poisson", "rate": rate}, "event": inner}:
            return f"{_words(inner, who)}, each {who} with chance {output.short(rate)}"
        case {"kind": "sampled", "sampler": {"rate": rate, "cap": cap, "population": silos}, "event": inner}:
            return f"{_words(inner, who)}, each of {silos} {who}s with chance {output.short(rate)}, {cap} at most"
        case {"kind": "sampled", "sampler": {"size": size, "population": population}, "event": inner}:
            return f"{_words(inner, who)}, {size} of {population}"
        case {"kind": "turn", "event": inner, "charged": charged}:
            return f"{_words(inner, who)}, {who}s in turn" + ("" if charged else ", paid by the cycle's first round")
        case {"kind": "composed", "events": events}:
            return " and ".join(_words(inner, who) for inner in events)
        case {"kind": "repeated", "event": inner, "times": times}:
            return f"{times} times ({_words(inner, who)})"
    return json.dumps(event)
