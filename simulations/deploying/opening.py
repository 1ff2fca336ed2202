"""What a silo makes of a hello: the experiment read, held against the silo's own rows, and priced by the silo itself.

Nothing that a server says is taken for true here but the experiment's own text, and that only as far as its digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from client.engagement import Opened
from client.errors import DataError, Refused
from client.host import SiloHost
from client.policy import EXAMPLE, SILO, Policy, Price, Terms, unnamed
from privacy.adaptive import AdaptiveSum
from privacy.events import Gaussian, NonPrivate
from privacy.local import LOCAL
from privacy.mechanism import GaussianSum
from privacy.terms import Unpriceable
from server.sampler import CyclicCohort
from simulations.data import own
from simulations.data.federation import Federation
from simulations.deploying.connecting import schema as schema_of
from simulations.engines import setup
from simulations.planning import Plan
from simulations.preparing import Prepared, prepare
from strategies.backbones import is_name
from strategies.envelope import Schema, Task
from strategies.experiment import Engine, Experiment, digest
from strategies.loading import load_text
from strategies.schema import ConfigError


@dataclass(frozen=True)
class Opener:
    """Opens runs for one silo.

    Attributes:
        data: a CSV or npz file, all rows of which are the silo's, or the name of a data set that confide knows.
        number: of the silo.
        device: where it trains.
        policy: whose strategies and tasks alone are worth building a model for; None: all.
    """

    data: str
    number: int
    device: Literal["auto", "cpu", "cuda"] = "auto"
    policy: Policy | None = None

    def __call__(self, hello: Task) -> Opened:
        """What the run would do here.

        Raises:
            Refused: with the reason, for both sides.
        """
        assert hello.experiment is not None
        experiment = read(hello.experiment, hello.digest)
        if self.policy is not None and (lines := unnamed(self.policy, experiment.strategy.name, experiment.task.name)):
            raise Refused("policy", "; ".join(lines))
        schema = hello.schema
        assert schema is not None  # A hello has one, or it would not have been read.
        try:
            federation, dataset = self._rows(experiment, schema)
        except DataError as error:  # It may quote a cell.
            line = "the silo's rows cannot be read as the experiment asks; its audit log says why"
            raise Refused("data", line, private=str(error)) from error
        require_schema(federation, schema)
        try:
            prepared = prepare(experiment, federation=federation)
        except (ConfigError, Unpriceable) as error:
            raise Refused("unsupported", error) from error
        except ValueError as error:
            line = "the experiment does not fit the silo's rows or machine; its audit log says why"
            raise Refused("unsupported", line, private=str(error)) from error
        return opened(experiment, prepared, self.number, dataset=dataset, device=self.device)

    def _rows(self, experiment: Experiment, schema: Schema) -> tuple[Federation, str]:
        data = experiment.data
        if not own.is_file(self.data):
            if data.name != self.data:
                raise Refused("data", f"the silo holds {self.data}, the experiment is about {data.name or 'a file'}")
            return own.named(experiment, number=self.number)
        if data.named:
            raise Refused("data", f"the silo holds a file of its own, the experiment is about {data.name}")
        if data.silos is None:
            raise Refused("unsupported", "data.silos: silos with files of their own have to be counted; give a number")
        if data.limit is not None:
            raise Refused("unsupported", "data.limit: a silo with a file of its own trains on all of it; remove it")
        return own.of_file(self.data, experiment, schema, number=self.number, silos=data.silos)


def opened(
    experiment: Experiment, prepared: Prepared, number: int, *, dataset: str, device: Literal["auto", "cpu", "cuda"]
) -> Opened:
    """What a run would do at a silo, whose rows a prepared experiment has."""
    own_engine = replace(experiment, engine=Engine(stacked=experiment.engine.stacked, device=device))
    return Opened(
        terms=terms_of(experiment, prepared, number),
        dataset=dataset,
        mechanisms=prepared.plan.mechanisms,
        values=experiment.wire.values,
        host=lambda folder: _host(own_engine, prepared, folder),
    )


def read(text: str, known: str) -> Experiment:
    """The experiment of a hello, and of its digest.

    Raises:
        Refused: not an experiment, not the one of the digest, or one that asks for what is not done across machines.
    """
    try:
        experiment = load_text(text, where="experiment")
    except ConfigError as error:
        raise Refused("unsupported", error.problems[0]) from error
    if digest(experiment) != known:
        raise Refused("wrong_experiment", "the experiment is not the one of its digest; run one version of confide")
    if lines := list(impossible(experiment)):
        raise Refused("unsupported", lines[0])
    return experiment


def impossible(experiment: Experiment) -> Iterator[str]:
    """What is not done across machines, a line each."""
    if experiment.attacks:
        yield "attacks: simulated attacks are not run on real silos; remove them"
    if experiment.data.standardize.name == "private":
        yield "data.standardize: private moments are not released across machines; use constants or own"
    if experiment.privacy.audit.examples.canaries:
        yield "privacy.audit.examples: canary examples are not planted in real silos; use canaries: 0"
    for name in _paths(experiment.task, "task"):
        yield f"{name}: a path means nothing on another machine, and is not followed; use a name"


def require_schema(federation: Federation, schema: Schema) -> None:
    """Requires that rows are of the form that the server asks for.

    Raises:
        Refused: one line that names the first difference.
    """
    found = schema_of(federation)
    for field in fields(Schema):
        here, there = getattr(found, field.name), getattr(schema, field.name)
        if field.name == "group_names" and not set(here) - set(there):
            continue  # A silo need not have rows of every group.
        if here != there:
            raise Refused("schema", f"{field.name.replace('_', ' ')}: the server's rows have {_short(there)}")


def terms_of(experiment: Experiment, prepared: Prepared, number: int) -> Terms:
    """What a run asks of a silo, and what it costs, as the silo works it out."""
    return Terms(
        strategy=experiment.strategy.name,
        task=experiment.task.name,
        simulated=experiment.privacy.noise != "system",
        prices=tuple(_prices(prepared.plan, number)),
        rows=int(prepared.federation.train.sizes[number]),
        rounds=experiment.rounds,
    )


def _prices(plan: Plan, number: int) -> Iterator[Price]:
    """The prices of the units that a run protects; a strategy that sees single updates protects no silo."""
    if plan.delta is not None and plan.noise_multiplier is not None and not isinstance(plan.event, NonPrivate):
        # With a price that counts on secret cohorts, or on turns, rounds that nobody asks this silo in cost it too.
        alone = Gaussian(1.0)
        by_round = plan.sampler.event(alone) == alone and not isinstance(plan.sampler, CyclicCohort)
        clips = [each.clip_norm for each in plan.mechanisms.values() if isinstance(each, GaussianSum)]
        adapts = any(isinstance(each, AdaptiveSum) for each in plan.mechanisms.values())
        yield Price(
            unit=SILO,
            neighbours=plan.neighbours,
            event=plan.event,
            whole=None if by_round else plan.after(plan.rounds),
            noise_multiplier=plan.noise_multiplier,
            clip_norm=None if adapts else max(clips),
        )
    if (local := plan.local) is not None:
        clip = max(each.clip_norm for each in local.mechanisms.values())
        yield Price(LOCAL, local.neighbours, local.event, None, local.noise_multiplier, clip)
    if (example := plan.example) is not None:
        steps = example.silos[number]
        event = example.events[number]
        yield Price(EXAMPLE, "add_remove", event, None, steps.noise_multiplier, steps.clip_norm)


def _host(experiment: Experiment, prepared: Prepared, folder: Path) -> SiloHost:
    example = prepared.plan.example
    noise = None if example is None else example.noise
    return setup.host(experiment, prepared.federation, personal=folder, noise=noise)


def _paths(section: Any, at: str) -> Iterator[str]:
    """Keys of a task that hold a path."""
    for name, value in vars(section).items():
        if name in section.places and isinstance(value, str) and not is_name(value):
            yield f"{at}.{name}"
        elif hasattr(value, "places"):
            yield from _paths(value, f"{at}.{name}")


def _short(value: object) -> str:
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
