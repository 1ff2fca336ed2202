"""Recomputes an upper epsilon from a ledger with nothing of confide: only dp-accounting and the standard library.

    python verify.py ledger.jsonl --delta 1e-5 [--unit silo]

Prints JSON {epsilon, charges, torn, head} of the silo that spent most; epsilon is null where it is infinite. What it
does not know, or what was touched, is an error and exit code 1. A sample of fixed size, and all that is composed with
it, is priced as replaced. All is taken as planned beforehand: the budget of several runs may charge more.
"""

import argparse
import hashlib
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dp_accounting as dp


def reserves(lines: list[bytes]) -> tuple[list[dict[str, Any]], str]:
    """The reserves that were not voided, and the last line's hash; every line must hang on the one before."""
    head, spent, still_open = "0" * 64, dict[int, Any](), set[int]()
    for number, line in enumerate(lines, 1):
        record = json.loads(line)
        body = json.dumps({name: value for name, value in record.items() if name != "check"}, sort_keys=True)
        hangs = (record["check"], record["prev_hash"]) == (hashlib.sha256(body.encode()).hexdigest()[:16], head)
        match hangs and record["seq"] == number and record:
            case {"kind": "reserve", "event": _, **rest} if "reserve" not in rest:
                spent[number] = record
                still_open.add(number)
            case {"kind": "commit" | "void" as kind, "reserve": seq} if seq in still_open and "event" not in record:
                still_open.remove(seq)
                if kind == "void":
                    del spent[seq]
            case _:
                raise ValueError(f"line {number}: the chain is broken, or no such entry may come here")
        head = hashlib.sha256(line).hexdigest()
    return list(spent.values()), head


def histories(records: list[dict[str, Any]]) -> list[Counter[str]]:
    """What each silo that a line names was charged, and a silo that none names; a line without silos charges all."""
    charges = [(json.dumps(r["event"], sort_keys=True), r.get("silos"), r.get("deal", "")) for r in records]
    if len({deal for _, _, deal in charges}) > 1:  # Numbers of several deals: all is charged to one silo.
        charges = [(event, None, "") for event, _, _ in charges]
    named = {silo for _, silos, _ in charges for silo in silos or ()} | {None}
    spent = [Counter(event for event, silos, _ in charges if silos is None or silo in silos) for silo in named]
    return list({tuple(sorted(own.items())): own for own in spent}.values())


def dp_event(data: Any, scale: float) -> Any:
    """dp-accounting's event for a ledger's, noise multipliers times `scale`; one key more or less and it is unknown."""
    match sorted(data.items()):
        case [("kind", "non_private"), ("reason", _)]:
            return dp.NonPrivateDpEvent()
        case [("kind", "gaussian"), ("noise_multiplier", noise)] if 0 < noise < math.inf:
            return dp.GaussianDpEvent(noise * scale)
        case [("events", [*events]), ("kind", "composed")]:
            return dp.ComposedDpEvent([dp_event(event, scale) for event in events])
        case [("event", event), ("kind", "repeated"), ("times", int(times))] if times >= 0:
            return dp.SelfComposedDpEvent(dp_event(event, scale), times)
        case [("charged", bool(charged)), ("event", event), ("kind", "turn")]:
            one = together(dp_event(event, scale))
            return one if charged else dp.NoOpDpEvent()  # Its cycle's first round has paid.
        case [("event", event), ("kind", "sampled"), ("sampler", sampler)] if "'turn'" not in str(event):
            return sampled(sorted(sampler.items()), together(dp_event(event, scale)))
    raise ValueError(f"unknown event {json.dumps(data)[:80]}")


def together(inner: Any) -> Any:
    """Gaussians on one sample, or in one turn, as the one Gaussian that they cost like: of noise (sum z^-2)^-1/2."""
    parts = inner.events if isinstance(inner, dp.ComposedDpEvent) else [inner]
    if not parts or {type(part) for part in parts} != {dp.GaussianDpEvent}:
        raise ValueError("inside a sample or a turn only Gaussians have a price")
    return dp.GaussianDpEvent(1 / math.hypot(*(1 / part.noise_multiplier for part in parts)))


def sampled(sampler: Any, one: Any) -> Any:
    """A sample of one Gaussian."""
    match sampler:
        case [("kind", "poisson"), ("rate", rate)] if 0 < rate <= 1:
            return dp.PoissonSampledDpEvent(rate, one)
        case [("kind", "fixed_size"), ("population", int(n)), ("size", int(size))] if 0 < size <= n:
            return one if size == n else dp.SampledWithoutReplacementDpEvent(n, size, one)
        case [("cap", int(b)), ("kind", "capped"), ("population", int(n)), ("rate", p)] if 0 < p <= 1 <= min(b, n):
            return dp.TruncatedSubsampledGaussianDpEvent(n, p, b, one.noise_multiplier)
    raise ValueError(f"unknown sampler {json.dumps(sampler)[:80]}")


def epsilon(events: Counter[str], neighbours: str, delta: float) -> float:
    """An upper bound: by privacy-loss distributions, or by Renyi divergence where a sample has a fixed size."""
    fixed, of = any('"fixed_size"' in event for event in events), dp.NeighboringRelation
    if neighbours not in ("replace", "zero_out", "add_remove")[: 2 if fixed else 3]:
        raise ValueError(f"nothing is proved here for neighbours: {neighbours}")
    accountant: Any = dp.pld.PLDAccountant(of.REPLACE_ONE if neighbours == "replace" else of.ADD_OR_REMOVE_ONE)
    if fixed:  # The library takes one clip norm for the sensitivity here (its issue 378), where it is two.
        orders = [1 + step / 10 for step in range(1, 640)] + [96, 128, 256, 512]
        accountant = dp.rdp.RdpAccountant(orders, of.REPLACE_ONE)
    for event, times in events.items():
        accountant.compose(dp_event(json.loads(event), 0.5 if fixed else 1.0), times)
    return float(accountant.get_epsilon(delta))


def main() -> None:
    """Prints what a ledger proves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--delta", type=float, required=True)
    parser.add_argument("--unit", default="silo")
    args = parser.parse_args()
    try:
        *lines, torn = args.ledger.read_bytes().split(b"\n")
        records, head = reserves(lines)
        found = [record for record in records if record["unit"] == args.unit]
        each = histories(found)
        for own in each:  # A torn line: each event once more, at least the dearest that it may have been.
            own.update({event for spent in each for event in spent} if torn else ())
        (neighbours,) = {record["neighbours"] for record in found} or {"add_remove"}
        if not 0 < args.delta < 1 or (torn and not found):
            raise ValueError("delta is no probability, or a torn line may have reserved anything")
        spent, charges = max((epsilon(own, neighbours, args.delta), own.total()) for own in each)
    except Exception as error:  # Whatever it is, nothing is proved.
        sys.exit(f"verify: {args.ledger}: {error!r}")
    torn_lines = bool(torn) + sum("torn" in record for record in found)
    proved = {"epsilon": spent if math.isfinite(spent) else None, "charges": charges}
    print(json.dumps(proved | {"torn": torn_lines, "head": head}))


if __name__ == "__main__":
    main()
