"""Several runs on one page: in what they differ, what they claim, cost and reach, and by how much, seed by seed."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from simulations.comparing import Group, Member, cautions, differences, experiment, grouped, settings
from simulations.outcomes import metric, numbers
from simulations.report.again import digest, versions
from simulations.report.comparison_figures import curves_section, frontiers_section, pairs_section
from simulations.report.comparison_plots import Shown, scale, sent
from simulations.report.markup import Html, element, join
from simulations.report.page import document
from simulations.report.run import Run, read_run
from simulations.report.sections import TITLES
from simulations.report.tables import cut, facts, table
from simulations.report.words import NEIGHBOURS, duration, number, score, size, small
from strategies.words import spell

SHOWN_KEYS = 60
SUMS = (
    "Every ε is of its own run. A silo that took part in several of these runs paid for each of them: together they "
    "say more about it than any one.",
    "Who looks at several private runs and goes on with the best has made a choice that costs, too: confide sweep "
    "charges it.",
)
CLAIMS = (("epsilon", "ε claimed"), ("server", "ε, server"), ("row epsilon", "ε, one example"))


def write_comparison(folders: Sequence[Path], path: Path, command: Sequence[str]) -> Path:
    """Writes the page of several runs.

    Args:
        folders: of the runs.
        path: where to.
        command: that is asked for it, to be shown.

    Raises:
        ReportError: a folder holds no result, or is not what a run writes.
        ConfigError: a folder is given twice, or there are too many experiments.
    """
    from privacy.durable import atomic_write

    runs = [read_run(folder) for folder in folders]
    members = [Member(folder, run.result, settings(folder)) for folder, run in zip(folders, runs)]
    rows = {folder: run.rows for folder, run in zip(folders, runs)}
    groups = [Shown(each, [rows[member.folder] for member in each.members]) for each in grouped(members)]
    atomic_write(path, page(groups, runs, command).encode())
    return path


def page(groups: Sequence[Shown], runs: Sequence[Run], command: Sequence[str]) -> Html:
    """The whole page."""
    held = [each.group for each in groups]
    main = element(
        "main",
        {"class": "comparison"},
        _numbers(groups),
        _differs(held),
        frontiers_section(groups),
        curves_section(groups),
        pairs_section(held, scale(groups[0])),
        _know(held, runs),
        _runs(held),
        _again(held, command),
    )
    footer = element("footer", {}, "Written by confide from the folders of the runs.")
    return document("Comparison · confide", element("body", {}, _header(held), main, footer))


def _header(groups: Sequence[Group]) -> Html:
    count = sum(len(group.members) for group in groups)
    names = list(dict.fromkeys(str(each.result["name"]) for group in groups for each in group.members))
    data = list(dict.fromkeys(str(each.result["data"]) for group in groups for each in group.members))
    seeds = sorted({seed for group in groups for seed in group.seeds})
    lede = (
        f"{_many(len(groups), 'experiment')} in {_many(count, 'run')} on {', '.join(data)}, with "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)}."
    )
    return element(
        "header",
        {},
        element("p", {"class": "kind"}, "confide · comparison of runs"),
        element("h1", {}, cut(", ".join(names), 120)),
        element("p", {"class": "lede"}, lede),
    )


def _numbers(groups: Sequence[Shown]) -> Html:
    """A line an experiment: means over its runs, with one standard deviation where there are several."""
    kinds = [(name, title) for name, title in CLAIMS if any(name in _held(each.group) for each in groups)]
    measured = any("measured" in _held(each.group) for each in groups)
    first = TITLES[metric(groups[0].group.members[0].result)].lower()
    header = ["experiment", "runs", first, "loss", *(title for _, title in kinds or CLAIMS[:1])]
    header += [*(["ε measured"] if measured else []), "sent", "time in rounds"]
    held = metric(groups[0].group.members[0].result)  # Others have a dash: a column has one unit.
    body = [_line(each, held, [name for name, _ in kinds or CLAIMS[:1]], measured) for each in groups]
    said = "Means over the runs of an experiment, ± one standard deviation; of a claimed ε the largest of its runs."
    many = any(len(each.group.members) > 1 for each in groups)
    shown = [element("p", {}, said)] if many else []
    return element("section", {}, element("h2", {}, "In numbers"), *shown, table(header, body))


def _line(shown: Shown, name: str, kinds: Sequence[str], measured: bool) -> Sequence[str]:
    group = shown.group
    cells = [f"{group.letter}  {group.label}", str(len(group.members))]
    alike = metric(group.members[0].result) == name
    factor, unit = (100.0, "%") if name == "accuracy" else (1.0, "")
    cells += [_mean(group, name, factor, unit), _mean(group, "loss", 1.0, "")] if alike else ["–", "–"]
    cells += [_claim(group, kind) for kind in kinds]
    cells += [_mean(group, "measured", 1.0, "")] if measured else []
    seconds = statistics.fmean(each.result["seconds"] for each in group.members)
    return [*cells, size(sent(shown)), duration(seconds)]


def _held(group: Group) -> set[str]:
    return {name for each in group.members for name in numbers(each.result)}


def _mean(group: Group, name: str, factor: float, unit: str) -> str:
    values = [numbers(each.result).get(name) for each in group.members]
    known = [factor * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    mean = f"{statistics.fmean(known):.1f}" if unit else number(statistics.fmean(known))
    return f"{mean}{unit}" if len(known) == 1 else f"{mean} ± {number(statistics.stdev(known), 2)}{unit}"


def _claim(group: Group, kind: str) -> str:
    """The largest of its runs, rounded up; infinite where one claims nothing."""
    values = [numbers(each.result).get(kind) for each in group.members]
    known = [value for value in values if value is not None]
    return number(max(known) if len(known) == len(values) else math.inf, 4, "up")


def _differs(groups: Sequence[Group]) -> Html:
    """Keys that were set differently; folded away, those that only some have, as of another strategy."""
    heading = element("h2", {}, "What differs")
    if len(groups) == 1:
        said = "The runs are of one experiment: nothing differs but their seeds."
        return element("section", {}, heading, element("p", {}, said))
    keys = differences([experiment(group.members[0]) for group in groups])
    partial = {key for key, values in keys.items() if len({repr(each) for each in values if each is not None}) < 2}
    folded = {key: values for key, values in keys.items() if key in partial}
    parts = [_keys(groups, {key: values for key, values in keys.items() if key not in partial})]
    if folded:
        summary = element("summary", {}, f"{_many(len(folded), 'key')} that only some of the experiments have")
        parts.append(element("details", {}, summary, _keys(groups, folded)))
    said = "Only keys that are not the same in all experiments; a dash stands for a key that one has not."
    return element("section", {}, heading, element("p", {}, said), *parts)


def _keys(groups: Sequence[Group], keys: Mapping[str, Sequence[object]]) -> Html:
    if not keys:
        return join([])
    some = list(keys.items())[:SHOWN_KEYS]
    body = [(key, *("–" if value is None else cut(spell(value), 60) for value in values)) for key, values in some]
    rest = len(keys) - len(some)
    body += [(f"and {rest:,} more keys", *("" for _ in groups))] if rest else []
    return table(("key", *(group.letter for group in groups)), body)


def _know(groups: Sequence[Group], runs: Sequence[Run]) -> Html:
    results = [each.result for group in groups for each in group.members]
    lines = [f"{line[:1].upper()}{line[1:]}." for line in cautions(results)]
    claims = [run.claimed for run in runs if run.claimed is not None]
    private = claims or any(run.example is not None or run.local is not None for run in runs)
    if claims and len({(claim["delta"], claim["neighbours"]) for claim in claims}) == 1:
        relation = NEIGHBOURS[claims[0]["neighbours"]]
        lines.append(f"Claimed ε are at δ = {small(claims[0]['delta'])}, for {relation}.")
    lines += SUMS if private else ()
    notes = dict.fromkeys(note for run in runs for note in run.result["notes"])
    lines += [cut(f"{note[:1].upper()}{note[1:]}.", 400) for note in list(notes)[:20]]
    if not lines:
        return join([])
    items = (element("li", {}, line) for line in lines)
    return element("section", {}, element("h2", {}, "Know before you trust"), element("ul", {}, *items))


def _runs(groups: Sequence[Group]) -> Html:
    name = metric(groups[0].members[0].result)
    body = [
        (str(each.folder), group.letter, str(each.result["seed"]), f"{each.result['rounds']:,}", *_outcome(each, name))
        for group in groups
        for each in group.members
    ]
    header = ("run", "", "seed", "rounds", TITLES[name].lower(), "ε claimed", "stopped", "model, SHA-256")
    inner = table(header, body)
    heading = element("summary", {}, f"{_many(len(body), 'run')} in numbers")
    return element("section", {}, element("h2", {}, "Runs"), element("details", {}, heading, inner))


def _outcome(member: Member, name: str) -> tuple[str, str, str, str]:
    claim, stopped = numbers(member.result).get("epsilon"), member.result["stopped"]
    said = "–" if member.result["privacy"]["silo"] is None else number(claim, 4, "up")
    reason = "" if stopped is None else stopped.partition(":")[0]
    scored = score(name, member.result["metrics"].get(name))
    return scored, said, reason, member.result["model"]["sha256"][:16]


def _again(groups: Sequence[Group], command: Sequence[str]) -> Html:
    """Commands that make the runs, and this page, again."""
    lines = []
    for group in groups:
        first = group.members[0]
        words = first.result.get("command") or ["confide", "run", "experiment.yaml"]
        if "experiment.yaml" in words:
            words = [str(first.folder / word) if word == "experiment.yaml" else word for word in words]
        lines.append(shlex.join(_seeded(words, sorted(group.seeds))))
    found = [each.result.get("versions", {}) for group in groups for each in group.members]
    same = all(each == found[0] for each in found)
    told = versions(found[0]) if same else "not the same in all runs; the report of each has its own"
    rows: list[tuple[str, str]] = [("versions", told)]
    digests = [(group.letter, group.members[0].result.get("digest")) for group in groups]
    rows += [(f"experiment {letter}", digest(each)) for letter, each in digests if each and len(groups) <= 8]
    said = "The experiments, with their seeds, then this page. Each run goes into a new folder."
    shown = [element("p", {}, said), element("pre", {}, "\n".join(lines)), element("pre", {}, shlex.join(command))]
    return element("section", {}, element("h2", {}, "Run it again"), *shown, facts(rows))


def _seeded(words: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """The command of a run as one of all its seeds."""
    kept: list[str] = []
    for word in words:
        if word.startswith("seed=") and kept[-1] == "--set":
            kept.pop()
        else:
            kept.append(word)
    return [*kept, "--seeds", ",".join(map(str, seeds))]


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _listed(seeds: Sequence[int]) -> str:
    """Seeds in a row as `0 to 4`, others one by one."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return cut(", ".join(map(str, seeds)), 60)
