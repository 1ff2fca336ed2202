"""The report's part on updates that did not arrive: why, and in which rounds."""

from __future__ import annotations

from simulations.report.columns import Stack, by_rounds, column_chart
from simulations.report.markup import Html, element
from simulations.report.run import Run
from simulations.report.tables import cut, table

SHOWN_REASONS = 20
NONE = "No failures: every silo that was asked answered, in every round."


def failures_table(run: Run) -> Html:
    """Reasons with their counts and rounds."""
    reasons = list(run.total("failure_reasons").items())
    if not reasons:
        return element("p", {}, NONE)
    body = [(cut(reason, 300), f"{count:,}", *_when(run, reason)) for reason, count in reasons[:SHOWN_REASONS]]
    rest = sum(count for _, count in reasons[SHOWN_REASONS:])
    if rest:
        body.append(("other reasons", f"{rest:,}", "", "", ""))
    return table(("failure", "updates", "in rounds", "first", "last"), body)


def failures_chart(run: Run) -> Html | None:
    """Failures by round, the commonest reason apart from the others; None where there was none."""
    reasons = list(run.total("failure_reasons"))
    if not reasons:
        return None
    common = [row["failure_reasons"].get(reasons[0], 0) for row in run.rows]
    others = [row["failures"] - count for row, count in zip(run.rows, common)]
    edges, lower = by_rounds(common)
    stacks = [Stack(cut(reasons[0], 40), lower)]
    if any(others):
        stacks.append(Stack("other reasons" if len(reasons) > 2 else cut(reasons[-1], 40), by_rounds(others)[1]))
    wide = round(edges[1] - edges[0])
    unit = "updates that did not arrive" + (f", a column for {wide:,} rounds" if wide > 1 else "")
    return column_chart("failures", "Failures", unit=unit, edges=edges, stacks=stacks, axis="round")


def _when(run: Run, reason: str) -> tuple[str, str, str]:
    """How many rounds had it, the first and the last of them."""
    rounds = [row["round"] for row in run.rows if row["failure_reasons"].get(reason)]
    return f"{len(rounds):,} of {len(run.rows):,}", f"{rounds[0]:,}", f"{rounds[-1]:,}"
