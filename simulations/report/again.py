"""The report's sections on how to get the run again, on versions, and on where the time went."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from simulations.report.markup import Html, element, join
from simulations.report.run import Run
from simulations.report.sections import seconds_table
from simulations.report.tables import cut, facts

FILE = "experiment.yaml"
ELSEWHERE = "again"  # The folder of the run that is made anew.


def again_section(run: Run) -> Html:
    """The command, what it needs, and how to see that the model is this page's."""
    result = run.result
    words = result.get("command") or ["confide", "run", FILE]
    model, ledger = result["model"], result["ledger"]
    command = shlex.join([*words, "--out", ELSEWHERE])
    check = f"echo '{model['sha256']}  {ELSEWHERE}/{model['file']}' | sha256sum --check"
    rows = [
        ("model", join([f"{model['file']}, SHA-256 ", digest(model["sha256"])])),
        ("ledger", join([f"{ledger['seq']:,} entries, the last one’s hash ", digest(ledger["hash"])])),
    ]
    if "digest" in result:
        rows.append(("experiment", join(["all keys that decide results, SHA-256 ", digest(result["digest"])])))
    rows.append(("versions", join([versions(result["versions"])])))
    told = f"{_where(words)} The first command {_trains(run)} The second says whether the model is this page’s."
    parts = [element("p", {}, told), element("pre", {}, command), element("pre", {}, check)]
    parts += [element("p", {}, text) for text in _needs(run, words)]
    return element("section", {}, element("h2", {}, "Run it again"), *parts, facts(rows))


def time_section(run: Run) -> Html:
    """Where the time went; nothing for a run without a round."""
    table = seconds_table(run) if run.rows else join([])
    return element("section", {}, element("h2", {}, "Where the time went"), table) if table else table


def versions(found: Mapping[str, str]) -> str:
    """Programs and their versions on one line."""
    return ", ".join(f"{name} {version}" for name, version in found.items())


def digest(value: str) -> Html:
    """A hash, set small."""
    return element("code", {"class": "hash"}, value)


def _where(words: list[str]) -> str:
    if FILE in words:
        return f"In this folder, whose {FILE} is shown above:"
    return (
        "In any folder, for the experiment is a shipped one, with these changes:"
        if "--set" in words
        else ("In any folder, for the experiment is a shipped one:")
    )


def _trains(run: Run) -> str:
    if run.section("privacy").get("noise") == "system":
        return "trains another model of the same experiment: secret noise and cohorts do not repeat."
    return "trains the same model again, from the same seed. Other versions or another processor may round differently."


def _needs(run: Run, words: list[str]) -> list[str]:
    """What the command takes for granted."""
    found = []
    path: Any = run.section("data").get("path")
    if path is not None:
        found.append(f"It reads {cut(str(path), 300)}, seen from where it is started.")
    if "--dataset" in words:
        found.append("The rows were handed over by a module of the user’s: name it in place of MODULE:NAME.")
    if run.section("engine").get("kind") == "flower":
        found.append("It needs the same federation, with its silos: see confide serve and confide join.")
    return found
