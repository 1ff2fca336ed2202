"""What more than one strategy must find in an experiment around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from strategies.experiment import Experiment


def told_by_length(experiment: Experiment, tiers: int) -> list[str]:
    """Tiers whose messages differ in length, where who is in a cohort must stay secret: bytes are counted and shown."""
    privacy, cohort = experiment.privacy, experiment.cohort
    secret = privacy.noise == "system" and privacy.silo is not None and cohort.sampling == "poisson" and cohort.rate < 1
    if tiers < 2 or not secret:
        return []
    return [
        "strategy: messages of several lengths tell who is in a cohort, which privacy.noise: system keeps secret; use "
        "one tier, or cohort.sampling: all"
    ]


def least_clip(experiment: Experiment, channel: str, least: float) -> list[str]:
    """A clip norm that would cut what a channel always sends, so that sums of it mean something else."""
    privacy = experiment.privacy
    clips: list[tuple[str, object]] = []
    if privacy.local is not None:
        clips.append(("privacy.local.clip_norm", privacy.local.clip_norm))
    if privacy.silo is not None:
        own = [each.clip_norm for each in privacy.silo.channels if each.name == channel and each.clip_norm is not None]
        clips.append((f"privacy.silo.channels: {channel}", own[0] if own else privacy.silo.clip_norm))
    return [
        f"{where}: the channel {channel!r} sends vectors of norm {least:g}; give it a clip norm of {least:g} or more"
        for where, norm in clips
        if not (isinstance(norm, int | float) and norm >= least)
    ]
