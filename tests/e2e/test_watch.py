"""`confide watch` beside a run that goes on, is killed and is resumed: real processes, a real terminal."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIDE = [sys.executable, "-W", "error", "-m", "simulations"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "TERM": "xterm-256color"}
TIMEOUT_S = 60
STARTED = []
SLOW = ["run", "quickstart", "--out", "run", "--set", "rounds=100000", "--quiet"]


def start(folder, *argv, **options):
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("COLUMNS", "LINES", "LC_ALL")}
    STARTED.append(subprocess.Popen([*CONFIDE, *map(str, argv)], cwd=folder, env=environment, **pipes))
    return STARTED[-1]


class Terminal:
    """`confide watch` in a terminal of 80 columns."""

    def __init__(self, folder, *argv):
        self.here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(there)
        self.there, self.text = there, ""
        self.process = start(folder, "watch", *argv, stdin=there, stdout=there, stderr=there)

    def until(self, *words):
        """Reads until all words were shown since the last time."""
        seen, end = "", time.monotonic() + TIMEOUT_S
        while not all(word in seen for word in words):
            assert time.monotonic() < end, (words, seen[-3000:])
            ready, _, _ = select.select([self.here], [], [], 1.0)
            seen += os.read(self.here, 65536).decode(errors="replace") if ready else ""
        self.text += seen
        return seen

    def left(self):
        """Waits for the end; returns the exit code and whether the terminal is as it was."""
        end = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < end
            if select.select([self.here], [], [], 0.1)[0]:
                self.text += os.read(self.here, 65536).decode(errors="replace")
        while select.select([self.here], [], [], 0)[0]:
            self.text += os.read(self.here, 65536).decode(errors="replace")
        same = termios.tcgetattr(self.there) == self.before
        os.close(self.here)
        os.close(self.there)
        return self.process.returncode, same


def grown(file, size, training):
    """Waits until a run wrote more."""
    end = time.monotonic() + TIMEOUT_S
    while file.stat().st_size <= size:
        assert training.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.integration
def test_watch_follows_a_run_from_before_it_begins_through_a_kill_and_a_resume_to_its_end(tmp_path):
    view = Terminal(tmp_path, "run", "--wait", "--every", "0.05")
    view.until("waiting for a run to begin")
    training = start(tmp_path, *SLOW)
    view.until("quickstart", "running", "/100000", "whole silo", "; end ")
    training.kill()
    training.wait(TIMEOUT_S)
    view.until("nobody here runs it")
    before = (tmp_path / "run" / "rounds.jsonl").read_bytes()
    training = start(tmp_path, "run", "--resume", "run", "--quiet")
    view.until("running, last round 0 s ago")
    grown(tmp_path / "run" / "rounds.jsonl", len(before), training)  # Else the signal may come before it listens to it.
    training.send_signal(signal.SIGINT)
    assert training.wait(TIMEOUT_S) == 130
    code, same = view.left()
    assert (code, same) == (0, True)
    rounds = json.loads((tmp_path / "run" / "result.json").read_text())["rounds"]
    assert (tmp_path / "run" / "rounds.jsonl").read_bytes().startswith(before)
    assert f"run: stopped after round {rounds}: interrupted, accuracy 0." in view.text
    assert "Traceback" not in view.text


@pytest.fixture(autouse=True)
def ended():
    """Whatever a test that fails leaves behind."""
    STARTED.clear()
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
        process.wait(TIMEOUT_S)


@pytest.mark.integration
def test_whoever_leaves_does_not_touch_the_run(tmp_path):
    training = start(tmp_path, *SLOW)
    rounds = tmp_path / "run" / "rounds.jsonl"
    for leave in ("q", signal.SIGINT, signal.SIGTERM):
        view = Terminal(tmp_path, "run", "--wait")
        view.until("running")
        if isinstance(leave, signal.Signals):
            view.process.send_signal(leave)
        else:
            os.write(view.here, leave.encode())
        assert view.left() == (0, True)
        assert "\x1b[?1049l" in view.text  # The screen that was there before is back.
        grown(rounds, rounds.stat().st_size, training)
    training.send_signal(signal.SIGINT)
    assert training.wait(TIMEOUT_S) == 130
