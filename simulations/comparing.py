"""Finished runs beside each other: which are of one experiment, in what these differ, and by how much, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from simulations.outcomes import Result, metric, numbers
from strategies.schema import ConfigError
from strategies.words import spell

CONFIDENCE = 0.95
LABEL_KEYS = 3  # Of an experiment's short name, at most.


@dataclass(frozen=True)
class Member:
    """A finished run.

    Attributes:
        folder: where it is.
        result: what result.json holds.
        settings: the keys of its experiment, `train.learning_rate` to its value.
    """

    folder: Path
    result: Result
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Runs of one experiment, whatever their seeds and names.

    Attributes:
        letter: that stands for it beside the other groups.
        label: the keys that tell it from the others, in short.
        members: its runs.
    """

    letter: str
    label: str
    members: Sequence[Member]

    @property
    def seeds(self) -> dict[int, Member]:
        """Its runs by their seeds."""
        return {int(member.result["seed"]): member for member in self.members}


@dataclass(frozen=True)
class Difference:
    """How much a number of one experiment is above the other's, in runs of the same seeds.

    Attributes:
        column: which number.
        seeds: that both have.
        values: a difference a seed.
    """

    column: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's for the mean difference at 95%, so as if differences were normal; None for a single seed."""
        count = len(self.values)
        if count < 2:
            return None
        from scipy.stats import t

        quantile = float(t.ppf((1 + CONFIDENCE) / 2, count - 1))
        half = quantile * statistics.stdev(self.values) / math.sqrt(count)
        return self.mean - half, self.mean + half


def settings(folder: Path) -> dict[str, Any]:
    """The keys of a run's experiment, `train.learning_rate` to its value."""
    from strategies.yaml_text import read_yaml

    return _flat(read_yaml(folder / "experiment.yaml"))


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys whose values are not the same in all runs, to the value of each (None where it has no such key)."""
    keys = dict.fromkeys(key for run in runs for key in run)
    values = {key: [run.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def grouped(members: Sequence[Member]) -> list[Group]:
    """Runs by their experiments, in the order of the first of each.

    Raises:
        ConfigError: a folder that is there twice, or more experiments than there are letters.
    """
    twice = [folder for folder, times in Counter(each.folder.resolve() for each in members).items() if times > 1]
    if twice:
        raise ConfigError([f"{twice[0]}: is given twice, and a run is no repetition of itself; name it once"])
    found: list[tuple[dict[str, Any], list[Member]]] = []
    for member in members:
        own = experiment(member)
        same = next((held for known, held in found if known == own), None)
        if same is None:
            found.append((own, [member]))
        else:
            same.append(member)
    if len(found) > len(ascii_uppercase):
        most = len(ascii_uppercase)
        raise ConfigError([f"{len(found)} different experiments are more than can be read side by side ({most})"])
    labels = _labels([own for own, _ in found])
    return [Group(*each) for each in zip(ascii_uppercase, labels, [held for _, held in found])]


def experiment(member: Member) -> dict[str, Any]:
    """What makes runs one experiment: all keys but seed and name."""
    return {key: value for key, value in member.settings.items() if key not in ("seed", "name")}


def paired(base: Group, other: Group) -> list[Difference]:
    """Score, loss and bytes of the other above those of the base, over the seeds that both have; see `unpaired`."""
    seeds = tuple(sorted(base.seeds.keys() & other.seeds.keys()))
    rows = [(_compared(base.seeds[seed].result), _compared(other.seeds[seed].result)) for seed in seeds]
    found = []
    for column in rows[0][0] if rows else ():
        values = [(one[column], two[column]) for one, two in rows]
        known = [two - one for one, two in values if one is not None and two is not None]
        if len(known) == len(values):
            found.append(Difference(column, seeds, tuple(known)))
    return found


def unpaired(base: Group, other: Group) -> str | None:
    """Why runs of two experiments may not be paired seed by seed; None where they may."""
    for group in (base, other):
        seeds = [member.result["seed"] for member in group.members]
        again = [seed for seed, times in Counter(seeds).items() if times > 1]
        if again:
            return f"{group.letter} has seed {again[0]} more than once"
        stopped = [each.folder for each in group.members if _interrupted(each.result)]
        if stopped:
            return f"{stopped[0]} was stopped before its last round"
    one, two = (metric(group.members[0].result) for group in (base, other))
    if one != two:
        return f"{base.letter} is scored by {one}, {other.letter} by {two}"
    changed = differences([experiment(group.members[0]) for group in (base, other)])
    data = [key for key in changed if key.startswith("data.")]
    if data:
        return f"{data[0]} differs, so a seed stands for other rows or other silos"
    if not base.seeds.keys() & other.seeds.keys():
        return "they have no seed in common"
    return None


def cautions(results: Sequence[Result]) -> list[str]:
    """Why numbers of these runs may not be of one kind."""
    claims = [result["privacy"]["silo"] for result in results if result["privacy"]["silo"] is not None]
    lines = []
    if len({claim["delta"] for claim in claims}) > 1:
        lines.append("the epsilons are at different deltas and do not compare")
    if len({claim["neighbours"] for claim in claims}) > 1:
        lines.append("the epsilons are for different neighbouring relations and do not compare")
    if len({result["data"] for result in results}) > 1:
        lines.append("the runs are on different data")
    changed = differences([result.get("versions", {}) for result in results])
    if changed:
        lines.append(f"the runs were made by different versions of {', '.join(changed)}")
    return lines


def _compared(result: Result) -> dict[str, float | None]:
    held = numbers(result)
    sent = result["communication"]
    return {name: held[name] for name in (metric(result), "loss")} | {"bytes": sent["bytes_up"] + sent["bytes_down"]}


def _interrupted(result: Result) -> bool:
    """Whether somebody stopped it; a budget that is spent is a part of the experiment."""
    return result["stopped"] is not None and not result["stopped"].startswith("budget")


def _labels(experiments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names by as few keys as tell the experiments apart, the strategy first; only the first one has all of them."""
    keys = sorted(differences(experiments), key=lambda key: key != "strategy.name")
    parts: list[tuple[str, ...]] = [()] * len(experiments)
    for _ in range(LABEL_KEYS):
        trials = [[(*held, _said(key, each)) for held, each in zip(parts, experiments)] for key in keys]
        first = [trial for key, trial in zip(keys, trials) if key == "strategy.name" and not any(parts)]
        best = max(first or trials, key=lambda trial: len(set(trial)), default=parts)
        if len(set(best)) > len(set(parts)):
            parts = best
    base = parts[0]
    others = [[part for part, usual in zip(held, base) if part != usual] for held in parts[1:]]
    return [", ".join(dict.fromkeys(filter(None, held))) or "as it is" for held in (base, *others)]


def _said(key: str, held: Mapping[str, Any]) -> str:
    """A key with its value in a few words; nothing where it has none."""
    if key in held and held[key] is not None:
        *above, last = key.split(".")
        if last in ("name", "kind"):
            return spell(held[key]) if above == ["strategy"] else f"{' '.join(above[-1:])} {spell(held[key])}".strip()
        value = held[key]
        return f"{last} {value:g}" if isinstance(value, float) else f"{last} {spell(value)}"
    parents = [key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1)]
    missing = next((each for each in (key, *parents) if each in held and held[each] is None), None)
    return "" if missing is None else f"no {missing}"


def _flat(section: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section.items():
        at = f"{path}.{name}" if path else str(name)
        found |= _flat(value, at) if isinstance(value, Mapping) else {at: value}
    return found
