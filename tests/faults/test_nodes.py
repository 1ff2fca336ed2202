"""Nodes that may not join, or not any more, or not as often as they like: a real SuperLink and real SuperNodes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from simulations.deploying.certificates import Folder, make
from simulations.deploying.flower import Address, Node, Server, flwr
from simulations.deploying.processes import ProcessError, Program, free_ports
from simulations.deploying.registering import last_json

pytestmark = pytest.mark.integration

WAIT_S = 90.0


class Place:
    """A server of two nodes, `one` and `two`, that can be started again and again."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self.folder, self.opened = folder, opened
        self.files = Folder(folder / "certs")
        make(self.files, hosts=[], nodes=["one", "two"], days=1)
        fleet, control = free_ports(2)
        self.server = Server("tested", folder / "server", Address("127.0.0.1", fleet), control, self.files)

    def node(self, name: str, home: str) -> tuple[Node, Program]:
        """A node with the key of a name; its socket is asked only once somebody asks a silo."""
        there = Node(
            home=self.folder / home,
            server=self.server.fleet,
            port=free_ports(1)[0],
            socket=str(self.folder / "none.sock"),
            authority=self.files.authority,
            key=self.files.node_key(name),
        )
        return there, self.opened.enter_context(there.start())

    def listed(self) -> Sequence[str]:
        """The states of all nodes that the server ever knew, in order."""
        done = flwr(["supernode", "list", "tested", "--format", "json"], home=self.server.home)
        return sorted(each["status"] for each in last_json(done.stdout)["nodes"])

    def until(self, states: Sequence[str]) -> None:
        deadline = time.monotonic() + WAIT_S
        while self.listed() != states and time.monotonic() < deadline:
            time.sleep(0.5)
        assert self.listed() == states


def test_a_node_whose_key_was_taken_away_is_out_and_stays_out(tmp_path: Path) -> None:
    """It had joined, and goes on trying over the server's restart; the other one, which did as much, is let in."""
    with ExitStack() as opened:
        place = Place(tmp_path, opened)
        with place.server.start():
            for name in ("one", "two"):
                node, program = place.node(name, name)
                program.until(node.joined, timeout_s=WAIT_S, what="it joined")
            assert place.listed() == ["online", "online"]
        kept = place.files.nodes / "one.pub"
        text = kept.read_text()
        kept.unlink()
        with place.server.start():
            again, program = place.node("one", "again")
            program.until(lambda: program.ended is not None, timeout_s=WAIT_S, what="it ended")
            assert "Failed to activate" in program.printed()
            assert not again.joined()
            node, program = place.node("two", "two-again")
            place.until(["online", "unregistered"])
        kept.write_text(text)
        with pytest.raises(ProcessError, match=r"one\.pub: was taken away before, and stays revoked; make another key"):
            place.server.start()


def test_one_key_is_one_node_however_many_come_with_it(tmp_path: Path) -> None:
    """Neither two nodes at once, nor its public key under another name, nor a second registration, make two of it."""
    with ExitStack() as opened:
        place = Place(tmp_path, opened)
        with place.server.start():
            first, program = place.node("one", "first")
            program.until(first.joined, timeout_s=WAIT_S, what="it joined")
            for number in range(2):
                second, other = place.node("one", f"other-{number}")
                other.until(lambda other=other: other.ended is not None, timeout_s=WAIT_S, what="it ended")  # type: ignore[misc]
                assert not second.joined()
            assert place.listed() == ["online", "registered"]
            copy = tmp_path / "copy.pub"
            copy.write_bytes((place.files.nodes / "one.pub").read_bytes())
            done = flwr(["supernode", "register", str(copy), "tested"], home=place.server.home)
            assert done.returncode != 0
            assert "already in use" in f"{done.stdout} {done.stderr}"
            assert place.listed() == ["online", "registered"]
            assert len(json.loads((place.server.home / "nodes.json").read_text())) == 2
