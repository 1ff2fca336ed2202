"""Ways to say which of N numbers travel: a bitmap, indices, or gaps.

Every way has a length that follows from N and the count k of numbers alone. Which numbers travel is private, and a
length that followed from them would tell of them. So codes whose length varies are padded to the longest that any k of
N numbers can take, which is proved where the length is computed.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Octets = NDArray[np.uint8]

INDEX = np.dtype("<u4")  # A fixed width of 32 bits.


class Malformed(ValueError):
    """Bytes that no encoder wrote; one line."""


class Code(Protocol):
    """A way to write k increasing indices below N."""

    def size(self, numbers: int, kept: int) -> int:
        """Bytes, the same for every choice of `kept` of `numbers` indices."""
        ...

    def pack(self, indices: Indices, numbers: int) -> bytes:
        """Indices, strictly increasing, as bytes."""
        ...

    def unpack(self, data: Octets, numbers: int, kept: int) -> Indices:
        """The inverse; `data` is of the right size.

        Raises:
            Malformed: `pack` gives these bytes for no `kept` of `numbers` indices.
        """
        ...


class Dense:
    """Nothing is said: all numbers travel, zeros too."""

    def size(self, numbers: int, kept: int) -> int:
        """No bytes."""
        return 0

    def pack(self, indices: Indices, numbers: int) -> bytes:
        """No bytes."""
        return b""

    def unpack(self, data: Octets, numbers: int, kept: int) -> Indices:
        """All indices."""
        return np.arange(numbers)


class Bitmap:
    """One bit per number, the lowest of a byte first."""

    def size(self, numbers: int, kept: int) -> int:
        """ceil(N / 8) bytes."""
        return -(-numbers // 8)

    def pack(self, indices: Indices, numbers: int) -> bytes:
        """A bit set for each index."""
        return bitmap(indices, numbers).tobytes()

    def unpack(self, data: Octets, numbers: int, kept: int) -> Indices:
        """The positions of the bits that are set."""
        return positions(data, numbers, kept)


class Fixed:
    """Each index in 32 bits, lowest byte first."""

    def size(self, numbers: int, kept: int) -> int:
        """4 k bytes."""
        return INDEX.itemsize * kept

    def pack(self, indices: Indices, numbers: int) -> bytes:
        """The indices one after the other."""
        return indices.astype(INDEX).tobytes()

    def unpack(self, data: Octets, numbers: int, kept: int) -> Indices:
        """The indices, looked at for range, order and duplicates."""
        return increasing(data.view(INDEX).astype(np.int64), numbers)


class Gaps:
    """The distance from each index to the next in Golomb's code with a power of two (Golomb 1966; Rice 1979).

    A gap g, the numbers left out before an index, is g >> shift in unary (so many zeros, then a one) and its lowest
    `shift` bits. All remainders come first, then all unary codes, then zeros. The unary codes of k gaps take
    k + sum(g >> shift) <= k + (sum g >> shift) bits, and gaps add up to at most N - k.
    """

    def size(self, numbers: int, kept: int) -> int:
        """ceil((k (shift + 1) + ((N - k) >> shift)) / 8) bytes."""
        return -(-_gap_bits(numbers, kept, _shift(numbers, kept)) // 8)

    def pack(self, indices: Indices, numbers: int) -> bytes:
        """Remainders, unary codes, padding."""
        kept = len(indices)
        shift = _shift(numbers, kept)
        gaps = np.diff(indices, prepend=-1) - 1
        bits = np.zeros(_gap_bits(numbers, kept, shift), dtype=np.uint8)
        bits[: kept * shift].reshape(kept, shift)[:] = (gaps[:, None] >> np.arange(shift)) & 1
        ends = np.cumsum((gaps >> shift) + 1) - 1
        bits[kept * shift + ends] = 1
        return np.packbits(bits, bitorder="little").tobytes()

    def unpack(self, data: Octets, numbers: int, kept: int) -> Indices:
        """Gaps, added up."""
        shift = _shift(numbers, kept)
        bits = np.unpackbits(data, bitorder="little")
        ends = np.flatnonzero(bits[kept * shift :])  # Whatever is set in the padding is an end too many, or too far.
        if len(ends) != kept:
            raise Malformed(f"wire: found {len(ends)} gaps where {kept} were declared")
        gaps = (np.diff(ends, prepend=-1) - 1) << shift
        for place in range(shift):
            gaps += bits[place : kept * shift : shift].astype(np.int64) << place
        return increasing(np.cumsum(gaps + 1) - 1, numbers)


def bitmap(indices: Indices, numbers: int) -> Octets:
    """A bit per number, set at the indices, `(ceil(numbers / 8),)`."""
    bits = np.zeros(numbers, dtype=np.uint8)
    bits[indices] = 1
    return np.packbits(bits, bitorder="little")


def positions(data: Octets, numbers: int, kept: int) -> Indices:
    """The bits that are set.

    Raises:
        Malformed: they are not `kept`, or one lies beyond the last number.
    """
    found = np.flatnonzero(np.unpackbits(data, bitorder="little"))
    if len(found) != kept:
        raise Malformed(f"wire: found {len(found)} numbers marked where {kept} were declared")
    return increasing(found, numbers)


def increasing(indices: NDArray[Any], numbers: int) -> Indices:
    """Indices as they are, if they rise strictly and end below `numbers`.

    Raises:
        Malformed: they do not.
    """
    if not bool((indices[1:] > indices[:-1]).all()):
        raise Malformed("wire: indices do not rise")
    if len(indices) and not int(indices[-1]) < numbers:
        raise Malformed(f"wire: found index {int(indices[-1])} of {numbers} numbers")
    return indices


def _shift(numbers: int, kept: int) -> int:
    """The one that makes the longest code shortest; the least such."""
    return min(range(32), key=lambda shift: _gap_bits(numbers, kept, shift))


def _gap_bits(numbers: int, kept: int, shift: int) -> int:
    return kept * (shift + 1) + ((numbers - kept) >> shift) if kept else 0
