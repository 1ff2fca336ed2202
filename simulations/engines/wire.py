"""Mechanisms as JSON, for orders to worker processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from privacy.adaptive import AdaptiveSum
from privacy.mechanism import ExactSum, GaussianSum, Mechanism


def mechanisms_to_json(mechanisms: Mapping[str, Mechanism]) -> dict[str, Any]:
    """One mapping per channel."""
    coded: dict[str, Any] = {}
    for channel, mechanism in mechanisms.items():
        match mechanism:
            case AdaptiveSum():
                coded[channel] = asdict(mechanism)
            case GaussianSum(clip_norm, noise_multiplier):  # Workers clip, whatever the noise.
                coded[channel] = {"clip_norm": clip_norm, "noise_multiplier": noise_multiplier}
            case ExactSum():
                coded[channel] = None
            case _:
                raise TypeError(f"no JSON form for {mechanism!r}")
    return coded


def mechanisms_from_json(coded: Mapping[str, Any]) -> dict[str, Mechanism]:
    """The inverse of `mechanisms_to_json`."""
    return {channel: _mechanism(fields) for channel, fields in coded.items()}


def _mechanism(fields: Mapping[str, float] | None) -> Mechanism:
    if fields is None:
        return ExactSum()
    return AdaptiveSum(**fields) if "quantile" in fields else GaussianSum(**fields)
