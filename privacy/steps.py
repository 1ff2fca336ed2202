"""DP-SGD's steps inside one silo: how a batch is drawn, bounded, noised, divided and priced.

Draw, noise, divisor and price come from the same fields, so they cannot drift apart. Amplification comes from the
batches alone: whether a silo is in a cohort is not secret from the silo's own examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from privacy import checks
from privacy.events import Event, Gaussian, Poisson, Repeated, Sampled
from privacy.mechanism import GaussianSum
from privacy.noise import SystemNoise, noised


@dataclass(frozen=True)
class NoisySteps:
    """Steps on Poisson batches (Abadi et al. 2016, arXiv 1607.00133, algorithm 1), for add or remove of one example.

    Attributes:
        clip_norm: largest L2 norm that one example may add to a batch's sum.
        noise_multiplier: std of the noise on the sum, in units of `clip_norm`.
        batch: expected rows of a batch, the constant divisor; public.
        rows: nominal rows of the silo; public, and never the number that it really holds.

    Raises:
        ValueError: a field that is not positive and finite, or a batch larger than `rows`.
    """

    clip_norm: float
    noise_multiplier: float
    batch: float
    rows: int

    def __post_init__(self) -> None:
        checks.positive(batch=self.batch, rows=self.rows)
        checks.finite(batch=self.batch, rows=self.rows)
        checks.probability(**{"batch / rows": self.rate})
        GaussianSum(self.clip_norm, self.noise_multiplier)  # Its checks are the ones needed here.

    @property
    def rate(self) -> float:
        """Chance that an example is in a batch: the silo draws by it and the accountant prices it."""
        return self.batch / self.rows

    @property
    def std(self) -> float:
        """Std of the noise on one number of the gradient that a step goes along; public."""
        return self.noise_multiplier * self.clip_norm / self.batch

    def event(self, steps: int) -> Event:
        """What so many steps cost an example of the silo, whether or not it was in a batch."""
        step = Gaussian(self.noise_multiplier)
        return Repeated(step if self.rate == 1 else Sampled(Poisson(self.rate), step), steps)

    def factors(self, norms: Tensor) -> Tensor:
        """What each example's gradient is multiplied with; 0 for one whose norm is not finite. Shape of `norms`."""
        bounded = torch.where(norms > self.clip_norm, self.clip_norm / norms, 1.0)
        return torch.where(torch.isfinite(norms), bounded, 0.0)

    def release(self, total: Tensor, noise: torch.Generator | SystemNoise) -> Tensor:
        """The noised gradient, from a batch's clipped sum `(N,)`; an empty batch is noised like any other.

        Args:
            total: the sum.
            noise: where it comes from. Noise that nobody can draw again is added in double precision and rounded to a
                grid (`privacy.noise`); a simulation's repeats for whoever knows the seed, low-order bits and all, and
                so spares itself both.
        """
        std = self.noise_multiplier * self.clip_norm
        if isinstance(noise, SystemNoise):
            released = noised(total.double(), std, noise.normals(total.numel())).to(total.dtype)
        else:
            released = torch.randn(total.shape, generator=noise, dtype=total.dtype).mul_(std).add_(total)
        return released.div_(self.batch)
