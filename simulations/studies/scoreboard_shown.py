"""How the scoreboard is shown: tables by what is measured, and two heat maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from simulations.report.heat import heat
from simulations.studies.findings import Figure, Sheet, mean, told
from simulations.studies.scoreboard_cells import DEFENCES, THREATS, UNATTACKED, USUAL

PARTS = ("recall", "false_flag_rate", "minority_false_flag_rate")


@dataclass(frozen=True)
class Place:
    """Where a run stands on the board.

    Attributes:
        silos: `alike` or `skewed`.
        defence: its name.
        threat: the attack's name.
        fraction: of malicious silos.
    """

    silos: str
    defence: str
    threat: str
    fraction: float


@dataclass(frozen=True)
class Score:
    """What a run left.

    Attributes:
        accuracy: on clean public test rows.
        success: of the backdoor, NaN for attacks without one.
        recall: malicious silos that were left out, of those asked while the strategy judged; NaN where it never did.
        false_flag_rate: benign silos likewise.
        minority_false_flag_rate: benign silos of mostly rare classes likewise, NaN too where there are none.
    """

    accuracy: float = math.nan
    success: float = math.nan
    recall: float = math.nan
    false_flag_rate: float = math.nan
    minority_false_flag_rate: float = math.nan


Board = Mapping[Place, Sequence[Score]]


def sheets(board: Board) -> list[Sheet]:
    """Success of backdoors, accuracy, and whom filters left out; then the skewed silos."""
    alike = {place: scores for place, scores in board.items() if place.silos == "alike"}
    found = [
        _sheet("Attack success", alike, lambda each: [each.success], _has_backdoor),
        _sheet("Accuracy on clean rows", alike, lambda each: [each.accuracy], lambda threat: True),
        _sheet(
            "Left out: malicious silos / benign silos",
            alike,
            lambda each: [each.recall, each.false_flag_rate],
            lambda threat: threat != UNATTACKED,
            remark="Fractions of the silos asked while the strategy judged. Defences that judge no silo have none.",
        ),
    ]
    skewed = {place: scores for place, scores in board.items() if place.silos == "skewed"}
    return [*found, minority(skewed)] if skewed else found


def _has_backdoor(threat: str) -> bool:
    return threat in THREATS and bool(THREATS[threat].backdoor)


def _sheet(
    title: str, board: Board, numbers: Callable[[Score], list[float]], shown: Callable[[str], bool], remark: str = ""
) -> Sheet:
    """A line a defence, a column an attack and fraction; `numbers` of a score stand beside each other."""
    columns = list(dict.fromkeys((place.threat, place.fraction) for place in board if shown(place.threat)))
    body = []
    for defence in dict.fromkeys(place.defence for place in board):
        cells = []
        for threat, fraction in columns:
            scores = board[Place("alike", defence, threat, fraction)]
            cells.append(" / ".join(_short(values) for values in zip(*map(numbers, scores))))
        body.append((defence, *cells))
    heads = [threat if threat == UNATTACKED else f"{threat}, {fraction:g}" for threat, fraction in columns]
    return Sheet(title, ("defence", *heads), body, remark)


def minority(board: Board) -> Sheet:
    """Skewed silos: what a defence costs whom."""
    threats = list(dict.fromkeys(place.threat for place in board))
    body = []
    for threat in threats:
        for defence in dict.fromkeys(place.defence for place in board):
            scores = board[Place("skewed", defence, threat, USUAL)]
            fields = ("accuracy", "success", *PARTS)
            body.append((threat, defence, *(_short([getattr(each, name) for each in scores]) for name in fields)))
    header = ("attack", "defence", "accuracy", "attack success", "recall", "false flags", "of minority silos")
    return Sheet(
        f"Skewed silos, {USUAL:g} malicious",
        header,
        body,
        "Classes in Dirichlet(.5) proportions. Minority silos are benign ones that hold mostly the two rarest classes.",
    )


def _short(values: Sequence[float]) -> str:
    """Mean and deviation; a dash where there is no number, which is no fault here."""
    found = told(values, 3)
    return "-" if found == "none" else found


def figures(board: Board, seeds: Sequence[int]) -> list[Figure]:
    """Two heat maps: backdoors by their success, spoilers by the accuracy that they leave."""
    seen = [place.threat for place in board]
    backdoors = [threat for threat in THREATS if threat in seen and THREATS[threat].backdoor]
    spoilers = [threat for threat in THREATS if threat in seen and not THREATS[threat].backdoor]
    count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    return [
        _heat("backdoors", "Attack success, %, by the fraction of malicious silos", board, backdoors, "success", count),
        _heat("spoilers", "Accuracy left, %, by the fraction of malicious silos", board, spoilers, "accuracy", count),
    ]


def _heat(name: str, title: str, board: Board, threats: Sequence[str], field: str, count: str) -> Figure:
    fractions = sorted({place.fraction for place in board if place.threat in threats})
    values = [
        [
            mean([getattr(each, field) for each in board[Place("alike", defence, threat, fraction)]])
            for threat in threats
            for fraction in fractions
        ]
        for defence in DEFENCES
    ]
    picture = heat(
        f"scoreboard-{name}",
        title,
        told=f"small garments, 200 silos that are alike, 40 a round, {count}",
        rows=list(DEFENCES),
        groups=[(threat, [f"{fraction:.2f}".lstrip("0") for fraction in fractions]) for threat in threats],
        values=values,
        high_is_bad=field == "success",
    )
    return Figure(f"scoreboard_{name}", picture)
