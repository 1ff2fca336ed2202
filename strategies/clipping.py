"""How an experiment clips, and how it splits its noise: keys of `privacy.silo`.

A clip norm is a number, or a section that makes it follow a quantile of the updates' norms. A strategy with several
channels releases them on one sample: they cost together what one Gaussian does, and each has a share of that price.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from strategies.schema import key
from strategies.words import listed

EXACT = 1e-6  # Of a sum of shares that a person wrote down: 0.333333 three times is 1.


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """A clip norm that is learned by a noised count of the updates below it (Andrew et al. 2021, arXiv 1905.03871).

    The count is part of the same price: noise_multiplier and epsilon are those of vectors and counts together.
    """

    start: float = key(at_least=1e-9, at_most=1e9, help="clip norm of round 1; it stays within 1e-9 and 1e9")
    quantile: float = key(0.5, above=0, below=1, help="fraction of updates that shall be no longer than the clip norm")
    rate: float = key(0.2, above=0, help="step of the clip norm's logarithm in a round")
    count_noise: float | None = key(
        None, above=0, help="noise std on the count, above noise_multiplier / 2; null: expected cohort / 20"
    )


ClipNorm: TypeAlias = float | AdaptiveClip


@dataclass(frozen=True, kw_only=True)
class ChannelPrivacy:
    """What one channel of a strategy gets instead of the settings of all."""

    name: str = key(help="the channel, as the strategy calls it")
    clip_norm: ClipNorm | None = key(None, above=0, help="its own clip norm, as in privacy.silo; null: that one")
    share: float | None = key(
        None, above=0, at_most=1, help="its part of the price, so noise z / sqrt(share); null: an even part of the rest"
    )


def shares(channels: Sequence[ChannelPrivacy], names: Iterable[str]) -> dict[str, float]:
    """Each channel's part of the price 1 / z^2; they add up to 1. Only for channels without `channel_problems`."""
    given = {each.name: each.share for each in channels if each.share is not None}
    others = [name for name in names if name not in given]
    left = 1.0 - math.fsum(given.values())
    if others:
        return given | dict.fromkeys(others, left / len(others))
    return {name: share / math.fsum(given.values()) for name, share in given.items()}


def channel_problems(channels: Sequence[ChannelPrivacy], names: Sequence[str]) -> Iterator[str]:
    """What is wrong with the settings of channels for a strategy that has the channels `names`, a line each."""
    where = "privacy.silo.channels"
    for name, times in Counter(each.name for each in channels).items():
        if name not in names:
            yield f"{where}: the strategy has no channel {name!r}, choose from {listed(names)}"
        if times > 1:
            yield f"{where}: {name!r} is here {times} times, keep one"
    given = [each.share for each in channels if each.share is not None]
    total, all_given = math.fsum(given), len({each.name for each in channels if each.share is not None}) == len(names)
    if all_given and not abs(total - 1) <= EXACT:
        yield f"{where}: the shares must add up to 1, got {total:g}; leave one out to give it the rest"
    if not all_given and not total < 1:
        yield f"{where}: shares of {total:g} leave nothing for the other channels; give each a share, or lower them"
