"""A sum over silos with noise that is correlated over rounds: banded matrix factorisation (DP-FTRL).

Round t releases x_t + n_t, where n = C^-1 Z, C is a `Band` with b bands and Z are fresh Gaussians of standard
deviation noise_multiplier * clip_norm. The noise of a round takes off most of that of the rounds before it, so sums
over rounds, such as a model, hold far less noise than with independent rounds.

What it costs. All releases together are C^-1 (C x + Z): post-processing of C x + Z, also when what silos send depends
on earlier releases, as C is lower triangular and the noise Gaussian (Denisov et al. 2022, arXiv 2202.08312). Let a
silo be in rounds t_1, ..., t_k, any two at least b apart, with vectors g_i of norm at most clip_norm. It moves C x by
the sum over i of (column t_i of C) times g_i. Columns b apart share no row, hence are orthogonal, and all have norm 1.
So the squared distance is the sum of |g_i|^2, at most k * clip_norm^2: what k independent Gaussians of this noise
multiplier cost, exactly (Choquette-Choo et al. 2023, arXiv 2306.08153). With `replace` each g_i has norm 2 clip_norm
at most. After r rounds what is out is made of the first r rows of C x + Z, whose columns are no longer than 1: the
rounds up to r pay for every prefix.

A round that is done again, from the state before it and with fresh noise, adds a row to C x + Z: once more
C[t, s] x_s for the b rounds up to t. A silo is in at most one of these, and |C[t, s]| <= 1: so every silo pays at most
one Gaussian more, not only those who are asked twice. `server.turns` charges it to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privacy.band import Band
from privacy.mechanism import GaussianSum
from privacy.noise import NoiseSource, noised

MOST_NUMBERS = 2**25
"""Numbers that the noise of earlier rounds may take, (b - 1) * N: 256 MiB, in memory and in every checkpoint."""


@dataclass
class Tail:
    """The noise of the last b - 1 rounds, before rounding, in units of the standard deviation; a secret as the seed is.

    Attributes:
        round: the last round that was noised; 0 before the first.
        rows: `(b - 1, N)` float64; the noise of round t is in row t modulo b - 1. None before the first.
    """

    round: int = 0
    rows: Tensor | None = None

    def next(self, fresh: Tensor, band: Band) -> Tensor:
        """The next row of C^-1 Z, `(N,)`, for the next row of Z: (Z_t - sum over s < t of C[t, s] n_s) / C[t, t].

        Summed one round after the other, so that a run which was resumed draws the same bits.
        """
        diagonal, *left = band.row(self.round + 1)
        noise = fresh.clone()
        if self.rows is None:
            self.rows = torch.zeros(band.bands - 1, fresh.numel(), dtype=torch.float64)
        for back, weight in enumerate(left, 1):
            noise.sub_(self.rows[(self.round + 1 - back) % len(self.rows)], alpha=weight)
        noise.div_(diagonal)
        self.round += 1
        if len(self.rows):
            self.rows[self.round % len(self.rows)] = noise
        return noise


@dataclass(frozen=True)
class BandedSum(GaussianSum):
    """A sum of vectors of norm at most `clip_norm`, plus the next row of C^-1 Z; `event` is the price of a turn.

    The promise holds for silos whose turns are at least `band.bands` rounds apart: the round loop sees to it.

    Attributes:
        clip_norm: largest L2 norm one silo may contribute to a round.
        noise_multiplier: std of Z, in units of `clip_norm`; the noise of a round is larger, that of sums smaller.
        band: C.
        tail: what it remembers of earlier rounds; each channel has its own.
    """

    band: Band
    tail: Tail = field(default_factory=Tail, compare=False, repr=False)

    def privatize(self, total: Tensor, source: NoiseSource, *, stream: Sequence[int | str]) -> Tensor:
        """The sum with the noise of the next round; every call is a round, and cannot be had back."""
        return noised(total, self.std, self.tail.next(source.normals(total.numel(), *stream), self.band))
