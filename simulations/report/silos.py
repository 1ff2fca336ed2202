"""The report's section on how silos are served, each on rows of its own: private numbers, withheld where need be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulations.report.charts import Mark
from simulations.report.columns import Stack, column_chart
from simulations.report.markup import Html, element, join
from simulations.report.run import Run
from simulations.report.sections import TITLES
from simulations.report.spans import Span, span_chart
from simulations.report.tables import table
from simulations.report.words import number, score

WITHHELD = (
    "Withheld: how silos are served, each on its own rows, is computed on private rows and is not priced. "
    "metrics.privacy: research shows it."
)
NO_ROWS = "No spread over silos: no silo kept rows to test on (data.test: 0)."
NAMES = {
    "test": "test rows",
    "validation": "validation rows",
    "new_silo": "test rows, as a silo that was never asked",
}


def silos_section(run: Run) -> Html:
    """Scores and losses over silos, or that they are withheld; nothing for a run without a round."""
    if not run.rows:
        return join([])
    heading = element("h2", {}, "Silo by silo")
    if not run.private_shown:
        return element("section", {}, heading, element("p", {}, WITHHELD))
    if run.metrics.get("per_silo") is None:
        return element("section", {}, heading, element("p", {}, NO_ROWS))
    charts = _histograms(run) or [_spread(run, run.metrics["per_silo"])]
    return element("section", {}, heading, _places(run), element("div", {"class": "charts"}, *charts))


def _places(run: Run) -> Html:
    """Who was tested on what, in numbers."""
    found = [(NAMES[place], run.metrics[place]) for place in NAMES if place in run.metrics]
    if not found:
        return join([])
    header = ("on silos’ own", TITLES[run.metric].lower(), "loss", "10% of silos below", "middle silo", "10% above")
    body = []
    for name, each in found:
        loss, spread = each["loss"], each["per_silo"]
        ranks = (score(run.metric, spread[rank]) for rank in ("p10", "p50", "p90"))
        body.append((name, score(run.metric, each[run.metric]), "–" if loss is None else number(loss), *ranks))
    said = "Score and loss count every row the same, in whichever silo; the spread counts every silo the same."
    return join([element("p", {}, f"{said}{_gap(run)}"), table(header, body)])


def _gap(run: Run) -> str:
    """What a model of its own is worth to a silo; nothing where there are none."""
    gap = run.metrics.get("personalization_gap")
    if gap is None:
        return ""
    percent = run.metric == "accuracy"
    low, middle, high = (_signed(100 * (gap[rank] or 0.0) if percent else gap[rank]) for rank in ("p10", "p50", "p90"))
    unit = " points" if percent else ""
    return (
        f" A silo’s own model scores above what a silo that was never asked gets: {middle}{unit} in the middle silo "
        f"({low} to {high}){'' if percent else '; less error is better'}."
    )


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{'−' if value < 0 else ''}{number(abs(value))}"


def _spread(run: Run, spread: Mapping[str, Any]) -> Html:
    percent = run.metric == "accuracy"
    low, middle, high = (spread[name] for name in ("p10", "p50", "p90"))
    label = f"middle silo {score(run.metric, middle)} ({score(run.metric, low)} to {score(run.metric, high)})"
    scale = 100 if percent else 1
    span = Span(label, scale * (low or 0.0), scale * (high or 0.0), scale * (middle or 0.0))
    unit = f"{'% correct' if percent else 'squared error'} on own test rows, with the middle 80% of silos"
    return span_chart(
        "spread", "Middle and spread", unit=unit, spans=[span], limits=(0.0, 100.0) if percent else (0.0,)
    )


def _histograms(run: Run) -> list[Html]:
    """How many silos have which score and loss; nothing for results of a time before they were kept."""
    found = run.metrics.get("test", {}).get("histograms", {})
    charts = []
    for name, each in found.items():
        scale = 100 if name == "accuracy" else 1
        edges = [scale * edge for edge in each["edges"]]
        if not edges:
            continue
        mean = run.metrics["test"][name]
        marks = [] if mean is None else [Mark(f"all rows {number(scale * mean)}", scale * mean)]
        what = {"accuracy": "% correct", "mse": "squared error"}.get(name, "loss")
        beyond = f"; {each['beyond']:,} more are not finite" if each["beyond"] else ""
        charts.append(
            column_chart(
                f"silos-{name}",
                f"{TITLES.get(name, 'Loss')} of silos",
                unit=f"silos, by {what} on their own test rows{beyond}",
                edges=edges,
                stacks=[Stack("silos", each["silos"])],
                marks=[mark for mark in marks if edges[0] <= mark.value <= edges[-1]],
            )
        )
    return charts
