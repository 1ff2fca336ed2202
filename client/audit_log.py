"""The silo's own log of all that it was asked and what came of it: a line of JSON each, on the disk before the answer.

It is the data holder's: it never leaves, and may hold what a server is not told. A log that cannot be written stops
the silo's answers.
"""

from __future__ import annotations

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.errors import DataError, Refused

MOST_TEXT = 2000


class AuditLog:
    """An append-only file of lines.

    Args:
        path: the file; made when missing, for its owner alone.

    Raises:
        DataError: another process writes it: two daemons must not share a folder.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = path
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise DataError(
                f"{path.parent}: another daemon uses this folder; stop it, or give another --folder"
            ) from error

    def write(self, what: str, **facts: Any) -> None:
        """Adds a line; returns when it is on the disk.

        Raises:
            Refused: the disk took it not.
        """
        facts = {name: value[:MOST_TEXT] if isinstance(value, str) else value for name, value in facts.items()}
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "what": what} | facts
        try:
            self._file.write(json.dumps(line, ensure_ascii=True, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise Refused(
                "ledger", "the silo's audit log cannot be written; nothing leaves", private=str(error)
            ) from error

    def close(self) -> None:
        """Lets the file go."""
        self._file.close()
