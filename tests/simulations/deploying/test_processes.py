"""Programs end with whoever started them, and what they started ends, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from simulations.deploying import bound
from simulations.deploying.processes import BOUND, ProcessError, Program, executable, free_ports, listens

PARENT = """
import subprocess, sys
sleep = "import time; time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""

STARTS = """
import sys, time
from pathlib import Path
from simulations.deploying.processes import Program
program = Program("child", [sys.executable, "-c", sys.argv[1]], log=Path(sys.argv[2]), environment={})
program.until(lambda: "up" in program.printed(), timeout_s=30, what="it printed")
print(program.pid, flush=True)
time.sleep(600)
"""
STUBBORN = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
ROOT = str(Path(__file__).resolve().parents[3])
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="this machine cannot: no kernel but Linux ties programs")


def gone(pid: int, *, timeout_s: float = 30.0) -> bool:
    """Whether a process ends in time, which would be at once on a machine with nothing else to do."""
    deadline = time.monotonic() + timeout_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_program_takes_what_it_started_with_it(tmp_path: Path) -> None:
    with Program("parent", [sys.executable, "-c", PARENT], log=tmp_path / "log", environment={}) as program:
        program.until(lambda: program.printed().strip() != "", timeout_s=30, what="it printed")
        child = int(program.printed())
        assert alive(child)
        assert set(program.family()) == {program.pid, child}
    assert program.ended is not None
    assert program.family() == []
    assert not alive(child)


@LINUX
def test_a_program_dies_with_a_parent_that_is_killed_whatever_it_ignores(tmp_path: Path) -> None:
    """Nobody is left to stop it, it has a session of its own, and it does not mind any signal that can be minded."""
    command = [sys.executable, "-c", STARTS, STUBBORN, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT}) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    assert gone(child)


@LINUX
def test_who_is_orphaned_before_the_kernel_was_asked_does_not_begin(tmp_path: Path) -> None:
    """The parent that is named is not the one that there is: as where it died between fork and prctl."""
    mark = tmp_path / "begun"
    command = [sys.executable, "-IS", str(BOUND), "1" if os.getppid() != 1 else "2", "/usr/bin/touch", str(mark)]
    assert subprocess.run(command).returncode == bound.ORPHANED
    assert not mark.exists()
    command[3] = str(os.getpid())
    assert subprocess.run(command).returncode == 0
    assert mark.exists()


def test_the_end_of_a_thread_is_not_taken_for_the_end_of_its_process(tmp_path: Path) -> None:
    """The kernel would: it goes by the thread that forked."""
    said: list[str] = []

    def starts() -> None:
        with pytest.raises(ProcessError, match="child: is to be started from the main thread") as caught:
            Program("child", ["/bin/true"], log=tmp_path / "log", environment={})
        said.append(str(caught.value))

    thread = threading.Thread(target=starts)
    thread.start()
    thread.join()
    assert len(said) == 1
    assert not (tmp_path / "log").exists()


def test_a_program_is_what_was_asked_for_and_minds_what_programs_do(tmp_path: Path) -> None:
    """Its arguments are its own, and a pipe that nobody reads ends it: Python, which it was, had that ignored."""
    shell = ["/bin/sh", "-c", 'cat "/proc/$$/cmdline" | tr "\\0" "|"; kill -PIPE $$; echo survived']
    with Program("shell", shell, log=tmp_path / "log", environment={}) as program:
        program.until(lambda: program.ended is not None, timeout_s=30, what="it ended")
    assert program.ended == -signal.SIGPIPE
    assert program.printed().startswith("/bin/sh|-c|")
    assert "survived" not in program.printed().split("|")[-1]


def test_a_program_that_is_not_there_is_a_line_in_its_log(tmp_path: Path) -> None:
    with (
        Program("none", [str(tmp_path / "none")], log=tmp_path / "log", environment={}) as program,
        pytest.raises(ProcessError, match="none: ended with code 127 before it was up"),
    ):
        program.until(lambda: False, timeout_s=30, what="it was up")
    assert program.printed() == f"{tmp_path / 'none'}: cannot be started (No such file or directory)\n"


def test_a_program_that_ends_too_soon_says_where_to_look(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('no'); sys.exit(3)"]
    with (
        Program("short", command, log=tmp_path / "log", environment={}) as program,
        pytest.raises(ProcessError, match=f"short: ended with code 3 before it was up; see {tmp_path / 'log'}"),
    ):
        program.until(lambda: False, timeout_s=30, what="it was up")
    assert program.printed() == "no\n"


def test_a_program_that_is_not_ready_in_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        Program("slow", command, log=tmp_path / "log", environment={}) as program,
        pytest.raises(ProcessError, match=r"it was up took more than 0\.2 s"),
    ):
        program.until(lambda: False, timeout_s=0.2, what="it was up")
    assert program.ended == -15


def test_an_environment_is_added_to_ours(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os; print(os.environ['HOME'], os.environ['CONFIDE_TEST'])"]
    with Program("told", command, log=tmp_path / "log", environment={"CONFIDE_TEST": "x"}) as program:
        program.until(lambda: program.printed().endswith("\n"), timeout_s=30, what="it printed")
    assert program.printed() == f"{os.environ['HOME']} x\n"


def test_ports_are_free_and_differ() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert not any(listens("127.0.0.1", port) for port in ports)


def test_what_is_not_installed() -> None:
    with pytest.raises(ProcessError, match="confide-no-such-program: not found"):
        executable("confide-no-such-program")
