"""Experiments as a person runs them: engines, data, partitions, reports, the command line.

>>> from simulations import load, run  # doctest: +SKIP
>>> run("simulations/configs/quickstart.yaml").result["metrics"]["accuracy"]  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulations.report.run import Run, read_run
    from simulations.running import ActiveRun, Outcome, run, train
    from strategies.experiment import Experiment
    from strategies.loading import load

__all__ = ["ActiveRun", "Experiment", "Outcome", "Run", "load", "read_run", "run", "train"]

_HOMES = {
    "ActiveRun": "simulations.running",
    "Experiment": "strategies.experiment",
    "Outcome": "simulations.running",
    "Run": "simulations.report.run",
    "load": "strategies.loading",
    "read_run": "simulations.report.run",
    "run": "simulations.running",
    "train": "simulations.running",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is asked for (PEP 562): `confide --help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
