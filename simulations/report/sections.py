"""The report's sections on what was learned, what was sent, what ran and how to run it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulations.report.charts import DOTTED, Line, Mark, line_chart
from simulations.report.failures import failures_chart, failures_table
from simulations.report.markup import Html, element, join
from simulations.report.run import Run
from simulations.report.tables import facts, table
from simulations.report.words import duration, number, scaled, score, size

SHOWN_ROWS = 25  # Of the table of rounds; rounds.jsonl has them all.

BAND = "train_loss_silos"  # As `server.rows` writes percentiles over silos into a round's line.
TITLES = {"accuracy": "Accuracy", "mse": "Mean squared error"}


def learning_section(run: Run) -> Html:
    """Score and loss over rounds, training loss with its spread over silos, clip fraction, clip norms."""
    both = bool(run.series("loss") and run.series("train_loss"))
    lines = [
        line
        for line in (_line(run, "loss", "test" if both else ""), _line(run, "train_loss", "train" if both else ""))
        if line is not None
    ]
    percent = run.metric == "accuracy"
    tested = _line(run, run.metric, "", scale=100 if percent else 1, end="%" if percent else "")
    unit = "% of the public test set" if percent else "on the public test set"
    clipped = _line(run, "clip_fraction", "", scale=100, end="%")
    rounds = len(run.rows)
    charts = [
        line_chart("score", TITLES[run.metric], unit=unit, lines=[tested], rounds=rounds) if tested else None,
        line_chart("loss", "Loss", unit=_loss_unit(run), lines=lines, rounds=rounds) if lines else None,
        line_chart("clip", "Clipped", unit="% of updates", lines=[clipped], rounds=rounds, from_zero=True)
        if clipped
        else None,
        *_clip_norms(run),
    ]
    drawn = [chart for chart in charts if chart is not None]
    remarks = [element("p", {}, text) for text in _remarks(run)]
    grid = element("div", {"class": "charts"}, *drawn) if drawn else join([])
    return element("section", {}, element("h2", {}, "Learning"), *remarks, grid)


def _line(run: Run, name: str, word: str, *, scale: float = 1, end: str = "") -> Line | None:
    points = run.series(name, scale)
    spread = [(row["round"], row[BAND]["p10"], row[BAND]["p90"]) for row in run.rows if BAND in row]
    band = spread if name == "train_loss" else []
    return Line(f"{word} {number(points[-1][1])}{end}".strip(), points, band) if points else None


def _clip_norms(run: Run) -> list[Html]:
    """The clip norms of rounds where they adapt; they follow from released counts, so they are public."""
    claimed = run.claimed or {}
    adapts = [name for name, each in claimed.get("channels", {}).items() if each["count_noise"] is not None]
    lines = []
    for name in adapts:
        points = [(row["round"], row["clip_norms"][name]) for row in run.rows]
        lines += [Line(f"{name} {number(points[-1][1])}", points)] if points else []
    unit = "longest update that is not shortened, by channel"
    return [
        line_chart(f"clip-norm-{at}", "Clip norm", unit=unit, lines=lines[at : at + 2], rounds=len(run.rows))
        for at in range(0, len(lines), 2)
    ]


def _loss_unit(run: Run) -> str:
    tested, trained = bool(run.series("loss")), bool(run.series("train_loss"))
    if tested and trained:
        return "public test set, and the silos’ own in training"
    return "on the public test set" if tested else "the silos’ own in training"


def _remarks(run: Run) -> list[str]:
    remarks, every = [], run.section("metrics").get("every", 1)
    measured = len(run.series(run.metric))
    if not run.rows:
        return ["No round was done, so there is nothing to draw."]
    if measured and every > 1:
        seen = "dots are the rounds measured" if measured <= DOTTED else "lines join the rounds measured"
        remarks.append(f"The model was tested every {every} rounds and after the last; {seen}.")
    if not measured and not run.section("data").get("public_test"):
        remarks.append("No curve of test results: the data has no public test set (data.public_test: 0).")
    if not run.private_shown:
        remarks.append(
            "Withheld: training loss and clip fraction are computed on private rows and are not priced. "
            "metrics.privacy: research shows them."
        )
    if run.series("train_loss") and any(BAND in row for row in run.rows):
        remarks.append("The band around the training loss holds the middle 80% of the silos that answered.")
    return remarks


def traffic_section(run: Run) -> Html:
    """Bytes, cohorts and failures."""
    heading, sent = element("h2", {}, "Traffic and cohorts"), run.result["communication"]
    if not run.rows:
        return element("section", {}, heading, element("p", {}, "No round was done, so nothing was sent."))
    unit, name = scaled(max(sent["bytes_up"], sent["bytes_down"]))
    ways = (("up", "bytes_up"), ("down", "bytes_down"))
    lines = [Line(f"{way} {number(sent[key] / unit)}", run.cumulative(key, 1 / unit)) for way, key in ways]
    rounds, missing = len(run.rows), any(row["failures"] for row in run.rows)
    cohorts = [Line("asked" if missing else "", run.series("cohort"))]
    if missing:
        cohorts.append(Line("arrived", run.series("arrived")))
    charts = element(
        "div",
        {"class": "charts"},
        line_chart("bytes", "Sent so far", unit=f"{name}, all silos", lines=lines, rounds=rounds, from_zero=True),
        line_chart(
            "cohort", "Cohort", unit="silos", lines=cohorts, rounds=rounds, marks=_expected(run), from_zero=True
        ),
        failures_chart(run) or "",
    )
    return element("section", {}, heading, element("p", {}, _sent(sent)), failures_table(run), charts)


def _sent(sent: Mapping[str, Any]) -> str:
    dense = sent["ratio"]
    share = "" if dense is None else f", {number(100 * dense)}% of what the dense model costs both ways"
    return f"Silos sent {size(sent['bytes_up'])} up and received {size(sent['bytes_down'])}{share}."


def _expected(run: Run) -> list[Mark]:
    cohort = run.section("cohort")
    if cohort.get("sampling") != "poisson":
        return []
    expected = cohort["rate"] * run.result["silos"]
    if cohort.get("cap") is not None:
        return [Mark(f"at most {cohort['cap']}", cohort["cap"])]
    return [Mark(f"expected {expected:.4g}", expected)]


def rounds_table(run: Run) -> Html:
    """Some rounds in numbers, folded away: what the charts show, for who would rather read it."""
    if not run.rows:
        return join([])
    last = len(run.rows) - 1
    picked = sorted({round(step * last / (SHOWN_ROWS - 1)) for step in range(SHOWN_ROWS)})
    header = ("round", TITLES[run.metric].lower(), "loss", "ε", "asked", "arrived", "up", "down")
    body = []
    for row in (run.rows[index] for index in picked):
        loss, epsilon = row.get("loss"), row.get("epsilon")
        body.append(
            (
                f"{row['round']:,}",
                score(run.metric, row.get(run.metric)),
                "–" if loss is None else number(loss),
                "–" if epsilon is None else number(epsilon, rounding="up"),
                f"{row['cohort']:,}",
                f"{row['arrived']:,}",
                size(row["bytes_up"]),
                size(row["bytes_down"]),
            )
        )
    said = (
        "The rounds in numbers" if len(body) == len(run.rows) else f"{len(body)} of {len(run.rows):,} rounds in numbers"
    )
    return element("details", {}, element("summary", {}, said), table(header, body))


def seconds_table(run: Run) -> Html:
    """Where the time went."""
    phases = run.total("seconds")
    whole = sum(phases.values())
    if not whole > 0:
        return join([])
    rows = []
    for name, seconds in phases.items():
        share = 100 * seconds / whole
        meter = element("span", {"class": "meter", "style": f"width:{share * 0.6:.1f}%"})
        amount = element("span", {"class": "amount"}, f"{duration(seconds)}, {number(share, 2)}%")
        rows.append((name, join([amount, meter])))
    return facts([*rows, ("all rounds", duration(whole))])
