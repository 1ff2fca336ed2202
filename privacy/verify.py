"""Recomputes an upper epsilon from a ledger with nothing of confide: only dp-accounting and the standard library.

    python verify.py ledger.jsonl --delta 1e-5 [--unit silo]

Prints JSON {epsilon, charges, torn, head}; epsilon is null where it is infinite. What it does not know, or what was
touched, is an error and exit code 1. A sample of fixed size, and all that is composed with it, is priced as replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def reserves(lines: list[bytes], unit: str) -> tuple[list[dict[str, Any]], str]:
    """The reserves of a unit that were not voided, and the last line's hash; the chain must be whole."""
    head, spent, still_open = "0" * 64, dict[int, Any](), set[int]()
    for number, line in enumerate(lines, 1):
        record = json.loads(line)
        body = json.dumps({name: value for name, value in record.items() if name != "check"}, sort_keys=True)
        whole = record["check"] == hashlib.sha256(body.encode()).hexdigest()[:16]
        if not (whole and (record["prev_hash"], record["seq"]) == (head, number)):
            raise ValueError(f"line {number}: the hash chain is broken")
        head = hashlib.sha256(line).hexdigest()
        match record["kind"]:
            case "reserve" if "reserve" not in record:
                spent[number] = record
                still_open.add(number)
            case "commit" | "void" if "event" not in record and record["reserve"] in still_open:
                still_open.remove(record["reserve"])
                if record["kind"] == "void":
                    del spent[record["reserve"]]
            case _:
                raise ValueError(f"line {number}: no entry that a ledger may hold here")
    return [record for record in spent.values() if record["unit"] == unit], head


def dp_event(data: Any, scale: float) -> Any:
    """dp-accounting's event for a ledger's, every noise multiplier taken times `scale`."""
    import dp_accounting as dp

    match data:
        case {"kind": "non_private", **rest} if rest.keys() == {"reason"}:
            return dp.NonPrivateDpEvent()
        case {"kind": "gaussian", "noise_multiplier": noise, **rest} if not rest and 0 < noise < math.inf:
            return dp.GaussianDpEvent(noise * scale)
        case {"kind": "composed", "events": [*events], **rest} if not rest:
            return dp.ComposedDpEvent([dp_event(event, scale) for event in events])
        case {"kind": "repeated", "event": event, "times": int(times), **rest} if not rest and times >= 0:
            return dp.SelfComposedDpEvent(dp_event(event, scale), times)
        case {"kind": "sampled", "sampler": sampler, "event": event, **rest} if not rest:
            return sampled(sampler, together(dp_event(event, scale)))
    raise ValueError(f"unknown event {json.dumps(data)[:80]}")


def sampled(sampler: Any, inner: Any) -> Any:
    """A sample of a Gaussian."""
    import dp_accounting as dp

    match sampler:
        case {"kind": "poisson", "rate": rate, **rest} if not rest and 0 < rate <= 1:
            return dp.PoissonSampledDpEvent(rate, inner)
        case {"kind": "fixed_size", "size": int(size), "population": int(n), **rest} if not rest and 0 < size <= n:
            return inner if size == n else dp.SampledWithoutReplacementDpEvent(n, size, inner)
        case {"kind": "capped", "rate": rate, "cap": int(cap), "population": int(n), **rest} if (
            not rest and 0 < rate <= 1 and cap > 0 and n > 0
        ):
            return dp.TruncatedSubsampledGaussianDpEvent(n, rate, cap, inner.noise_multiplier)
    raise ValueError(f"unknown sampler {json.dumps(sampler)[:80]}")


def together(event: Any) -> Any:
    """Gaussians on one sample as the one Gaussian that they cost like, of noise (sum z^-2)^-1/2."""
    import dp_accounting as dp

    parts = event.events if isinstance(event, dp.ComposedDpEvent) else [event]
    if not parts or not all(isinstance(part, dp.GaussianDpEvent) for part in parts):
        raise ValueError("inside a sample only Gaussians have a price here")
    return dp.GaussianDpEvent(1 / math.hypot(*(1 / part.noise_multiplier for part in parts)))


def epsilon(events: Counter[str], neighbours: str, delta: float) -> float:
    """An upper bound: by privacy-loss distributions, or by Renyi divergence where a sample has a fixed size."""
    import dp_accounting as dp

    fixed = any('"fixed_size"' in event for event in events)
    if neighbours not in ("add_remove", "zero_out", "replace") or (fixed and neighbours == "add_remove"):
        raise ValueError(f"nothing is proved here for neighbours: {neighbours}")
    relation, one = dp.NeighboringRelation.REPLACE_ONE, dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant: Any = dp.pld.PLDAccountant(relation if neighbours == "replace" else one)
    if fixed:  # The library takes one clip norm for the sensitivity here (its issue 378), where it is two.
        accountant = dp.rdp.RdpAccountant([1 + step / 10 for step in range(1, 640)] + [96, 128, 256, 512], relation)
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
        found, head = reserves(lines, args.unit)
        events = Counter(json.dumps(record["event"], sort_keys=True) for record in found)
        events.update(set(events) if torn else ())  # Each once more: at least the dearest that it may have been.
        (neighbours,) = {record["neighbours"] for record in found} or {"add_remove"}
        if not 0 < args.delta < 1 or (torn and not found):
            raise ValueError("delta is no probability, or a torn line may have reserved anything")
        spent = epsilon(events, neighbours, args.delta)
    except Exception as error:  # Whatever it is, nothing is proved.
        sys.exit(f"verify: {args.ledger}: {error!r}")
    print(json.dumps({"epsilon": spent if math.isfinite(spent) else None, "charges": events.total(),
                      "torn": bool(torn) + sum("torn" in record for record in found), "head": head}))  # fmt: skip


if __name__ == "__main__":
    main()
