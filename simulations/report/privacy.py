"""The report's section on privacy: what is claimed, what was measured, and how the two go together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from simulations.report.charts import Line, Mark, Span, line_chart, span_chart
from simulations.report.markup import Html, element, join
from simulations.report.run import Run
from simulations.report.words import NEIGHBOURS, meaning, number, small
from simulations.words import audit as audit_words
from simulations.words import local as local_words
from simulations.words import privacy as privacy_words
from simulations.words.privacy import finite


def privacy_section(run: Run) -> Html:
    """Claim, measurement and epsilon over rounds."""
    heading = element("h2", {}, "Privacy")
    if run.claimed is None and run.example is not None:
        texts = [privacy_words.NO_SILO_PRIVACY, *_examples(run)]
        return element("section", {}, heading, *_paragraphs(texts, run))
    if run.claimed is None and run.local is not None:
        local = [local_words.short(run.local, alone=True), local_words.NO_BETTER, *local_words.details(run.local)]
        return element("section", {}, heading, *(element("p", {}, text) for text in local))
    if run.claimed is None:
        return element("section", {}, heading, element("p", {}, privacy_words.NO_PRIVACY))
    if not run.claimed["charged_rounds"]:
        return element("section", {}, heading, element("p", {}, privacy_words.NOTHING_CHARGED))
    texts = [meaning(run.promised or run.claimed), privacy_words.claim(run), privacy_words.measurement(run)]
    texts += [*privacy_words.stopped(run), *privacy_words.together(run)]
    if run.selection is not None:
        texts += privacy_words.chosen_words(run.selection, run.selection)
    texts += _examples(run)
    if run.local is not None:
        texts += [local_words.not_added(run.local), *local_words.details(run.local)]
    charts = element("div", {"class": "charts"}, _comparison(run.claimed, run.measured), _spending(run))
    return element("section", {}, heading, *_paragraphs(texts, run), charts)


def _paragraphs(texts: Sequence[str], run: Run) -> list[Html]:
    """Texts, then what is wrong with a measurement."""
    warnings = [element("p", {"class": "warning"}, text) for text in privacy_words.warnings(run)]
    return [element("p", {}, text) for text in texts] + warnings


def _examples(run: Run) -> list[str]:
    """What is claimed of single examples, by this run and by all, and what was measured."""
    if run.example is None:
        return []
    shared = run.cumulative_example
    everywhere = [] if shared is None else [privacy_words.examples_of_all_runs(shared)]
    return [privacy_words.examples(run.example), *everywhere, *privacy_words.example_measurements(run)]


def claimed_words(run: Run) -> tuple[str, str]:
    """The claimed epsilon for the headline: the number, and what it is for."""
    claimed = run.promised
    if claimed is None and run.example is not None:
        upper = run.example["epsilon_upper"]
        what = f"at δ = {small(run.example['delta'])}, for one example of a silo added or removed"
        return f"ε {'≤' if upper is not None else '='} {number(upper, 4, 'up')}", what
    if claimed is None and run.local is not None:
        upper = run.local["epsilon_upper"]
        sign = "≤" if upper is not None else "="
        head = f"ε {sign} {number(upper, 4, 'up')}"
        return head, f"at δ = {small(run.local['delta'])}, against the server and everybody else"
    if claimed is None:
        return "ε = ∞", "no privacy: updates were neither clipped nor noised"
    upper = claimed["epsilon_upper"]
    sweep = "" if run.selection is None else ", the sweep that it comes from included"
    head = f"ε {'≤' if upper else '='} {number(upper, 4, 'up')}"
    return head, f"at δ = {small(claimed['delta'])}, for {NEIGHBOURS[claimed['neighbours']]}{sweep}"


def measured_words(run: Run) -> tuple[str, str]:
    """The measured epsilon for the headline."""
    row = audit_words.largest(run.result["privacy"])
    measured = row if run.claimed is None else run.measured  # As the claim that it stands beside.
    if measured is None:
        return "–", privacy_words.unmeasured(run)
    interval = f"{number(measured['lower'])} to {number(measured['upper'])}"
    several = len(run.measured_examples)
    most = f", the most of {several} silos" if several > 1 else ""
    canaries = "canaries" if run.claimed is not None else f"canary examples in silo {measured['silo']}{most}"
    return f"ε ≈ {number(measured['epsilon'])}", f"95% interval {interval}, from {measured['canaries']:,} {canaries}"


def _comparison(claimed: Mapping[str, Any], measured: Mapping[str, Any] | None) -> Html:
    lower, upper = finite(claimed["epsilon_lower"]), finite(claimed["epsilon_upper"])
    between = f"{number(lower, 4, 'down')} to {number(upper, 4, 'up')}"
    text = f"claimed {between}" if math.isfinite(upper) else "claimed: no bound"
    spans = [Span(text, min(lower, upper), upper)]
    if measured is not None:
        if measured["compared_with"] != audit_words.RUN_CLAIM:
            unamplified = finite(measured["claim"])
            spans.append(Span(f"for canaries on their schedule {number(unamplified, 4, 'up')}", 0.0, unamplified))
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
    line = Line(number(points[-1][1], 4, "up"), [(0.0, 0.0), *points])
    unit = "upper bound in every round, tight after the last"
    return line_chart(
        "epsilon", "ε over rounds", unit=unit, lines=[line], rounds=len(run.rows), marks=marks, from_zero=True
    )
