"""Pages as a parser and as a browser see them."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from simulations.report.markup import VOID

PAPER = 672  # Pixels between the margins of an upright A4 page: 210 mm less 32 mm.
MEASURE = """
const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const measured = frame => {
    const page = frame.contentDocument, view = frame.contentWindow, style = e => view.getComputedStyle(e);
    const under = e => { for (; e; e = e.parentElement) { const c = style(e).backgroundColor;
        if (c && !/rgba\\(.*, 0\\)|transparent/.test(c)) return c; } return style(page.body).backgroundColor; };
    const texts = [...page.querySelectorAll('svg text, b, td, th, p, li, pre, dd, dt, span, summary, h1, h2')]
        .filter(e => e.textContent.trim() && e.getClientRects().length);
    const ink = e => e.namespaceURI.endsWith('svg') ? style(e).fill : style(e).color;
    const box = e => e.getBoundingClientRect(), wide = page.documentElement.clientWidth;
    return {
        texts: texts.length,
        beyond: texts.filter(e => !e.closest('.scroll')).filter(e => box(e).right > wide + 0.5 || box(e).left < -0.5)
            .map(e => e.textContent),
        sideways: page.documentElement.scrollWidth - wide,
        faint: texts.filter(e => contrast(ink(e), under(e)) < 4.5).map(e => e.textContent),
        figures: [...page.querySelectorAll('figure')].map(e => [Math.round(box(e).width), Math.round(box(e).height)]),
        untold: [...page.querySelectorAll('svg[role=img]')].filter(e => !e.querySelector('title').textContent
            || !e.querySelector('desc').textContent).length,
        paper: style(page.body).backgroundColor,
        asked: view.performance.getEntriesByType('resource').map(e => e.name),
    };
};
addEventListener('load', () => {
    const found = [...document.querySelectorAll('iframe')].map(frame => [frame.id, measured(frame)]);
    document.body.dataset.found = JSON.stringify(Object.fromEntries(found));
});
"""


class Reader(HTMLParser):
    """Collects what a page is made of; fails where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def words(page: str) -> str:
    """What a reader sees, white space made single."""
    page = re.sub(r"<(style|title|desc).*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def chromium(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Opens a page; its document as it then is on standard output, what its console says on standard error."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium here")
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    quiet = ("--disable-component-update", "--disable-sync", f"--user-data-dir={profile}", "--enable-logging=stderr")
    command = [program, *fixed, *quiet, *(flags or ("--dump-dom",)), page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def look(pages: Mapping[str, tuple[str, int]], folder: Path, *flags: str) -> dict[str, dict[str, Any]]:
    """Opens pages side by side, each as wide as is said, and measures them; fails where the console complains."""
    frames = [
        f'<iframe id="{name}" srcdoc="{html.escape(page.replace("<details>", "<details open>"))}" '
        f'style="border:0;width:{width}px;height:900px"></iframe>'
        for name, (page, width) in pages.items()
    ]
    path = folder / "frames.html"
    path.write_text(f'<!doctype html><body style="margin:0">{"".join(frames)}<script>{MEASURE}</script>')
    shown = chromium(path, folder / "profile", "--window-size=1300,1000", "--dump-dom", *flags)
    assert "CONSOLE" not in shown.stderr
    [body] = re.findall(r'data-found="([^"]*)"', shown.stdout)
    found: dict[str, dict[str, Any]] = json.loads(html.unescape(body))
    return found


def on_paper(page: str) -> str:
    """The page as it is printed: the rules for print hold, and dark ones do not."""
    return page.replace("@media print", "@media all").replace("prefers-color-scheme: dark", "max-width: 1px")
