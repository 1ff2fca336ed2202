"""The clip norm of an experiment: a number, or a section that makes it follow a quantile of the updates' norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from strategies.schema import key


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
