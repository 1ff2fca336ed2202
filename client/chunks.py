"""Messages in pieces, for a transport that takes small ones only; loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from strategies.envelope_header import EnvelopeError

if TYPE_CHECKING:
    from client.proto.silo_pb2 import Chunk

PIECE = 2**20  # Bytes of a chunk.
LARGEST = 2 * PIECE  # Bytes of what a transport takes at once: a chunk and its frame.
OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST),
    ("grpc.max_send_message_length", LARGEST),
    ("grpc.enable_http_proxy", 0),
)


def pieces(data: bytes) -> Iterator[Chunk]:
    """A message as chunks, at least one; the first says how long it is."""
    from client.proto.silo_pb2 import Chunk

    view = memoryview(data)
    for at in range(0, max(len(data), 1), PIECE):
        yield Chunk(data=bytes(view[at : at + PIECE]), total=len(data) if at == 0 else 0)


def joined(chunks: Iterable[Chunk], limit: int) -> bytes:
    """The message in some chunks.

    Raises:
        EnvelopeError: longer than `limit` bytes, or other than its first chunk said.
    """
    found, total = bytearray(), None
    for chunk in chunks:
        if total is None:
            total = int(chunk.total)
            if total > limit:
                raise EnvelopeError(f"chunks: {total} bytes, above the limit of {limit}", code="too_large")
        found += chunk.data
        if len(found) > total:
            break
    if total is None or len(found) != total:
        raise EnvelopeError(f"chunks: other bytes than the {total or 0} that were announced")
    return bytes(found)
