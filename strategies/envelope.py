"""What server and silo say to each other, as one string of bytes each way: a task, and the reply to it.

    encode(task) -> bytes        decode_task(bytes) -> task
    encode(reply) -> bytes       decode_reply(bytes, expected) -> reply

It says nothing of who carries it. Nothing in it names code, is a path, or is evaluated. Decoding is strict: what it
takes, `encode` writes again byte for byte, so every message has one spelling; lengths and shapes are compared with the
receiver's limits before anything of their size is made. The bytes: `strategies.envelope_header`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from privacy.chain import Head
from strategies import codec
from strategies.envelope_header import Blob, EnvelopeError, Limits, join, split
from strategies.messages import MOST_REASON, Code, Columns, Reply, Schema, Task
from strategies.signing import opened

if TYPE_CHECKING:  # A relay says that a silo cannot be reached without loading torch.
    from torch import Tensor

    from strategies.wire import Values

__all__ = [
    "Code",
    "Columns",
    "EnvelopeError",
    "Expected",
    "Limits",
    "Reply",
    "Schema",
    "Task",
    "decode_reply",
    "decode_task",
    "encode",
    "peek",
    "refusal",
    "scalar",
]

TASK, REPLY = 1, 2  # Kinds of message.
TASK_BLOBS, REPLY_BLOBS = ("vectors", "kept"), ("channels", "kept")  # Fields that travel as blobs.


@dataclass(frozen=True)
class Expected:
    """What a server expects of the channels of an update.

    Attributes:
        sizes: channel to the length of its vector.
        kept: channel to how many of its numbers travel; left out, all do.
        values: type that they travel as.
    """

    sizes: Mapping[str, int]
    kept: Mapping[str, int] = field(default_factory=dict)
    values: Values = "float32"


def encode(message: Task | Reply, *, values: Values = "float32") -> bytes:
    """A task or a reply as bytes; `values` is the type that float32 travels as.

    Raises:
        EnvelopeError: a tensor that does not travel, or with more numbers than may.
    """
    if isinstance(message, Task):
        kind, without, vectors = TASK, TASK_BLOBS, message.vectors
    else:
        kind, without, vectors = REPLY, REPLY_BLOBS, message.channels
    blobs: list[Blob] = []
    data: list[bytes] = []
    if vectors:
        from strategies.envelope_vectors import to_blobs

        blobs, data = to_blobs(vectors, message.kept, values)
    return join(kind, message, without, blobs, data)


def decode_task(data: bytes | memoryview, *, limits: Limits = Limits()) -> Task:  # noqa: B008  # Frozen.
    """The task in some bytes of any origin.

    Raises:
        EnvelopeError: `encode` writes no such bytes, or they pass the limits.
    """
    task, blobs, rest = split(data, TASK, Task, TASK_BLOBS, limits)
    return replace(task, vectors=_vectors(blobs, rest), kept=_kept(blobs)) if blobs else task


def decode_reply(data: bytes | memoryview, expected: Expected | None = None, *, limits: Limits = Limits()) -> Reply:  # noqa: B008  # Frozen.
    """The reply in some bytes of any origin; without `expected` it may hold no update.

    Raises:
        EnvelopeError: `encode` writes no such bytes, they pass the limits, or the channels are not as expected.
    """
    reply, blobs, rest = split(data, REPLY, Reply, REPLY_BLOBS, limits)
    if reply.status == "refused" and blobs:
        raise EnvelopeError("envelope: a refusal carries no numbers")
    if reply.status == "ok":
        _require_expected(blobs, expected if expected is not None else Expected({}))
    return replace(reply, channels=_vectors(blobs, rest), kept=_kept(blobs)) if blobs else reply


def peek(data: bytes | memoryview) -> Task:
    """What a task says without its vectors, signed or not; for a relay, which loads no torch.

    Raises:
        EnvelopeError: as for `decode_task`.
    """
    return split(opened(data, ()), TASK, Task, TASK_BLOBS, Limits())[0]


def refusal(code: Code, reason: object, *, task: Task | None = None, silo: int = -1, head: Head | None = None) -> Reply:
    """A refusal in one printable line, of a task where that could be read."""
    line = " ".join(str(reason).split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    line = line if len(line) <= MOST_REASON else line[: MOST_REASON - 3] + "..."
    reply = Reply(silo=silo, status="refused", code=code, reason=line, ledger=head)
    if task is None:
        return reply
    return replace(reply, run=task.run, digest=task.digest, round=task.round, attempt=task.attempt)


def scalar(value: float) -> float | None:
    """A number as it travels: JSON has none that is not finite, and None stands for it."""
    value = float(value)
    return value if math.isfinite(value) and abs(value) <= codec.LARGEST else None


def _require_expected(blobs: tuple[Blob, ...], expected: Expected) -> None:
    if {blob.name for blob in blobs} != set(expected.sizes):
        raise EnvelopeError(f"envelope: other channels than the {sorted(expected.sizes)} that were asked")
    for blob in blobs:
        size = expected.sizes[blob.name]
        found, due = (blob.type, blob.shape, blob.kept), (expected.values, (size,), expected.kept.get(blob.name, size))
        if found != due:
            raise EnvelopeError(f"envelope: channel {blob.name!r} is {found} where {due} was asked")


def _vectors(blobs: tuple[Blob, ...], rest: memoryview) -> dict[str, Tensor]:
    from strategies.envelope_vectors import from_blobs

    return from_blobs(blobs, rest)


def _kept(blobs: tuple[Blob, ...]) -> dict[str, int]:
    return {blob.name: blob.kept for blob in blobs if blob.kept != blob.numbers}
