"""What is known of an experiment before it runs: its silos, its price and its model; what does not fit is refused."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from client.device import chosen
from client.tables import Table
from simulations import planning
from simulations.attacks.fitting import require_fit
from simulations.data import shifts
from simulations.data.federation import Federation, build
from simulations.engines import setup
from strategies.experiment import Experiment
from strategies.rules import problems
from strategies.schema import ConfigError

_TRIED = 4  # Rows: of two, a batch normalisation gives plus and minus one, whatever they are.


@dataclass(frozen=True)
class Prepared:
    """All that is known of an experiment before it runs, and before anything is written.

    Attributes:
        federation: the silos' rows.
        plan: who is asked, with what noise, at what price.
        model: its start.
    """

    federation: Federation
    plan: planning.Plan
    model: setup.Model


def prepare(experiment: Experiment, *, table: Table | None = None, federation: Federation | None = None) -> Prepared:
    """Builds silos, plan and model.

    Args:
        experiment: what would run.
        table: the rows where the experiment says `data.name: dataset`.
        federation: its silos, where another experiment with the same `data` built them already.

    Raises:
        ValueError: data that cannot be had, or an experiment that does not fit it; one line.
    """
    if lines := problems(experiment):  # An experiment need not come from a file, whose reading asks the same.
        raise ConfigError(lines)
    chosen(experiment.engine.device)  # A device that is not here is found before any data is read.
    if federation is None:
        federation = build(experiment.data, seed=experiment.seed, table=table)
    _fits(experiment, federation)
    shifts.require_fit(experiment.data.shift, federation)
    require_fit(experiment, federation)
    plan, model = planning.plan(experiment, len(federation.train)), _model(experiment, federation)
    _starts(experiment, model)
    _knows_tokens(federation, model)
    planning.require_memory(plan, experiment.strategy.channels(model.start.numel()))
    if plan.example is not None:
        _has_example_gradients(experiment, federation, model)
    return Prepared(federation, plan, model)


def _fits(experiment: Experiment, federation: Federation) -> None:
    if federation.kind not in experiment.task.kinds:
        wanted = " or ".join(sorted(experiment.task.kinds))
        raise ConfigError([f"task: {experiment.task.name} is for {wanted}, but the data is {federation.kind}"])
    if experiment.task.tokens == federation.train.rows.features.is_floating_point():
        taken, there = ("tokens", "numbers") if experiment.task.tokens else ("numbers", "tokens of a text")
        remedy = "a data set of texts" if experiment.task.tokens else "task: transformer"
        raise ConfigError(
            [f"task: {experiment.task.name} takes {taken}, but the rows of {federation.name} are {there}; use {remedy}"]
        )
    lines = experiment.strategy.misfits(experiment, len(federation.train))
    if lines := [*lines, *experiment.strategy.group_problems(federation.group_names)]:
        raise ConfigError(lines)


def _starts(experiment: Experiment, model: setup.Model) -> None:
    try:
        experiment.strategy.init(model.start, torch.Generator(), setup.layout(model))
    except ValueError as error:  # The model has not what the strategy works on, in one line.
        raise ConfigError([str(error)]) from error


def _knows_tokens(federation: Federation, model: setup.Model) -> None:
    """Tokens of another vocabulary would fail in the first round, or worse, be other words."""
    known = getattr(model.module, "vocabulary", None)
    splits = (federation.train, federation.validation, federation.test)
    parts = [shards.rows for shards in splits if shards is not None]
    parts += [federation.public_test] if federation.public_test is not None else []
    most = max((int(part.features.max()) for part in parts if len(part)), default=0) if known is not None else 0
    if known is not None and most >= known:
        line = f"the model knows tokens 0 to {known - 1}, {federation.name} holds {most}"
        raise ConfigError([f"task.weights: {line}; give the weights whose tokenizer made them"])


def _has_example_gradients(experiment: Experiment, federation: Federation, model: setup.Model) -> None:
    """Tries DP-SGD on a few rows of random numbers: what has no gradients of examples is found before anything runs."""
    from client.example_sums import ExampleSums, UnsupportedModel
    from privacy.steps import NoisySteps

    if experiment.task.stack(model.shape) is not None and experiment.engine.stacked == "auto":
        return  # Dense layers need no hooks.
    held = federation.train.rows
    features, targets = (
        held.features.new_zeros(_TRIED, *held.features.shape[1:]),
        held.targets.new_zeros(_TRIED, *held.targets.shape[1:]),
    )
    if features.is_floating_point():
        features += torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    try:
        ExampleSums(model.module, experiment.task).total(features, targets, NoisySteps(1.0, 1.0, 1.0, 1))
    except UnsupportedModel as error:
        raise ConfigError([f"task: {error}; use another task, or remove privacy.example"]) from error


def _model(experiment: Experiment, federation: Federation) -> setup.Model:
    try:
        return setup.model(experiment, federation)
    except ValueError as error:  # A task's refusal of the data's shape, in one line.
        line = str(error)
        raise ConfigError([line if line.startswith("task") else f"task: {line}"]) from error
