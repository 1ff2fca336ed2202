"""Where a run's numbers go beside its folder: what an experiment says of it.

What a sink does is in `simulations.sinks`. Which there are changes no result, so that they are no part of the digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.schema import key


@dataclass(frozen=True)
class Sink:
    """One of them.

    Attributes:
        name: as a config calls it.
        module: that must be there.
        install: what pip is asked for, as the extra of this name in pyproject.toml has it.
    """

    name: ClassVar[str] = ""
    module: ClassVar[str] = ""
    install: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class TensorBoard(Sink):
    """Event files for TensorBoard, in the run's folder."""

    name: ClassVar[str] = "tensorboard"
    module: ClassVar[str] = "tensorboard"
    install: ClassVar[tuple[str, ...]] = ("tensorboard>=2.18,<3",)


@dataclass(frozen=True)
class MLflow(Sink):
    """A run in an MLflow store on this machine."""

    name: ClassVar[str] = "mlflow"
    module: ClassVar[str] = "mlflow"
    install: ClassVar[tuple[str, ...]] = ("mlflow-skinny>=3,<4", "sqlalchemy>=2,<3", "alembic>=1.14,<2")

    store: str | None = key(None, help="an SQLite file, shared by runs; null: mlflow.db beside the run's folder")
    experiment: str = key("confide", help="MLflow's word for what groups runs")


@dataclass(frozen=True)
class WeightsAndBiases(Sink):
    """An offline run of Weights & Biases, in the run's folder; whoever wants it there uploads it with `wandb sync`."""

    name: ClassVar[str] = "wandb"
    module: ClassVar[str] = "wandb"
    install: ClassVar[tuple[str, ...]] = ("wandb>=0.19,<1",)

    project: str = key("confide", help="what groups runs there")


SINKS: dict[str, type[Sink]] = {cls.name: cls for cls in (TensorBoard, MLflow, WeightsAndBiases)}
"""The sinks by the name that a config gives them."""
