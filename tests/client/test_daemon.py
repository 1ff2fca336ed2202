"""The daemon over a real Unix socket, and over TLS: bytes in, bytes out, and who may not ask is not answered."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.chunks import OPTIONS, PIECE, joined, pieces
from client.daemon import NAME, Daemon
from client.errors import DataError
from client.office import Office
from client.policy import Policy
from client.proto.silo_pb2 import Chunk, StatusRequest
from client.proto.silo_pb2_grpc import SiloStub
from client.relay import exchange
from client.sockets import Place, Tls
from strategies.envelope import EnvelopeError, Limits, Task, decode_reply, encode, refusal

TASK = encode(Task(kind="close", run="ab" * 16, digest="cd" * 32, deadline_s=20.0))


class Echo:
    """What a daemon needs of an office: it answers with what it was given, backwards."""

    number, policy, answered, refused = 3, Policy(unprotected=True, strategies=("a",), tasks=("b",)), 5, 2

    def __init__(self, limit: int = 2**24) -> None:
        self.limits = Limits(bytes=limit)
        self.asked: list[bytes] = []
        self.cancelled: list[bool] = []
        self.go = threading.Event()
        self.go.set()

    def handle(self, data: bytes, *, cancelled: Any) -> bytes:
        self.asked.append(data)
        self.go.wait(20)
        self.cancelled.append(cancelled())
        return data[::-1]

    def refuse(self, error: EnvelopeError) -> bytes:
        return encode(refusal(error.code, error, silo=self.number))


def office(echo: Echo) -> Office:
    return cast(Office, echo)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cf") as name:  # Short: a socket's path has 107 bytes.
        yield Path(name)


def ask(place: Place, data: bytes, timeout_s: float = 20.0) -> bytes:
    with place.channel(OPTIONS) as channel:
        return joined(SiloStub(channel).Exchange(pieces(data), timeout=timeout_s), 2**24)


# Messages in pieces.


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_a_message_of_any_length_comes_whole(folder: Path, size: int) -> None:
    data = os.urandom(size)
    place = Place(path=str(folder / "s"))
    with Daemon(office(Echo()), place):
        assert ask(place, data) == data[::-1]


def test_a_message_that_is_said_to_be_too_long_is_refused_before_it_is_sent(folder: Path) -> None:
    """The first chunk says 2^40 bytes; nothing more is read, and the reply says why in words."""
    echo, place = Echo(limit=1000), Place(path=str(folder / "s"))
    with Daemon(office(echo), place), place.channel(OPTIONS) as channel:
        for chunks in ([Chunk(data=b"a", total=2**40)], [Chunk(data=b"a" * 1001, total=1001)]):
            reply = decode_reply(joined(SiloStub(channel).Exchange(iter(chunks), timeout=20), 2**20))
            assert (reply.code, reply.silo) == ("too_large", 3)
    assert echo.asked == []


@pytest.mark.parametrize("chunks", [[], [Chunk(data=b"ab", total=3)], [Chunk(data=b"abcd", total=3)]])
def test_pieces_that_are_not_what_was_announced_are_refused(chunks: list[Chunk]) -> None:
    with pytest.raises(EnvelopeError, match="announced"):
        joined(chunks, 100)


def test_one_piece_above_the_transports_limit_ends_the_call(folder: Path) -> None:
    echo, place = Echo(), Place(path=str(folder / "s"))
    with Daemon(office(echo), place), place.channel((("grpc.enable_http_proxy", 0),)) as channel:
        big = Chunk(data=b"a" * (3 * PIECE), total=3 * PIECE)
        with pytest.raises(grpc.RpcError) as caught:
            list(SiloStub(channel).Exchange(iter([big]), timeout=20))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert echo.asked == []


def test_who_never_ends_a_message_holds_no_thread(folder: Path) -> None:
    def half() -> Iterator[Chunk]:
        yield Chunk(data=b"a", total=10)
        threading.Event().wait(20)

    place = Place(path=str(folder / "s"))
    with Daemon(office(Echo()), place, receive_s=0.2), place.channel(OPTIONS) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(SiloStub(channel).Exchange(half(), timeout=15))
        assert caught.value.code() == grpc.StatusCode.CANCELLED  # By the daemon; the caller would wait for long.


def test_a_caller_who_leaves_is_known_to_have_left(folder: Path) -> None:
    echo, place = Echo(), Place(path=str(folder / "s"))
    echo.go.clear()
    with Daemon(office(echo), place):
        with place.channel(OPTIONS) as channel, pytest.raises(grpc.RpcError) as caught:
            list(SiloStub(channel).Exchange(pieces(b"a"), timeout=0.3))
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        echo.go.set()
    assert echo.cancelled == [True]


# Around the messages.


def test_health_and_status_tell_that_it_is_there(folder: Path) -> None:
    place = Place(path=str(folder / "s"))
    with Daemon(office(Echo()), place, version="1.2"), place.channel(OPTIONS) as channel:
        checked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=NAME), timeout=20)
        assert checked.status == health_pb2.HealthCheckResponse.SERVING
        status = SiloStub(channel).Status(StatusRequest(), timeout=20)
        assert (status.version, status.silo, status.answered, status.refused) == ("1.2", 3, 5, 2)


def test_the_socket_is_its_owners_alone_unless_said_otherwise(folder: Path) -> None:
    for mode in (0o600, 0o660):
        place = Place(path=str(folder / f"{mode}"))
        with Daemon(office(Echo()), place, mode=mode):
            assert stat.S_IMODE(os.stat(place.path).st_mode) == mode


def test_a_socket_that_was_left_behind_is_taken_over_and_one_in_use_is_not(folder: Path) -> None:
    place = Place(path=str(folder / "s"))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(place.path)  # And never listened on, as after kill -9.
    with Daemon(office(Echo()), place):
        with pytest.raises(DataError, match="another daemon listens"):
            Daemon(office(Echo()), place)
        assert ask(place, b"ab") == b"ba"
    file = folder / "file"
    file.write_text("rows")
    with pytest.raises(DataError, match="is no socket"):
        Daemon(office(Echo()), Place(path=str(file)))
    assert file.read_text() == "rows"


# The relay.


def test_the_relay_carries_bytes_as_they_are(folder: Path) -> None:
    echo, place = Echo(), Place(path=str(folder / "s"))
    with Daemon(office(echo), place):
        assert exchange(TASK, place) == TASK[::-1]
    assert echo.asked == [TASK]


def test_a_silo_that_is_not_there_is_a_refusal_and_no_error(folder: Path) -> None:
    reply = decode_reply(exchange(TASK, Place(path=str(folder / "nobody")), connect_s=0.2))
    assert (reply.code, reply.run, reply.silo) == ("silo_unreachable", "ab" * 16, -1)
    reply = decode_reply(exchange(b"no envelope at all", Place(path=str(folder / "nobody"))))
    assert reply.code == "malformed"


def test_a_silo_that_is_late_is_a_refusal(folder: Path) -> None:
    echo, place = Echo(), Place(path=str(folder / "s"))
    echo.go.clear()
    short = encode(Task(kind="close", run="ab" * 16, digest="cd" * 32, deadline_s=0.3))
    with Daemon(office(echo), place):
        assert decode_reply(exchange(short, place)).code == "deadline"
        echo.go.set()


# Addresses.


def certificate(folder: Path, name: str, authority: tuple[x509.Certificate, Any] | None = None) -> Any:
    """A certificate for 127.0.0.1 and its key, as files; its own authority, or signed by one."""
    key, now = ec.generate_private_key(ec.SECP384R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if authority is None else authority[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key if authority is None else authority[1], hashes.SHA384())
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(pem)
    (folder / f"{name}.key").chmod(0o600)
    return made, key


def tls(folder: Path, name: str, authority: str = "ca") -> Tls:
    return Tls(folder / f"{authority}.pem", folder / f"{name}.pem", folder / f"{name}.key")


def test_an_address_answers_whoever_has_a_certificate_of_its_authority_and_nobody_else(folder: Path) -> None:
    ca, other = certificate(folder, "ca"), certificate(folder, "other")
    for name, by in (("silo", ca), ("node", ca), ("stranger", other)):
        certificate(folder, name, by)
    with Daemon(office(Echo()), Place(address="127.0.0.1:0", tls=tls(folder, "silo"))) as daemon:
        address = f"127.0.0.1:{daemon.port}"
        assert exchange(TASK, Place(address=address, tls=tls(folder, "node"))) == TASK[::-1]
        for bad in (tls(folder, "stranger"), tls(folder, "node", "other")):  # Not trusted, and not trusting.
            reply = decode_reply(exchange(TASK, Place(address=address, tls=bad), connect_s=1.0))
            assert reply.code == "silo_unreachable"
        with grpc.insecure_channel(address, OPTIONS) as plain, pytest.raises(grpc.RpcError):
            list(SiloStub(plain).Exchange(pieces(TASK), timeout=2.0))


def test_an_address_without_certificates_and_a_key_that_others_can_read_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="needs certificates"):
        Place(address="127.0.0.1:0")
    with pytest.raises(DataError, match="socket"):
        Place()
    certificate(folder, "ca")
    (folder / "ca.key").chmod(0o640)
    with pytest.raises(DataError, match="chmod 600"):
        Daemon(office(Echo()), Place(address="127.0.0.1:0", tls=tls(folder, "ca")))
