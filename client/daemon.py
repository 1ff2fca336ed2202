"""The silo's daemon: an office behind a socket. It knows nothing of Flower, and nothing of who carries messages.

One task is worked on at a time. A task that nobody waits for any more is not begun; one that has begun is ended, and
its answer is kept for whoever asks again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client.chunks import OPTIONS, joined, pieces
from client.errors import DataError
from client.office import Office
from client.proto.silo_pb2 import Chunk, StatusReply, StatusRequest
from client.proto.silo_pb2_grpc import SiloServicer, add_SiloServicer_to_server
from client.sockets import Place, free
from strategies.envelope import EnvelopeError

NAME = "confide.v1.Silo"
THREADS, MOST_CALLS = 8, 16
RECEIVE_S = 120.0  # In which a task must have arrived: who sends slower, or stops, holds no thread.
OF_SERVER = (
    *OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class Service(SiloServicer):
    """What the socket answers.

    Args:
        office: behind it.
        version: of confide.
        receive_s: seconds in which a task must have arrived.
    """

    def __init__(self, office: Office, *, version: str, receive_s: float = RECEIVE_S) -> None:
        self.office, self.version, self.receive_s = office, version, receive_s

    def Exchange(self, request_iterator: Iterator[Chunk], context: Any) -> Iterator[Chunk]:
        """One task, one reply; what cannot be read is refused in words, not by an error of the transport."""
        slow = threading.Timer(self.receive_s, context.cancel)
        slow.daemon = True
        slow.start()
        try:
            data = joined(request_iterator, self.office.limits.bytes)
        except EnvelopeError as error:
            yield from pieces(self.office.refuse(error))
            return
        finally:
            slow.cancel()
        yield from pieces(self.office.handle(data, cancelled=lambda: not context.is_active()))

    def Status(self, request: StatusRequest, context: Any) -> StatusReply:
        """That it is there, and how much it did."""
        office = self.office
        return StatusReply(
            version=self.version,
            silo=office.number,
            dry_run=office.policy.dry_run,
            answered=office.answered,
            refused=office.refused,
        )


class Daemon:
    """A service that listens; a context manager that stops it.

    Args:
        office: behind it; whoever made it closes it.
        place: where it listens.
        version: of confide.
        mode: permissions of a Unix socket's file: who may ask.
        receive_s: seconds in which a task must have arrived.

    Raises:
        DataError: it cannot listen there.
    """

    def __init__(
        self, office: Office, place: Place, *, version: str = "", mode: int = 0o600, receive_s: float = RECEIVE_S
    ) -> None:
        self.place = place
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="silo"),
            options=OF_SERVER,
            maximum_concurrent_rpcs=MOST_CALLS,
        )
        add_SiloServicer_to_server(Service(office, version=version, receive_s=receive_s), self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.port = self._listen(mode)
        """Of an address; 1 for a Unix socket."""
        self._server.start()
        for name in ("", NAME):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, grace_s: float = 5.0) -> None:
        """Takes no more tasks, and waits for those that run as long as it may."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()

    def _listen(self, mode: int) -> int:
        try:
            if self.place.tls is not None:
                authority, certificate, key = self.place.tls.read()
                mutual = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
                return int(self._server.add_secure_port(self.place.address, mutual))
            path = Path(self.place.path)
            free(path)
            before = os.umask(0o177)  # The file is there, for its owner alone, before it may be opened to others.
            try:
                port = int(self._server.add_insecure_port(self.place.target))
            finally:
                os.umask(before)
            path.chmod(mode)
            return port
        except (RuntimeError, OSError) as error:
            where = self.place.path or self.place.address
            raise DataError(f"{where}: cannot be listened on ({error}); choose another place") from error
