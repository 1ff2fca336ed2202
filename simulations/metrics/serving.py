"""The exporter's HTTP endpoint: on loopback as it is, elsewhere only with TLS and client certificates."""

from __future__ import annotations

import ipaddress
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer

from strategies.schema import ConfigError

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

GRACE_S = 2.0  # For the answers on their way when it is told to stop.


@dataclass(frozen=True)
class Certificates:
    """Files in PEM form.

    Attributes:
        certificate: of the server.
        key: its private key.
        clients: of the authorities whose clients are let in.
    """

    certificate: Path
    key: Path
    clients: Path


class Unheard(ConfigError):
    """Nothing can listen there now; what was to be watched can go on."""


def serve(
    collector: Collector,
    *,
    address: str,
    port: int,
    certificates: Certificates | None = None,
    option: str = "--addr",
    files: str = "--tls-cert, --tls-key and --client-ca",
) -> tuple[int, Callable[[], None]]:
    """Answers scrapes from a thread; returns the port, and what ends it.

    Args:
        collector: of all that is shown; it has a registry of its own.
        address: an IP address of this machine, or localhost.
        port: 0 takes a free one.
        certificates: needed wherever others can reach the address.
        option: what gave the address, for messages.
        files: what gives certificates, likewise.

    Raises:
        ConfigError: an address that is not safe, or certificates that do not load.
        Unheard: an address that is not ours, or a port that is taken.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    local = _loopback(address, option)
    if certificates is None and not local:
        line = f"{option}: {address} can be reached by others; give {files}, or use 127.0.0.1 and a tunnel"
        raise ConfigError([line])
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    server: WSGIServer
    thread: Thread
    try:
        server, thread = start_http_server(
            port,
            addr=address,
            registry=registry,
            certfile=None if certificates is None else str(certificates.certificate),
            keyfile=None if certificates is None else str(certificates.key),
            client_cafile=None if certificates is None else str(certificates.clients),
            client_auth_required=certificates is not None,
        )
    except ssl.SSLError as error:
        raise ConfigError([f"{files}: cannot be used ({error.reason or error}); give PEM files"]) from error
    except OSError as error:
        line = f"{address}:{port}: cannot listen ({error.strerror or error}); choose another port"
        raise Unheard([line]) from error
    return int(server.server_port), _ending(server, thread)


def _ending(server: Any, thread: Thread) -> Callable[[], None]:
    """What ends a server that answers in threads, once those had a moment; they do not hold the process after."""
    answering: list[Thread] = []

    def answer(request: Any, client: Any) -> None:
        answering[:] = [each for each in answering if each.is_alive()]
        answering.append(Thread(target=server.process_request_thread, args=(request, client), daemon=True))
        answering[-1].start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()
        patience = time.monotonic() + GRACE_S
        for each in answering:  # Cut off among its headers, an answer reads as one without a single metric.
            each.join(max(0.0, patience - time.monotonic()))

    server.process_request = answer
    return stop


def _loopback(address: str, option: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError as error:
        raise ConfigError([f"{option}: found {address!r}; give an IP address, such as 127.0.0.1"]) from error
