"""Where the noise of a release comes from, and how it is added so that low-order bits say nothing.

Two sources: `SimulatedNoise` repeats for whoever knows the seed; `SystemNoise` is keyed by the operating system and
repeats for nobody. Both are added by `noised`, in double precision, and the SUM is rounded to a grid.

Why the rounding. The price of a Gaussian release (Balle & Wang 2018, theorem 8) is proven for real numbers. In floating
point the sum `x + noise` can only be one of the numbers that are reachable from `x`, and its last bits tell one x from
another (Mironov 2012, for Laplace noise). Here every output is a multiple of a power of two below std / 2^20 that does
not depend on the data, every multiple within reach of the noise is reachable from every x, and the part of x that lies
on the grid is added exactly, as an integer: the size of x does not show in the precision of the output (Haney et al.
2022, arXiv 2207.13793). Rounding real numbers would be post-processing of the ideal mechanism and cost nothing.

What this does not prove. The noise itself is computed in floating point, to within about 2^-29 of a step of the grid.
The probability of an output is off by about that factor, with either sign, which is a Renyi divergence of the order of
alpha * 2^-57 per number: far below what a ledger shows for 10^11 numbers. That is an estimate, not a proof; a proof
needs an exact sampler of the discrete Gaussian (Canonne, Kamath & Steinke 2020). Noise from `SystemNoise` ends at 9.35
standard deviations; what lies beyond has a probability of 1e-20. Nothing here hides how long a draw takes.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privacy import streams

FINENESS = 20  # The grid is finer than std * 2^-20: it adds 1e-13 to the variance, and 2^21 steps make one std.
LIMIT = 2.0**53  # Steps from zero up to which doubles hold every integer; released sums end there.
BLOCK = 2**16  # Numbers drawn at a time: their words stay in the processor's cache.


class NoiseSource(Protocol):
    """Standard Gaussian noise.

    Attributes:
        secret: whether nobody can draw it again; then cohorts must be secret too.
        stamp: what every report of a run says about it.
    """

    secret: ClassVar[bool]
    stamp: ClassVar[str]

    def normals(self, size: int, *stream: int | str) -> Tensor:
        """Independent standard normal numbers, `(size,)` float64.

        Args:
            size: how many.
            stream: the stream's name; every release has one of its own (purpose, round, channel).
        """
        ...


@dataclass(frozen=True)
class SimulatedNoise:
    """Noise from named streams of a seed: a function of seed and name, so every engine draws the same.

    >>> one, two = SimulatedNoise(0), SimulatedNoise(0)
    >>> bool((one.normals(3, "noise", 1) == two.normals(3, "noise", 1)).all())
    True
    """

    seed: int
    secret: ClassVar[bool] = False
    stamp: ClassVar[str] = "simulated noise: drawn from the seed, so whoever knows the seed can take it off again"

    def normals(self, size: int, *stream: int | str) -> Tensor:
        """The first `size` numbers of the named stream."""
        return torch.randn(size, generator=streams.generator(self.seed, *stream), dtype=torch.float64)


class SystemNoise:
    """Noise that nobody can draw again: ChaCha20 (RFC 8439) under keys from the operating system.

    Every block has a new key, used once and forgotten. So there is no state that two threads, a forked process, a copy
    or a restored run could share, and no seed to give. For the same reason an instance refuses to be copied or pickled.
    """

    __slots__ = ()
    secret: ClassVar[bool] = True
    stamp: ClassVar[str] = "system noise: not reproducible, noise and cohorts come from the operating system's entropy"

    def normals(self, size: int, *stream: int | str) -> Tensor:
        """Fresh numbers at every call, whatever the name."""
        drawn = torch.empty(size, dtype=torch.float64)
        for at in range(0, size, BLOCK):
            count = min(BLOCK, size - at)
            drawn[at : at + count] = _box_muller(_random_words(count + count % 2))[:count]
        return drawn

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("system noise cannot be copied or pickled: two copies must never stand for one stream")


def grid(std: float) -> float:
    """The step of the grid that sums with noise of `std` are released on: the power of two in (std/2^21, std/2^20].

    >>> grid(1.0) == grid(1.9) == 2**-20
    True
    """
    return math.ldexp(1.0, math.frexp(std)[1] - 1 - FINENESS)


def noised(total: Tensor, std: float, normals: Tensor) -> Tensor:
    """`total + std * normals`, rounded to the grid; `(N,)` float64.

    What can come out does not depend on `total`: multiples of the grid's step, up to `LIMIT` of them, and no negative
    zero, whose sign would be one bit about it.
    """
    step = grid(std)
    steps = (total / step).clamp_(-2 * LIMIT, 2 * LIMIT)  # Exact, but for numbers that end at the limit anyway.
    whole = steps.floor()  # Not to the nearest: ties would go to even numbers, and show which the sum was near.
    noise = (normals * (std / step)).add_(steps - whole).round_()  # Of no larger numbers than the noise: see above.
    return noise.add_(whole).clamp_(-LIMIT, LIMIT).mul_(step).add_(0.0)  # -0 + 0 is +0.


def _random_words(count: int) -> npt.NDArray[np.int64]:
    """`count` words of 64 bits under a key of their own."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    # No nonce is needed under a key that encrypts once; its first 32 bits count 64-byte blocks, far from their end.
    stream = Cipher(ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()
    words = bytearray(8 * count)
    stream.update_into(bytes(8 * count), words)
    return np.frombuffer(words, dtype=np.int64)


def _box_muller(words: npt.NDArray[np.int64]) -> Tensor:
    """As many standard normal numbers as words (an even number): Box & Muller 1958, two of two uniform ones.

    The radius takes 63 bits of a word, as a number in (0, 1] that is never 0 and keeps 53 significant bits, so that the
    tail is drawn as finely as the middle. The angle takes 64, from half a turn back to half a turn on.
    """
    first, second = words.reshape(2, -1)
    positive = (first.view(np.uint64) >> np.uint64(1)).view(np.int64)
    uniform = torch.from_numpy(positive).double().add_(1.0).mul_(2.0**-63)
    radius = uniform.log_().mul_(-2.0).sqrt_()
    angle = torch.from_numpy(second).double().mul_(2.0**-64 * 2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])
