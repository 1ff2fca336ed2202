"""What the lines of a ledger cost, and whether that is what a result claims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from privacy.accountant import Bracket, Neighbours
from privacy.chain import Chain, Entry, load
from privacy.checks import open_unit
from privacy.local import LOCAL, counts
from privacy.spending import Spending, history, worst
from privacy.terms import Unpriceable

CLOSE = 1e-9  # The same code prices the same events; only another version of a library rounds differently.


def groups(entries: Iterable[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Reserves by unit and relation."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.event is not None:
            found.setdefault((entry.unit, entry.neighbours), []).append(entry)
    return found


def price(entries: Sequence[Entry], delta: float, *, neighbours: str) -> Bracket:
    """What the entries of one unit and relation cost; where they name silos, in the silo that spent most.

    Raises:
        Unpriceable: some event has no price under the relation, or nobody knows the relation.
    """
    open_unit(delta=delta)
    try:
        return worst(Spending(entries), delta, neighbours=cast(Neighbours, neighbours))
    except Unpriceable:
        raise
    except ValueError as error:
        raise Unpriceable(str(error)) from error


def contradiction(ledger: Path, claimed: Mapping[str, Any], seq: int, *, unit: str) -> str | None:
    """Where a claim is not that of the lines up to a number; a run that went on has more of them.

    Args:
        ledger: the file.
        claimed: a result's claim of the unit; of examples with `silos`, how many there were.
        seq: number of the last line that the claim is about.
        unit: whose claim it is.

    Raises:
        ValueError, KeyError, TypeError: a claim that cannot be compared.
    """
    chain = load(ledger, most=seq).chain
    if {relation for found, relation in groups(chain.counted()) if found == unit} - {claimed["neighbours"]}:
        return f"{ledger}: holds charges for another relation than result.json's {claimed['neighbours']}"
    problem = _of_examples(chain, claimed) if unit == "example" else _of_silos(chain, claimed, unit)
    return None if problem is None else f"{ledger}: {problem}"


def _of_silos(chain: Chain, claimed: Mapping[str, Any], unit: str) -> str | None:
    spent = [entry for entry in chain.counted() if entry.unit == unit]
    lines = claimed["charged_lines" if unit == LOCAL else "charged_rounds"]
    if len(spent) != lines:
        return f"{len(spent)} charges, but result.json says {lines}"
    if unit == LOCAL and _most(spent) != claimed["most_charges"]:
        return "charges some silo another number of times than result.json says"
    try:
        upper = price(spent, float(claimed["delta"]), neighbours=claimed["neighbours"]).upper
    except (Unpriceable, ValueError) as error:
        return str(error)
    return _differs("its events cost epsilon", upper, claimed["epsilon_upper"])


def _most(spent: Sequence[Entry]) -> int:
    """How often the silo was charged that was charged most."""
    largest = max((silo for entry in spent for silo in entry.silos or ()), default=0)
    return max(counts(spent, 1 + largest))


def _of_examples(chain: Chain, claimed: Mapping[str, Any]) -> str | None:
    from simulations.example_privacy import priced

    silos = range(int(claimed["silos"]))
    spent = chain.spent_by("example", silos)
    if strange := spent.keys() - set(silos):
        return f"charges silo {min(strange)}, but result.json has {len(silos)} silos"
    try:
        found = priced([history(spent[silo]) for silo in silos], float(claimed["delta"]))
    except (Unpriceable, ValueError) as error:
        return str(error)
    if found["steps"] != claimed["steps"]:
        return f"{found['steps']} steps in the silo that took most, but result.json says {claimed['steps']}"
    said, over = claimed["per_silo"] or {}, found["per_silo"] or {}
    if said.keys() != over.keys():
        return f"its silos have {len(over)} percentiles, but result.json says {len(said)}"
    differences = [_differs(f"the {name} of its silos is epsilon", over[name], said[name]) for name in over]
    worst_one = _differs("its dearest silo costs epsilon", _finite(found["epsilon_upper"]), claimed["epsilon_upper"])
    return next((each for each in (worst_one, *differences) if each is not None), None)


def _differs(what: str, upper: float, claimed: float | None) -> str | None:
    said = _finite(claimed)
    if upper == said or math.isclose(upper, said, rel_tol=CLOSE, abs_tol=CLOSE):
        return None
    return f"{what} {upper:.6g}, but result.json says {said:.6g}"


def _finite(value: float | None) -> float:
    """JSON has no infinity: None stands for it."""
    return math.inf if value is None else float(value)
