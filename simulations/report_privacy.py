"""The report's section on privacy: what is claimed, what was measured, and how the two go together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from simulations import audit_words, privacy_words
from simulations.charts import Line, Mark, Span, line_chart, span_chart
from simulations.privacy_words import finite
from simulations.report_html import Html, element, join
from simulations.report_run import Run
from simulations.report_words import NEIGHBOURS, meaning, number, small


def privacy_section(run: Run) -> Html:
    """Claim, measurement and epsilon over rounds."""
    heading = element("h2", {}, "Privacy")
    if run.claimed is None:
        return element("section", {}, heading, element("p", {}, privacy_words.NO_PRIVACY))
    if not run.claimed["charged_rounds"]:
        return element("section", {}, heading, element("p", {}, privacy_words.NOTHING_CHARGED))
    texts = [meaning(run.promised or run.claimed), privacy_words.claim(run), privacy_words.measurement(run)]
    texts += [*privacy_words.stopped(run), *privacy_words.together(run)]
    if run.selection is not None:
        texts += privacy_words.chosen_words(run.selection, run.selection)
    paragraphs = [element("p", {}, text) for text in texts]
    paragraphs += [element("p", {"class": "warning"}, text) for text in privacy_words.warnings(run)]
    charts = element("div", {"class": "charts"}, _comparison(run.claimed, run.measured), _spending(run))
    return element("section", {}, heading, *paragraphs, charts)


def claimed_words(run: Run) -> tuple[str, str]:
    """The claimed epsilon for the headline: the number, and what it is for."""
    claimed = run.promised
    if claimed is None:
        return "ε = ∞", "no privacy: updates were neither clipped nor noised"
    upper = claimed["epsilon_upper"]
    sweep = "" if run.selection is None else ", the sweep that it comes from included"
    head = f"ε {'≤' if upper else '='} {number(upper, rounding='up')}"
    return head, f"at δ = {small(claimed['delta'])}, for {NEIGHBOURS[claimed['neighbours']]}{sweep}"


def measured_words(run: Run) -> tuple[str, str]:
    """The measured epsilon for the headline."""
    measured = run.measured
    if measured is None:
        return "–", privacy_words.unmeasured(run)
    interval = f"{number(measured['lower'])} to {number(measured['upper'])}"
    return f"ε ≈ {number(measured['epsilon'])}", f"95% interval {interval}, from {measured['canaries']:,} canaries"


def _comparison(claimed: Mapping[str, Any], measured: Mapping[str, Any] | None) -> Html:
    lower, upper = finite(claimed["epsilon_lower"]), finite(claimed["epsilon_upper"])
    between = f"{number(lower, rounding='down')} to {number(upper, rounding='up')}"
    text = f"claimed {between}" if math.isfinite(upper) else "claimed: no bound"
    spans = [Span(text, min(lower, upper), upper)]
    if measured is not None:
        if measured["compared_with"] != audit_words.RUN_CLAIM:
            unamplified = finite(measured["claim"])
            spans.append(Span(f"for canaries on their schedule {number(unamplified, rounding='up')}", 0.0, unamplified))
        low, middle, high = (finite(measured[name]) for name in ("lower", "epsilon", "upper"))
        spans.append(Span(f"measured {number(middle)} ({number(low)} to {number(high)})", low, high, middle))
    unit = f"ε at δ = {small(claimed['delta'])}" + (", the estimate with its 95% interval" if measured else "")
    return span_chart("comparison", "Claimed and measured", unit=unit, spans=spans)


def _spending(run: Run) -> Html:
    """Claimed epsilon over rounds, against the budget."""
    points = run.series("epsilon")
    if not points:
        return join([])
    budget = run.section("budget").get("epsilon")
    marks = [Mark(f"budget {budget:.4g}", budget)] if budget is not None else []
    line = Line(number(points[-1][1], rounding="up"), [(0.0, 0.0), *points])
    unit = "upper bound in every round, tight after the last"
    return line_chart(
        "epsilon", "ε over rounds", unit=unit, lines=[line], rounds=len(run.rows), marks=marks, from_zero=True
    )
