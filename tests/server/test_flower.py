"""Letters over Flower's grid: an answer that breaks off on its way is given up long before the deadline."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import cast

import pytest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError, pull_objects
from flwr.superlink.grid.http_grid import HttpGrid

from server.flower import PATIENCE, GridPost, opened
from tests.server.flower_grid import FakeGrid, identity


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    defaults = pull_objects.__kwdefaults__
    before = dict(defaults)
    yield
    defaults.update(before)


def missing(piece: str) -> bytes:
    raise ObjectUnavailableError(piece)


def test_who_is_sent_a_letter_has_a_quarter_of_its_time_for_all_pieces_of_an_answer() -> None:
    GridPost(cast(Grid, FakeGrid({}))).send({}, ttl_s=8.0)
    defaults = pull_objects.__kwdefaults__
    assert defaults is not None
    assert defaults["max_time"] == PATIENCE * 8.0  # Else what follows takes two hours.
    began = time.monotonic()
    with pytest.raises(ObjectPullError, match="timeout or retry limit reached"):
        pull_objects(["a piece that never comes"], missing)
    assert time.monotonic() - began >= PATIENCE * 8.0  # Whoever is slow is not cut short.


def test_flowers_grid_has_no_limit_of_its_own_for_an_answer() -> None:
    """Else ours would be for nothing: where it pulls an answer, it names two arguments."""
    source = inspect.getsource(HttpGrid.pull_messages)
    call = source[source.index("pull_objects(") : source.index("except ObjectPullError")]
    assert "max_time" not in call
    assert "max_tries" not in call


def test_what_several_nodes_get_is_one_content() -> None:
    """Flower hashes a content once, and carries it up once, where it is one object."""
    grid = FakeGrid({}.fromkeys((1, 2, 3), lambda message: []))
    with identity():
        GridPost(cast(Grid, grid)).send({1: (same := b"a model"), 2: same, 3: b"another"}, ttl_s=8.0)
    first, second, third = (message.content for message in grid.pushed)
    assert first is second
    assert third is not first
    assert [opened(content) for content in (first, third)] == [b"a model", b"another"]


WAITS = """
import os, sys, threading
from server.flower import end_with_parent
end_with_parent()
threading.Thread(target=threading.Event().wait).start()  # As Flower's, which its interpreter waits for at its end.
print(os.getpid(), flush=True)
threading.Event().wait()
"""
STARTS = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); sys.stdin.read()"


@pytest.mark.skipif(sys.platform == "win32", reason="has no such parents")
def test_a_server_app_in_a_wait_ends_with_whoever_started_it() -> None:
    command = [sys.executable, "-c", STARTS, WAITS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)  # It is there.
        parent.kill()
        try:
            assert parent.communicate(timeout=60)[0] == ""  # Returns once nobody holds the pipe: the child is gone.
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
