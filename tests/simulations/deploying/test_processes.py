"""Programs end with whoever started them, and what they started ends, too."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from simulations.deploying.processes import ProcessError, Program, executable, free_ports, listens

PARENT = """
import subprocess, sys
sleep = "import time; time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


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
