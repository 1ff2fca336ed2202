"""Where a daemon listens: a Unix socket, or an address with certificates on both sides; loads no torch.

A Unix socket is guarded by the file system. An address can be reached by others, if only by other users of the machine,
so it is never used without mutual TLS: who asks needs a certificate that the data holder's own authority signed.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from client.errors import DataError

if TYPE_CHECKING:
    import grpc

PROBE_S, CONNECTED_S = 0.05, 5.0  # Between two looks for somebody who listens; the longest that one look may take.
LONGEST = 100  # Bytes of a Unix socket's path, which the system limits to 107.


@dataclass(frozen=True)
class Tls:
    """Certificates of one side; PEM files.

    Attributes:
        authority: that signed the other side's certificate.
        certificate: of this side.
        key: its private key, readable by its owner alone.
    """

    authority: Path
    certificate: Path
    key: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Authority, certificate and key.

        Raises:
            DataError: a file cannot be read, or the key can be read by others.
        """
        require_private(self.key)
        return _read(self.authority), _read(self.certificate), _read(self.key)


@dataclass(frozen=True)
class Place:
    """Where a daemon listens.

    Attributes:
        path: of a Unix socket; empty for an address.
        address: HOST:PORT; empty for a Unix socket.
        tls: certificates, for an address.
    """

    path: str = ""
    address: str = ""
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.address):
            raise DataError("socket: give the path of a Unix socket, or an address with certificates")
        if self.address and self.tls is None:
            raise DataError(f"{self.address}: an address needs certificates on both sides; give them, or use a socket")
        if len(os.fsencode(self.path)) > LONGEST:
            raise DataError(f"{self.path}: longer than the {LONGEST} bytes of a Unix socket's path; use a shorter one")

    @property
    def target(self) -> str:
        """As gRPC writes it."""
        return f"unix:{Path(self.path).absolute()}" if self.path else self.address

    def listens(self, *, within_s: float) -> bool:
        """Whether somebody listens there; who is just being started is waited for.

        A plain connection: to watch a gRPC channel instead holds whoever closes it for up to a fifth of a second.
        """
        deadline = time.monotonic() + within_s
        while not self._taken():
            if not time.monotonic() < deadline:
                return False
            time.sleep(PROBE_S)
        return True

    def _taken(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            if self.path:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(self.path)
            else:
                socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECTED_S).close()
        except OSError:
            return False
        return True

    def channel(self, options: tuple[tuple[str, int], ...]) -> grpc.Channel:
        """A channel to the daemon there."""
        import grpc

        if self.tls is None:
            return grpc.insecure_channel(self.target, options=options)
        authority, certificate, key = self.tls.read()
        return grpc.secure_channel(self.target, grpc.ssl_channel_credentials(authority, key, certificate), options)


def require_private(key: Path) -> None:
    """Requires a private key that only its owner can read.

    Raises:
        DataError: others can, or it is not there.
    """
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise DataError(f"{key}: cannot be read ({error.strerror}); give a private key") from error
    if stat.S_IMODE(mode) & 0o077:
        raise DataError(f"{key}: can be read by others (mode {stat.S_IMODE(mode):o}); use: chmod 600 {key}")


def free(path: Path) -> None:
    """Takes away a socket's file that nobody listens on any more.

    Raises:
        DataError: somebody does, or it is no socket.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise DataError(f"{path}: is there already, and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise DataError(f"{path}: another daemon listens there; stop it, or choose another path")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a PEM file") from error
