"""From an experiment's privacy section to a mechanism for every channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from privacy.adaptive import AdaptiveSum
from privacy.mechanism import GaussianSum, Mechanism
from strategies.clipping import AdaptiveClip, ClipNorm, channel_problems, shares
from strategies.experiment import SiloPrivacy
from strategies.schema import ConfigError

COUNTED = 20  # Silos of an expected cohort for each std of noise on the count: Andrew et al. 2021, section 3.


def mechanisms(silo: SiloPrivacy, noise: float, channels: Sequence[str], *, voters: float) -> dict[str, Mechanism]:
    """The mechanisms of all channels, which together cost what one Gaussian of `noise` does.

    Channels on one sample cost like one Gaussian of (sum z^-2)^-1/2: each gets its share of the same price, an even one
    where the experiment says no other.

    Args:
        silo: how silos are protected.
        noise: noise multiplier of all channels together.
        channels: their names.
        voters: the constant expected cohort of silos, without canaries.

    Raises:
        ConfigError: settings of channels that there are not, or a count that costs more than all may cost.
    """
    if problems := list(channel_problems(silo.channels, channels)):  # For experiments that no file was read for.
        raise ConfigError(problems)
    own = {each.name: (number, each) for number, each in enumerate(silo.channels)}
    parts, found = shares(silo.channels, channels), {}
    for name in channels:
        clip, where = silo.clip_norm, "privacy.silo.clip_norm"
        if name in own and own[name][1].clip_norm is not None:
            number, settings = own[name]
            clip, where = settings.clip_norm or clip, f"privacy.silo.channels[{number}].clip_norm"
        found[name] = _mechanism(clip, noise / math.sqrt(parts[name]), voters, where)
    return found


def _mechanism(clip: ClipNorm, noise: float, voters: float, where: str) -> Mechanism:
    if not isinstance(clip, AdaptiveClip):
        return GaussianSum(clip, noise)
    given = clip.count_noise
    count_noise = voters / COUNTED if given is None else given
    if not count_noise > noise / 2:
        found = f"got {given:g}" if given is not None else f"and left out it is {count_noise:.4g}, expected cohort / 20"
        raise ConfigError(
            [f"{where}.count_noise: must be > half the channel's noise multiplier = {noise / 2:.4g}, {found}"]
        )
    return AdaptiveSum.costing(
        noise, clip_norm=clip.start, quantile=clip.quantile, rate=clip.rate, count_noise=count_noise, voters=voters
    )


def adaptive(mechanisms: Mapping[str, Mechanism]) -> int:
    """How many channels have a clip norm that adapts; each takes one more number from every silo."""
    return sum(isinstance(each, AdaptiveSum) for each in mechanisms.values())


def described(mechanisms: Mapping[str, Mechanism], *, last: Mapping[str, float]) -> dict[str, Any]:
    """How channels are clipped and noised, as plain values.

    Args:
        mechanisms: of round 1.
        last: clip norms of the last round done.

    Returns:
        `clip_norm`, the one of all channels and rounds, or None where there is no such number; and `channels`.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, each in mechanisms.items():
        if isinstance(each, GaussianSum):
            found[name] = {
                "clip_norm": each.clip_norm,
                "last_clip_norm": last.get(name, each.clip_norm),
                "noise_multiplier": each.noise_multiplier,
                "count_noise": each.count_noise if isinstance(each, AdaptiveSum) else None,
            }
    norms = {values["clip_norm"] if values["count_noise"] is None else None for values in found.values()}
    return {"clip_norm": norms.pop() if len(norms) == 1 else None, "channels": found}
