"""The frame of an envelope: a prefix, a header of canonical JSON, and blobs whose lengths the header gives.

    b"cfde", version, kind of message, two zero bytes, length of the header (4 bytes, lowest first)
    header: sorted keys, no blanks, ASCII, no NaN; read into a frozen dataclass by `strategies.codec`
    blobs, one after the other

Loads no torch, so that a relay can refuse in a silo's place.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from strategies import codec
from strategies.schema import ConfigError, key

PREFIX = struct.Struct("<4sBBHI")
MAGIC, VERSION = b"cfde", 1
MOST_DIMENSIONS, MOST_BLOBS = 4, 256
MOST_SIDE = 2**32 - 1  # Of a tensor, as of a vector on the wire.
T = TypeVar("T")


class EnvelopeError(ValueError):
    """Bytes that no encoder writes, or more of them than were allowed; one line.

    Attributes:
        code: of `strategies.envelope.CODES`.
    """

    def __init__(
        self, line: str, *, code: Literal["malformed", "version", "too_large", "signature"] = "malformed"
    ) -> None:
        super().__init__(line)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """The most that a receiver takes; all of it is looked at before memory is taken.

    Attributes:
        bytes: of a whole envelope.
        header: bytes of its header.
        numbers: of all vectors together, also of those that do not travel because they are zero.
    """

    bytes: int = 2**30
    header: int = 2**20
    numbers: int = 2**28


@dataclass(frozen=True, kw_only=True)
class Blob:
    """What one tensor is, in the header.

    Attributes:
        name: of the vector or channel.
        type: of its numbers on their way.
        shape: of the tensor.
        kept: how many of its numbers travel; all of them but for sparse vectors.
        bytes: that it takes.
    """

    name: str = key(help="of the vector")
    type: Literal["float32", "float16", "float64", "int64"] = key(help="of its numbers")
    shape: tuple[int, ...] = key(at_least=0, at_most=MOST_SIDE, help="of the tensor")
    kept: int = key(at_least=0, at_most=MOST_SIDE, help="how many travel")
    bytes: int = key(at_least=0, help="length")

    @property
    def numbers(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)


def join(kind: int, header: Any, without: Sequence[str], blobs: Sequence[Blob], data: Sequence[bytes]) -> bytes:
    """A message as bytes.

    Args:
        kind: number of the kind of message.
        header: a dataclass; its fields but those in `without` are the header.
        without: fields that travel as blobs.
        blobs: what each blob is.
        data: the blobs.
    """
    text = _canonical(_encoded(header, without) | {"blobs": [codec.encode(blob) for blob in blobs]})
    return b"".join([PREFIX.pack(MAGIC, VERSION, kind, 0, len(text)), text, *data])


def split(
    data: bytes | memoryview, kind: int, cls: type[T], without: Sequence[str], limits: Limits
) -> tuple[T, tuple[Blob, ...], memoryview]:
    """The inverse of `join`: the header (without the fields that travel as blobs), what blobs there are, their bytes.

    Raises:
        EnvelopeError: `join` writes no such bytes, or they are more than the limits allow.
    """
    view = memoryview(data)
    raw, rest = _header(view, kind, limits)
    if not isinstance(raw, dict) or raw.keys() != {*_names(cls, without), "blobs"}:
        raise EnvelopeError("envelope: the header has not the keys that such a message has")
    listed = raw.pop("blobs")
    if not isinstance(listed, list) or len(listed) > MOST_BLOBS:
        raise EnvelopeError(f"envelope: blobs must be a list of at most {MOST_BLOBS}")
    try:
        blobs = tuple(codec.decode(Blob, each, path="blobs") for each in listed)
        header = codec.decode(cls, raw)
    except ConfigError as error:
        raise EnvelopeError(f"envelope: {error.problems[0]}"[:300]) from error
    _require(blobs, limits)
    if _canonical(_encoded(header, without) | {"blobs": [codec.encode(blob) for blob in blobs]}) != _text(view):
        raise EnvelopeError("envelope: the header is not in its one canonical spelling")
    if len(rest) != sum(blob.bytes for blob in blobs):
        raise EnvelopeError(f"envelope: {len(rest)} bytes follow a header that says {sum(b.bytes for b in blobs)}")
    return header, blobs, rest


def _header(view: memoryview, kind: int, limits: Limits) -> tuple[Any, memoryview]:
    if len(view) > limits.bytes:
        raise EnvelopeError(f"envelope: {len(view)} bytes, above the limit of {limits.bytes}", code="too_large")
    if len(view) < PREFIX.size:
        raise EnvelopeError(f"envelope: {len(view)} bytes, no envelope is as short")
    magic, version, found, zero, length = PREFIX.unpack_from(view)
    if magic != MAGIC or zero != 0:
        raise EnvelopeError("envelope: these bytes are no envelope")
    if version != VERSION:
        raise EnvelopeError(f"envelope: of version {version}, this is {VERSION}; run one confide", code="version")
    if found != kind:
        raise EnvelopeError(f"envelope: a message of kind {found} where {kind} was expected")
    if length > limits.header:
        raise EnvelopeError(f"envelope: a header of {length} bytes, the limit is {limits.header}", code="too_large")
    if PREFIX.size + length > len(view):
        raise EnvelopeError("envelope: ends within its header")
    try:
        raw = json.loads(bytes(_text(view)).decode("ascii"))
        json.dumps(raw, ensure_ascii=False).encode()  # Half a character could not be shown or stored by anyone.
        return raw, view[PREFIX.size + length :]
    except (ValueError, RecursionError) as error:  # Not JSON, not ASCII, a number of 5,000 digits, 5,000 brackets.
        raise EnvelopeError("envelope: the header is no JSON") from error


def _text(view: memoryview) -> memoryview:
    return view[PREFIX.size : PREFIX.size + PREFIX.unpack_from(view)[4]]


def _names(cls: type[Any], without: Sequence[str]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.name not in without]


def _encoded(header: Any, without: Sequence[str]) -> dict[str, Any]:
    return {name: codec.plain(getattr(header, name)) for name in _names(type(header), without)}


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _require(blobs: Sequence[Blob], limits: Limits) -> None:
    if len({blob.name for blob in blobs}) < len(blobs):
        raise EnvelopeError("envelope: two vectors have one name")
    if any(len(blob.shape) > MOST_DIMENSIONS for blob in blobs):
        raise EnvelopeError(f"envelope: a vector has more than {MOST_DIMENSIONS} dimensions")
    numbers = sum(blob.numbers for blob in blobs)
    if not numbers <= limits.numbers:
        raise EnvelopeError(f"envelope: {numbers} numbers, the limit is {limits.numbers}", code="too_large")
