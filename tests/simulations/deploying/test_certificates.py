"""Who may read a key, and which server is trusted."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from simulations.deploying.certificates import (
    CertificateError,
    Folder,
    add_node,
    make,
    require_node_key,
    require_secret,
    signing_key,
)
from simulations.deploying.flower import Address
from simulations.deploying.probing import Refused, local, probe
from simulations.deploying.processes import free_ports


def made(folder: Path, *, hosts: tuple[str, ...] = (), days: int = 1) -> Folder:
    files = Folder(folder)
    make(files, hosts=hosts, nodes=["ward"], days=days)
    return files


@contextmanager
def server(files: Folder | None) -> Iterator[Address]:
    """A server that greets whoever connects, with TLS or without, until the test is done."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = None
    if files is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.server, files.server_key)

    def greet() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                if context is None:
                    connection.sendall(b"hello\n")
                else:
                    connection = context.wrap_socket(connection, server_side=True)
            except OSError:
                pass  # Whoever does not trust us hangs up.
            finally:
                connection.close()

    thread = threading.Thread(target=greet)
    thread.start()
    try:
        yield Address("127.0.0.1", listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    files = made(tmp_path / "certs")
    secrets = [files.authority_key, files.server_key, files.signing_key, files.node_key("ward")]
    assert [path.stat().st_mode & 0o777 for path in secrets] == [0o600] * 4
    for path in secrets:
        require_secret(path)
    files.server_key.chmod(0o640)
    with pytest.raises(CertificateError, match=r"others can read this key \(mode 640\); chmod 600 it"):
        require_secret(files.server_key)


def test_a_server_is_trusted_by_its_authority(tmp_path: Path) -> None:
    files = made(tmp_path / "certs")
    with server(files) as address:
        probe(address, files.authority)


def test_a_server_of_another_authority_is_not(tmp_path: Path) -> None:
    files, others = made(tmp_path / "certs"), made(tmp_path / "others")
    with server(files) as address, pytest.raises(Refused, match=r"others/ca\.pem has not signed it"):
        probe(address, others.authority)


def test_an_expired_certificate_is_not_trusted(tmp_path: Path) -> None:
    files = made(tmp_path / "certs", days=0)
    with server(files) as address, pytest.raises(Refused, match="it has expired"):
        probe(address, files.authority)


def test_a_certificate_for_another_host_is_not_trusted(tmp_path: Path) -> None:
    files = made(tmp_path / "certs")
    with server(files) as address, pytest.raises(Refused, match=r"it is not for 127\.0\.0\.2"):
        listener = socket.create_server(("127.0.0.2", 0))
        port = listener.getsockname()[1]

        def forward() -> None:
            here, _ = listener.accept()
            with here, socket.create_connection((address.host, address.port)) as there:
                there.sendall(here.recv(4096))
                here.sendall(there.recv(8192))
                here.recv(4096)

        thread = threading.Thread(target=forward)
        thread.start()
        try:
            probe(Address("127.0.0.2", port), files.authority)
        finally:
            thread.join()
            listener.close()


def test_a_server_without_tls_is_told_apart(tmp_path: Path) -> None:
    files = made(tmp_path / "certs")
    with server(None) as address:
        probe(address, None)
        with pytest.raises(Refused, match="does not speak TLS"):
            probe(address, files.authority)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"nobody listens there .*is confide serve running"):
        probe(Address("127.0.0.1", free_ports(1)[0]), None)
    with pytest.raises(Refused, match="no silo answers there"):
        local(str(tmp_path / "silo.sock"))


def test_an_authority_is_never_replaced(tmp_path: Path) -> None:
    files = made(tmp_path / "certs")
    before = files.authority.read_bytes()
    with pytest.raises(CertificateError, match="holds an authority already"):
        make(files, hosts=[], nodes=[])
    assert files.authority.read_bytes() == before
    add_node(files, "icu")
    require_node_key(files.node_key("icu"))
    with pytest.raises(CertificateError, match="is there already"):
        add_node(files, "icu")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".hidden", "x" * 65])
def test_a_node_is_no_path(tmp_path: Path, name: str) -> None:
    files = made(tmp_path / "certs")
    with pytest.raises(CertificateError, match="letters, digits"):
        add_node(files, name)


def test_a_node_key_is_an_ec_key_of_openssh(tmp_path: Path) -> None:
    files = made(tmp_path / "certs")
    require_node_key(files.node_key("ward"))
    assert files.node("ward").read_text().startswith("ecdsa-sha2-nistp384 ")
    for other in (files.server_key, files.signing_key):
        with pytest.raises(CertificateError, match="no private key in OpenSSH"):
            require_node_key(other)


def test_tasks_are_signed_by_an_ed25519_key(tmp_path: Path) -> None:
    files = made(tmp_path / "certs")
    assert len(signing_key(files.signing_key).public_key().public_bytes_raw()) == 32
    with pytest.raises(CertificateError, match="not an Ed25519 key"):
        signing_key(files.server_key)
