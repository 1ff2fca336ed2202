"""Tells the sinks of a run; one that fails is reported once and left out from then on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from simulations.sinks.base import Row, Sink, Told
from strategies.codec import encode
from strategies.experiment import Experiment
from strategies.schema import ConfigError
from strategies.sinks import MLflow, TensorBoard, WeightsAndBiases
from strategies.sinks import Sink as Settings

CSV = "csv"
PRIVATE = ("train_loss", "clip_fraction")
MACHINE = ("name", "metrics", "engine")  # What the digest leaves out, too.
PATHS = ("path", "weights")


def require(experiment: Experiment) -> None:
    """Requires the packages of all sinks.

    Raises:
        ConfigError: one is not installed, or a sink is named twice.
    """
    problems, seen = [], set[str]()
    for at, sink in enumerate(experiment.metrics.sinks):
        if sink.name in seen:
            problems.append(f"metrics.sinks[{at}]: {sink.name} is there twice; remove one")
        elif not _installed(sink.module):
            wanted = " ".join(f"'{each}'" for each in sink.install)
            problems.append(f"metrics.sinks[{at}]: {sink.name} is not installed; use: python -m pip install {wanted}")
        seen.add(sink.name)
    if problems:
        raise ConfigError(problems)


def _installed(module: str) -> bool:
    """A folder of the name, such as one that wandb wrote its files to, is no package."""
    found = find_spec(module)
    return found is not None and found.origin is not None


def made(settings: Settings) -> Sink:
    """The sink that a section of the experiment asks for."""
    match settings:
        case TensorBoard():
            from simulations.sinks.events import Events

            return Events()
        case MLflow():
            from simulations.sinks.tracking import Tracking

            return Tracking(settings)
        case WeightsAndBiases():
            from simulations.sinks.weights import Weights

            return Weights(settings)
    raise TypeError(f"no sink for {settings!r}")


class Sinks:
    """The sinks of a run.

    Args:
        sinks: by name.
        private: whether private numbers may be shown; otherwise they are taken out, though no line should hold any.
    """

    def __init__(self, sinks: Mapping[str, Sink], *, private: bool) -> None:
        self._sinks, self._private, self._closed = dict(sinks), private, False
        self.failed: dict[str, str | None] = dict.fromkeys(sinks)
        """Every sink, and why it got nothing more; None where it got all."""

    @classmethod
    def of(cls, experiment: Experiment, *, private: bool) -> Sinks:
        """The CSV file, and those that an experiment names."""
        from simulations.sinks.table import Table

        return cls({CSV: Table()} | {each.name: made(each) for each in experiment.metrics.sinks}, private=private)

    def open(self, told: Told, *, resumed: bool) -> None:
        """Begins all."""
        rows = told.rows
        shown = Told(told.name, told.folder, told.config, lambda: [self._shown(row) for row in rows()])
        self._each("as it was opened", lambda sink: sink.open(shown, resumed=resumed))

    def round(self, row: Row) -> None:
        """Tells all a committed round."""
        shown = self._shown(row)
        self._each(f"in round {row['round']}", lambda sink: sink.round(shown))

    def close(self, result: Mapping[str, Any] | None = None) -> None:
        """Ends all, once."""
        if not self._closed:
            self._closed = True
            self._each("as it was closed", lambda sink: sink.close(result))

    def _shown(self, row: Row) -> Row:
        return row if self._private else {name: value for name, value in row.items() if name not in PRIVATE}

    def _each(self, when: str, call: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Of packages that are not ours, about themselves.
                    call(sink)
            except Exception as error:  # Whatever it is: metrics never stop a run.
                del self._sinks[name]
                line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self.failed[name] = f"failed {when}: {line}"
                print(f"confide: sink {name} failed {when} and is left out: {line}; the run goes on", file=sys.stderr)


def config_of(experiment: Experiment) -> dict[str, Any]:
    """The experiment's keys as `a.b`, without paths and machine facts, nor the seed where noise follows from it.

    Trackers are made to be shared, and whoever knows the seed can take simulated noise off again.
    """
    keys = {name: value for name, value in encode(experiment).items() if name not in MACHINE}
    sections = (experiment.privacy.silo, experiment.privacy.local, experiment.privacy.example)
    if experiment.privacy.noise == "simulated" and any(section is not None for section in sections):
        del keys["seed"]
    return dict(_flat(keys, ""))


def _flat(found: Any, path: str) -> Sequence[tuple[str, Any]]:
    if isinstance(found, Mapping):
        named = [(name, value) for name, value in found.items() if name not in PATHS]
        return [pair for name, value in named for pair in _flat(value, f"{path}.{name}" if path else str(name))]
    if isinstance(found, list) and any(isinstance(each, Mapping) for each in found):
        return [pair for at, each in enumerate(found) for pair in _flat(each, f"{path}.{at}")]
    return [(path, str(found) if isinstance(found, list) else found)]
