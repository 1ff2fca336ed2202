"""Sums over a silo's rows besides its gradients: which model fits them best, the losses of groups.

Every row adds a bounded vector, and noise goes on before anybody looks, the silo's own training included. A choice by
the least of noised sums is noised as a Gaussian rather than drawn by the exponential mechanism: with a noise multiplier
of 2 / epsilon it costs exactly the epsilon^2 / 8 of zero-concentrated privacy that is the bound of the exponential
mechanism (Cesar & Rogers 2021, arXiv 2004.07223, lemma 3.2), but as a Gaussian it composes with the steps beside it
without a loss, and the accountant knows it already.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from privacy import checks
from privacy.events import Event, Gaussian
from privacy.mechanism import GaussianSum
from privacy.noise import SystemNoise, noised


@dataclass(frozen=True)
class NoisyQuery:
    """A noised sum over all rows of a silo, for add or remove of one row.

    Attributes:
        size: numbers in the answer.
        clip_norm: largest L2 norm that one row may add.
        noise_multiplier: std of the noise on the sum, in units of `clip_norm`.

    Raises:
        ValueError: a field that is not positive and finite.
    """

    size: int
    clip_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        checks.positive(size=self.size)
        GaussianSum(self.clip_norm, self.noise_multiplier)  # Its checks are the ones needed here.

    @classmethod
    def costing(cls, epsilon: float, *, size: int, clip_norm: float) -> NoisyQuery:
        """A query of epsilon^2 / 8 of zero-concentrated privacy: 1 / (2 z^2) with z = 2 / epsilon."""
        checks.positive(epsilon=epsilon)
        return cls(size, clip_norm, 2.0 / epsilon)

    @property
    def event(self) -> Event:
        """What the answer costs a row of the silo; all rows are in it, so nothing is amplified."""
        return Gaussian(self.noise_multiplier)

    def total(self, rows: Tensor) -> Tensor:
        """The sum of clipped rows `(rows, size)`, `(size,)` float64; a row that is not finite adds nothing."""
        rows = rows.double()
        norms = torch.linalg.vector_norm(rows, dim=1)
        kept = torch.isfinite(norms)  # Out of the matrix: 0 times infinity is not 0.
        rows, norms = rows[kept], norms[kept]
        return torch.where(norms > self.clip_norm, self.clip_norm / norms, 1.0) @ rows

    def release(self, total: Tensor, noise: torch.Generator | SystemNoise) -> Tensor:
        """The noised sum, `(size,)` float64; that of no rows is noised, too. `noise` as `NoisySteps.release` has it."""
        std = self.noise_multiplier * self.clip_norm
        if isinstance(noise, SystemNoise):
            return noised(total, std, noise.normals(total.numel()))
        return torch.randn(total.shape, generator=noise, dtype=total.dtype).mul_(std) + total
