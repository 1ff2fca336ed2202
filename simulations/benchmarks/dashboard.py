"""The shipped dashboard without Grafana: `python -m simulations.benchmarks.dashboard --out board.html`.

A Prometheus that scrapes runs is asked every expression of `deploy/grafana`, over the last `--seconds`, and the answers
are drawn as one page: what each panel would show, and which show nothing. Exit code 1 where a panel is empty.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.report.markup import Html, element, join
from simulations.report.plots import Curve, plot
from simulations.report.scales import Axis

BOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards" / "confide.json"
MOST = 12  # Curves of a panel, and lines of a list: a board of many runs is for Grafana.
STYLE = """body { font: 15px system-ui, sans-serif; margin: 1.5rem; color: #1c1d1f; background: #fff; }
h2 { margin: 1.2rem 0 .4rem; border-bottom: 1px solid #ccc; } table { border-collapse: collapse; }
td { padding: .1rem .6rem .1rem 0; } td + td { text-align: right; font-variant-numeric: tabular-nums; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; } .panel { width: 480px; }
.panel h3 { font-size: 14px; margin: .4rem 0; } .empty { color: #b00020; }"""


@dataclass(frozen=True)
class Series:
    """An answer.

    Attributes:
        label: as the panel's legend has it.
        points: (seconds before now, value), finite ones alone.
    """

    label: str
    points: Sequence[tuple[float, float]]


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="default: http://127.0.0.1:9090")
    parser.add_argument("--run", default=".*", help="runs to show, as a regular expression; default: all")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("board.html"))
    options = parser.parse_args()
    panels = json.loads(BOARD.read_text())["panels"]
    found = [(panel, list(answers(panel, options))) for panel in panels]
    body = join(_rows(found))
    head = element("head", {}, element("meta", {"charset": "utf-8"}), element("style", {}, Html(STYLE)))
    page = element("html", {"lang": "en"}, head, element("body", {}, element("h1", {}, "confide"), body))
    options.out.write_text(f"<!doctype html>{page}\n", encoding="utf-8")
    empty = [panel["title"] for panel, series in found if panel["type"] != "row" and not series]
    print(f"{options.out}: {sum(bool(series) for _, series in found)} panels; empty: {', '.join(empty) or 'none'}")
    sys.exit(bool(empty))


def answers(panel: Mapping[str, Any], options: argparse.Namespace) -> Iterator[Series]:
    """What a panel's expressions are, over the time asked for."""
    now = time.time()
    step = max(options.seconds / 100, 1.0)
    for target in panel.get("targets", []):
        expression = target["expr"].replace("$__rate_interval", "10s").replace("$run", options.run)
        times = {"query": expression, "start": now - options.seconds, "end": now, "step": step}
        address = f"{options.prometheus}/api/v1/query_range?{urllib.parse.urlencode(times)}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            for each in json.load(answer)["data"]["result"]:
                points = [(float(at) - now, float(value)) for at, value in each["values"]]
                shown = [point for point in points if math.isfinite(point[1])]
                if shown:
                    yield Series(_label(target.get("legendFormat", ""), each["metric"]), shown)


def _label(pattern: str, labels: Mapping[str, str]) -> str:
    for name, value in labels.items():
        pattern = pattern.replace(f"{{{{{name}}}}}", value)
    return pattern or " ".join(labels.values())


def _rows(found: Sequence[tuple[Mapping[str, Any], Sequence[Series]]]) -> Iterator[Html]:
    """Each row's title, and its panels side by side."""
    starts = [number for number, (panel, _) in enumerate(found) if panel["type"] == "row"]
    for start, end in zip(starts, [*starts[1:], len(found)]):
        yield element("h2", {}, str(found[start][0]["title"]))
        yield element("div", {"class": "row"}, *(_drawn(at, *found[at]) for at in range(start + 1, end)))


def _drawn(number: int, panel: Mapping[str, Any], series: Sequence[Series]) -> Html:
    title = str(panel["title"])
    if not series:
        inner = [element("h3", {}, title), element("p", {"class": "empty"}, "no answer")]
    elif panel["type"] == "timeseries":
        curves = [Curve(each.label, each.points) for each in series[:MOST]]
        more = "" if len(series) <= MOST else f"; {len(series) - MOST} more are left out"
        unit = str(panel["fieldConfig"]["defaults"].get("unit", ""))
        told = f"{len(series)} series{more}"
        inner = [plot(f"panel{number}", title, told=told, curves=curves, x=Axis("seconds"), y=Axis(unit))]
    else:
        rows = [
            element("tr", {}, element("td", {}, each.label), element("td", {}, f"{each.points[-1][1]:.4g}"))
            for each in series[:MOST]
        ]
        inner = [element("h3", {}, title), element("table", {}, *rows)]
    return element("div", {"class": "panel"}, *inner)


if __name__ == "__main__":
    main()
