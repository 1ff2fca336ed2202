"""A study's folder: study.json with all rows, figures as SVG, and report.html, one page that needs nothing else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.report.markup import Html, element, join
from simulations.report.page import document
from simulations.report.tables import facts, table
from simulations.report.words import duration
from simulations.studies.findings import Criterion, Figure, Findings, Sheet, finite

JSON = "study.json"


def summary(name: str, findings: Findings, *, seeds: Sequence[int], seconds: float) -> dict[str, Any]:
    """What `confide study --format json` prints."""
    return {
        "study": name,
        "criteria": [each.row() for each in findings.criteria],
        "skipped": list(findings.skipped),
        "seeds": list(seeds),
        "seconds": round(seconds, 1),
    }


def write(folder: Path, about: str, said: Mapping[str, Any], findings: Findings, command: Sequence[str]) -> None:
    """Writes the folder; what an earlier run of the study left there is replaced."""
    from privacy.durable import atomic_write
    from simulations.results import versions

    folder.mkdir(parents=True, exist_ok=True)
    whole = dict(said) | {
        "passed": findings.passed,
        "notes": list(findings.notes),
        "tables": [{"title": each.title, "header": each.header, "rows": each.body} for each in findings.sheets],
        "rows": [_clean(row) for row in findings.rows],
        "command": shlex.join(command),
        "versions": versions(),
    }
    for figure in findings.figures:
        atomic_write(folder / f"{figure.name}.svg", (figure.svg + "\n").encode())
    atomic_write(folder / "report.html", page(about, said, findings, command).encode())
    atomic_write(folder / JSON, (json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def _clean(value: Any) -> Any:
    """JSON has neither NaN nor infinity: None stands for them."""
    if isinstance(value, Mapping):
        return {str(name): _clean(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(inner) for inner in value]
    return finite(value) if isinstance(value, float) else value


def page(about: str, said: Mapping[str, Any], findings: Findings, command: Sequence[str]) -> Html:
    """The whole page."""
    header = element(
        "header",
        {},
        element("p", {"class": "kind"}, "confide · report of a study"),
        element("h1", {}, said["study"]),
        element("p", {"class": "lede"}, f"{about}. {_verdict(findings)}"),
    )
    main = element(
        "main",
        {},
        _criteria(findings.criteria),
        _left_out(findings),
        _figures(findings.figures),
        *(_sheet(sheet) for sheet in findings.sheets),
        _again(said, command),
    )
    footer = element("footer", {}, f"Written by confide; all rows are in {JSON} beside this page.")
    return document(f"{said['study']} · confide", element("body", {}, header, main, footer))


def _verdict(findings: Findings) -> str:
    required = [each for each in findings.criteria if each.kind == "required"]
    goals = [each for each in findings.criteria if each.kind == "goal"]
    parts = [
        f"{sum(each.passed for each in held)} of {len(held)} {word}"
        for held, word in ((required, "required criteria hold"), (goals, "goals are reached"))
        if held
    ]
    return "; ".join(parts) + "." if parts else "It measures, and claims nothing."


def _criteria(criteria: Sequence[Criterion]) -> Html:
    if not criteria:
        return join([])
    body = [(each.name, *shown(each), each.kind, each.spec_id) for each in criteria]
    header = ("criterion", "", "measured", "threshold", "kind", "id")
    return element("section", {}, element("h2", {}, "What was to be shown"), table(header, body))


def shown(criterion: Criterion) -> tuple[str, str, str]:
    """Whether it holds, what was measured with its spread, and what was asked."""
    measured = finite(criterion.measured)
    number = "none" if measured is None else f"{measured:.4g}"
    if measured is not None and criterion.spread is not None:
        number += f" ± {criterion.spread:.2g}"
    relation = {">=": "≥", "<=": "≤"}[criterion.relation]
    return "passed" if criterion.passed else "FAILED", number, f"{relation} {criterion.threshold:g}"


def _left_out(findings: Findings) -> Html:
    titles = (("Know before you trust", findings.notes), ("Left out", findings.skipped))
    return join(
        element(
            "section", {}, element("h2", {}, title), element("ul", {}, *(element("li", {}, line) for line in lines))
        )
        for title, lines in titles
        if lines
    )


def _figures(figures: Sequence[Figure]) -> Html:
    if not figures:
        return join([])
    drawn = (element("figure", {}, figure.svg) for figure in figures)
    return element("section", {}, element("h2", {}, "Figures"), element("div", {"class": "charts"}, *drawn))


def _sheet(sheet: Sheet) -> Html:
    remark = element("p", {}, sheet.remark) if sheet.remark else join([])
    return element("section", {}, element("h2", {}, sheet.title), remark, table(sheet.header, sheet.body))


def _again(said: Mapping[str, Any], command: Sequence[str]) -> Html:
    seeds = ", ".join(map(str, said["seeds"])) or "none"
    known = facts([("seeds", seeds), ("this call took", duration(said["seconds"]))])
    return element("section", {}, element("h2", {}, "Run it again"), element("pre", {}, shlex.join(command)), known)
