"""Carries a task to the silo's daemon and its reply back; loads no torch, and sees no data.

Asking twice is safe: a daemon gives the same answer again, so a connection that breaks is tried once more.
"""

from __future__ import annotations

import time

import grpc

from client.chunks import OPTIONS, joined, pieces
from client.errors import DataError
from client.proto.silo_pb2_grpc import SiloStub
from client.sockets import Place
from strategies.envelope import EnvelopeError, Limits, Task, encode, peek, refusal

CONNECT_S = 10.0  # A daemon that is just being restarted is waited for as long.
TRIES, PAUSE_S = 3, 0.5
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


def exchange(data: bytes, place: Place, *, limits: Limits = Limits(), connect_s: float = CONNECT_S) -> bytes:  # noqa: B008  # Frozen.
    """The daemon's reply to a task; a refusal in its place, where it cannot be had. Never raises for a silo's sake.

    Args:
        data: the task, as it came.
        place: where the daemon listens.
        limits: of the reply.
        connect_s: how long to wait for somebody to listen there.
    """
    try:
        task = peek(data)
    except EnvelopeError as error:
        return encode(refusal(error.code, error))
    try:
        if not place.listens(within_s=connect_s):
            return _unreachable(
                task, f"nobody answers at the silo's socket within {connect_s:g} s; start: confide silo"
            )
        with place.channel(OPTIONS) as channel:
            return _asked(channel, data, task, limits)
    except grpc.RpcError as error:
        late = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        if late:
            return encode(refusal("deadline", "the silo did not answer by the deadline", task=task))
        return _unreachable(task, f"the silo's daemon broke off ({error.code().name.lower()}); look at its log")
    except EnvelopeError as error:
        return encode(refusal(error.code, f"the silo's reply: {error}", task=task))
    except DataError as error:
        return _unreachable(task, error)


def _asked(channel: grpc.Channel, data: bytes, task: Task, limits: Limits) -> bytes:
    ends = time.monotonic() + task.deadline_s
    for attempt in range(TRIES):
        try:
            left = max(ends - time.monotonic(), 0.001)
            return joined(SiloStub(channel).Exchange(pieces(data), timeout=left), limits.bytes)
        except grpc.RpcError as error:
            if error.code() not in AGAIN or attempt == TRIES - 1:
                raise
            time.sleep(PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


def _unreachable(task: Task, reason: object) -> bytes:
    return encode(refusal("silo_unreachable", reason, task=task))
