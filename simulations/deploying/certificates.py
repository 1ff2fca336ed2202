"""A certificate authority for tests and small federations: its own key, the server's certificate, a key per node.

The server also signs every task with a key of its own, so that a silo that names it in its policy trains for nobody
else, whoever carries the task.

Keys are readable by their owner alone. Whoever runs a public service takes the certificates of an authority of theirs.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

DAYS = 365
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class CertificateError(ValueError):
    """A key or certificate that cannot be used; one line."""


@dataclass(frozen=True)
class Folder:
    """Where the files of a federation's identities are.

    Attributes:
        path: the folder; the authority's key in it never leaves the machine that made it.
    """

    path: Path

    @property
    def authority(self) -> Path:
        """What every silo trusts the server by; public."""
        return self.path / "ca.pem"

    @property
    def authority_key(self) -> Path:
        """What signs; secret."""
        return self.path / "ca.key"

    @property
    def server(self) -> Path:
        """The server's certificate; public."""
        return self.path / "server.pem"

    @property
    def server_key(self) -> Path:
        """The server's key; secret."""
        return self.path / "server.key"

    @property
    def signing_key(self) -> Path:
        """What the server signs tasks with; secret."""
        return self.path / "tasks.key"

    @property
    def nodes(self) -> Path:
        """The folder of the nodes' public keys, which the server registers."""
        return self.path / "nodes"

    def node_key(self, name: str) -> Path:
        """A node's key; secret, for that silo alone."""
        return self.nodes / f"{name}.key"

    def node(self, name: str) -> Path:
        """A node's public key, in OpenSSH's form."""
        return self.nodes / f"{name}.pub"


def make(folder: Folder, *, hosts: Sequence[str], nodes: Sequence[str], days: int = DAYS) -> None:
    """Makes an authority, a server certificate for `hosts` and loopback, and a key for each node.

    Args:
        folder: must not hold an authority yet: a new one would cut off all who trust the old.
        hosts: names and addresses that silos reach the server by.
        nodes: names of the nodes, one for each silo.
        days: how long the certificates hold.

    Raises:
        CertificateError: the folder holds an authority, or a name that cannot be a file's.
    """
    if folder.authority_key.exists():
        raise CertificateError(
            f"{folder.path}: holds an authority already; choose another --out, or --add a node to it"
        )
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.nodes.mkdir(exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "confide test authority")])
    _write_secret(folder.authority_key, _private(key))
    authority = _signed(name, key, name, key, days=days, extensions=[x509.BasicConstraints(ca=True, path_length=0)])
    folder.authority.write_bytes(_pem(authority))
    server = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "confide server")])
    names = x509.SubjectAlternativeName([_alternative(host) for host in dict.fromkeys((*hosts, *_LOOPBACK))])
    _write_secret(folder.server_key, _private(server))
    signed = _signed(subject, server, name, key, days=days, extensions=[names, x509.BasicConstraints(False, None)])
    folder.server.write_bytes(_pem(signed))
    tasks = ed25519.Ed25519PrivateKey.generate()
    _write_secret(folder.signing_key, _private(tasks))
    for node in nodes:
        add_node(folder, node)


def signing_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """Reads the key that the server signs tasks with.

    Raises:
        CertificateError: it is missing, readable by others, or of another kind.
    """
    require_secret(path)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise CertificateError(f"{path}: holds no private key; make one with: confide certs") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise CertificateError(f"{path}: not an Ed25519 key, which tasks are signed with")
    return key


def public_hex(path: Path) -> str:
    """What silos name the server of a signing key by, in their policies."""
    return signing_key(path).public_key().public_bytes_raw().hex()


def add_node(folder: Folder, name: str) -> None:
    """Makes the key of one more node.

    Raises:
        CertificateError: there is one of that name, or it cannot be a file's name.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 64:
        raise CertificateError(f"node {name[:40]!r}: use up to 64 letters, digits, - or _")
    if folder.node_key(name).exists():
        raise CertificateError(f"{folder.node_key(name)}: is there already; choose another name")
    folder.nodes.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP384R1())  # The one kind of key that Flower's nodes take.
    _write_secret(folder.node_key(name), _private(key, openssh=True))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    folder.node(name).write_bytes(public + b"\n")


def require_secret(path: Path) -> None:
    """Requires a key file that its owner alone can read.

    Raises:
        CertificateError: missing, or readable by others.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read ({error.strerror}); make keys with: confide certs") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise CertificateError(f"{path}: others can read this key (mode {mode & 0o777:03o}); chmod 600 it")


def require_node_key(path: Path) -> None:
    """Requires a node's key, secret and of the kind that Flower's nodes take.

    Raises:
        CertificateError: it is not.
    """
    require_secret(path)
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise CertificateError(f"{path}: no private key in OpenSSH's form; make one with: confide certs") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path}: not an EC key, which nodes need; make one with: confide certs")


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _signed(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    *,
    days: int,
    extensions: Sequence[x509.ExtensionType],
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # Clocks of silos differ a little.
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    if subject == issuer:  # Python 3.13 on refuses an authority that does not say it signs.
        builder = builder.add_extension(_signs(), critical=True)
    return builder.sign(signer, hashes.SHA384())


def _signs() -> x509.KeyUsage:
    others = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    return x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, decipher_only=False, **others)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, *, openssh: bool = False) -> bytes:
    form = serialization.PrivateFormat.OpenSSH if openssh else serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write_secret(path: Path, data: bytes) -> None:
    """Never readable by others, not even while it is written."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
