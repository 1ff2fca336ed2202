"""Who may join is whose key is in the folder now, whatever was registered before."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from simulations.deploying.processes import ProcessError
from simulations.deploying.registering import Register, last_json


@dataclass
class SuperLink:
    """Flower's own register, as its commands show it: a key is of one node for ever."""

    nodes: dict[str, tuple[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __call__(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        _, verb, *rest = arguments
        self.asked.append(verb)
        if verb == "list":
            told = [{"node-id": number, "status": status} for number, status in self.nodes.values()]
            return self._said({"nodes": told})
        if verb == "unregister":
            [key] = [
                key for key, (number, status) in self.nodes.items() if number == rest[0] and status != "unregistered"
            ]
            self.nodes[key] = rest[0], "unregistered"
            return subprocess.CompletedProcess([], 0, "done", "")
        key = Path(rest[0]).read_text()
        if key in self.nodes:
            return subprocess.CompletedProcess([], 1, "", "The public key is already in use.")
        self.nodes[key] = str(100 + len(self.nodes)), "registered"
        return self._said({"node-id": self.nodes[key][0]})

    def _said(self, told: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, f"Loading\n{json.dumps(told)}", "")

    @property
    def allowed(self) -> set[str]:
        return {key for key, (_, status) in self.nodes.items() if status != "unregistered"}


@pytest.fixture
def keys(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.pub" for name in "abc"]
    for path in paths:
        path.write_text(path.stem)
    return paths


def register(folder: Path, there: SuperLink) -> Register:
    return Register("tested", folder / "nodes.json", there)


def test_who_is_named_may_join_and_whose_key_was_taken_away_may_not(tmp_path: Path, keys: list[Path]) -> None:
    there = SuperLink()
    register(tmp_path, there).allow(keys, fresh=True)
    assert there.allowed == {"a", "b", "c"}
    assert there.asked == ["register"] * 3
    register(tmp_path, there).allow(keys[1:], fresh=False)
    assert there.allowed == {"b", "c"}
    register(tmp_path, there).allow(keys[2:], fresh=False)
    assert there.allowed == {"c"}
    numbers = dict(there.nodes)
    register(tmp_path, there).allow(keys[2:], fresh=False)  # Again: nothing changes, and c is the node that it was.
    assert there.nodes == numbers


def test_a_key_that_was_taken_away_does_not_come_back(tmp_path: Path, keys: list[Path]) -> None:
    there = SuperLink()
    register(tmp_path, there).allow(keys, fresh=True)
    register(tmp_path, there).allow(keys[1:], fresh=False)
    for _ in range(2):
        with pytest.raises(ProcessError, match=r"a\.pub: was taken away before, and stays revoked; make another key"):
            register(tmp_path, there).allow(keys, fresh=False)
        assert there.allowed == {"b", "c"}


def test_a_new_database_knows_nobody_whatever_was_noted(tmp_path: Path, keys: list[Path]) -> None:
    register(tmp_path, SuperLink()).allow(keys, fresh=True)
    there = SuperLink()
    register(tmp_path, there).allow(keys[:2], fresh=True)
    assert there.allowed == {"a", "b"}


@pytest.mark.parametrize("noted", [True, False])
def test_who_is_not_noted_is_taken_off(tmp_path: Path, keys: list[Path], noted: bool) -> None:
    """A start that was killed between the SuperLink's word and the note, the first or a later one."""
    there = SuperLink()
    if noted:
        register(tmp_path, there).allow(keys[:1], fresh=True)
    there.nodes["b"] = "7", "online"
    register(tmp_path, there).allow(keys[:1], fresh=False)
    assert there.allowed == {"a"}
    with pytest.raises(ProcessError, match=r"b\.pub: the SuperLink did not register it: .*already in use"):
        register(tmp_path, there).allow(keys[:2], fresh=False)


def test_json_among_other_words() -> None:
    assert last_json('Loading\n{"run-id": "7"} done') == {"run-id": "7"}
    for text in ("", "nothing", "{", "[1]"):
        with pytest.raises(ProcessError):
            last_json(text)
