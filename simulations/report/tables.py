"""Tables of a report, and texts of unknown length."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.report.markup import Html, element

SHOWN_TEXT = 20_000  # Characters of a text of unknown length, so that the page stays one that can be sent.


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> Html:
    """A table that scrolls by itself where it is wider than the page."""
    head = element("tr", {}, *(element("th", {"scope": "col"}, name) for name in header))
    rows = [
        element("tr", {}, element("th", {"scope": "row"}, first), *(element("td", {}, cell) for cell in rest))
        for first, *rest in body
    ]
    inner = element("table", {}, element("thead", {}, head), element("tbody", {}, *rows))
    label = "table, scrolls sideways"
    return element("div", {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": label}, inner)


def facts(pairs: Sequence[tuple[str, str]]) -> Html:
    """Names and what they are, as a table of two columns."""
    rows = (element("tr", {}, element("th", {"scope": "row"}, name), element("td", {}, value)) for name, value in pairs)
    return element("table", {"class": "facts"}, element("tbody", {}, *rows))


def cut(text: str, length: int = SHOWN_TEXT) -> str:
    """The text, or its beginning and how much is left out."""
    return text if len(text) <= length else f"{text[:length]} … ({len(text) - length:,} more characters)"
