"""Which nodes may join: those whose keys are in the server's folder of certificates, now; nobody who was there once.

Flower keeps what was registered in its database, by key, and would let a node in whose key was taken away. Who was
registered is therefore noted beside it, with the node's number, and who is not noted is taken off at every start. A key
is of one node for ever in Flower, also once that was taken off: a node that is to come back needs a new key.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy.durable import atomic_write
from simulations.deploying.processes import ProcessError

OFF, JSON = "unregistered", ("--format", "json")
Flwr = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Register:
    """The nodes of a federation.

    Attributes:
        name: of the federation.
        path: of the note: a key's text to its node's number, or to null where it was taken off.
        flwr: runs one command of `flwr`.
    """

    name: str
    path: Path
    flwr: Flwr

    def allow(self, keys: Sequence[Path], *, fresh: bool) -> None:
        """Lets in the nodes of these public keys, and none of those that were let in before.

        Args:
            keys: files.
            fresh: the SuperLink's database is new, so nobody was let in before.

        Raises:
            ProcessError: the SuperLink refused, or a key was taken off before.
        """
        named = {key.read_text().strip(): key for key in keys}
        known: dict[str, str | None] = {} if fresh else self._read()
        stay = {known[text] for text in known.keys() & named.keys()}
        for number in [] if fresh else self._listed():
            if number not in stay:  # Also one that was let in by a start that ended before it could note that.
                self._ask(f"node {number}", ["unregister", number, self.name])
        self._write(known := {text: number if text in named else None for text, number in known.items()})
        for text, key in named.items():
            if text not in known:
                known[text] = self._registered(key)
                self._write(known)
            elif known[text] is None:
                raise ProcessError(f"{key}: was taken away before, and stays revoked; make another key for that node")

    def _registered(self, key: Path) -> str:
        told = self._ask(str(key), ["register", str(key.absolute()), self.name, *JSON])
        return str(told["node-id"])

    def _listed(self) -> list[str]:
        nodes = self._ask("nodes", ["list", self.name, *JSON])["nodes"]
        return [str(each["node-id"]) for each in nodes if each["status"] != OFF]

    def _ask(self, what: str, arguments: Sequence[str]) -> Mapping[str, Any]:
        done = self.flwr(["supernode", *arguments])
        told = " ".join(f"{done.stdout} {done.stderr}".split())
        if done.returncode != 0:
            raise ProcessError(f"{what}: the SuperLink did not {arguments[0]} it: {told[:300]}")
        return last_json(done.stdout) if JSON[0] in arguments else {}

    def _read(self) -> dict[str, str | None]:
        return dict(json.loads(self.path.read_bytes())) if self.path.exists() else {}

    def _write(self, known: Mapping[str, str | None]) -> None:
        atomic_write(self.path, json.dumps(known, indent=1).encode())


def last_json(text: str) -> Mapping[str, Any]:
    """The JSON object that a command of `flwr` printed with `--format json`.

    Raises:
        ProcessError: there is none.
    """
    at = text.find("{")
    try:
        found = json.JSONDecoder().raw_decode(text[at:])[0] if at >= 0 else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ProcessError(f"flwr: found no JSON in {' '.join(text.split())[:200]!r}")
    return found
