"""HTML that cannot be injected into: text is escaped where it meets markup, unless it is markup itself."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import TypeAlias

Value: TypeAlias = str | int | float

VOID = frozenset({"br", "hr", "link", "meta"})


class Html(str):
    """Markup. Only this module's functions and literals of ours make it, so what a user wrote never is."""

    __slots__ = ()


def element(name: str, attributes: Mapping[str, Value], *children: str) -> Html:
    """One element; children and attribute values that are plain text are escaped.

    >>> element("p", {"title": '"'}, "1 < 2 ", element("b", {}, "always"))
    '<p title="&quot;">1 &lt; 2 <b>always</b></p>'
    >>> element("meta", {"charset": "utf-8"})
    '<meta charset="utf-8">'
    """
    spelt = "".join(f' {key}="{html.escape(str(value))}"' for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{spelt}>")
    return Html(f"<{name}{spelt}>{join(children)}</{name}>")


def join(children: Iterable[str], separator: str = "") -> Html:
    """Children one after another; plain text is escaped, the separator too."""
    parts = (child if isinstance(child, Html) else html.escape(child) for child in children)
    return Html((separator if isinstance(separator, Html) else html.escape(separator)).join(parts))
