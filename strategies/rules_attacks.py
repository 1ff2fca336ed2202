"""The rules between attacks and the other keys of an experiment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from strategies.attacks import Attack, Poison

if TYPE_CHECKING:  # They import torch, or this module's callers.
    from strategies.base import Strategy
    from strategies.experiment import Privacy


def attack_rules(attacks: tuple[Attack, ...], rounds: int) -> Iterator[str]:
    """What of the attacks themselves cannot be."""
    for at, each in enumerate(attacks):
        yield from (f"attacks[{at}].{line}" for line in each.problems())
        if each.start > rounds:
            yield f"attacks[{at}].start: must be <= rounds = {rounds}, got {each.start}; it would never begin"
        if each.until is not None and not each.until >= each.fraction:
            yield f"attacks[{at}].until: must be >= fraction = {each.fraction}, got {each.until}; a crew only grows"
    draws = sorted({each.draw for each in attacks})
    if len(draws) > 1:  # Crews share one ranking of the silos, which is what keeps them apart.
        yield f"attacks: found draw: {' and '.join(draws)}; give all of them the same"
    crews = {each.crew for each in attacks}
    most = sum(max(each.most for each in attacks if each.crew == crew) for crew in crews)
    if most > 1:
        yield f"attacks: crews hold {most:g} of the silos together, more than all; lower their fractions"


def attacked_rules(attacks: tuple[Attack, ...], strategy: Strategy, privacy: Privacy) -> Iterator[str]:
    """What of the attacks does not fit strategy and privacy."""
    for at, each in enumerate(attacks):
        if not isinstance(each, Poison) and "delta" not in strategy.channels(1):
            yield f"attacks[{at}]: {each.name} changes channel 'delta', which strategy {strategy.name} has not"
        if isinstance(each, Poison) and each.longer > 1 and privacy.example is not None:
            yield f"attacks[{at}].longer: privacy.example charges each silo for train.steps, got {each.longer}; use 1"
