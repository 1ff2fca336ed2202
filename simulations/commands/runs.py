"""Reading the folders of finished runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class RunError(ValueError):
    """A folder that is not that of a finished run."""


def read_result(folder: Path) -> dict[str, Any]:
    """What a run's result.json holds.

    Raises:
        RunError: no run, a run without a result yet, or a damaged file.
    """
    path = folder / "result.json"
    if not path.is_file():
        if (folder / "experiment.yaml").is_file():
            raise RunError(f"{folder}: has no result yet; end it with: confide run --resume {folder}")
        raise RunError(f"{folder}: holds no run (result.json is missing); give the folder of a run")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); restore it from a copy") from error
    if not isinstance(result, dict) or not {"metrics", "privacy", "model", "rounds"} <= result.keys():
        raise RunError(f"{path}: not the result of a run; restore it from a copy")
    return result


def expand(folders: Sequence[Path]) -> list[Path]:
    """The runs in some folders: each itself, or the `seed-K` below one that `--seeds` made."""
    found: list[Path] = []
    for folder in folders:
        seeds = sorted(folder.glob("seed-*"), key=lambda path: (len(path.name), path.name))
        found += seeds if seeds and not (folder / "experiment.yaml").exists() else [folder]
    return found
