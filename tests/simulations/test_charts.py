"""Axes cover what they show and can be read off; thinning hides nothing; drawings are well formed."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.report.axes import thin, tick_labels, ticks
from simulations.report.charts import Line, Mark, line_chart
from simulations.report.frame import HEIGHT
from simulations.report.markup import Html, element, join
from simulations.report.spans import Span, span_chart

NUMBERS = st.floats(-1e300, 1e300) | st.floats(-1000, 1000)


@given(NUMBERS, NUMBERS, st.integers(2, 9))
def test_ticks_cover_their_range_and_rise(one: float, other: float, count: int) -> None:
    low, high = min(one, other), max(one, other)
    found = ticks(low, high, count)
    assert found[0] <= low
    assert high <= found[-1]
    assert all(before < after for before, after in pairwise(found))
    assert 2 <= len(found) <= count + 2


@given(st.floats(-1000, 1000), st.floats(1e-6, 1000), st.integers(2, 9))
def test_ticks_are_one_step_apart_which_is_1_2_or_5_times_a_power_of_ten(low: float, reach: float, count: int) -> None:
    found = ticks(low, low + reach, count)
    step = (found[-1] - found[0]) / (len(found) - 1)
    nice = min((digit * 10.0**power for digit in (1, 2, 5) for power in range(-9, 5)), key=lambda by: abs(by - step))
    assert step == pytest.approx(nice, rel=1e-6)
    assert all(abs(tick / nice - round(tick / nice)) < 1e-6 for tick in found)


@given(st.floats(-1000, 1000), st.floats(1e-3, 1000))
def test_every_tick_has_a_label_of_its_own(low: float, reach: float) -> None:
    found = ticks(low, low + reach)
    labels = tick_labels(found)
    assert len(set(labels)) == len(found)
    assert [float(label.replace(",", "")) for label in labels] == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize(("low", "high"), [(math.nan, 1.0), (0.0, math.inf), (2.0, 1.0)])
def test_ticks_refuse_what_is_no_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        ticks(low, high)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 60))
def test_thinning_keeps_ends_extremes_and_order(values: list[float], limit: int) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    kept = thin(points, limit)
    assert len(kept) <= max(limit, 4)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert set(kept) <= set(points)
    assert kept == sorted(kept, key=lambda point: point[0])
    assert (min(y for _, y in kept), max(y for _, y in kept)) == (min(values), max(values))


def test_a_short_curve_is_not_thinned() -> None:
    points = [(float(x), float(x % 7)) for x in range(500)]
    assert thin(points) == points


class Balance(HTMLParser):
    """Fails on an end tag that closes another element than the open one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def draw(*lines: Line, rounds: int = 10, marks: tuple[Mark, ...] = ()) -> str:
    return line_chart("key", "Title", unit="unit", lines=lines, rounds=rounds, marks=marks)


def ends(drawing: str) -> list[float]:
    """Heights of the labels at the ends of lines."""
    return [float(y) for y in re.findall(r'dx="8" y="([-0-9.]+)"', drawing)]


def test_a_curve_spans_the_picture_from_its_lowest_tick_to_its_highest() -> None:
    drawing = draw(Line("end", [(0, 0.0), (5, 5.0), (10, 10.0)]))
    assert f'd="M0 {HEIGHT}L500 {HEIGHT // 2}L1000 0"' in drawing


def test_a_single_measurement_is_a_dot() -> None:
    assert 'class="dots a" d="M1000 ' in draw(Line("end", [(1, 0.3)]), rounds=1)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_labels_of_two_lines_never_touch_and_stay_beside_the_picture(one: float, other: float) -> None:
    low, high = sorted(ends(draw(Line("up", [(0, 0.0), (10, one)]), Line("down", [(0, 0.0), (10, other)]))))
    assert high - low >= 14.9  # 15 pixels, written to a tenth.
    assert low >= 4
    assert high <= HEIGHT + 4.1


def test_marks_are_named_and_inside_the_axis() -> None:
    drawing = draw(Line("end", [(1, 3.0)]), marks=(Mark("budget 8", 8.0),))
    assert "dotted: budget 8" in drawing
    assert ">8<" in drawing


def test_a_drawing_says_what_it_shows_to_who_cannot_see_it() -> None:
    drawing = draw(Line("12%", [(1, 4.0), (2, 16.0), (3, 12.0)]), rounds=3)
    assert 'role="img" aria-labelledby="key-title key-told"' in drawing
    assert "12%: from 4 in round 1 to 12 in round 3, lowest 4, highest 16" in drawing


@pytest.mark.parametrize("lines", [(), (Line("empty", []),)])
def test_a_chart_of_nothing_is_refused(lines: tuple[Line, ...]) -> None:
    with pytest.raises(ValueError, match="needs a point"):
        draw(*lines)


def test_spans_lie_at_their_share_of_the_scale() -> None:
    drawing = span_chart("s", "T", unit="u", spans=[Span("one", 1.0, 2.0), Span("two", 0.5, 4.0, 3.0)])
    assert 'x1="25.00%" x2="50.00%"' in drawing
    assert 'x1="12.50%" x2="100.00%"' in drawing
    assert 'circle cx="75.00%"' in drawing


def test_a_span_without_an_end_runs_off_the_scale() -> None:
    drawing = span_chart("s", "T", unit="u", spans=[Span("claimed", math.inf, math.inf), Span("measured", 1.0, 3.0)])
    assert "∞" in drawing
    assert "inf" not in drawing
    assert "nan" not in drawing


@given(st.text(), st.floats(-1e9, 1e9))
def test_drawings_are_well_formed_whatever_they_are_called(text: str, value: float) -> None:
    balance = Balance()
    balance.feed(line_chart("k", text, unit=text, lines=[Line(text, [(1, value)])], rounds=3))
    balance.feed(span_chart("l", text, unit=text, spans=[Span(text, value, value + 1)]))
    balance.close()
    assert balance.open == []


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("p", {"title": '<"'}, "<", Html("<br>")) == '<p title="&lt;&quot;">&lt;<br></p>'
    assert join(["<", Html("&lt;")], "&") == "&lt;&amp;&lt;"


def test_markup_joined_to_text_is_text_again() -> None:
    assert element("p", {}, Html("<b>") + "x") == "<p>&lt;b&gt;x</p>"
