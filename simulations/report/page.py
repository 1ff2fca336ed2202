"""report.html: a run on one page that needs nothing but itself, and can be sent, printed and kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulations.report.again import again_section, time_section
from simulations.report.attacks import attacks_section
from simulations.report.groups import groups_section
from simulations.report.markup import Html, element, join
from simulations.report.privacy import claimed_words, measured_words, privacy_section
from simulations.report.run import ReportError, Run, read_run
from simulations.report.sections import TITLES, learning_section, rounds_table, traffic_section
from simulations.report.silos import silos_section
from simulations.report.style import CSS
from simulations.report.tables import cut, facts
from simulations.report.words import duration, number, score, size, small
from simulations.words.privacy import READ_MORE

__all__ = ["ReportError", "document", "page", "write_report"]

SHOWN_NOTES = 50
# The page asks nobody for anything, and a browser holds it to that.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Writes a page from result.json, rounds.jsonl and experiment.yaml of a run's folder; returns its path.

    Args:
        folder: of the run.
        path: of the page; None: report.html in the folder.

    Raises:
        ReportError: the folder holds no result, or what it holds is not what a run writes.
        ConfigError: experiment.yaml cannot be read.
    """
    from privacy.durable import atomic_write

    path = folder / "report.html" if path is None else path
    atomic_write(path, page(read_run(folder)).encode())
    return path


def page(run: Run) -> Html:
    """The whole page."""
    main = element(
        "main",
        {},
        _notes(run),
        privacy_section(run),
        learning_section(run),
        silos_section(run),
        attacks_section(run),
        groups_section(run),
        traffic_section(run),
        _setting(run),
        again_section(run),
        time_section(run),
    )
    return document(f"{run.result['name']} · confide", _body(run, main))


def document(title: str, body: Html) -> Html:
    """A page that stands alone, around its body."""
    head = element(
        "head",
        {},
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("link", {"rel": "icon", "href": "data:,"}),  # Else a browser asks the server for one.
        element("title", {}, title),
        element("style", {}, Html(CSS)),
    )
    return join([Html("<!doctype html>\n"), element("html", {"lang": "en"}, head, body), "\n"])


def _body(run: Run, main: Html) -> Html:
    footer = f"Written by confide from result.json, rounds.jsonl and experiment.yaml beside this page. {READ_MORE}"
    return element("body", {}, _header(run), main, element("footer", {}, footer))


def _header(run: Run) -> Html:
    result = run.result
    planned = run.experiment.get("rounds", result["rounds"])
    lede = (
        f"{result['strategy']} on {result['data']}: {result['silos']:,} silos, {result['rounds']:,} of {planned:,} "
        f"rounds in {duration(result['seconds'])}, seed {result['seed']}, {result['engine']} engine."
    )
    parts = [
        element("p", {"class": "kind"}, "confide · report of a run"),
        element("h1", {}, result["name"]),
        element("p", {"class": "lede"}, lede),
    ]
    if result["stopped"]:
        parts.append(element("p", {"class": "stopped"}, _stopped(result)))
    return element("header", {}, *parts, _cards(run))


def _stopped(result: Mapping[str, Any]) -> str:
    reason, _, details = cut(result["stopped"], 1000).partition(": ")
    if reason == "budget":
        return f"Stopped by its budget: {details}."
    return f"Stopped early ({cut(result['stopped'], 1000)}); to go on, in this folder: confide run --resume ."


def _cards(run: Run) -> Html:
    sent = run.result["communication"]
    claimed, measured = claimed_words(run), measured_words(run)
    ways = f"{size(sent['bytes_up'])} up, {size(sent['bytes_down'])} down, all silos together"
    cards = [
        (TITLES[run.metric], score(run.metric, run.metrics[run.metric]), _tested(run)),
        ("Claimed", *claimed),
        ("Measured", *measured),
        ("Sent", size(sent["bytes_up"] + sent["bytes_down"]), ways),
    ]
    boxes = (
        element("div", {}, element("dt", {}, name), element("dd", {}, element("b", {}, value), words))
        for name, value, words in cards
    )
    return element("dl", {"class": "cards"}, *boxes)


def _tested(run: Run) -> str:
    loss = run.metrics["loss"]
    if loss is None:
        return "not tested: no public test set"
    where = "on the public test set" if run.section("data").get("public_test") else "on the silos’ own test rows"
    return f"{where}, loss {number(loss)}"


def _notes(run: Run) -> Html:
    notes = run.result["notes"]
    if not notes:
        return join([])
    shown = [element("li", {}, cut(_sentence(note), 1000)) for note in notes[:SHOWN_NOTES]]
    if len(notes) > SHOWN_NOTES:
        shown.append(element("li", {}, f"{len(notes) - SHOWN_NOTES} more in result.json"))
    return element("section", {}, element("h2", {}, "Know before you trust"), element("ul", {}, *shown))


def _sentence(note: str) -> str:
    start = note[:1].upper() if note.split(" ")[0].isalpha() else note[:1]  # metrics.privacy stays as it is.
    return f"{start}{note[1:]}" + ("" if note.endswith(".") else ".")


def _setting(run: Run) -> Html:
    """What ran: the keys a reader asks for first, then the experiment as it was written."""
    pairs = [(name, _spelt(run.experiment.get(name))) for name in ("strategy", "task")]
    data = {key: value for key, value in run.section("data").items() if key != "name"}
    pairs += [("data", f"{run.result['data']} ({_spelt(data)})"), ("silos", f"{run.result['silos']:,}")]
    pairs += [
        (name, _spelt(run.experiment.get(name)))
        for name in ("cohort", "train", "attacks", "privacy", "budget", "engine")
    ]
    shown = facts([(name, cut(value, 600)) for name, value in pairs if value])
    written = element("details", {}, element("summary", {}, "experiment.yaml"), element("pre", {}, cut(run.spelt)))
    return element("section", {}, element("h2", {}, "What ran"), shown, written, rounds_table(run))


def _spelt(value: object) -> str:
    """A section on one line: `fedavg, server sgd, learning_rate 1.0`; keys without a value are left out."""
    if not isinstance(value, Mapping):
        return "" if value is None else f"{value:g}" if isinstance(value, float) and value >= 0.01 else _plain(value)
    words = []
    for key, inner in value.items():
        spelt = _spelt(inner)
        if spelt:
            words.append(spelt if key in ("name", "kind") else f"{key} {f'({spelt})' if ', ' in spelt else spelt}")
    return ", ".join(words)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " × ".join(_spelt(item) for item in value)
    return small(value) if isinstance(value, float) else str(value)
