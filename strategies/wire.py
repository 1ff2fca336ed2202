"""A vector as bytes: its header, which numbers travel, and the numbers.

    encode(vector, kept=k) -> bytes        decode(bytes, size=N, kept=k) -> vector        size(N, k) -> len(bytes)

The length of a message follows from N, k and the type of its values, never from the vector: so bytes may be counted and
shown where private numbers may not. The form of a message is the one of least length, the first of those alike.

    dense      12 + v N                                     v: 4 bytes a value, or 2 as float16
    bitmap     12 + v k + ceil(N / 8)
    indices    12 + v k + 4 k                               a bitmap is shorter where 32 k > N
    delta      12 + v k + ceil((k (s + 1) + ((N - k) >> s)) / 8)        s: the shift that makes it least
    entropy    12 + v k + 8 lanes + 4 words                 about N H(k / N) bits; see `wire_entropy`

The header, lowest bytes first: b"cw", version, form + 16 (0: float32, 1: float16), N (4 bytes), k (4 bytes). A message
is canonical: what `decode` takes, `encode` writes again byte for byte. It takes only what its caller expects, and makes
nothing whose size a message says.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies.wire_entropy import Entropy
from strategies.wire_index import Bitmap, Code, Dense, Fixed, Gaps, Indices, Malformed, Octets

Values = Literal["float32", "float16"]

HEADER = struct.Struct("<2sBBII")
MAGIC, VERSION = b"cw", 1
MOST = 2**32 - 1  # Numbers of a vector.
LARGEST, NAN = 65504.0, 0x7E00  # Of float16: the largest value, and the one NaN that is written.
CODES: Mapping[str, Code] = {
    "dense": Dense(),
    "bitmap": Bitmap(),
    "indices": Fixed(),
    "delta": Gaps(),
    "entropy": Entropy(),
}
FORMS = tuple(CODES)
_TYPES: Mapping[Values, tuple[int, np.dtype[Any], np.dtype[Any]]] = {
    "float32": (0, np.dtype("<f4"), np.dtype("<u4")),
    "float16": (1, np.dtype("<f2"), np.dtype("<u2")),
}


def rounded(vector: Tensor, values: Values) -> Tensor:
    """What the other side reads of a floating point tensor of any shape; the same dtype.

    float16 takes the nearest value, ties to even. Finite numbers beyond +-65504 become +-65504: with feedback the rest
    follows in later rounds, and what is not finite stays so, to be refused. float32 leaves all as it is.
    """
    if values == "float32":
        return vector
    saturated = torch.where(vector.isfinite(), vector.clamp(-LARGEST, LARGEST), vector)
    return saturated.to(torch.float16).to(vector.dtype)


def body(form: str, numbers: int, kept: int, values: Values = "float32") -> int:
    """Bytes of a message in a form of one's choice, without its header."""
    count = numbers if form == "dense" else kept
    return CODES[form].size(numbers, kept) + _TYPES[values][1].itemsize * count


def form(numbers: int, kept: int, values: Values = "float32") -> str:
    """The form of a message: the shortest, and of forms alike the first.

    >>> [form(1000, kept) for kept in (0, 1, 250, 990)]
    ['indices', 'delta', 'entropy', 'entropy']
    """
    if not 0 <= kept <= numbers <= MOST:
        raise ValueError(f"wire: must be 0 <= kept <= numbers <= {MOST}, got kept {kept} of {numbers}")
    return min(FORMS, key=lambda each: body(each, numbers, kept, values))


def size(numbers: int, kept: int, values: Values = "float32") -> int:
    """Bytes of the message of a vector of `numbers` numbers of which `kept` travel; public.

    >>> size(1000, 1000), size(1000, 100)
    (4012, 476)
    """
    return HEADER.size + body(form(numbers, kept, values), numbers, kept, values)


def encode(vector: Tensor, *, kept: int, values: Values = "float32") -> bytes:
    """A vector `(N,)` of which at most `kept` numbers are not zero, as bytes; rounded first.

    Where fewer are not zero the first zeros travel too, so that the length does not tell. -0.0 is not zero here, since
    its bits are kept.

    Raises:
        ValueError: not a vector of float32, or more than `kept` are not zero.
    """
    if vector.dim() != 1 or vector.dtype != torch.float32:
        raise ValueError(f"wire: must be a vector of float32, got {vector.dtype} of shape {tuple(vector.shape)}")
    chosen = form(len(vector), kept, values)
    header = HEADER.pack(MAGIC, VERSION, FORMS.index(chosen) + 16 * _TYPES[values][0], len(vector), kept)
    return header + pack(chosen, bits(vector, values), kept)


def decode(data: bytes | bytearray | memoryview, *, size: int, kept: int, values: Values = "float32") -> Tensor:
    """The vector `(size,)` float32 of a message, as `encode` was given it.

    Args:
        data: of any origin.
        size: numbers that are expected.
        kept: how many of them are expected to travel.
        values: type that is expected.

    Raises:
        ValueError: `encode` writes this for no such vector; one line.
    """
    chosen = form(size, kept, values)
    tag, dtype, _ = _TYPES[values]
    _check_header(data, (MAGIC, VERSION, FORMS.index(chosen) + 16 * tag, size, kept))
    expected = HEADER.size + body(chosen, size, kept, values)
    if len(data) != expected:
        raise Malformed(f"wire: found {len(data)} bytes where {expected} were expected")
    bits = unpack(chosen, np.frombuffer(data, dtype=np.uint8, offset=HEADER.size), size, kept, values)
    return torch.from_numpy(bits.view(dtype).astype(np.float32, copy=False))


def bits(vector: Tensor, values: Values) -> NDArray[Any]:
    """What travels of each number of a float32 vector: its bits `(N,)`, unsigned, after rounding.

    Of float32 they are kept as they are; of float16 every NaN is alike, since conversions change their bits.
    """
    _, dtype, unsigned = _TYPES[values]
    floats = rounded(vector.detach().cpu(), values).numpy().astype(dtype, copy=False)
    found = floats.view(unsigned)
    return np.where(np.isnan(floats), unsigned.type(NAN), found) if values == "float16" else found


def pack(form: str, bits: NDArray[Any], kept: int) -> bytes:
    """A message in a form of one's choice, without its header; `bits` of the vector's numbers, `(N,)` unsigned.

    Raises:
        ValueError: more than `kept` are not zero.
    """
    found = np.count_nonzero(bits)
    if not found <= kept:
        raise ValueError(f"wire: found {found} numbers that are not zero (-0.0 is not), where {kept} may travel")
    if form == "dense":
        return bits.tobytes()
    indices = _travelling(bits, kept)
    return CODES[form].pack(indices, len(bits)) + bits[indices].tobytes()


def unpack(form: str, data: Octets, numbers: int, kept: int, values: Values) -> NDArray[Any]:
    """The inverse of `pack`; `data` is of the right size.

    Raises:
        Malformed: `pack` gives these bytes for no vector.
    """
    dtype, at = _TYPES[values][2], CODES[form].size(numbers, kept)
    sent = data[at:].view(dtype)
    if values == "float16":
        _check_halves(sent)
    if form == "dense":
        if not np.count_nonzero(sent) <= kept:
            raise Malformed(f"wire: found {np.count_nonzero(sent)} numbers that are not zero, where {kept} may travel")
        return sent.copy()
    indices = CODES[form].unpack(data[:at], numbers, kept)
    zeros = np.flatnonzero(sent == 0)
    if len(zeros) and indices[zeros[-1]] != zeros[-1]:  # Up to the last zero that travels all numbers must.
        raise Malformed("wire: a zero travels that is not among the first")
    bits = np.zeros(numbers, dtype=dtype)
    bits[indices] = sent
    return bits


def _travelling(bits: NDArray[Any], kept: int) -> Indices:
    """The numbers that are not zero, and as many of the first zeros as `kept` asks for."""
    chosen = bits != 0
    missing = kept - np.count_nonzero(chosen)
    if missing:
        chosen[np.flatnonzero(~chosen)[:missing]] = True
    return np.flatnonzero(chosen)


def _check_halves(sent: NDArray[Any]) -> None:
    nans = sent[(sent & 0x7FFF) > 0x7C00]
    if bool((nans != NAN).any()):
        raise Malformed("wire: found a NaN that no encoder writes")


def _check_header(data: bytes | bytearray | memoryview, expected: tuple[object, ...]) -> None:
    if len(data) < HEADER.size:
        raise Malformed(f"wire: found {len(data)} bytes, a header has {HEADER.size}")
    names = ("magic", "version", "form and type", "numbers", "kept")
    for name, found, due in zip(names, HEADER.unpack_from(data), expected, strict=True):
        if found != due:
            raise Malformed(f"wire: found {name} {found!r} where {due!r} was expected")
