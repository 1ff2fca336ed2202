"""The report's section on groups of rows, and on what the strategy itself tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulations.report.markup import Html, element, join
from simulations.report.run import Run
from simulations.report.sections import TITLES, facts, table
from simulations.report.words import number, score
from simulations.words import groups as words


def groups_section(run: Run) -> Html:
    """Loss, score and rows of each group, how far groups are apart; nothing for runs that know of neither."""
    measured, told = words.measured(run.result), list(words.told_by_strategy(run.result))
    if not measured and not told:
        return join([])
    parts = [_measured(place, found) for place, found in measured]
    if told:
        parts.append(facts(told))
    return element("section", {}, element("h2", {}, "Groups" if measured else "Strategy"), *parts)


def _measured(place: str, found: Mapping[str, Any]) -> Html:
    name = words.score_name(found)
    header = ("group", "loss", TITLES[name].lower(), "rows")
    body = [
        (group, _or_dash(each["loss"]), "-" if each[name] is None else score(name, each[name]), f"{each['rows']:,}")
        for group, each in found["groups"].items()
    ]
    apart = [f"{said} {number(found[key])}" for key, said in words.DIFFERENCES.items() if found.get(key) is not None]
    lines = [
        f"On {place}. Worst group: {words.worst(found)}.",
        *([", ".join(apart).capitalize() + "."] if apart else []),
    ]
    return join([element("p", {}, " ".join(lines)), table(header, body)])


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
