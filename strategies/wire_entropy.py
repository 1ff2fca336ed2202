"""Which of N numbers travel, in nearly as few bits as there are choices: an entropy code of the bitmap.

Source: Duda 2013, "Asymmetric numeral systems", arXiv 1311.2540 (rANS), interleaved as in Giesen 2014, arXiv 1402.3392.
The model is public: each number travels with chance k / N, so every byte of the bitmap has a probability that follows
from its ones. With that model all choices of k numbers have the same ideal length, N H(k / N), which is
log2 C(N, k) + O(log N): nothing is gained by a model that learns.

The longest real code, to which all are padded, is found with whole numbers alone, so that every machine finds the same.
A lane's state x starts at LOW, and log2(x) + 32 (words put out) is a potential that writing a byte of frequency f
raises by at most log2(2^20 / f) + 2^-10, and for the byte 0 by log2(2^20 / f):

- x becomes (x // f) 2^20 + x % f + c, which is at most x 2^20 / f + c; c < 2^20 is the sum of the frequencies of lower
  bytes. Before, x >= 2^11 f, so the factor beyond 2^20 / f is at most 1 + 2^-11.
- Putting out a word takes 32 bits from log2(x), or more.

A state ends at LOW or above, as it started: 32 words <= the sum over bytes. That sum is largest, for n bytes with k
ones, at the end of a line between two numbers of ones (a linear programme with two equations has such a solution).
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray

from strategies.wire_index import Indices, Malformed, Octets, bitmap, positions

BITS = 20  # Frequencies of bytes add up to 2^20.
LOW = 1 << 31  # States are in [2^31, 2^63), and put out 32 bits at a time.
ROWS = 4096  # Bytes of a lane at most: fewer lanes are shorter, more are faster.
FINE = 4096  # Lengths are counted in this part of a bit.
STATE, WORD = np.dtype("<u8"), np.dtype("<u4")
ONES = np.array([int(byte).bit_count() for byte in range(256)])


class Entropy:
    """Interleaved lanes, each of which codes every so manieth byte of the bitmap; they share one stream of words.

    Where more than half of the numbers travel the bitmap is that of the others.
    """

    def size(self, numbers: int, kept: int) -> int:
        """8 bytes a lane, and 4 for each word of the longest code."""
        return STATE.itemsize * _lanes(numbers) + WORD.itemsize * _words(numbers, min(kept, numbers - kept))

    def pack(self, indices: Indices, numbers: int) -> bytes:
        """States, words, zeros."""
        kept = len(indices)
        data, rare = bitmap(indices, numbers), min(kept, numbers - kept)
        if rare < kept:
            data = _inverted(data, numbers)
        states, words = _write(data, _frequencies(numbers, rare), _lanes(numbers))
        whole = states.astype(STATE).tobytes() + words.astype(WORD).tobytes()
        return whole.ljust(self.size(numbers, kept), b"\0")

    def unpack(self, data: Octets, numbers: int, kept: int) -> Indices:
        """Follows the states back to where they started."""
        rare, at = min(kept, numbers - kept), STATE.itemsize * _lanes(numbers)
        states, words = data[:at].view(STATE).astype(np.uint64), data[at:].view(WORD).astype(np.uint64)
        found = _read(states, words, _frequencies(numbers, rare), -(-numbers // 8))
        if rare == kept:
            return positions(found, numbers, kept)
        positions(found, numbers, rare)  # Inverting takes what is beyond the last number for granted.
        return positions(_inverted(found, numbers), numbers, kept)


def _inverted(data: Octets, numbers: int) -> Octets:
    """The bitmap of all others; bits beyond the last number stay 0."""
    other = ~data
    other[-1] &= 0xFF >> (-numbers % 8)
    return other


def _lanes(numbers: int) -> int:
    return -(-numbers // (8 * ROWS))


def _by_ones(numbers: int, rare: int) -> list[int]:
    """The frequency of a byte with 0 to 8 ones: rounded up, so that each is at least 1 and none costs too much.

    The byte 0, the likeliest, pays for that: its own is at least 4096, and the other 255 take less than 1 too many.
    """
    whole = max(numbers, 1) ** 8
    shares = ((rare**ones * (numbers - rare) ** (8 - ones) << BITS) for ones in range(9))
    found = [max(1, -(-share // whole)) for share in shares]
    found[0] = (1 << BITS) - sum(comb(8, ones) * found[ones] for ones in range(1, 9))
    return found


def _frequencies(numbers: int, rare: int) -> NDArray[np.uint64]:
    """The frequency of every byte, `(256,)`."""
    by_ones: NDArray[np.uint64] = np.array(_by_ones(numbers, rare), dtype=np.uint64)
    return by_ones.take(ONES)


@lru_cache(maxsize=4096)
def _words(numbers: int, rare: int) -> int:
    """Words that the longest code puts out at most."""
    count = -(-numbers // 8)
    costs = [FINE * BITS - ((each**FINE).bit_length() - 1) for each in _by_ones(numbers, rare)]  # Rounded up.
    worst = 0
    for few in range(9):
        for many in range(few, 9):
            if few == many and few * count == rare:
                worst = max(worst, count * costs[few])
            elif few < many and few * count <= rare <= many * count:
                mixed = (many * count - rare) * costs[few] + (rare - few * count) * costs[many]
                worst = max(worst, -(-mixed // (many - few)))
    beyond = min(count, rare) * FINE >> 10  # Bytes other than 0 are at most as many as ones.
    return (worst + beyond) // (FINE * 32)


def _write(data: Octets, frequencies: NDArray[np.uint64], lanes: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The lanes' states and the words, as `_read` takes them: last byte first, so that it starts with the first."""
    below = (np.cumsum(frequencies) - frequencies)[data]
    own = frequencies[data]
    full = own << np.uint64(63 - BITS)  # From here on the next state would not be below 2^63.
    states, words = np.full(lanes, LOW, dtype=np.uint64), []
    for at in reversed(range(0, len(data), max(lanes, 1))):
        row = slice(at, at + lanes)
        state = states[: len(own[row])]
        leaving = state >= full[row]
        if leaving.any():
            words.append(state[leaving] & np.uint64(0xFFFFFFFF))
            state[leaving] >>= np.uint64(32)
        quotient, rest = np.divmod(state, own[row])
        state[:] = (quotient << np.uint64(BITS)) + rest + below[row]
    return states, np.concatenate([*reversed(words), np.empty(0, dtype=np.uint64)])


def _read(states: NDArray[np.uint64], words: NDArray[np.uint64], frequencies: NDArray[np.uint64], count: int) -> Octets:
    """The bytes of the bitmap.

    Raises:
        Malformed: the lanes do not end where they started, or words are missing or left over.
    """
    if not bool(((states >= LOW) & (states < 1 << 63)).all()):
        raise Malformed("wire: a lane starts outside of its range")
    below = np.cumsum(frequencies) - frequencies
    found, taken, lanes = np.empty(count, dtype=np.uint8), 0, len(states)
    for at in range(0, count, max(lanes, 1)):
        state = states[: min(lanes, count - at)]
        slot = state & np.uint64((1 << BITS) - 1)
        byte = np.searchsorted(below, slot, side="right") - 1
        found[at : at + lanes] = byte
        state[:] = frequencies[byte] * (state >> np.uint64(BITS)) + slot - below[byte]
        short = np.flatnonzero(state < LOW)
        if len(short):
            if not taken + len(short) <= len(words):
                raise Malformed("wire: the entropy code ends too soon")
            state[short] = (state[short] << np.uint64(32)) | words[taken : taken + len(short)]
            taken += len(short)
    if bool((states != LOW).any()) or bool(words[taken:].any()):
        raise Malformed("wire: the entropy code does not end where it started")
    return found
