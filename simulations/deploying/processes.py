"""Programs that are started here and never left behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

PATIENCE_S = 10.0  # From the request to stop to the kill.
POLL_S = 0.1
MARKS = "CONFIDE_PROGRAMS"
BOUND = Path(__file__).with_name("bound.py")


class ProcessError(RuntimeError):
    """A program that did not start, or ended too soon; one line."""


class Program:
    """A running program. What it starts ends with it, also what went into a session or a process group of its own.

    All of it carries a mark in its environment, which is how it is found. On Linux it also ends where this process is
    killed and cannot stop it any more; see `simulations.deploying.bound`.

    Args:
        name: for messages.
        command: its name and arguments; no secret, since all users of a machine can read these.
        log: file that takes all it prints.
        environment: beside this process's own.

    Raises:
        ProcessError: started from another thread than the main one, whose end would be taken for this process's.
    """

    def __init__(self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ProcessError(f"{name}: is to be started from the main thread, since it ends with whoever started it")
        self.name, self.log, self._mark = name, log, secrets.token_hex(8)
        marks = ",".join(filter(None, (os.environ.get(MARKS), self._mark)))  # Also those of whoever started us.
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-IS", str(BOUND), str(os.getpid()), executable(command[0]), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, MARKS: marks},
                start_new_session=True,
            )

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def until(self, ready: Callable[[], bool], *, timeout_s: float, what: str) -> None:
        """Waits until it is ready.

        Raises:
            ProcessError: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.ended is not None:
                raise ProcessError(f"{self.name}: ended with code {self.ended} before {what}; see {self.log}")
            if not time.monotonic() < deadline:
                raise ProcessError(f"{self.name}: {what} took more than {timeout_s:g} s; see {self.log}")
            time.sleep(POLL_S)

    def printed(self) -> str:
        """All that it printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def family(self) -> list[int]:
        """The processes that it and those it started are; those that are dead and not yet buried are left out."""
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if self._mark in _marks(entry)]

    def stop(self) -> None:
        """Asks it to end, waits, then ends what is left of its family."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)
        while left := self.family():  # One may start another while it is looked for.
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)
        self._process.wait()


def _marks(entry: Path) -> list[str]:
    """The marks of a process, by its folder in /proc; none of one that is gone, dead, or another user's."""
    try:
        if (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return []
        environment = (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
    start = f"{MARKS}=".encode()
    return next((found[len(start) :].decode().split(",") for found in environment if found.startswith(start)), [])


def executable(name: str) -> str:
    """A program of the environment that confide runs in, else of the PATH.

    Raises:
        ProcessError: not installed.
    """
    if os.sep in name:
        return name
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ProcessError(f"{name}: not found; install flwr into the environment of confide")
    return found


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody uses at this moment, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def listens(host: str, port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False
