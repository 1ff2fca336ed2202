"""A run's folder before the run: where it is, whether it can be used, and what it holds already."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from server.store import StoreError
from strategies.experiment import Experiment
from strategies.loading import load

COPIES = 8  # Model, server state of up to three vectors (Adam), and the same again while files are replaced.
SPARE_BYTES = 10_000_000  # Ledger, rounds, result and report of a long run.


def default_folder(experiment: Experiment) -> Path:
    """`runs/NAME-DATE`, with a number behind it where that is taken."""
    base = Path("runs") / f"{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def reopen(folder: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a run's folder; overrides of its engine change no result, others are found out on resuming.

    Raises:
        StoreError: the folder holds no run, or one that has done all its rounds.
    """
    path, result = folder / "experiment.yaml", folder / "result.json"
    if not path.exists():
        raise StoreError(f"{folder}: holds no run (experiment.yaml is missing); give the folder of a run")
    experiment = load(path, overrides)
    if result.exists():
        try:
            done = int(json.loads(result.read_bytes())["rounds"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{result}: damaged ({error}); remove it and resume, which writes it anew") from error
        if done >= experiment.rounds:
            raise StoreError(f"{folder}: all {done} rounds are done; nothing to resume, its result is in {result}")
    return experiment


def usable(folder: Path, *, resume: bool) -> None:
    """Refuses a folder before any work is put into a run that could not be kept."""
    if not resume and (folder / "experiment.yaml").exists():
        raise StoreError(f"{folder}: holds a run already; choose another --out, or --resume {folder}")
    base = _existing(folder)
    if not base.is_dir() or not os.access(base, os.W_OK | os.X_OK):
        what = "not writable" if base.is_dir() else "not a folder"
        raise StoreError(f"{folder}: cannot be written ({base} is {what}); choose another --out")


def require_room(folder: Path, size: int) -> None:
    """Requires room for model, checkpoint (optimizer state included) and their copies while they are replaced."""
    need = 4 * size * COPIES + SPARE_BYTES
    free = shutil.disk_usage(_existing(folder)).free
    if free < need:
        raise StoreError(
            f"{folder}: {free / 1e6:.0f} MB free on its disk, a run of this model needs about {need / 1e6:.0f} MB; "
            "make room or choose another --out"
        )


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest parent that is there."""
    return next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
