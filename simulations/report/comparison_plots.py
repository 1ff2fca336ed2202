"""The pictures of several runs: what utility costs in epsilon and in bytes, curves with their spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from simulations.comparing import Difference, Group
from simulations.outcomes import metric, numbers
from simulations.report.axes import tick_labels, ticks
from simulations.report.markup import Html
from simulations.report.plots import Curve, plot
from simulations.report.scales import Axis, powers
from simulations.report.sections import TITLES
from simulations.report.spans import Span, span_chart
from simulations.report.words import number, scaled

WIDE = 8.0  # Values this many times apart are drawn on a logarithmic axis.
SHOWN_CLAIMS = 10  # Experiments; the table has them all.
LEGEND = 22  # Characters of a name that fit into a legend.

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Shown:
    """A group with the lines of its runs' rounds.json, one list a run."""

    group: Group
    rounds: Sequence[Rows]

    @property
    def name(self) -> str:
        """Its letter and label, as short as a legend needs them."""
        first, _, rest = self.group.label.partition(", ")
        room = LEGEND - 3  # After its letter.
        label = self.group.label if len(self.group.label) <= room else f"{first} …" if rest else first
        kept = label if len(label) <= room else f"…{label[1 - room :]}"  # The end has the value.
        return f"{self.group.letter}  {kept}"

    @property
    def place(self) -> int:
        """Its colour and dash, the same in every picture."""
        return ascii_uppercase.index(self.group.letter)

    def scores(self) -> list[float] | None:
        """The final score of every run, accuracies in percent; None where one has none."""
        found = [numbers(each.result)[metric(each.result)] for each in self.group.members]
        known = [value for value in found if value is not None]
        return [scale(self) * value for value in known] if len(known) == len(found) else None


def scale(shown: Shown) -> float:
    """Accuracies are drawn in percent."""
    return 100.0 if metric(shown.group.members[0].result) == "accuracy" else 1.0


def frontier(
    key: str, title: str, *, told: str, groups: Sequence[Shown], cost: Callable[[Shown], float], x: str
) -> Html:
    """Final score against a cost, a point an experiment; whoever pays infinitely much stands at the right.

    Args:
        key: unique on the page.
        title: what is shown.
        told: the line under it.
        groups: with a score each.
        cost: of a group; infinite for none that is known.
        x: what the cost is.
    """
    costs = [cost(each) for each in groups]
    axis, beyond = _costs([value for value in costs if math.isfinite(value)], x, all(map(math.isfinite, costs)))
    curves = []
    for each, value in zip(groups, costs):
        scores = each.scores() or []
        mean, wide = statistics.fmean(scores), _std(scores)
        at = value if math.isfinite(value) else beyond
        bars = [(mean - wide, mean + wide)] if len(scores) > 1 else []
        point = Curve(each.name, [(at, mean)], dots=True, bars=bars, line=False)
        curves.append(replace(point, letter=each.group.letter, place=each.place))
    return plot(key, title, told=told, curves=curves, x=axis, y=Axis(score_name(groups)))


def _costs(known: Sequence[float], label: str, every: bool) -> tuple[Axis, float]:
    """The axis of costs, and where on it infinity stands."""
    low, high = min(known, default=1.0), max(known, default=1.0)
    log = low > 0 and high >= WIDE * low
    if log:
        start, end = low / 1.3, 1.3 * high
        marks, beyond = powers(start, end), end * (high / low) ** 0.15
    else:
        levels = ticks(0.0, high)
        start, end = 0.0, levels[-1]
        marks, beyond = list(zip(levels, tick_labels(levels))), 1.15 * levels[-1]
    if every:
        return Axis(label, log=log, marks=marks, low=start, high=end), beyond
    return Axis(label, log=log, marks=[*marks, (beyond, "∞")], low=start, high=1.02 * beyond), beyond


def curves(
    key: str, title: str, *, told: str, groups: Sequence[Shown], name: str, y: str, percent: bool
) -> Html | None:
    """A number over rounds, the mean of an experiment's runs with one standard deviation around it.

    Args:
        key: unique on the page.
        title: what is shown.
        told: the line under it.
        groups: of all experiments.
        name: of the number in a round's line.
        y: what it is.
        percent: whether it is drawn in percent.
    """
    drawn = []
    for each in groups:
        found = _series(each.rounds, name, 100.0 if percent else 1.0)
        if found:
            points = [(x, statistics.fmean(values)) for x, values in found]
            spread = [_std(values) for _, values in found] if len(each.rounds) > 1 else []
            curve = Curve(each.name, points, spread=spread, dots=len(points) == 1)
            drawn.append(replace(curve, letter=each.group.letter, place=each.place))
    if len(drawn) < min(2, len(groups)):  # A single curve compares nothing.
        return None
    return plot(key, title, told=told, curves=drawn, x=Axis("round", low=0), y=Axis(y))


def _series(runs: Sequence[Rows], name: str, factor: float) -> list[tuple[float, list[float]]]:
    """The rounds in which every run has the number, with its values."""
    each = [{row["round"]: factor * row[name] for row in rows if row.get(name) is not None} for rows in runs]
    both = sorted(set.intersection(*(set(held) for held in each))) if each else []
    return [(round_, [held[round_] for held in each]) for round_ in both]


def claims(groups: Sequence[Shown], delta: str) -> Html:
    """What each experiment claims, and below it what its canaries measured."""
    spans = []
    for each in groups[:SHOWN_CLAIMS]:
        held = [member.result["privacy"] for member in each.group.members]
        upper = claimed(each, "epsilon")
        label = f"{each.group.letter}: claimed at most {number(upper, 4, 'up')}"
        spans.append(Span(label, 0.0, upper, colour="a"))
        measured = [one["measured"]["epsilon"] for one in held if one["measured"] is not None]
        known = [value for value in measured if value is not None]
        if known and len(known) == len(held):
            mean = statistics.fmean(known)
            if len(known) == 1:
                only = held[0]["measured"]
                low, high = only["lower"] or 0.0, math.inf if only["upper"] is None else only["upper"]
            else:
                low, high = min(known), max(known)
            label = f"{each.group.letter}: measured {number(mean)} ({number(low)} to {number(high)})"
            spans.append(Span(label, low, high, mean, colour="b"))
    unit = f"ε at δ = {delta}; measured: from the least to the largest seed, for one run its 95% interval"
    return span_chart("claims", "Claimed and measured", unit=unit, spans=spans)


def pairs(
    key: str, title: str, *, base: Group, found: Sequence[tuple[Group, Difference]], factor: float, unit: str
) -> Html:
    """Mean differences to the first experiment with their intervals; what reaches across zero may be chance."""
    spans = []
    for group, each in found:
        low, high = each.interval or (each.mean, each.mean)
        label = f"{group.letter} − {base.letter}: {signed(factor * each.mean)}"
        if each.interval is not None:
            label += f" ({signed(factor * low)} to {signed(factor * high)})"
        clear = low > 0 or high < 0
        spans.append(Span(label, factor * low, factor * high, factor * each.mean, colour="b" if clear else "a"))
    return span_chart(key, title, unit=unit, spans=spans)


def signed(value: float) -> str:
    """A difference, its sign always there.

    >>> signed(0.5), signed(-12.34)
    ('+0.500', '−12.3')
    """
    return f"{'−' if value < 0 else '+'}{number(abs(value))}"


def claimed(shown: Shown, column: str) -> float:
    """The largest claim of a group's runs; infinite where one has none."""
    found = [numbers(each.result).get(column) for each in shown.group.members]
    return max((math.inf if value is None else value for value in found), default=math.inf)


def bytes_unit(groups: Sequence[Shown]) -> tuple[float, str]:
    """The unit that suits what all runs sent."""
    return scaled(max((sent(each) for each in groups), default=1.0))


def sent(shown: Shown) -> float:
    """Bytes up and down, the mean over runs."""
    both = [each.result["communication"] for each in shown.group.members]
    return statistics.fmean(one["bytes_up"] + one["bytes_down"] for one in both)


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def score_name(groups: Sequence[Shown]) -> str:
    """What is on the axis of scores."""
    name = metric(groups[0].group.members[0].result)
    return f"{TITLES[name]}{', %' if name == 'accuracy' else ''}"
