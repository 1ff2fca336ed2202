"""The pictures of privacy: what is claimed beside what was measured, and how epsilon came about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from simulations.report.charts import Line, Mark, line_chart
from simulations.report.columns import Stack, column_chart
from simulations.report.markup import Html, element, join
from simulations.report.run import Run
from simulations.report.spans import Span, span_chart
from simulations.report.words import number, small
from simulations.words import audit as audit_words
from simulations.words.privacy import finite

SHOWN_SILOS = 8  # Audited ones with a line of their own; a paragraph tells of each.


def grid(run: Run) -> Html:
    """All pictures that the run's claims have; nothing for none."""
    drawn = []
    if run.claimed is not None:
        drawn += [_comparison(run.claimed, run.measured), _spending(run)]
    if run.example is not None:
        drawn.append(_examples(run))
    if run.local is not None:
        drawn += [_views(run.local, run.claimed), _asked(run.local)]
    found = [chart for chart in drawn if chart]
    return element("div", {"class": "charts"}, *found) if found else join([])


def _comparison(claimed: Mapping[str, Any], measured: Mapping[str, Any] | None) -> Html:
    spans = [_claimed(claimed)]
    if measured is not None:
        if measured["compared_with"] != audit_words.RUN_CLAIM:
            unamplified = finite(measured["claim"])
            spans.append(Span(f"for canaries on their schedule {number(unamplified, 4, 'up')}", 0.0, unamplified))
        spans.append(_measured(measured, "measured"))
    unit = f"ε at δ = {small(claimed['delta'])}" + (", the estimate with its 95% interval" if measured else "")
    return span_chart("comparison", "Claimed and measured", unit=unit, spans=spans)


def _claimed(claimed: Mapping[str, Any]) -> Span:
    lower, upper = finite(claimed["epsilon_lower"]), finite(claimed["epsilon_upper"])
    between = f"{number(lower, 4, 'down')} to {number(upper, 4, 'up')}"
    return Span(f"claimed {between}" if math.isfinite(upper) else "claimed: no bound", min(lower, upper), upper)


def _measured(measured: Mapping[str, Any], name: str) -> Span:
    low, middle, high = (finite(measured[key]) for key in ("lower", "epsilon", "upper"))
    return Span(f"{name} {number(middle)} ({number(low)} to {number(high)})", low, high, middle, colour="b")


def _spending(run: Run) -> Html:
    """Claimed epsilon over rounds, against the budget."""
    points = run.series("epsilon")
    if not points:
        return join([])
    budget = run.section("budget").get("epsilon")
    marks = [Mark(f"budget {budget:.4g}", budget)] if budget is not None else []
    line = Line(number(points[-1][1], 4, "up"), [(0.0, 0.0), *points])
    unit = "upper bound in every round, tight after the last"
    return line_chart(
        "epsilon", "ε over rounds", unit=unit, lines=[line], rounds=len(run.rows), marks=marks, from_zero=True
    )


def _examples(run: Run) -> Html:
    """The claim for one example in the silo that spent most, in all silos, and what was measured in some."""
    claimed, spread = run.example or {}, (run.example or {})["per_silo"]
    spans = [_claimed(claimed)]
    if spread is not None and spread["p10"] != claimed["epsilon_upper"]:
        low, middle, high = (finite(spread[key]) for key in ("p10", "p50", "p90"))
        label = f"middle silo {number(middle, 3, 'up')} ({number(low, 3, 'up')} to {number(high, 3, 'up')})"
        spans.append(Span(label, low, high, middle, colour="a"))
    spans += [_measured(each, f"measured, silo {each['silo']}:") for each in run.measured_examples[:SHOWN_SILOS]]
    unit = f"ε of one example of a silo, at δ = {small(claimed['delta'])}"
    unit += "; below, the middle 80% of silos" if len(spans) > 1 and spans[1].colour == "a" else ""
    unit += "; estimates with their 95% intervals" if run.measured_examples else ""
    return span_chart("examples", "Examples, claimed and measured", unit=unit, spans=spans)


def _views(local: Mapping[str, Any], claimed: Mapping[str, Any] | None) -> Html:
    """The server's view beside that of whoever gets the models: two numbers, never added."""
    upper = finite(local["epsilon_upper"])
    spans = [Span(f"against the server, at most {number(upper, 4, 'up')}", 0.0, upper, colour="a")]
    outside = upper if claimed is None else finite(claimed["epsilon_upper"])
    spans.append(Span(f"against others, at most {number(outside, 4, 'up')}", 0.0, outside, colour="b"))
    return span_chart("views", "Who may learn how much", unit=f"ε at δ = {small(local['delta'])}", spans=spans)


def _asked(local: Mapping[str, Any]) -> Html:
    """How often silos were asked, which is what the server's view costs them; nothing where all were alike."""
    times = {int(name): silos for name, silos in local["charges"].items()}
    if len(times) < 2:
        return join([])
    first, last = min(times), max(times)
    wide = -(-(last - first + 1) // 40)
    starts = range(first, last + 1, wide)
    counts = [sum(times.get(each, 0) for each in range(start, start + wide)) for start in starts]
    edges = [start - 0.5 for start in starts] + [starts[-1] + wide - 0.5]
    unit = "silos, by how many times they were asked and so charged"
    return column_chart("asked", "How often silos were asked", unit=unit, edges=edges, stacks=[Stack("silos", counts)])
