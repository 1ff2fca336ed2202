"""Whether this machine is ready to serve a federation or to join one: `confide doctor --deploy`, but for its files."""

from __future__ import annotations

import ctypes
import ipaddress
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simulations.deploying.flower import CONTROL_PORT, FLEET_PORT, Address
from simulations.deploying.probing import Refused, local, probe
from simulations.deploying.processes import ProcessError, executable, listens

Level = Literal["ok", "warning", "problem"]
PROGRAMS = ("flwr", "flower-superlink", "flower-supernode", "flower-superexec")
LISTENING = "0A"  # As /proc/net/tcp writes it.
TIME_ERROR, TIMEX_BYTES = 5, 512  # Of adjtimex(2); the structure has 208 bytes.
ANSWER_S = 5.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: its name.
        level: a problem keeps a federation from working, or from being safe.
        found: in words, with the remedy where it is not as it should be.
    """

    what: str
    level: Level
    found: str


def programs() -> Iterator[Check]:
    """Flower's own, which are started by name."""
    for name in PROGRAMS:
        try:
            yield Check(f"program {name}", "ok", executable(name))
        except ProcessError as error:
            yield Check(f"program {name}", "problem", str(error))


def ports(tables: Path = Path("/proc/net")) -> Iterator[Check]:
    """Who listens on the two ports of a server, and whether runs can be started from other machines."""
    heard = list(listeners(tables))
    for name, port in (("fleet port", FLEET_PORT), ("control port", CONTROL_PORT)):
        hosts = sorted({host for host, where in heard if where == port})
        open_ = [host for host in hosts if not ipaddress.ip_address(host).is_loopback]
        what = f"{name} {port}"
        if not hosts:
            yield Check(what, "ok", "free")
        elif open_ and port == CONTROL_PORT:
            found = f"open at {', '.join(open_)}: whoever reaches it starts runs on every node; confide serve has it"
            yield Check(what, "problem", f"{found} on loopback, so stop whoever listens there")
        else:
            beyond = f"reached from outside, at {', '.join(open_)}" if open_ else "on loopback alone"
            yield Check(what, "ok", f"somebody listens, {beyond}; for a second server choose another port")


def listeners(tables: Path) -> Iterator[tuple[str, int]]:
    """Address and port of all that listen on this machine, as the kernel's tables have them."""
    for table in ("tcp", "tcp6"):
        path = tables / table
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, where, _, state, *_ = line.split()
            if state == LISTENING:
                host, _, port = where.partition(":")
                yield _address(host), int(port, 16)


def _address(words: str) -> str:
    """An address in the kernel's hexadecimal, whose words of 32 bits are little-endian.

    >>> _address("0100007F"), _address("00000000000000000000000001000000"), _address("0000000000000000FFFF00000100007F")
    ('127.0.0.1', '::1', '127.0.0.1')
    """
    raw = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    if len(raw) == 4:
        return str(ipaddress.IPv4Address(raw))
    six = ipaddress.IPv6Address(raw)
    return str(six.ipv4_mapped or six)


def server(address: Address, authority: Path | None) -> Iterator[Check]:
    """Whether a server can be joined from here, and nothing but joined.

    Args:
        address: its fleet address.
        authority: what it is trusted by; None for a plain connection.
    """
    what = f"server {address}"
    try:
        probe(address, authority)
        trusted = "its certificate is trusted" if authority is not None else "TLS not looked at; give --certs"
        yield Check(what, "ok" if authority is not None or address.loopback else "warning", f"answers; {trusted}")
    except Refused as error:
        yield Check(what, "problem", str(error))
        return
    if not address.loopback:
        what = f"its control port {CONTROL_PORT}"
        if listens(address.host, CONTROL_PORT):
            yield Check(what, "problem", "can be reached from here, so anybody can start runs; have it closed")
        else:
            yield Check(what, "ok", "cannot be reached from here")


def clock() -> Check:
    """Whether something sets this machine's clock: certificates hold between two times of day."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    except (OSError, AttributeError):
        return Check("clock", "warning", "the system does not say whether it is set; compare it with the server's")
    if not 0 <= state < TIME_ERROR:
        return Check("clock", "warning", "nothing sets it, says the kernel; run chrony or systemd-timesyncd")
    return Check("clock", "ok", "set from a time server, says the kernel")


def daemon(path: str, version: str) -> Iterator[Check]:
    """Whether a silo's daemon answers at its socket, as what, and who may ask it.

    Args:
        path: of the socket.
        version: of confide here, which the daemon's has to be.
    """
    what = f"silo at {path}"
    try:
        local(path)
        yield Check(what, *_said(path, version))
    except Refused as error:
        yield Check(what, "problem", str(error))
        return
    mode = stat.S_IMODE(Path(path).stat().st_mode)
    shut = not mode & stat.S_IRWXO
    found = f"mode {mode:03o}" + ("" if shut else ": any user may ask; start confide silo with --socket-mode 660")
    yield Check("socket", "ok" if shut else "problem", found)


def _said(path: str, version: str) -> tuple[Level, str]:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from client.chunks import OPTIONS
    from client.proto.silo_pb2 import StatusRequest
    from client.proto.silo_pb2_grpc import SiloStub
    from client.sockets import Place

    try:
        with Place(path=path).channel(OPTIONS) as channel:
            asked = health_pb2.HealthCheckRequest()
            health = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=ANSWER_S)
            status = SiloStub(channel).Status(StatusRequest(), timeout=ANSWER_S)
    except grpc.RpcError as error:
        return "problem", f"does not answer as a silo ({error.code().name.lower()}); start: confide silo"
    done = f"silo {status.silo}, {status.answered} tasks answered, {status.refused} refused"
    if health.status != health_pb2.HealthCheckResponse.SERVING:
        return "problem", f"{done}; it is stopping; start it again"
    if status.version != version:
        return "problem", f"{done}; it runs confide {status.version}, here is {version}; install one on both"
    return ("warning", f"{done}; dry run: nothing leaves") if status.dry_run else ("ok", done)
