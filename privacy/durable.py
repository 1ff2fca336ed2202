"""Files that are whole, old or new, whenever the machine stops."""

from __future__ import annotations

import os
from pathlib import Path


def atomic_write(path: Path, *parts: bytes) -> None:
    """Replaces a file by new contents, one part after the other, that are on the disk before the old ones are gone."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
