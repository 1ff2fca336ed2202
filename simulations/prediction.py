"""A run's model on new rows."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from client.columns import Grid, coded, numbers
from client.errors import DataError
from client.files import read_grid, require_file
from client.tables import floats
from strategies.experiment import Experiment
from strategies.loading import load
from strategies.standardize import Constants
from strategies.tasks import Shape

BATCH = 1024


@dataclass(frozen=True)
class Predictor:
    """A finished run's model, with what it needs to read rows as it was trained on them.

    Attributes:
        experiment: of the run.
        module: its final model.
        shape: what it takes and gives.
        feature_names: one per feature, where the run's own file named them.
        class_names: one per class, where the data named them.
        released: the constants of a private standardisation, or None.
    """

    experiment: Experiment
    module: nn.Module
    shape: Shape
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    released: Constants | None

    @classmethod
    def load(cls, folder: Path, result: Mapping[str, Any]) -> Predictor:
        """Loads the model of a run.

        Args:
            folder: of the run.
            result: what its result.json holds.

        Raises:
            DataError: the model is not the one that the run left.
        """
        experiment, facts = load(folder / "experiment.yaml"), result["model"]
        path = folder / facts["file"]
        require_file(path)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise DataError(f"{path}: not the model that the run left (its SHA-256 differs); restore it from a copy")
        shape = Shape(tuple(facts["features"]), facts["outputs"])
        module = experiment.task.structure(shape)
        try:
            module.load_state_dict(load_tensors(data))
        except (SafetensorError, RuntimeError) as error:  # load_state_dict's own word for tensors that do not fit.
            line = " ".join(str(error).split())
            raise DataError(f"{path}: does not fit task {experiment.task.name} ({line[:200]})") from error
        # Sources by name code their own columns, so only a user's file can be matched by its names.
        named = facts["feature_names"] if experiment.data.path is not None else ()
        found = result["standardize"]
        released = None if found is None else Constants(mean=tuple(found["mean"]), std=tuple(found["std"]))
        return cls(experiment, module.eval(), shape, tuple(named), tuple(facts["class_names"]), released)

    def read(self, path: Path) -> Tensor:
        """The rows of a CSV or npz file as the model takes them, `(rows, *features)`.

        Raises:
            DataError: a file that cannot be read, or rows that are not like those of the run.
        """
        match path.suffix.lower():
            case ".csv":
                flat = self._csv(read_grid(path))
            case ".npz":
                flat = _npz(path)
            case suffix:
                raise DataError(f"{path} ends in {suffix or 'nothing'!r}; give a .csv or .npz file")
        size = math.prod(self.shape.features)
        if flat.shape[1] != size:
            by = " x ".join(map(str, self.shape.features))
            detail = f" ({by})" if len(self.shape.features) > 1 else ""
            raise DataError(f"{path}: {flat.shape[1]} features a row, the model takes {size}{detail}; correct the file")
        features = torch.from_numpy(flat).reshape(len(flat), *self.shape.features)
        return self._tokens(path, features) if self.experiment.task.tokens else self._standardized(features)

    def predict(self, features: Tensor) -> list[dict[str, Any]]:
        """A prediction per row: a class with its probability, or a value; for text, the next token.

        Args:
            features: `(rows, *features)`, from `read`.
        """
        with torch.inference_mode():
            outputs = torch.cat([self.module(batch) for batch in torch.split(features, BATCH)])
        if self.shape.outputs == 1:
            units = self.experiment.data.target_scale
            values = outputs.squeeze(-1) if units is None else outputs.squeeze(-1) * units.std + units.mean
            return [{"prediction": value} for value in values.tolist()]
        logits = outputs[:, -1] if outputs.dim() == 3 else outputs
        best = logits.softmax(-1).max(-1)
        return [
            {"prediction": self.class_names[label] if self.class_names else label, "probability": probability}
            for label, probability in zip(best.indices.tolist(), best.values.tolist())
        ]

    def _csv(self, grid: Grid) -> np.ndarray[Any, np.dtype[np.float32]]:
        if not grid.lines:
            raise DataError(f"{grid.where}: no rows below the header; give a file with data")
        if not self.feature_names:
            return np.stack([numbers(grid, column) for column in grid.cells], axis=1)
        blocks: list[np.ndarray[Any, Any]] = []
        for column, words in _columns(grid, self.feature_names).items():
            if not words:
                blocks.append(numbers(grid, column))
                continue
            codes, _ = coded(grid, column, words)
            blocks += [(codes == code).astype(np.float32) for code in range(len(words))]
        return np.stack(blocks, axis=1)

    def _standardized(self, features: Tensor) -> Tensor:
        try:
            bounded = self.experiment.data.standardize.apply(features, reference=features)
            return bounded if self.released is None else self.released.apply(bounded, reference=bounded)
        except ValueError as error:
            raise DataError(f"data.{error}") from error

    def _tokens(self, path: Path, features: Tensor) -> Tensor:
        tokens = features.to(torch.int64)
        known: int = getattr(self.module, "vocabulary", self.shape.outputs)
        if not bool((tokens == features).all()) or not 0 <= int(tokens.min()) <= int(tokens.max()) < known:
            raise DataError(f"{path}: tokens must be integers from 0 to {known - 1}; correct the file")
        return tokens


def _columns(grid: Grid, names: Sequence[str]) -> dict[str, list[str]]:
    """The columns that features come from, in order, each to its categories (none: it holds numbers).

    A feature is a column of the file, or `column=word`; either part may itself hold an equals sign.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        cuts = [at for at, character in enumerate(name) if character == "=" and name[:at] in grid.cells]
        if name in grid.cells:
            found[name] = []
        elif cuts:
            found.setdefault(name[: cuts[-1]], []).append(name[cuts[-1] + 1 :])
        else:
            raise DataError(
                f"{grid.where}: no column {name.partition('=')[0]!r}, which the model was trained on; add it"
            )
    return found


def _npz(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    require_file(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile) or "x" not in loaded.files:
            raise DataError(f"{path}: no array 'x'; save the rows with numpy.savez(path, x=...)")
        with loaded as archive:
            rows = archive["x"]
    except DataError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: no npz file of plain arrays ({reason}); write it with numpy.savez") from error
    if rows.ndim < 2 or not rows.size:
        raise DataError(f"{path}: x has shape {rows.shape}; give (rows, features, ...), at least one row")
    return floats(rows.reshape(len(rows), -1), where=f"{path}, x")
