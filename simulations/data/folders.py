"""Tensors as a folder of .npy files and a manifest, which worker processes map into memory instead of copying."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.errors import DataError

MANIFEST = "federation.json"
VERSION = 1


def save(folder: str | Path, arrays: Mapping[str, Tensor], *, facts: Mapping[str, Any]) -> None:
    """Writes a new folder; the manifest comes last, so that a half-written folder does not load.

    Args:
        folder: created if need be.
        arrays: name to tensor; the name is that of the file.
        facts: plain JSON values to go with them.

    Raises:
        DataError: the folder already holds a manifest, or cannot be written.
    """
    root = Path(folder)
    if (root / MANIFEST).exists():  # Another process may have it mapped: overwriting would change what it reads.
        raise DataError(f"{root}: already holds a federation; give a new folder")
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name, tensor in arrays.items():
            np.save(root / f"{name}.npy", tensor.numpy(), allow_pickle=False)
        partial = root / f"{MANIFEST}.partial"
        manifest = {"version": VERSION, "arrays": sorted(arrays), "facts": dict(facts)}
        partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, root / MANIFEST)
    except OSError as error:
        raise DataError(f"{root}: cannot be written ({error.strerror}); give another folder") from error


def load(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Maps a folder's tensors into memory; pages are shared between processes until one writes to them.

    Raises:
        DataError: no manifest, one of another version, or files that do not fit it.
    """
    root = Path(folder)
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != VERSION:
            raise ValueError(f"version {manifest['version']}, expected {VERSION}")
        # Copy-on-write: torch warns about read-only memory, and a stray write must not reach the other processes.
        files = {name: np.load(root / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in manifest["arrays"]}
        return {name: torch.from_numpy(file) for name, file in files.items()}, dict(manifest["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{root}: no saved federation ({reason}); save it again") from error
