"""The report's section on malicious silos: how far attacks got, and whom the strategy left out."""

from __future__ import annotations

from simulations.report.charts import Line, line_chart
from simulations.report.markup import Html, element, join
from simulations.report.run import Run
from simulations.report.words import number, score

SUCCESS = "attack_success."  # As `simulations.attacks.measuring` writes it into a round's line.


def attacks_section(run: Run) -> Html:
    """Nothing where nobody attacked."""
    found = run.result.get("attacks")
    if found is None:
        return join([])
    lines, body = [], []
    for label, success in found["success"].items():
        points = run.series(f"{SUCCESS}{label}", 100)
        words = label.replace("_", " ")
        if points:
            lines.append(Line(f"{words} {number(points[-1][1])}%", points))
        body.append((words, "not tested" if success is None else score("accuracy", success)))
    rounds, unit = len(run.rows), "% of triggered test rows of other classes that are taken for the target"
    charts = [
        line_chart(f"attack-success-{at}", "Attack success", unit=unit, lines=lines[at : at + 2], rounds=rounds)
        for at in range(0, len(lines), 2)
    ] + _flags(run)
    table = element("table", {"class": "facts"}, element("tbody", {}, *(_row(name, value) for name, value in body)))
    said = [element("p", {}, text) for text in (_asked(found["asked"], found["minority_silos"]), _caught(found))]
    parts = [element("h2", {}, "Malicious silos"), *said, table]
    if charts:
        parts.append(element("div", {"class": "charts"}, *charts))
    return element("section", {}, *parts)


def _flags(run: Run) -> list[Html]:
    """Whom the strategy left out, round by round; nothing where it judged nobody."""
    lines = []
    for whom in ("malicious", "benign"):
        points = [
            (row["round"], 100 * row["attackers"]["flagged"][whom] / row["attackers"]["asked"][whom])
            for row in run.rows
            if "flagged" in row.get("attackers", {}) and row["attackers"]["asked"][whom]
        ]
        if points:
            lines.append(Line(f"{whom} {number(points[-1][1])}%", points))
    unit = "% of the malicious and of the benign silos asked in a round"
    title = "Left out by the strategy"
    return [line_chart("flags", title, unit=unit, lines=lines, rounds=len(run.rows), from_zero=True)] if lines else []


def _row(name: str, value: str) -> Html:
    return element("tr", {}, element("th", {"scope": "row"}, name), element("td", {}, value))


def _asked(asked: dict[str, int], minority: int | None) -> str:
    whole = asked["malicious"] + asked["benign"]
    said = f"Of {whole:,} answers asked for, over all rounds, {asked['malicious']:,} were asked of malicious silos."
    if not minority:
        return said
    return f"{said} {minority:,} benign silos hold mostly rare classes."


def _caught(found: dict[str, object]) -> str:
    detection = found["detection"]
    if not isinstance(detection, dict):
        return "The strategy judged no silo, so nothing can be said of detection."
    parts = [
        f"{score('accuracy', detection[key])} of {whom}"
        for key, whom in (
            ("recall", "malicious silos"),
            ("false_flag_rate", "benign ones"),
            ("minority_false_flag_rate", "benign ones of mostly rare classes"),
        )
        if detection[key] is not None
    ]
    return f"In the {detection['rounds']:,} rounds in which it judged silos, the strategy left out {', '.join(parts)}."
