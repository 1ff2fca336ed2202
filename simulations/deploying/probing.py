"""Why a silo's node would not be taken, found out before it is started: Flower's node itself says little."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from simulations.deploying.flower import Address

PATIENCE_S = 10.0


class Refused(RuntimeError):
    """The server cannot be joined; one line with the reason."""


def probe(server: Address, authority: Path | None) -> None:
    """Connects to a server as a node would.

    Args:
        server: its fleet address.
        authority: certificate that it is trusted by; None for a plain connection.

    Raises:
        Refused: nobody listens, or the server is not who it should be.
    """
    try:
        with socket.create_connection((server.host, server.port), timeout=PATIENCE_S) as plain:
            if authority is not None:
                _greet(plain, server, authority)
    except TimeoutError as error:
        raise Refused(
            f"{server}: no answer within {PATIENCE_S:g} s; is the address right, and the port open?"
        ) from error
    except socket.gaierror as error:
        raise Refused(f"{server}: the name {server.host} is not known ({error.strerror})") from error
    except ssl.SSLCertVerificationError as error:
        raise Refused(f"{server}: its certificate is not trusted: {_distrust(error, server, authority)}") from error
    except ssl.SSLError as error:
        raise Refused(f"{server}: does not speak TLS ({error.reason}); it may run with --insecure") from error
    except OSError as error:
        raise Refused(
            f"{server}: nobody listens there ({error.strerror or error}); is confide serve running?"
        ) from error


def _greet(plain: socket.socket, server: Address, authority: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols(["h2"])  # What gRPC speaks.
    with context.wrap_socket(plain, server_hostname=server.host):
        pass


def _distrust(error: ssl.SSLCertVerificationError, server: Address, authority: Path | None) -> str:
    match error.verify_code:
        case 10:
            return "it has expired; ask whoever runs the server for a new one"
        case 62 | 64:
            return f"it is not for {server.host}; make it with: confide certs --host {server.host}"
        case _:
            return f"{authority} has not signed it ({error.verify_message}); ask for the server's ca.pem"


def local(path: str) -> None:
    """Requires that a silo's daemon listens at a Unix socket.

    Raises:
        Refused: it does not.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as there:
            there.settimeout(PATIENCE_S)
            there.connect(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Refused(
            f"{path}: no silo answers there ({reason}); start it with: confide silo --socket {path}"
        ) from error
