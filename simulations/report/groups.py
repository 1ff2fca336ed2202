"""The report's section on groups of rows, and on what the strategy itself tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulations.report.charts import Mark
from simulations.report.markup import Html, element, join
from simulations.report.run import Run
from simulations.report.sections import TITLES
from simulations.report.spans import Span, span_chart
from simulations.report.tables import cut, facts, table
from simulations.report.words import number, score
from simulations.words import groups as words

SHOWN_GROUPS = 16  # In the picture; the table has them all.


def groups_section(run: Run) -> Html:
    """Loss, score and rows of each group, how far groups are apart; nothing for runs that know of neither."""
    measured, told = words.measured(run.result), list(words.told_by_strategy(run.result))
    if not measured and not told:
        return join([])
    parts = [_measured(place, found) for place, found in measured]
    charts = [_losses(f"groups-{number}", found, run) for number, (_, found) in enumerate(measured)]
    parts += [element("div", {"class": "charts"}, *charts)] if charts else []
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


def _losses(key: str, found: Mapping[str, Any], run: Run) -> Html:
    """Loss by group, the worst one set apart, against the bound that a strategy holds them to."""
    known = {name: each["loss"] for name, each in found["groups"].items() if each["loss"] is not None}
    shown = sorted(known, key=lambda name: -known[name])[:SHOWN_GROUPS]
    spans = [
        Span(
            f"{cut(name, 30)}: {known[name]:.4f}{', worst' if name == found['worst'] else ''}",
            0.0,
            known[name],
            colour="b" if name == found["worst"] else "a",
        )
        for name in known
        if name in shown
    ]
    bounds = (run.result.get("strategy_report") or {}).get("zeta") or []
    marks = [Mark(f"bound {bounds[0]:.4g}", bounds[0])] if len(set(bounds)) == 1 else []
    rest = f"; {len(known) - len(spans)} more groups lose less" if len(known) > len(spans) else ""
    return span_chart(key, "Loss by group", unit=f"mean over the group’s rows{rest}", spans=spans, marks=marks)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
