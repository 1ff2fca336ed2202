"""Named tensors as the blobs of an envelope.

float32 travels as `strategies.wire` writes it (flattened, of a known count of numbers that are not zero); float64 and
int64, which only small tensors are, as they are, lowest byte first. A length is compared with what its shape asks for
before anything of that shape is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from strategies import wire
from strategies.envelope_header import MOST_DIMENSIONS, Blob, EnvelopeError

_DENSE: Mapping[Literal["float64", "int64"], tuple[torch.dtype, np.dtype[Any]]] = {
    "float64": (torch.float64, np.dtype("<f8")),
    "int64": (torch.int64, np.dtype("<i8")),
}


def to_blobs(
    vectors: Mapping[str, Tensor], kept: Mapping[str, int], values: wire.Values
) -> tuple[list[Blob], list[bytes]]:
    """Headers and bytes of named tensors, in their order.

    Args:
        vectors: float32 (travels as `values`), float64 or int64.
        kept: how many numbers of a float32 vector travel; left out, all do.
        values: type that float32 travels as.

    Raises:
        EnvelopeError: a tensor of another type, of too many dimensions, or with more numbers than may travel.
    """
    pairs = [_to_blob(name, vector, kept.get(name, vector.numel()), values) for name, vector in vectors.items()]
    return [blob for blob, _ in pairs], [data for _, data in pairs]


def from_blobs(blobs: Sequence[Blob], data: memoryview) -> dict[str, Tensor]:
    """The tensors of blobs; `data` is as long as they say together.

    Raises:
        EnvelopeError: bytes that no encoder writes.
    """
    vectors, at = {}, 0
    for blob in blobs:
        vectors[blob.name] = _from_blob(blob, data[at : at + blob.bytes])
        at += blob.bytes
    return vectors


def _to_blob(name: str, vector: Tensor, kept: int, values: wire.Values) -> tuple[Blob, bytes]:
    if vector.dim() > MOST_DIMENSIONS:
        raise EnvelopeError(f"envelope: {name!r} has {vector.dim()} dimensions, at most {MOST_DIMENSIONS} travel")
    vector, shape = vector.detach().cpu(), tuple(vector.shape)
    if vector.dtype == torch.float32:
        # Whoever counts what may travel takes -0.0, as masks make it, for a zero; the wire format keeps its bits.
        flat = vector.reshape(-1) if kept == vector.numel() else vector.reshape(-1) + 0.0
        try:
            data = wire.encode(flat, kept=kept, values=values)
        except ValueError as error:
            raise EnvelopeError(f"envelope: {name!r}: {error}") from error
        return Blob(name=name, type=values, shape=shape, kept=kept, bytes=len(data)), data
    for code, (dtype, layout) in _DENSE.items():
        if vector.dtype == dtype:
            data = vector.contiguous().numpy().astype(layout).tobytes()
            return Blob(name=name, type=code, shape=shape, kept=vector.numel(), bytes=len(data)), data
    raise EnvelopeError(f"envelope: {name!r} holds {vector.dtype}; float32, float64 and int64 travel")


def _from_blob(blob: Blob, data: memoryview) -> Tensor:
    if blob.kept > blob.numbers or blob.bytes != _length(blob):
        raise EnvelopeError(f"envelope: {blob.name!r} takes {blob.bytes} bytes, which its shape does not")
    if blob.type == "float64" or blob.type == "int64":
        values = np.frombuffer(data, dtype=_DENSE[blob.type][1])
        return torch.from_numpy(values.astype(values.dtype.newbyteorder("="))).reshape(blob.shape)
    try:
        return wire.decode(data, size=blob.numbers, kept=blob.kept, values=blob.type).reshape(blob.shape)
    except ValueError as error:
        raise EnvelopeError(f"envelope: {blob.name!r}: {error}") from error


def _length(blob: Blob) -> int:
    if blob.type == "float64" or blob.type == "int64":
        return 8 * blob.numbers if blob.kept == blob.numbers else -1
    return wire.size(blob.numbers, blob.kept, blob.type)
