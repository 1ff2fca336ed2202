"""Defences against attacks: how far a backdoor gets, what spoiled updates cost, and whom a filter leaves out.

Every defence meets every attack at four fractions of malicious silos, in silos that are alike; and some attacks in
skewed silos, a few of which hold mostly rare classes. Attacks that plant a backdoor are judged by their success, those
that spoil the model by the accuracy they leave. Nothing is chosen by the results of the seeds that are shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from simulations.studies.cells import Cell
from simulations.studies.findings import Criterion, Findings, mean, spread
from simulations.studies.registry import Ask, study
from simulations.studies.scoreboard_cells import (
    DEFENCES,
    FRACTIONS,
    QUICK_THREATS,
    SKEWED_THREATS,
    THREATS,
    UNATTACKED,
    USUAL,
    experiment,
)
from simulations.studies.scoreboard_shown import PARTS, Board, Place, Score, figures, sheets


def scored(cell: Cell, threat: str) -> Score:
    """A cell's numbers; a run that diverged is no better than none."""
    if cell.failed:
        return Score()
    found = cell.result["attacks"] or {}
    success = found["success"][THREATS[threat].backdoor] if threat in THREATS and THREATS[threat].backdoor else None
    judged = {part: _number((found.get("detection") or {}).get(part)) for part in PARTS}
    return Score(_number(cell.result["metrics"]["accuracy"]), _number(success), **judged)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


@study(
    "scoreboard",
    about="Twelve defences against six attacks, by the fraction of malicious silos",
    seeds=(0,),
    quick_seeds=(0,),
)
def scoreboard(ask: Ask) -> Findings:
    """Runs the whole board."""
    from simulations.data import carriers

    ask.say(f"data: {carriers.fetch('fashion_mnist')}")
    places = wanted(quick=ask.quick)
    pairs = [(place, seed) for place in places for seed in ask.seeds]
    cells = ask.cells.run([experiment(*_spelt(place), seed, silos=place.silos) for place, seed in pairs])
    board: dict[Place, list[Score]] = {place: [] for place in places}
    for (place, _), cell in zip(pairs, cells):
        board[place].append(scored(cell, place.threat))
    return Findings(
        criteria=criteria(board),
        sheets=sheets(board),
        figures=figures(board, ask.seeds),
        rows=rows(board, ask.seeds),
        skipped=_left_out() if ask.quick else [],
        notes=[
            f"{len(ask.seeds)} seed{'s' if len(ask.seeds) > 1 else ''}: differences of a few points are chance; "
            "--seeds 0..2 runs more",
            "defences that ask how many silos are hostile are told the truth, also where nobody attacks",
            "filters that leave out a fixed part of the silos have false flags by design: 1 of the cohort is kept by "
            "Krum, and SPECTRE leaves out 1.5 times the malicious fraction",
            "shadow learning guards one class: it is no defence against updates that spoil the whole model",
            "norm clipping is privacy.silo with little noise: its epsilon is reported, and is no promise worth having",
        ],
    )


def wanted(*, quick: bool) -> list[Place]:
    """The board's places, those first that a reader looks at first."""
    threats = QUICK_THREATS if quick else tuple(THREATS)
    fractions = (USUAL,) if quick else FRACTIONS
    found = [Place("alike", defence, threat, part) for part in fractions for threat in threats for defence in DEFENCES]
    if quick:
        return found
    found += [Place("alike", defence, UNATTACKED, USUAL) for defence in DEFENCES]
    return found + [
        Place("skewed", defence, threat, USUAL) for threat in (UNATTACKED, *SKEWED_THREATS) for defence in DEFENCES
    ]


def _spelt(place: Place) -> tuple[str, str, float]:
    return place.defence, place.threat, place.fraction


def _left_out() -> list[str]:
    return [
        f"attacks: {'; '.join(name for name in THREATS if name not in QUICK_THREATS)}",
        f"malicious fractions: {'; '.join(f'{part:g}' for part in FRACTIONS if part != USUAL)}",
        "runs without an attack; skewed silos",
    ]


def criteria(board: Board) -> list[Criterion]:
    """That the attacks are attacks, so that a low number means a defence; and the specification's claim of shadows."""

    def success(defence: str) -> list[float]:
        return [each.success for each in board[Place("alike", defence, "patch", USUAL)]]

    most = max(place.fraction for place in board)
    spoiled = [each.accuracy for each in board[Place("alike", "none", "inner product", most)]]
    planted, guarded = success("none"), success("shadow learning")
    lost = [each.accuracy for scores in board.values() for each in scores]
    claim, at = "shadow_learning.scoreboard", f"{USUAL:g} malicious"
    found = [
        Criterion(
            name=f"success of the patch, no defence, {at}",
            spec_id=claim,
            measured=mean(planted),
            threshold=0.9,
            spread=spread(planted),
        ),
        Criterion(
            name=f"success of the patch, shadow learning, {at}",
            spec_id=claim,
            kind="goal",
            measured=mean(guarded),
            threshold=0.06,
            relation="<=",
            spread=spread(guarded),
        ),
        Criterion(name="runs without a number", spec_id=claim, measured=_missing(lost), threshold=0.0, relation="<="),
    ]
    if most == USUAL:  # So few spoil little.
        return found
    return [
        *found,
        Criterion(
            name=f"accuracy under inner product, no defence, {most:g} malicious",
            spec_id=claim,
            measured=mean(spoiled),
            threshold=0.5,
            relation="<=",
            spread=spread(spoiled),
        ),
    ]


def _missing(values: Sequence[float]) -> float:
    return float(sum(math.isnan(value) for value in values))


def rows(board: Board, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Everything, a mapping per run."""
    return [
        vars(place) | {"seed": seed} | vars(score)
        for place, scores in board.items()
        for seed, score in zip(seeds, scores)
    ]
