"""Envelopes signed by a server, so that a silo that names its servers trains for nobody else.

    b"cfsg", public key (32 bytes), Ed25519 signature (64 bytes) over the envelope, the envelope

A signature says who wrote a task, not that it is new: rounds and attempts say that. Who carries it cannot change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from strategies.envelope_header import EnvelopeError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAGIC, KEY, SIGNATURE = b"cfsg", 32, 64
START = len(MAGIC) + KEY + SIGNATURE


def signed(envelope: bytes, key: Ed25519PrivateKey) -> bytes:
    """An envelope with the signature of a server."""
    return b"".join([MAGIC, key.public_key().public_bytes_raw(), key.sign(envelope), envelope])


def opened(data: bytes | memoryview, keys: Sequence[str]) -> memoryview:
    """The envelope in some bytes.

    Args:
        data: of any origin, signed or not.
        keys: public keys (hexadecimal) of those whose envelopes are taken; empty: all are, and signatures are skipped.

    Raises:
        EnvelopeError: not signed by one of `keys`, or changed since; its code is `signature`.
    """
    view = memoryview(data)
    if view[: len(MAGIC)] != MAGIC:
        if keys:
            raise EnvelopeError("signature: the task is not signed, and this silo names its servers", code="signature")
        return view
    if not keys:
        return view[START:]
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    whose, signature = bytes(view[len(MAGIC) : len(MAGIC) + KEY]), bytes(view[len(MAGIC) + KEY : START])
    if whose.hex() not in keys:
        raise EnvelopeError("signature: of a server that this silo does not name", code="signature")
    try:
        Ed25519PublicKey.from_public_bytes(whose).verify(signature, view[START:])
    except (InvalidSignature, ValueError) as error:
        raise EnvelopeError("signature: is not of these bytes", code="signature") from error
    return view[START:]
