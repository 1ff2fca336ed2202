"""Reading a growing file of JSON lines once: only what is new, whole lines only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Tail:
    """Follows a file; where it was replaced or cut, `begun` grows by one and all its lines come again.

    Args:
        path: the file; it may be missing yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.begun = path, 0
        self._file, self._end = 0, 0

    def fresh(self) -> bool:
        """Whether what was read before is no longer the beginning of the file."""
        try:
            found = self.path.stat()
        except OSError:
            return False
        if found.st_ino == self._file and found.st_size >= self._end:
            return False
        self._file, self._end, self.begun = found.st_ino, 0, self.begun + 1
        return True

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines that were written whole since the last time; one that is no JSON object is left out."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._end)
                data = file.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._end += len(whole)
        for line in whole.splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                yield found
