"""The frame of a picture that stands alone: an SVG file that says what it shows, with its own style and paper."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.report.markup import Html, Value, element


@dataclass(frozen=True)
class Frame:
    """What all pictures of a kind share.

    Attributes:
        kind: class of the picture, which its style names.
        style: CSS.
        width: of the picture.
        left: where its title begins.
    """

    kind: str
    style: str
    width: int
    left: int

    def around(self, key: str, title: str, *parts: Html, told: str, described: str, height: float) -> Html:
        """A whole SVG file.

        Args:
            key: unique on a page, for the picture's ids.
            title: what is shown.
            parts: drawn below title and line.
            told: the line under the title.
            described: what whoever cannot see it is read.
            height: of the picture.
        """
        box: dict[str, Value] = {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": self.kind,
            "role": "img",
            "aria-labelledby": f"{key}-title {key}-told",
            "viewBox": f"0 0 {self.width} {height}",
            "width": self.width,
            "height": height,
            "style": "max-width:100%;height:auto",
        }
        return element(
            "svg",
            box,
            element("title", {"id": f"{key}-title"}, f"{title} ({told})"),
            element("desc", {"id": f"{key}-told"}, described),
            element("style", {}, Html(self.style)),
            element("rect", {"width": self.width, "height": height, "rx": 6, "fill": "var(--paper)"}),
            element("text", {"x": self.left, "y": 20, "class": "head"}, title),
            element("text", {"x": self.left, "y": 37}, told),
            *parts,
        )
