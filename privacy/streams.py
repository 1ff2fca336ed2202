"""Counter-based random streams for simulation: one stream per (seed, purpose, round, silo), never global state.

Every draw is a pure function of its key and its position, so it does not matter which process draws it, in which
order, or beside which other silos: that is what makes engines agree. These streams are public and reproducible: they
are for simulated training and simulated noise, never for the secret noise or the secret cohorts of a deployment.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

Keys = npt.NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)  # The odd constant of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).

_STATE_BYTES = 5056  # Of torch's CPU generator, a Mersenne twister (mt19937) behind a header of 24 bytes.
_WORDS = slice(24, 24 + 624 * 8)


def derive(seed: int, *parts: int | str) -> int:
    """A 63-bit key for a named stream.

    >>> derive(0, "noise", 1) == derive(0, "noise", 1) != derive(0, "noise", 2)
    True
    """
    text = "/".join(f"{type(part).__name__}:{part}" for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *parts: int | str) -> torch.Generator:
    """A torch generator on the named stream.

    `manual_seed` alone looks at 32 bits of its seed, and of 100,000 rounds some two would then share their noise: what
    the models of those rounds differ by would have none. So the whole key fills the generator's state.
    """
    key = derive(seed, *parts)
    made = torch.Generator().manual_seed(key)
    state = made.get_state()
    words = state[_WORDS].view(torch.int64)
    if state.numel() != _STATE_BYTES or int(words[0]) != key & 0xFFFFFFFF:
        raise RuntimeError(f"torch {torch.__version__} keeps the state of its generator otherwise; use the pinned one")
    filling = bits(np.array([key], dtype=np.uint64), len(words))[0] >> np.uint64(32)
    words.copy_(torch.from_numpy(filling.astype(np.int64)))
    return made.set_state(state)


def _mix(state: Keys) -> Keys:
    """The output function of splitmix64; unsigned arrays wrap around, as it asks."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def keys(base: int, ids: npt.ArrayLike) -> Keys:
    """One key per id (silos, usually) under a base key; same shape as `ids`."""
    with np.errstate(over="ignore"):  # A single id is a numpy scalar, and those warn of wrapping around.
        return _mix(np.uint64(base) + (np.asarray(ids).astype(np.uint64) + np.uint64(1)) * _STEP)


def bits(keys_: Keys, count: int) -> Keys:
    """`count` 64-bit draws for every key, `(*keys.shape, count)`."""
    position = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    return _mix(keys_[..., None] + position)


def uniforms(keys_: Keys, count: int) -> npt.NDArray[np.float64]:
    """Uniform draws in [0, 1) with 53 bits, `(*keys.shape, count)`."""
    return (bits(keys_, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutations(keys_: Keys, sizes: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """A uniform permutation of `range(sizes[k])` for every key, `(silos, width)`; entries past a size are its padding.

    A silo's permutation does not depend on `width`, so it is the same alone and in a stack.
    """
    draws = bits(keys_, width)
    draws[np.arange(width) >= sizes[:, None]] = np.iinfo(np.uint64).max  # Padding sorts to the end.
    return np.argsort(draws, axis=-1, kind="stable")
