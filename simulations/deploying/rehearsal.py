"""A whole federation on one machine, over loopback: server, silos, nodes as they run apart, and nothing left behind."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from simulations.deploying import certificates
from simulations.deploying.counting import Meter
from simulations.deploying.flower import Address, Node, Server
from simulations.deploying.probing import Refused, local
from simulations.deploying.processes import Program, free_ports
from simulations.deploying.submitting import BUNDLE, Federation

READY_S = 90.0


@dataclass(frozen=True)
class Stage:
    """What is rehearsed.

    Attributes:
        folder: of what silos keep, and of all logs.
        policies: the policy of each silo, as YAML; `server_keys` is added to them.
        data: of each silo: a file, or a data set by name.
        secure: with TLS, node keys and signed tasks.
    """

    folder: Path
    policies: Sequence[str]
    data: Sequence[str]
    secure: bool = True


@dataclass
class Running:
    """A federation that runs.

    Attributes:
        server: how its SuperLink was started.
        meter: of the bytes between nodes and server.
        superlink: the SuperLink.
        silos: the silos' daemons.
        sockets: theirs.
        files: of certificates and keys, or None.
        nodes: the silos' nodes.
    """

    server: Server
    meter: Meter
    superlink: Program
    silos: list[Program]
    sockets: Sequence[Path]
    files: certificates.Folder | None
    nodes: list[Program] = field(default_factory=list)

    @property
    def federation(self) -> Federation:
        """For `submit`."""
        return Federation(self.server.name, self.server.home)


@contextmanager
def running(stage: Stage, name: str = "rehearsal") -> Iterator[Running]:
    """Starts a federation; when this is left, however, none of its processes is there any more.

    Raises:
        ProcessError: something did not start.
    """
    count = len(stage.policies)
    stage.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        # Sockets have short names, and keys do not outlive the rehearsal.
        temporary = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="confide-")))
        files = _certificates(temporary, count) if stage.secure else None
        sockets = [temporary / f"{number}.sock" for number in range(count)]
        silos = [opened.enter_context(silo(stage, number, socket, files)) for number, socket in enumerate(sockets)]
        fleet, control, *ports = free_ports(2 + count)
        server = Server(
            name, temporary / "server", Address("127.0.0.1", fleet), control, files, printed=stage.folder / "server.log"
        )
        started = opened.enter_context(server.start())
        meter = opened.enter_context(Meter(server.fleet))
        found = Running(server, meter, started, silos, sockets, files)
        for number, socket in enumerate(sockets):
            found.silos[number].until(lambda path=socket: _answers(path), timeout_s=READY_S, what="it answered")  # type: ignore[misc]
            node = _node(stage, number, socket, files, meter, ports[number], temporary)
            program = opened.enter_context(node.start())
            found.nodes.append(program)
            program.until(node.joined, timeout_s=READY_S, what="it joined")
        yield found


def silo(stage: Stage, number: int, socket: Path, files: certificates.Folder | None) -> Program:
    """Starts the daemon of a silo."""
    home = stage.folder / f"silo-{number}"
    home.mkdir(exist_ok=True, mode=0o700)
    keys = [] if files is None else [certificates.public_hex(files.signing_key)]
    policy = home / "policy.yaml"
    policy.write_text(f"{stage.policies[number].rstrip()}\nserver_keys: {keys}\n")
    command = [sys.executable, "-m", "simulations", "silo", "--data", stage.data[number], "--number", str(number)]
    command += ["--policy", str(policy), "--socket", str(socket), "--folder", str(home)]
    there = {"PYTHONPATH": f"{BUNDLE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    return Program(f"silo {number}", command, log=stage.folder / f"silo-{number}.log", environment=there)


def _certificates(temporary: Path, count: int) -> certificates.Folder:
    files = certificates.Folder(temporary / "certs")
    certificates.make(files, hosts=[], nodes=[f"silo-{number}" for number in range(count)], days=1)
    return files


def _node(
    stage: Stage,
    number: int,
    socket: Path,
    files: certificates.Folder | None,
    meter: Meter,
    port: int,
    temporary: Path,
) -> Node:
    return Node(
        home=temporary / f"node-{number}",
        server=meter.address,
        port=port,
        socket=str(socket),
        authority=None if files is None else files.authority,
        key=None if files is None else files.node_key(f"silo-{number}"),
        printed=stage.folder / f"node-{number}.log",
    )


def _answers(socket: Path) -> bool:
    try:
        local(str(socket))
    except Refused:
        return False
    return True
