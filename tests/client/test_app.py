"""The relay as Flower calls it: letters in, letters out, whatever is in them; no torch, and no rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from client.errors import DataError
from strategies.envelope import Task, decode_reply, encode

ROOT = Path(__file__).resolve().parents[2]
TASK = encode(Task(kind="close", run="ab" * 16, digest="cd" * 32))


@pytest.fixture(autouse=True)
def _no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONFIDE_SOCKET", raising=False)


def test_the_relay_loads_no_torch() -> None:
    code = (
        "import sys; import client.app; slow = {'torch', 'opacus', 'scipy', 'sklearn'} & set(sys.modules); "
        "sys.exit(str(slow) if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_letter_of_another_form_is_refused_in_a_letter() -> None:
    from flwr.app import Array, ArrayRecord, RecordDict

    from client.app import _answered

    for content in (
        RecordDict(),
        RecordDict({"envelope": ArrayRecord({"envelope": Array("uint8", (3,), "numpy.ndarray", b"abc")})}),
        RecordDict({"other": ArrayRecord({"envelope": Array("uint8", (3,), "confide.envelope", b"abc")})}),
    ):
        assert decode_reply(_answered(content, {"socket": "/nowhere"})).code == "malformed"


def test_the_letters_of_both_sides_are_alike() -> None:
    from client.app import _answered, _letter
    from server.flower import letter, opened

    assert opened(_letter(TASK)) == TASK
    reply = decode_reply(_answered(letter(TASK), {}))
    assert (reply.code, reply.run) == ("silo_unreachable", "")  # It got as far as looking for the socket.
    assert "no socket" in reply.reason


def test_where_the_daemon_is_comes_from_the_nodes_own_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    from client.app import place_of

    assert place_of({"socket": "/run/a"}).path == "/run/a"
    monkeypatch.setenv("CONFIDE_SOCKET", "/run/b")
    assert place_of({}).path == "/run/b"
    assert place_of({"address": "h:1", "ca": "a", "cert": "b", "key": "c"}).address == "h:1"
    with pytest.raises(DataError, match="needs cert"):
        place_of({"address": "h:1", "ca": "a"})
