"""How channels are clipped and noised, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def noise_words(claimed: Mapping[str, Any], noise: str) -> str:
    """How much noise there is, for a sentence; `claimed` as result.json holds it, `noise` its number in words."""
    if claimed["clip_norm"] is not None:
        return f"noise of {noise} times the clip norm of {claimed['clip_norm']:.4g}"
    parts = [_channel(name, values) for name, values in claimed["channels"].items()]
    return f"noise that together costs like {noise} times one clip norm ({'; '.join(parts)})"


def channel_lines(channels: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What each channel gets before a run, a name and a line each."""
    for name, values in channels.items():
        clip = f"clip norm {values['clip_norm']:.4g}"
        if values["count_noise"] is not None:
            clip += f" in round 1, then by a count with noise of std {values['count_noise']:.4g}, paid in this price"
        yield f"channel {name}", f"{clip}; noise {values['noise_multiplier']:.4g} times it"


def _channel(name: str, values: Mapping[str, Any]) -> str:
    noise, clip = f"{values['noise_multiplier']:.4g}", f"{values['clip_norm']:.4g}"
    if values["count_noise"] is None:
        return f"{name}: {noise} times the clip norm of {clip}"
    return (
        f"{name}: {noise} times a clip norm that went from {clip} to {values['last_clip_norm']:.4g}, and "
        f"{values['count_noise']:.4g} on the count that it follows"
    )
