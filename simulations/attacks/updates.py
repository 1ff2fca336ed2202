"""Malicious updates: what a crew sends in place of what it trained."""

from __future__ import annotations

from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from strategies.attacks import (
    Attack,
    InnerProduct,
    LittleIsEnough,
    MinMax,
    ModelReplacement,
    NormBounded,
    Poison,
    SignFlip,
)

HALVINGS = 40  # Of the interval that min-max searches: to a millionth of a millionth of it.


def changed(attack: Attack, updates: Tensor, *, cohort: int) -> Tensor:
    """What the malicious silos send.

    Args:
        attack: that they make together.
        updates: that they trained, `(malicious, N)`, one at least: all that they know of anybody's.
        cohort: silos asked in the round.

    Returns:
        `(malicious, N)`.
    """
    match attack:
        case Poison():
            return updates
        case ModelReplacement():
            return attack.scale * updates
        case NormBounded():
            larger: Tensor = attack.scale * updates
            norms: Tensor = larger.norm(dim=-1, keepdim=True)
            return larger * (attack.norm / norms.clamp(min=attack.norm))
        case SignFlip():
            return -attack.scale * updates
        case LittleIsEnough():
            z = attack.z if attack.z is not None else hidden_deviations(cohort, len(updates))
            return _all(updates.mean(0) - z * updates.std(0, correction=0), updates)
        case InnerProduct():
            return _all(-attack.scale * updates.mean(0), updates)
        case MinMax():
            return _all(farthest(updates, attack.direction), updates)
        case _:
            raise TypeError(f"no update is known for {attack!r}")


def hidden_deviations(cohort: int, malicious: int) -> float:
    """The most deviations from the mean at which a majority of the cohort is expected to lie farther out.

    Source: Baruch et al. 2019, algorithm 3, lines 1 to 3: of n silos, s = floor(n / 2 + 1) - m honest ones must be
    farther out than the m malicious, and z is the normal quantile of (n - m - s) / (n - m). At least 0.

    >>> round(hidden_deviations(50, 24), 4)
    1.4261
    """
    honest, needed = cohort - malicious, cohort // 2 + 1 - malicious
    if needed <= 0:  # They are the majority: nothing limits them but what looks likely.
        needed = 1
    if honest <= needed:
        return 0.0
    return max(NormalDist().inv_cdf((honest - needed) / honest), 0.0)


def farthest(updates: Tensor, direction: Literal["std", "unit", "sign"]) -> Tensor:
    """The mean, moved in a direction while no update is farther from it than two updates are apart.

    Source: Shejwalkar and Houmansadr 2021, section IV, equation 4; the crew knows its own updates only.
    """
    mean = updates.mean(0)
    match direction:
        case "std":
            away = -updates.std(0, correction=0)
        case "unit":
            away = -mean / mean.norm().clamp(min=torch.finfo(mean.dtype).tiny)
        case "sign":
            away = -mean.sign()
    apart = float(torch.cdist(updates.double(), updates.double(), compute_mode="donot_use_mm_for_euclid_dist").max())
    length = float(away.double().norm())
    if not apart > 0.0 or not length > 0.0:  # One silo, or all alike: the mean is as far as they are apart.
        return mean
    low, high = 0.0, 2.0 * apart / length  # At the upper end even the mean is too far from some update.
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        reach = float((updates.double() - (mean + middle * away).double()).norm(dim=-1).max())
        low, high = (middle, high) if reach <= apart else (low, middle)
    return mean + low * away


def _all(vector: Tensor, updates: Tensor) -> Tensor:
    return vector.expand_as(updates).clone()
