"""Groups of rows and a strategy's own numbers, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

INFEASIBLE = "no model met the bounds, and the multipliers are at their limit; raise zeta, or lower train.learning_rate"
DIFFERENCES = {
    "demographic_parity_difference": "demographic parity difference",
    "equalized_odds_difference": "equalized odds difference",
}


def measured(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Where groups were measured, in words, and what was found there; nothing for results without groups."""
    found = result["metrics"].get("groups") or {}
    places = (("public_test", "the public test set"), ("silos", "rows held out in the silos"))
    return [(words, found[name]) for name, words in places if name in found]


def score_name(found: Mapping[str, Any]) -> str:
    """What the score of groups is called."""
    return "mse" if any("mse" in each for each in found["groups"].values()) else "accuracy"


def worst(found: Mapping[str, Any]) -> str:
    """The group that loses most."""
    if found["worst"] is None:
        return "no row of any group"
    each = found["groups"][found["worst"]]
    return f"{found['worst']}, loss {each['loss']:.4f} on {each['rows']:,} rows"


def told(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Lines of the summary: the worst group, differences, and what the strategy reports."""
    for place, found in measured(result):
        yield "worst group", f"{worst(found)}, on {place}"
        apart = [f"{words} {found[name]:.4f}" for name, words in DIFFERENCES.items() if found.get(name) is not None]
        if apart:
            yield "groups apart", ", ".join(apart)
    yield from told_by_strategy(result)


def told_by_strategy(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the strategy tells at the end, a line a number or a list of numbers."""
    for name, value in (result.get("strategy_report") or {}).items():
        if name == "infeasible":
            if value:
                yield "infeasible", INFEASIBLE
            continue
        yield name.replace("_", " "), ", ".join(map(_short, value)) if _many(value) else _short(value)


def _many(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "not finite" if value is None else str(value)
