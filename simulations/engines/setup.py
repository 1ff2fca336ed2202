"""Puts the pieces of a run together the same way in every engine and every worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from client.device import chosen
from client.host import SiloHost
from client.personal import PersonalStore
from client.planted import CHANGE, Planted
from client.rounding import Rounding
from simulations.data import backbones  # noqa: F401  Importing it registers them, in workers too.
from simulations.data.federation import Federation
from simulations.example_privacy import noisy_steps
from simulations.local_privacy import protection
from strategies.experiment import Experiment
from strategies.layout import Layout
from strategies.tasks import Shape, initial

STACKED_NUMBERS = 2**20  # Numbers in a stacked chunk: enough to hide the cost of a call, few enough to stay in cache.
STACKED_SILOS = (8, 256)
SINGLE_CHUNK = 4  # Small, so that two workers end a round together.


@dataclass(frozen=True)
class Model:
    """The experiment's model at its start.

    Attributes:
        module: the task's module.
        start: its flat initial vector `(N,)`, the same in every process.
        shape: what it fits.
    """

    module: nn.Module
    start: Tensor
    shape: Shape


def model(experiment: Experiment, federation: Federation) -> Model:
    """The model of an experiment, from its seed."""
    shape = Shape(tuple(federation.train.rows.features.shape[1:]), federation.classes or 1)
    module, start = initial(experiment.task, shape, seed=experiment.seed)
    return Model(module, start, shape)


def layout(built: Model) -> Layout:
    """How the model's vector maps to its named tensors."""
    return Layout.of(built.module)


def host(
    experiment: Experiment, federation: Federation, *, personal: Path, noise: Sequence[float] | None = None
) -> SiloHost:
    """The silos of a federation, ready to train; `noise`: every silo's multiplier under example-level privacy."""
    example = experiment.privacy.example
    if (example is None) != (noise is None):
        raise ValueError("noise multipliers go with privacy.example, and without it there are none")
    built = model(experiment, federation)
    return SiloHost(
        strategy=experiment.strategy,
        task=experiment.task,
        module=built.module,
        shape=built.shape,
        train=experiment.train,
        shards=federation.train,
        held_out=federation.test,
        validation=federation.validation,
        seed=experiment.seed,
        stacked=experiment.engine.stacked == "auto",
        personal=personal_store(experiment, built, personal, silos=len(federation.train)),
        examples=None if example is None or noise is None else noisy_steps(example, noise),
        secret=experiment.privacy.noise == "system",
        planted=_planted(experiment, built),
        local=protection(experiment),
        rounding=rounding(experiment),
        device=chosen(experiment.engine.device),
    )


def personal_store(experiment: Experiment, built: Model, folder: Path, *, silos: int) -> PersonalStore | None:
    """What silos keep between rounds, audited changes and residuals included; None where that is nothing."""
    size = built.start.numel()
    sizes = dict(experiment.strategy.personal(size))
    sizes |= rounding(experiment).personal(experiment.strategy.channels(size))
    if experiment.privacy.audit.examples.canaries:
        sizes[CHANGE] = size
    return PersonalStore(folder, silos=silos, sizes=sizes) if sizes else None


def rounding(experiment: Experiment) -> Rounding:
    """What crossing the link does to numbers."""
    return Rounding(experiment.wire.values, feedback=experiment.wire.feedback)


def _planted(experiment: Experiment, built: Model) -> Planted | None:
    audit, secret = experiment.privacy.audit.examples, experiment.privacy.noise == "system"
    if not audit.canaries:
        return None
    return Planted(audit.canaries, audit.silos, size=built.start.numel(), seed=experiment.seed, secret=secret)


def chunk(experiment: Experiment, built: Model) -> int:
    """Silos summed together: of the experiment and the model, never of the number of workers."""
    if experiment.engine.chunk is not None:
        return experiment.engine.chunk
    task, example = experiment.task, experiment.privacy.example
    if task.stack(built.shape) is None and (task.stack_adapted(built.shape) is None or example is not None):
        return SINGLE_CHUNK
    least, most = STACKED_SILOS
    return min(max(STACKED_NUMBERS // built.start.numel(), least), most)
