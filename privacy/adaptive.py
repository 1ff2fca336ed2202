"""A clip norm that follows a quantile of the updates' norms, learned while the run goes on and paid in its price.

Source: Andrew, Thakkar, McMahan & Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021,
arXiv 1905.03871, algorithm 1 and theorem 1. Beside its vector every silo casts a vote, whether its update is no longer
than the clip norm; the votes are summed, noised and charged with the vectors, on the same sample. The next clip norm is
computed from what was released alone, so it is public and costs nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from privacy import checks
from privacy.events import Composed, Event, Gaussian
from privacy.mechanism import GaussianSum, Mechanism
from privacy.noise import NoiseSource, noised

if TYPE_CHECKING:
    from privacy.release import Release

LEAST, MOST = 1e-9, 1e9  # Where a clip norm ends, whatever the noise on the votes says: never 0, never infinite.


@dataclass(frozen=True)
class AdaptiveSum(GaussianSum):
    """A Gaussian sum with votes on its clip norm: +1/2 from a silo whose update is no longer than it, -1/2 otherwise.

    A silo moves the votes by at most 1/2 when it comes, goes or sends nothing, and by 1 when its data is replaced: as
    the vectors, once or twice one half. So the votes are a Gaussian of noise multiplier `2 * count_noise` under every
    relation. Unshifted votes of 0 and 1 would move by 1 already when a silo comes, and need twice the noise.

    Attributes:
        clip_norm: of this round.
        noise_multiplier: of the vectors alone; with the votes they cost more, see `costing`.
        quantile: fraction of updates that the clip norm leaves as they are, once it has settled.
        rate: step of the clip norm's logarithm in a round.
        count_noise: std of the noise on the sum of the votes.
        voters: the constant expected number of silos in a round (canaries do not vote).
    """

    quantile: float
    rate: float
    count_noise: float
    voters: float

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.open_unit(quantile=self.quantile)
        checks.positive(rate=self.rate, count_noise=self.count_noise, voters=self.voters)
        checks.finite(rate=self.rate, count_noise=self.count_noise, voters=self.voters)
        if not LEAST <= self.clip_norm <= MOST:
            raise ValueError(f"clip_norm must be between {LEAST:g} and {MOST:g}, got {self.clip_norm!r}")

    @classmethod
    def costing(
        cls,
        noise_multiplier: float,
        *,
        clip_norm: float,
        quantile: float,
        rate: float,
        count_noise: float,
        voters: float,
    ) -> AdaptiveSum:
        """The mechanism whose vectors and votes TOGETHER cost what a Gaussian of `noise_multiplier` does.

        Theorem 1: the vectors get z_delta = (z^-2 - (2 count_noise)^-2)^-1/2, a little more noise than z.

        Raises:
            ValueError: the votes alone cost as much.
        """
        checks.positive(noise_multiplier=noise_multiplier, count_noise=count_noise)
        whole, votes = 1 / noise_multiplier, 1 / (2 * count_noise)
        left = (whole - votes) * (whole + votes)  # Of squares: a difference that keeps its digits.
        if not left > 0:
            raise ValueError(
                f"count_noise must be > noise_multiplier / 2 = {noise_multiplier / 2:g}, got {count_noise:g}"
            )
        return cls(clip_norm, left**-0.5, quantile, rate, count_noise, voters)

    @property
    def event(self) -> Event:
        """Vectors and votes, computed on one sample."""
        return Composed((Gaussian(self.noise_multiplier), Gaussian(2 * self.count_noise)))

    def votes(self, norms: Tensor) -> Tensor:
        """The votes of updates of these norms; shape of `norms`.

        An update of zeros casts none, a 0, as one that is refused or missing: so a silo that is zeroed out moves the
        votes by no more than one that is removed. (In the paper it votes +1/2.)
        """
        return torch.where(norms <= self.clip_norm, 0.5, -0.5).double() * (norms > 0)

    def count(self, votes: float, source: NoiseSource, *, stream: Sequence[int | str]) -> float:
        """The sum of the votes with its noise, on a grid."""
        total = torch.tensor([votes], dtype=torch.float64)
        return float(noised(total, self.count_noise, source.normals(1, *stream)))

    def next(self, votes: float) -> AdaptiveSum:
        """The mechanism of the next round, from the released votes: the same price, another clip norm.

        Raises:
            ValueError: the votes are not finite.
        """
        checks.finite(votes=votes)
        below = votes / self.voters + 0.5
        wanted = math.log(self.clip_norm) - self.rate * (below - self.quantile)
        held = min(max(wanted, math.log(LEAST)), math.log(MOST))  # Before exp, which overflows.
        return replace(self, clip_norm=min(max(math.exp(held), LEAST), MOST))


def advanced(mechanisms: Mapping[str, Mechanism], release: Release) -> dict[str, Mechanism]:
    """The mechanisms of the next round, from what this one released."""
    return {
        name: mechanism.next(release.votes[name]) if isinstance(mechanism, AdaptiveSum) else mechanism
        for name, mechanism in mechanisms.items()
    }


def clip_norms(mechanisms: Mapping[str, Mechanism]) -> dict[str, float]:
    """Channel to its clip norm, of the channels that are clipped."""
    return {name: each.clip_norm for name, each in mechanisms.items() if isinstance(each, GaussianSum)}


def restored(mechanisms: Mapping[str, Mechanism], norms: Mapping[str, float]) -> dict[str, Mechanism]:
    """The mechanisms with the clip norms that had been reached.

    Raises:
        ValueError: none is known of a channel whose clip norm adapts; starting over would be another mechanism.
    """
    missing = [name for name, each in mechanisms.items() if isinstance(each, AdaptiveSum) and name not in norms]
    if missing:
        raise ValueError(f"no clip norm is kept of channel {missing[0]!r}; restore the checkpoint from a copy")
    return {
        name: replace(mechanism, clip_norm=float(norms[name])) if isinstance(mechanism, AdaptiveSum) else mechanism
        for name, mechanism in mechanisms.items()
    }
