"""One frame of the live view: lines of text that fit a width, whatever the run is called."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulations.commands import output
from simulations.metrics.replay import number
from simulations.watching.bars import Glyphs
from simulations.watching.pricing import Prices

if TYPE_CHECKING:
    from rich.text import Text

    from simulations.watching.course import Course

LABEL = 10  # Columns of the names at the left.
NUMBERS = 26  # Columns kept for what is said behind a bar.
ROOMY = 70  # From so many columns on, states that no silo is in are named, too.
SHOWN = 3  # Reasons of failure, the most frequent.
STATES = {"answered": "green", "late": "yellow", "refused": "red", "failed": "magenta", "spare": "dim"}
"""What became of an answer, and its colour; in ASCII, its first letter."""


@dataclass(frozen=True)
class Frame:
    """Draws a run.

    Attributes:
        width: columns.
        glyphs: what bars and sparklines are made of.
    """

    width: int
    glyphs: Glyphs

    def lines(self, course: Course, prices: Prices) -> list[Text]:
        """The view, a text a line, none longer than the width."""
        drawn = [*self._heading(course), *self._privacy(course, prices), *self._learning(course)]
        drawn += [*self._cohort(course), *self._pace(course), *self._state(course)]
        for line in drawn:
            line.truncate(self.width, overflow="crop" if self.glyphs.ascii else "ellipsis")
        return drawn

    @property
    def bar(self) -> int:
        """Columns of a bar."""
        return max(self.width - LABEL - NUMBERS, 8)

    def _line(self, label: str, *parts: tuple[str, str] | str) -> Text:
        """A label, in a column unless it ends in a colon, and what is said."""
        from rich.text import Text

        line = Text(label if label.endswith(":") else f"{label:<{LABEL}}", style="bold", no_wrap=True)
        for part in parts:
            words, style = (part, "") if isinstance(part, str) else part
            line.append(words.encode("ascii", "replace").decode() if self.glyphs.ascii else words, f"not bold {style}")
        return line

    def _heading(self, course: Course) -> Iterator[Text]:
        names = [course.section(name).get("name") or "file" for name in ("strategy", "task", "data")]
        engine = course.section("engine").get("kind", "local")
        what = f"{names[0]}, {names[1]} on {names[2]}, {engine} engine"
        yield self._line(f"{clean(str(course.experiment.get('name')))}:", f" {clean(what)}")
        total, share = course.rounds, course.done / course.rounds if course.rounds else 0.0
        behind = f" {course.done}/{total}"
        if course.pace_s is not None and course.done < total and course.state == "open":
            behind += f"  {output.span(course.pace_s * (total - course.done))} left"
        yield self._line("round", (self.glyphs.bar(share, self.bar), "cyan"), behind)

    def _privacy(self, course: Course, prices: Prices) -> Iterator[Text]:
        yield from self._silos(course, prices)
        for unit, section in (("silo/local", "local"), ("example", "example")):
            settings, claimed = course.section("privacy", section), _claimed(course, section)
            spent = prices.spent.get(unit, 0.0) if claimed is None else claimed
            if settings:
                limit = _limit(course, section)
                label = "epsilon s" if section == "local" else "epsilon r"
                what = "server's view of a silo" if section == "local" else "a row, worst silo"
                yield self._gauge(label, spent, limit, None)
                yield self._line("", (f"{what}, delta {output.short(number(settings.get('delta')))}", "dim"))
        for method, bound, value in course.measured():
            if (method, bound) == ("shared", "estimate"):
                yield self._line("measured", self._measured(course, value))

    def _silos(self, course: Course, prices: Prices) -> Iterator[Text]:
        settings = course.section("privacy", "silo")
        if not settings:
            if not course.private:
                yield self._line("epsilon", "none: no privacy")
            return
        spent = number(course.last.get("epsilon")) if course.done else 0.0
        end = prices.end if course.state == "open" else None
        yield self._gauge("epsilon", math.inf if spent is None else spent, _limit(course, "silo"), end)
        where, limit = f"whole silo, delta {output.short(number(settings.get('delta')))}", _limit(course, "silo")
        if end is not None:
            beyond = ", beyond budget" if limit is not None and end > limit else ""
            where += f"; end {output.at_most(end if math.isfinite(end) else None)}{beyond}"
        yield self._line("", (where, "dim"))

    def _gauge(self, label: str, spent: float, limit: float | None, end: float | None) -> Text:
        """Spent against the budget, with a mark where it ends; without a budget, against the end."""
        value = output.at_most(spent if math.isfinite(spent) else None)
        whole = end if limit is None else limit
        if not whole:
            return self._line(label, f"{value}, no budget")
        share = spent / whole
        colour = "green" if limit is None or share <= 0.7 else "yellow" if share <= 0.9 else "red"
        drawn = self.glyphs.bar(share, self.bar, mark=None if end is None or limit is None else end / limit)
        behind = f" {value}, no budget" if limit is None else f" {value} of {output.short(limit)}"
        return self._line(label, (drawn, colour), behind)

    def _measured(self, course: Course, value: float) -> str:
        ends = {bound: found for method, bound, found in course.measured() if method == "shared"}
        text = f"{output.short(value)}, 95% {output.short(ends.get('lower'))} to {output.short(ends.get('upper'))}"
        found = (course.result.get("privacy") or {}).get("measured") or {}
        return text + (": ALARM, above the claim" if found.get("alarm") else "; an estimate, no bound")

    def _learning(self, course: Course) -> Iterator[Text]:
        loss = "loss" if course.series["loss"] else "train_loss"
        for name, label in ((course.score, course.score), (loss, loss.replace("_", " "))):
            values = course.series[name]
            if values:
                drawn = self.glyphs.spark(values, self.bar)
                best = max(values) if name == "accuracy" else min(values)
                yield self._line(label, (drawn, "blue"), f" {output.score(values[-1])}  best {output.score(best)}")

    def _cohort(self, course: Course) -> Iterator[Text]:
        if not course.done:
            return
        states = course.cohort
        if states["asked"]:
            yield self._line("cohort", *self._shares(states))
        always = ("asked", "answered") if self.width < ROOMY else ("asked", *STATES)[:-1]
        said = ", ".join(f"{name} {states[name]}" for name in ("asked", *STATES) if name in always or states[name])
        yield self._line("" if states["asked"] else "cohort", said)
        total = course.failures.total()
        if total:
            more = len(course.failures) - SHOWN
            kinds = f", {more} other reasons" if more > 0 else ""
            yield self._line("failures", f"{total} in all rounds{kinds}")
            for why, times in course.failures.most_common(SHOWN):
                yield self._line("", f"{times} x {clean(why)}")

    def _shares(self, states: Mapping[str, int]) -> Iterator[tuple[str, str]]:
        """A bar whose stretches are the states; whoever is there shows, however few."""
        left, silos = self.width - LABEL, sum(states[name] for name in STATES)
        for name, colour in STATES.items():
            if not (count := states[name]):
                continue
            cells = left if count >= silos else min(max(round(left * count / silos), 1), left)
            left, silos = left - cells, silos - count
            yield (name[0] if self.glyphs.ascii else "━") * cells, colour

    def _pace(self, course: Course) -> Iterator[Text]:
        if course.pace_s is None:
            return
        drawn = self.glyphs.spark(list(course.recent), self.bar // 2)
        whole = output.span(sum(course.series["seconds"]))
        yield self._line("seconds", (drawn, "blue"), f" {course.pace_s:.3g} a round; {whole} in all")
        sent = f"{output.size(course.bytes['up'])} up, {output.size(course.bytes['down'])} down"
        if course.wire:
            sent += f"; on the wire {output.size(course.wire['up'])}, {output.size(course.wire['down'])}"
        yield self._line("bytes", sent)

    def _state(self, course: Course) -> Iterator[Text]:
        yield self._line("state", said(course))
        if course.state == "open" and course.held is False:
            yield self._line("", ("no process of this machine has its folder", "dim"))
        if course.withheld:
            yield self._line("", ("metrics.privacy: strict withholds private numbers", "dim"))


def said(course: Course) -> tuple[str, str]:
    """What the run is doing, or how it ended, with the style to say it in."""
    stopped = clean(str(course.result.get("stopped") or ""))
    if course.ended:
        if not stopped:
            return (f"finished, {course.done} rounds", "green")
        return (f"stopped after round {course.done}: {stopped.split(';')[0]}", "yellow")
    since = course.stalled_since
    if since is not None:
        at, ago = time.strftime("%H:%M:%S", time.localtime(since)), output.span(time.time() - since)
        return (f"stalled since {at} ({ago})", "bold red")
    if course.held is False:
        return ("open, but nobody here runs it", "yellow")
    committed = course.touched("rounds.jsonl") if course.done else None
    if committed is None:
        return ("starting", "green")
    return (f"running, last round {max(time.time() - committed, 0.0):.0f} s ago", "green")


def clean(text: str) -> str:
    """Without what would steer a terminal: names and reasons may come from other machines."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _claimed(course: Course, section: str) -> float | None:
    """What the result claims of a unit, once the run has ended."""
    found: Any = (course.result.get("privacy") or {}).get(section) or {}
    return number(found.get("epsilon_upper")) if course.state != "open" else None


def _limit(course: Course, section: str) -> float | None:
    """The budget of a unit; of several silos with budgets of their own, the least."""
    if section == "local":
        return number(course.section("privacy", "local").get("budget"))
    if section == "silo":
        return number(course.section("budget").get("epsilon"))
    found = course.section("budget", "example").get("epsilon")
    return min(found) if isinstance(found, list) and found else number(found)
