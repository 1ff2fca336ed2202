"""A server and three silos on machines of their own: addresses, TLS, a slow wire that loses packets, a silo cut off."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from privacy.ledger import read as read_ledger
from simulations.deploying import certificates
from simulations.deploying.processes import Program
from simulations.deploying.submitting import BUNDLE
from tests.e2e.machines import Machine, Network, Wire, require

pytestmark = pytest.mark.integration

SILOS, PORT, CONTROL = 3, 9092, 9093
POLICY = """\
silo: {epsilon: 50, delta: 0.0001, least_noise: 2, most_clip_norm: 0.5}
strategies: [fedavg]
tasks: [logistic]
"""
WORDS = (b"features", b"kind: digits", b"fedavg")  # Of an experiment, which is sent to every silo.
TALK = """
import socket, sys
with socket.create_server(("10.77.0.1", 7000)) as server:
    print("ready", flush=True)
    with server.accept()[0] as caller:
        data = b"".join(iter(lambda: caller.recv(65536), b""))
        print(len(data), data[:8], flush=True)
"""
CALL = """
import socket
with socket.create_connection(("10.77.0.1", 7000), timeout=60) as there:
    there.sendall(b"features" * 25000)
"""
REACH = """
import socket, sys
try:
    socket.create_connection(("10.77.0.1", int(sys.argv[1])), timeout=20).close()
except ConnectionRefusedError:
    sys.exit(7)
"""


@pytest.fixture
def network() -> Iterator[Network]:
    require()
    with Network() as found:
        yield found
    assert [each.name for each in found.programs if each.family()] == []


def wait(ready: Callable[[], bool], what: str, *, most_s: float = 120.0, alive: Program | None = None) -> None:
    ends = time.monotonic() + most_s
    while not ready():
        assert time.monotonic() < ends, what
        assert alive is None or alive.ended is None, f"{what}: {alive.printed()[-2000:]}"
        time.sleep(0.05)


def talk(network: Network, machines: list[Machine], folder: Path, wire: Wire, *, cut: bool = False) -> str:
    """What machine 0 hears of 200,000 bytes from machine 1."""
    python = [sys.executable, "-c"]
    with machines[0].start("hear", [*python, TALK], log=folder / "heard", environment={}) as hear:
        wait(lambda: "ready" in hear.printed(), "listens", alive=hear)
        with machines[1].start("say", [*python, CALL], log=folder / "said", environment={}) as say:
            if cut:
                wire.cut(machines[1])
                before = wire.lost + wire.carried
                wait(lambda: wire.lost + wire.carried > before, "a packet that nobody gets")
                assert hear.ended is None
                wire.mend(machines[1])
            wait(lambda: hear.ended is not None, "heard")
            wait(lambda: say.ended is not None, "said")
            assert say.ended == 0
    return hear.printed().splitlines()[-1]


@pytest.mark.parametrize("cut", [False, True])
def test_the_wire_loses_packets_which_kernels_send_again(network: Network, tmp_path: Path, cut: bool) -> None:
    """About 150 packets each way, a twentieth of them lost: that none is has a chance of 0.95^150 = 5e-4."""
    wire, machines = network.build(2, delay_s=0.002, loss=0.05, words=WORDS)
    assert talk(network, machines, tmp_path, wire, cut=cut) == "200000 b'features'"
    assert wire.lost > 0
    assert wire.read == {b"features"}  # Without TLS whoever is on the wire can read.


@dataclass
class Site:
    """A federation on machines of its own."""

    folder: Path
    machines: list[Machine]
    files: certificates.Folder
    network: Network

    def confide(self, machine: int, name: str, *words: object) -> Program:
        command = [sys.executable, "-m", "simulations", *map(str, words)]
        environment = {"PYTHONPATH": str(BUNDLE), "CONFIDE_HOME": str(self.folder / f"home-{machine}")}
        program = self.machines[machine].start(name, command, log=self.folder / f"{name}.log", environment=environment)
        return self.network.run(program)

    def silo(self, number: int) -> None:
        """Starts the daemon and the node of a silo, on one machine."""
        home = self.folder / f"silo-{number}"
        home.mkdir(mode=0o700)
        policy, socket = home / "policy.yaml", self.folder / f"{number}.sock"
        policy.write_text(f"{POLICY}server_keys: ['{certificates.public_hex(self.files.signing_key)}']\n")
        daemon = self.confide(
            1 + number, f"daemon-{number}", "silo", "--data", "digits", "--number", number, "--policy", policy,
            "--socket", socket, "--folder", home,
        )  # fmt: skip
        wait(lambda: "answers at" in daemon.printed(), "the daemon answers", alive=daemon)
        node = self.confide(
            1 + number, f"join-{number}", "join", "--server", f"{self.machines[0].address}:{PORT}", "--socket", socket,
            "--ca", self.files.authority, "--key", self.files.node_key(f"silo-{number}"),
        )  # fmt: skip
        self.nodes.append(node)

    def __post_init__(self) -> None:
        self.nodes: list[Program] = []


def rows(run: Path) -> list[dict[str, Any]]:
    path = run / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def begun(run: Path) -> int:
    """The round that silos were asked in last."""
    book = run / "federation.json"
    return int(json.loads(book.read_text())["round"]) if book.exists() else 0


def reach(machine: Machine, port: int, log: Path) -> int | None:
    with machine.start("reach", [sys.executable, "-c", REACH, str(port)], log=log, environment={}) as program:
        wait(lambda: program.ended is not None, "tried")
    return program.ended


def test_a_silo_that_is_cut_off_in_a_round_is_counted_and_comes_back(network: Network, tmp_path: Path) -> None:
    """Private rounds over TLS between four addresses, 10 ms each way, one packet in 100 lost.

    Silo 2 is cut off once round R is asked, and back after it. Round R has not its update, a later one has; what it was
    asked it has paid; the run is told to stop, and every program with it.
    """
    wire, machines = network.build(1 + SILOS, delay_s=0.01, loss=0.01, words=WORDS)
    files = certificates.Folder(tmp_path / "certs")
    certificates.make(files, hosts=[machines[0].address], nodes=[f"silo-{number}" for number in range(SILOS)], days=1)
    site, run = Site(tmp_path, machines, files, network), tmp_path / "run"
    changes = [f"data.silos={SILOS}", "cohort.rate=1", "rounds=40", "engine.deadline_s=30", "privacy.audit.canaries=0"]
    server = site.confide(0, "serve", "serve", "--certs", files.path, "--address", f"{machines[0].address}:{PORT}")
    wait(lambda: "start runs with" in server.printed(), "the server listens", alive=server)
    for number in range(SILOS):
        site.silo(number)
    for node in site.nodes:
        wait(lambda each=node: "confide: joined" in each.printed(), "the node joins", alive=node)  # type: ignore[misc]
    assert reach(machines[1], PORT, tmp_path / "reach") == 0
    assert reach(machines[1], CONTROL, tmp_path / "reach") == 7  # Whoever starts runs sits at the server.

    settings = [word for change in changes for word in ("--set", change)]
    order = site.confide(0, "run", "run", "quickstart", "--engine", "flower", "--out", run, "--quiet", *settings)
    wait(lambda: any(row["arrived"] == SILOS for row in rows(run)), "a whole round", alive=order)
    whole = rows(run)[-1]["round"]
    wait(lambda: begun(run) > whole, "the next round", alive=order)
    cut = begun(run)
    wire.cut(machines[3])
    wait(lambda: rows(run)[-1]["round"] >= cut, "the round ends without it", alive=order)
    wire.mend(machines[3])
    missed = rows(run)[cut - 1]
    assert missed["round"] == cut
    assert missed["arrived"] <= SILOS - 1
    assert missed["failure_reasons"]["no answer by the deadline"] >= 1
    back = rows(run)[-1]["round"]
    wait(lambda: any(row["arrived"] == SILOS for row in rows(run)[back:]), "it is back", alive=order)
    os.kill(order.pid, signal.SIGINT)
    wait(lambda: order.ended is not None, "the run stops")
    assert order.ended == 130

    result = json.loads((run / "result.json").read_text())
    assert result["engine"] == "flower"
    done = rows(run)
    assert result["updates"]["arrived"] == sum(row["arrived"] for row in done)
    [ledger] = (tmp_path / "silo-2" / "ledgers").glob("*.jsonl")
    paid = {line["round"] for line in read_ledger(ledger) if line["kind"] == "reserve" and line["unit"] == "silo"}
    assert paid >= {row["round"] for row in done if row["arrived"] == SILOS}
    assert wire.read == set()
    assert wire.lost > 0
