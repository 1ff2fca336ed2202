"""Whether keys, certificates and policy are fit to be used: the files of `confide doctor --deploy`."""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from simulations.deploying.certificates import CertificateError, Folder, public_hex, require_secret
from simulations.deploying.checking import Check
from simulations.deploying.flower import Address
from strategies.schema import ConfigError

SOON = timedelta(days=30)


def certificates(folder: Folder, server: Address | None, now: datetime | None = None) -> Iterator[Check]:
    """The folder of `confide certs` on a server, or what of it a silo has.

    Args:
        folder: its files.
        server: the fleet address that silos use, whose host the certificate must name; None: not looked at.
        now: the time; None for the clock's.
    """
    moment = datetime.now(UTC) if now is None else now
    authority = yield from _certificate("authority", folder.authority, moment)
    if folder.server.exists():
        found = yield from _certificate("certificate", folder.server, moment)
        if found is not None and authority is not None:
            yield _chain(found, authority, folder)
            yield _names(found, server)
            yield _pair(found, folder)
    yield from keys(folder)


def _certificate(what: str, path: Path, now: datetime) -> Generator[Check, None, x509.Certificate | None]:
    """Its dates; returns it, or None."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no PEM certificate"
        yield Check(what, "problem", f"{path}: cannot be read ({why}); get it from whoever ran confide certs")
        return None
    starts, ends = found.not_valid_before_utc, found.not_valid_after_utc
    if not starts <= now:
        yield Check(
            what, "problem", f"{path}: holds from {starts:%Y-%m-%d %H:%M} UTC on; is this machine's clock right?"
        )
    elif not now < ends:
        yield Check(what, "problem", f"{path}: expired on {ends:%Y-%m-%d}; make new ones with: confide certs")
    elif not now + SOON < ends:
        yield Check(what, "warning", f"{path}: expires on {ends:%Y-%m-%d}; make new ones with: confide certs")
    else:
        yield Check(what, "ok", f"{path}: holds until {ends:%Y-%m-%d}")
    return found


def _chain(found: x509.Certificate, authority: x509.Certificate, folder: Folder) -> Check:
    try:
        found.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        told = f"{folder.authority} has not signed {folder.server}; give silos the ca.pem of the one that has"
        return Check("chain", "problem", told)
    return Check("chain", "ok", "the authority has signed it")


def _names(found: x509.Certificate, server: Address | None) -> Check:
    try:
        listed = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Check("host name", "problem", "it names no host; make it with: confide certs --host NAME")
    names: list[str] = listed.get_values_for_type(x509.DNSName)
    addresses = [str(each) for each in listed.get_values_for_type(x509.IPAddress)]
    told = f"it is for {', '.join([*names, *addresses])}"
    if server is None:
        return Check("host name", "ok", told)
    host = server.host.lower()
    if _is_address(host):
        fits = str(ipaddress.ip_address(host)) in addresses
    else:
        fits = host in names or f"*.{host.partition('.')[2]}" in names
    if fits:
        return Check("host name", "ok", told)
    return Check("host name", "problem", f"{told}, not for {host}; make it with: confide certs --host {host}")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _pair(found: x509.Certificate, folder: Folder) -> Check:
    """Whether certificate and key are of one pair."""
    try:
        key = serialization.load_pem_private_key(folder.server_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        return Check("server key", "problem", f"{folder.server_key}: cannot be read; make it with: confide certs")
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != found.public_key().public_bytes(*form):
        return Check("server key", "problem", f"{folder.server_key}: not the key of {folder.server}; take both of one")
    return Check("server key", "ok", "is the certificate's")


def keys(folder: Folder) -> Iterator[Check]:
    """Who can read the keys, and whether those of nodes are where they do not belong."""
    secret = sorted([*folder.path.glob("*.key"), *folder.nodes.glob("*.key")])
    wrong = 0
    for path in secret:
        try:
            require_secret(path)
        except CertificateError as error:
            wrong += 1
            yield Check("key", "problem", str(error))
    if not wrong:
        yield Check("keys", "ok", f"{len(secret)} in {folder.path}, for their owner alone")
    here = sorted(path.name for path in folder.nodes.glob("*.key"))
    if here and folder.server_key.exists():
        told = f"{', '.join(here)}: on the server, too; give each to its silo alone, and remove it here"
        yield Check("node keys", "warning", told)


def policy(path: Path, folder: Folder | None) -> Iterator[Check]:
    """What a silo allows: whether it can be read, changed by others, and used without a signature.

    Args:
        path: of the policy.
        folder: where the server's signing key may be, to compare; None: nothing to compare.
    """
    from client.policy import read_policy

    try:
        mode = path.stat().st_mode
        found = read_policy(path)
    except (OSError, ConfigError) as error:
        lines = error.problems if isinstance(error, ConfigError) else [f"{path}: cannot be read ({error.strerror})"]
        yield from (Check("policy", "problem", line) for line in lines)
        return
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Check("policy", "problem", f"{path}: others can change it; chmod go-w it")
    else:
        yield Check("policy", "ok", f"{path}: can be read, and changed by its owner alone")
    if not found.server_keys:
        yield Check("server_keys", "warning", "none: whoever reaches the socket may ask; name the server's key")
    elif folder is not None and folder.signing_key.exists():
        yield _signer(folder, found.server_keys)
    for name in ("unprotected", "simulated_noise", "dry_run"):
        if getattr(found, name):
            yield Check(name, "warning", f"true in {path}: for tests; remove it where rows are real")


def _signer(folder: Folder, allowed: tuple[str, ...]) -> Check:
    try:
        mine = public_hex(folder.signing_key)
    except CertificateError as error:
        return Check("server_keys", "problem", str(error))
    if mine in allowed:
        return Check("server_keys", "ok", f"the key of {folder.signing_key} is among them")
    return Check("server_keys", "problem", f"{folder.signing_key} is not among them; add {mine}")
