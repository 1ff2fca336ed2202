"""The report's section on privacy: what is claimed, what was measured, and how the two go together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from simulations.charts import Line, Mark, Span, line_chart, span_chart
from simulations.report_html import Html, element, join
from simulations.report_run import Run
from simulations.report_words import NEIGHBOURS, meaning, number, small

SOUND = 0.01  # A p-value below this says that the canaries' null does not hold.


def privacy_section(run: Run) -> Html:
    """Claim, measurement and epsilon over rounds."""
    heading = element("h2", {}, "Privacy")
    if run.claimed is None and run.example is not None:
        none = "A whole silo had no privacy in this run: its ε is infinite. Single examples had:"
        return element("section", {}, heading, element("p", {}, none), element("p", {}, _examples(run.example)))
    if run.claimed is None:
        none = "This run had no privacy: updates were neither clipped nor noised, so ε is infinite for every silo."
        return element("section", {}, heading, element("p", {}, none))
    if not run.claimed["charged_rounds"]:
        return element(
            "section", {}, heading, element("p", {}, "No round was charged: nothing was released, so ε is 0.")
        )
    texts = (meaning(run.claimed), _claim(run.claimed), _honest(run))
    warnings = _warnings(run.claimed, run.measured) if run.measured is not None else []
    paragraphs = [element("p", {}, text) for text in texts]
    paragraphs += [element("p", {"class": "warning"}, text) for text in warnings]
    paragraphs += [element("p", {}, _examples(run.example))] if run.example is not None else []
    charts = element("div", {"class": "charts"}, _comparison(run.claimed, run.measured), _spending(run))
    return element("section", {}, heading, *paragraphs, charts)


def claimed_words(run: Run) -> tuple[str, str]:
    """The claimed epsilon for the headline: the number, and what it is for."""
    claimed = run.claimed
    if claimed is None and run.example is not None:
        upper = run.example["epsilon_upper"]
        what = f"at δ = {small(run.example['delta'])}, for one example of a silo added or removed"
        return f"ε {'≤' if upper is not None else '='} {number(upper, rounding='up')}", what
    if claimed is None:
        return "ε = ∞", "no privacy: updates were neither clipped nor noised"
    upper = claimed["epsilon_upper"]
    head = f"ε {'≤' if upper else '='} {number(upper, rounding='up')}"
    return head, f"at δ = {small(claimed['delta'])}, for {NEIGHBOURS[claimed['neighbours']]}"


def measured_words(run: Run) -> tuple[str, str]:
    """The measured epsilon for the headline."""
    measured = run.measured
    if measured is None:
        return "–", _unmeasured(run)
    interval = f"{number(measured['lower'])} to {number(measured['upper'])}"
    return f"ε ≈ {number(measured['epsilon'])}", f"95% interval {interval}, from {measured['canaries']:,} canaries"


def _unmeasured(run: Run) -> str:
    if run.claimed is None:
        return "nothing to compare with: no privacy is claimed"
    if not run.section("privacy").get("audit", {}).get("canaries"):
        return "no canaries took part (privacy.audit.canaries: 0)"
    return "no round changed the model, so canaries left no trace to measure"


def _claim(claimed: Mapping[str, Any]) -> str:
    note = f" {claimed['note'][:1].upper()}{claimed['note'][1:]}." if claimed["note"] else ""
    if claimed["epsilon_upper"] is None:
        return f"Claimed: nothing.{note}"
    lower, upper = number(claimed["epsilon_lower"], 4, "down"), number(claimed["epsilon_upper"], 4, "up")
    noise, clip = f"{claimed['noise_multiplier']:.4g}", f"{claimed['clip_norm']:.4g}"
    return (
        f"Claimed: ε lies between {lower} and {upper} ({claimed['method']}); the upper end is what is proved. It "
        f"covers {claimed['charged_rounds']:,} rounds, with noise of {noise} times the clip norm of {clip}.{note}"
    )


def _examples(claimed: Mapping[str, Any]) -> str:
    """What is claimed of single examples, beside what is claimed of silos; the two are never added."""
    note = f" {claimed['note'][:1].upper()}{claimed['note'][1:]}." if claimed["note"] else ""
    if claimed["epsilon_upper"] is None:
        return f"Examples: nothing is claimed.{note}"
    lower, upper = number(claimed["epsilon_lower"], 4, "down"), number(claimed["epsilon_upper"], 4, "up")
    spread = claimed["per_silo"]
    half = f" In half of the silos ε is at most {number(spread['p50'], 4, 'up')}." if spread is not None else ""
    return (
        f"For adding or removing one example of a silo, ε lies between {lower} and {upper} ({claimed['method']}) at "
        f"δ = {small(claimed['delta'])} in the silo that spent most, over {claimed['steps']:,} noisy steps.{half} It "
        "holds whatever other silos do; a person with rows in several silos pays for each." + note
    )


def _honest(run: Run) -> str:
    if run.measured is None:
        return f"Not measured: {_unmeasured(run)}."
    return (
        "Measured: an estimate from the final model of this one run, neither an upper nor a lower bound, and coarse "
        f"with {run.measured['canaries']:,} canaries. A value below the claim does not improve the claim."
    )


def _warnings(claimed: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    warnings = []
    if not measured["ks_pvalue"] >= SOUND:
        warnings.append(
            "Do not rely on the measurement: canaries that took no part do not look random "
            f"(p = {small(measured['ks_pvalue'])}), so what it is measured against does not hold."
        )
    if _finite(measured["lower"]) > _finite(claimed["epsilon_upper"]):
        warnings.append(
            "The whole interval lies above the claim. Chance does that in at most about one run of forty; if another "
            "seed shows it again, the claim is wrong: please report it."
        )
    return warnings


def _comparison(claimed: Mapping[str, Any], measured: Mapping[str, Any] | None) -> Html:
    lower, upper = _finite(claimed["epsilon_lower"]), _finite(claimed["epsilon_upper"])
    between = f"{number(lower, rounding='down')} to {number(upper, rounding='up')}"
    text = f"claimed {between}" if math.isfinite(upper) else "claimed: no bound"
    spans = [Span(text, min(lower, upper), upper)]
    if measured is not None:
        low, middle, high = (_finite(measured[name]) for name in ("lower", "epsilon", "upper"))
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


def _finite(value: float | None) -> float:
    """JSON has no infinity: None stands for it."""
    return math.inf if value is None else float(value)
