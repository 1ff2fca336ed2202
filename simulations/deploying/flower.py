"""Flower's SuperLink, SuperNode and `flwr`, started the way confide needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from simulations.deploying.certificates import Folder
from simulations.deploying.processes import ProcessError, Program, executable, listens
from simulations.deploying.registering import Register
from strategies.schema import ConfigError

READY_S = 60.0
FLEET_PORT, CONTROL_PORT = 9092, 9093
"""Where silos join, and where runs are started, unless other ports are chosen."""
SIGNING = "CONFIDE_SIGNING_KEY"  # The environment says where the key is: no key is in a run's configuration.
NODES = "nodes.json"  # Of a server's folder: the nodes that were let in.
JOINED = "SuperNode ID:"  # What a SuperNode prints once the SuperLink knows it.


@dataclass(frozen=True)
class Address:
    """A host and a port.

    >>> str(Address.of("127.0.0.1:9092"))
    '127.0.0.1:9092'
    """

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> Address:
        """Reads HOST:PORT; a host with colons stands in brackets.

        Raises:
            ConfigError: it is not that.
        """
        host, _, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not bare or (":" in bare and bare == host) or not port.isascii() or not port.isdigit():
            raise ConfigError([f"address: must be HOST:PORT, found {text[:80]!r}"])
        if not 0 < int(port) < 65536:
            raise ConfigError([f"address: a port is between 1 and 65535, found {port}"])
        return cls(bare, int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def environment(home: Path) -> dict[str, str]:
    """What Flower's programs are told: a home of their own, quick polls, and no calls home.

    Runtime installation is off: code that silos run is what they installed, not what a server wishes for.
    """
    return {
        "FLWR_HOME": str(home.absolute()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # It looks for its own there.
    }


@dataclass(frozen=True)
class Server:
    """How a SuperLink is run.

    Attributes:
        name: of the federation, for `confide run --federation`.
        home: its folder: database, logs, bundles, and the connection that `flwr` reads.
        fleet: where silos' nodes connect; public.
        control: port on loopback where runs are started; whoever reaches it can have code run on every node.
        certificates: of the server; None for a plain connection, on loopback only.
        printed: file that takes all it prints; None: one in `home`.
    """

    name: str
    home: Path
    fleet: Address
    control: int
    certificates: Folder | None
    printed: Path | None = None

    def __post_init__(self) -> None:
        if self.name == "default":  # In the file of connections that key says which one is meant.
            raise ConfigError(["--name: 'default' is a word of flwr's own; choose another name"])
        if self.certificates is None and not self.fleet.loopback:
            raise ConfigError(
                [f"--address: {self.fleet} can be reached from outside, which needs TLS; give --certs, or use loopback"]
            )

    @property
    def log(self) -> Path:
        """All that it prints."""
        return self.printed if self.printed is not None else self.home / "superlink.log"

    def start(self) -> Program:
        """Starts it, waits until it answers, and lets in the nodes whose keys are there, and no others.

        Raises:
            ProcessError: it did not start, or a key that was taken away is there again.
        """
        for where in (self.fleet, Address("127.0.0.1", self.control)):
            if listens("127.0.0.1" if where.host == "0.0.0.0" else where.host, where.port):
                raise ProcessError(f"{where}: somebody listens there already; choose another port")
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_connection()
        told = environment(self.home)
        if self.certificates is not None:
            told |= {SIGNING: str(self.certificates.signing_key.absolute())}
        fresh = not self._database.exists()
        program = Program("flower-superlink", self._command(), log=self.log, environment=told)
        try:
            program.until(self._answers, timeout_s=READY_S, what="it answered")
            if self.certificates is not None:
                register = Register(self.name, self.home / NODES, partial(flwr, home=self.home))
                register.allow(sorted(self.certificates.nodes.glob("*.pub")), fresh=fresh)
        except BaseException:
            program.stop()
            raise
        return program

    @property
    def _database(self) -> Path:
        return self.home / "state.db"

    def _answers(self) -> bool:
        fleet = "127.0.0.1" if self.fleet.host == "0.0.0.0" else self.fleet.host
        return listens("127.0.0.1", self.control) and listens(fleet, self.fleet.port)

    def _command(self) -> list[str]:
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.control)]
        command += ["--fleet-api-address", str(self.fleet), "--database", str(self._database.absolute())]
        command += ["--disable-runtime-dependency-installation"]
        if self.certificates is None:
            return [*command, "--insecure"]
        files = self.certificates
        command += ["--ssl-ca-certfile", str(files.authority.absolute())]
        command += ["--ssl-certfile", str(files.server.absolute()), "--ssl-keyfile", str(files.server_key.absolute())]
        return [*command, "--enable-supernode-auth"]

    def _write_connection(self) -> None:
        """What `flwr run . NAME` needs, in the folder that FLWR_HOME names."""
        lines = ["[superlink]", f"default = {quoted(self.name)}", f"[superlink.{self.name}]"]
        lines += [f'address = "127.0.0.1:{self.control}"']
        if self.certificates is None:
            lines += ["insecure = true"]
        else:
            lines += [f"root-certificates = {quoted(str(self.certificates.authority.absolute()))}"]
        (self.home / "config.toml").write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Node:
    """How a silo's SuperNode is run.

    Attributes:
        home: its folder.
        server: the fleet address of the SuperLink.
        port: on loopback, for the processes of this node.
        socket: of the silo's daemon.
        authority: certificate that the server is trusted by; None for a plain connection.
        key: the node's key, or None.
        printed: file that takes all it prints; None: one in `home`.
    """

    home: Path
    server: Address
    port: int
    socket: str
    authority: Path | None = None
    key: Path | None = None
    printed: Path | None = None

    @property
    def log(self) -> Path:
        """All that it prints."""
        return self.printed if self.printed is not None else self.home / "supernode.log"

    def start(self) -> Program:
        """Starts it; whether the server takes it shows later."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = ["flower-supernode", "--superlink", str(self.server), "--port", str(self.port)]
        command += ["--node-config", f"socket={quoted(self.socket)}"]
        command += ["--insecure"] if self.authority is None else ["--root-certificates", str(self.authority.absolute())]
        command += ["--auth-supernode-private-key", str(self.key.absolute())] if self.key is not None else []
        self.log.unlink(missing_ok=True)  # What an earlier one printed says nothing of this one.
        return Program("flower-supernode", command, log=self.log, environment=environment(self.home))

    def joined(self) -> bool:
        """Whether the server took it."""
        return self.log.exists() and JOINED in self.log.read_text(errors="replace")


def quoted(text: str) -> str:
    """A string as TOML: as JSON writes it, but with DEL escaped and letters left as they are.

    >>> print(quoted('say "hi"'))
    "say \\"hi\\""
    """
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def flwr(arguments: Sequence[str], *, home: Path, timeout_s: float = READY_S) -> subprocess.CompletedProcess[str]:
    """Runs one command of `flwr` to its end.

    Raises:
        ProcessError: it took too long.
    """
    try:
        return subprocess.run(
            [executable("flwr"), *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **environment(home)},
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise ProcessError(f"flwr {arguments[0]}: no answer within {timeout_s:g} s") from error
