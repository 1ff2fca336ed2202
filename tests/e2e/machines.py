"""Machines of their own on one: network namespaces with addresses, and a slow wire between them that loses packets.

A machine is a process that holds a namespace open, so that nothing has a name that could be left behind: when it ends,
and the programs in it, the kernel takes the namespace down. It ends with whoever made it, as it reads from a pipe.

The wire is a thread here, not `tc netem`, which kernels leave out. Each machine has a TUN device whose packets come
here, wait, are lost by chance or for being cut off, and go on to the machine whose address they bear. What the kernel
makes of that (handshakes, retransmissions, timeouts) is real. No root is needed: in its own user namespace, a machine
is its own administrator.
"""

from __future__ import annotations

import heapq
import os
import random
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from simulations.deploying.processes import Program
from tests.conftest import CANNOT

MTU, HEADER = 1400, 20
NEW = ("unshare", "--user", "--map-root-user", "--net")
TOOLS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2"}
HOLDER = """
import fcntl, os, socket, struct, subprocess, sys
address, fd = sys.argv[1], int(sys.argv[2])
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"wire", 0x1001))  # TUNSETIFF, IFF_TUN | IFF_NO_PI
for words in (f"address add {address}/24 dev wire", "link set wire mtu %d up", "link set lo up"):
    subprocess.run(["ip", *words.split()], check=True)
socket.send_fds(socket.socket(fileno=fd), [b"up"], [tun])
os.close(tun)
sys.stdin.read()  # Until nobody holds the other end.
""".replace("%d", str(MTU))


def require() -> None:
    """Skips where there can be no machines: fatally where a tool is missing, and not where the kernel has none."""
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}; install {package}")
    tried = subprocess.run([*NEW, "ip", "tuntap", "add", "dev", "wire", "mode", "tun"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"{CANNOT}: network namespaces with devices ({' '.join(tried.stderr.split())})")


class Machine:
    """A network namespace with one address.

    Args:
        address: IPv4; its network is the 256 around it.

    Attributes:
        wire: its device, from outside.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._holder = subprocess.Popen(
                [*NEW, sys.executable, "-c", HOLDER, address, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
            theirs.close()
            _, [self.wire], _, _ = socket.recv_fds(ours, 16, 1)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait()
        os.close(self.wire)

    def within(self, command: Sequence[str]) -> list[str]:
        """A command that runs a command on this machine."""
        into = ["nsenter", f"--target={self._holder.pid}", "--user", "--preserve-credentials", "--net"]
        return [*into, *command]

    def start(self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Program:
        """Starts a program on this machine; others than its own see it, but not its network."""
        return Program(name, self.within(command), log=log, environment=environment)


class Wire:
    """Carries packets between machines.

    Args:
        machines: to carry between.
        delay_s: one way.
        loss: chance of every packet to be lost.
        words: none of which anybody on the wire should be able to read.
    """

    def __init__(
        self, machines: Sequence[Machine], *, delay_s: float, loss: float, words: Sequence[bytes] = ()
    ) -> None:
        self.delay_s, self.loss, self.words = delay_s, loss, words
        self.carried = self.lost = 0
        """Packets."""
        self.read: set[bytes] = set()
        """Those of the words that went over the wire for all to read."""
        self._ends = {socket.inet_aton(machine.address): machine.wire for machine in machines}
        self._cut: set[bytes] = set()
        self._waiting: list[tuple[float, int, bytes]] = []
        self._chance, self._over = random.Random(0), threading.Event()
        self._thread = threading.Thread(target=self._carry, name="wire")

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def cut(self, machine: Machine) -> None:
        """From now on nothing reaches the machine or comes from it; nobody is told."""
        self._cut |= {socket.inet_aton(machine.address)}

    def mend(self, machine: Machine) -> None:
        """The machine is back."""
        self._cut -= {socket.inet_aton(machine.address)}

    def _carry(self) -> None:
        with selectors.DefaultSelector() as ready:
            for end in self._ends.values():
                os.set_blocking(end, False)
                ready.register(end, selectors.EVENT_READ)
            while not self._over.is_set():
                for key, _ in ready.select(self._patience()):
                    self._take(os.read(key.fd, 65536))
                while self._waiting and self._waiting[0][0] <= time.monotonic():
                    self._give(heapq.heappop(self._waiting)[2])

    def _patience(self) -> float:
        due = self._waiting[0][0] - time.monotonic() if self._waiting else 0.1
        return min(max(due, 0.0), 0.1)

    def _take(self, packet: bytes) -> None:
        if packet[0] >> 4 != 4 or len(packet) < HEADER:
            return  # The kernel's own IPv6 greetings.
        self.read |= {word for word in self.words if word in packet}
        if self._chance.random() < self.loss:
            self.lost += 1
        else:
            self.carried += 1
            heapq.heappush(self._waiting, (time.monotonic() + self.delay_s, self.carried, packet))

    def _give(self, packet: bytes) -> None:
        source, target = packet[12:16], packet[16:20]
        if target in self._ends and not self._cut & {source, target}:
            os.write(self._ends[target], packet)


class Network(ExitStack):
    """Machines on one wire, and the programs that run there; all of it is gone when this is left."""

    def __init__(self) -> None:
        super().__init__()
        self.programs: list[Program] = []

    def run(self, program: Program) -> Program:
        """Keeps a program until this is left."""
        self.programs.append(self.enter_context(program))
        return program

    def build(
        self, count: int, *, delay_s: float, loss: float, words: Sequence[bytes] = ()
    ) -> tuple[Wire, list[Machine]]:
        """Machines 10.77.0.1, 10.77.0.2 and so on."""
        machines = [self.enter_context(Machine(f"10.77.0.{number}")) for number in range(1, count + 1)]
        return self.enter_context(Wire(machines, delay_s=delay_s, loss=loss, words=words)), machines
