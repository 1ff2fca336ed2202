"""Runs an experiment from its config to its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from client.device import chosen
from client.tables import Table
from privacy.account import BudgetSpent
from privacy.ledger import Ledger, LedgerError
from server import loop
from server.canaries import CanaryLink
from server.checkpoint import Checkpoint
from server.link import Link
from server.loop import Evaluate, RoundResult, Training
from server.monitor import CountedPost
from server.remote import RemoteLink
from server.store import RunStore
from server.unchanged import unchanged
from simulations import accounts, auditing, example_accounts, planning, results, standardization
from simulations.attacks.link import AttackedLink
from simulations.attacks.measuring import Watch, attack_tests, minority_silos
from simulations.attacks.poison import Poisoner
from simulations.attacks.roles import Roles
from simulations.data.federation import Federation
from simulations.data.shifts import Changing, shifted
from simulations.engines import setup
from simulations.engines.accounts import AccountedLink
from simulations.engines.local import LocalLink
from simulations.engines.pool import PoolLink
from simulations.folders import default_folder, require_room, usable
from simulations.local_privacy import noise_source, protection
from simulations.metrics.inline import endpoint
from simulations.preparing import prepare
from simulations.shipped import find
from simulations.sinks import telling
from simulations.sinks.base import Told
from strategies.backbones import frozen_digest
from strategies.base import Guard
from strategies.codec import encode
from strategies.experiment import Experiment, digest
from strategies.guarded import evaluate_served
from strategies.loading import load
from strategies.schema import ConfigError
from strategies.standardize import Constants, Private
from strategies.yaml_text import yaml_of

if TYPE_CHECKING:
    from simulations.report.run import Run

INTERRUPTED = "interrupted"
UNCONNECTED = (
    "engine.kind: flower needs a federation of silos; use: confide run --engine flower --federation NAME, or flwr run ."
)


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        folder: the run's folder.
        result: what result.json holds.
    """

    folder: Path
    result: dict[str, Any]

    def read(self) -> Run:
        """The folder as its report reads it: `.series("accuracy")` over rounds, `.claimed`, `.measured` and more."""
        from simulations.report.run import read_run

        return read_run(self.folder)


class ActiveRun:
    """A run that is open: iterate it for its rounds, then `finish` it.

    Args:
        experiment: what to run.
        folder: the run's folder.
        resume: go on in a folder that holds this run.
        plugins: modules imported for it, which worker processes import too.
        table: rows for `data.name: dataset`, read by `client.files.read_dataset`.
        connect: makes the link to silos on machines of their own, for `engine.kind: flower`.
        federation: what is known here of their rows; None: the experiment's data, dealt here.

    Raises:
        ValueError: the experiment does not fit the data, or the folder cannot be used; one line.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        *,
        resume: bool = False,
        plugins: Sequence[str] = (),
        table: Table | None = None,
        connect: Callable[[ActiveRun], Link] | None = None,
        federation: Federation | None = None,
    ) -> None:
        self.experiment, self.folder, self._connect = experiment, folder, connect
        self.plugins = tuple(plugins)
        if experiment.engine.kind == "flower" and connect is None:
            raise ConfigError([UNCONNECTED])
        self.noise = noise_source(experiment)
        self._wire: CountedPost | None = None
        telling.require(experiment)
        usable(folder, resume=resume)
        with ExitStack() as opened:
            # One thread per process: on a small machine more only get in each other's way, and the bits of a sum
            # would depend on their number.
            opened.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
            # The first optimizer of a process imports torch's compiler, a second: set-up, not a part of round 1.
            torch.optim.SGD([torch.zeros(1)], lr=1.0)
            # Everything that a config can get wrong comes before the folder: a refused run leaves nothing behind.
            prepared = prepare(experiment, table=table, federation=federation)
            self.federation, self.plan, self.model = prepared.federation, prepared.plan, prepared.model
            self.notes = experiment.task.notes(self.model.shape)
            frozen = frozen_digest(self.model.module)
            self._frozen = {} if frozen is None else {"frozen weights": frozen}
            size = self.model.start.numel()
            # Noise takes 8 bytes a number, twice while the checkpoint is replaced: as much as half so many parameters.
            require_room(folder, size + planning.remembered(self.plan, experiment.strategy.channels(size)) // 2)
            self.store = opened.enter_context(closing(RunStore(folder, resume=resume)))
            if not resume:
                self.store.begin(yaml_of(encode(experiment)))
            self._open_accounts(opened)
            self.ledger = self._ledger(opened)
            self.silo_ledger = self._silo_ledger(opened)
            """What the silos' examples were charged; None without example-level privacy."""
            if resume:  # Before anything is computed on other rows, or with other settings, under the same noise.
                self.store.cut(self._unchanged())
            self._settle()
            self.released = self._standardize()
            """What features were standardised with, where the silos released it."""
            self.roles = self._roles()
            """Who is malicious; None where nobody is."""
            self.link = opened.enter_context(closing(self._link(plugins)))
            self.training = self._training()
            self.inline = opened.enter_context(endpoint(experiment.metrics, folder))
            """The endpoint of this run's metrics, where it has one."""
            self.sinks = self._sinks(opened, resumed=resume)
            self._opened = opened.pop_all()
        self.stopped: str | None = None
        """Why the run ended before its last round: `budget: ...` or `interrupted`."""

    def __enter__(self) -> ActiveRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, LedgerError):
            self.store.monitor.failed()
        self._opened.close()

    def __iter__(self) -> Iterator[RoundResult]:
        for result in loop.run(self.training, self.link, self.store, self.ledger):
            self.sinks.round(result.row)
            yield result

    def finish(self) -> Outcome:
        """Writes model, result.json and report.html from the last committed round."""
        return Outcome(self.folder, results.finish(self))

    @property
    def _identity(self) -> dict[str, str]:
        known = {"experiment": digest(self.experiment), "data": self.federation.fingerprint}
        return known | self.plan.matrix | self._frozen

    def _unchanged(self) -> Checkpoint | None:
        known, beside = self.plan.events, self._beside
        return unchanged(self.store, self.ledger, unit=loop.UNIT, events=known, identity=self._identity, others=beside)

    @property
    def _beside(self) -> tuple[Ledger, ...]:
        """The run's ledgers beside its own."""
        return (self.silo_ledger,) if self.silo_ledger is not None else ()

    def _open_accounts(self, opened: ExitStack) -> None:
        experiment, plan = self.experiment, self.plan
        self.account = accounts.open_account(experiment, plan, self.folder, fingerprint=self.federation.fingerprint)
        """The budget of the data set, where the run has one."""
        if self.account is not None:
            opened.enter_context(closing(self.account))
        self.example_accounts = example_accounts.open_accounts(
            experiment, plan.example, plan.sampler, self.folder, self.federation, beside=self.account, opened=opened
        )
        """The budgets of the silos' examples, where the run has them."""

    def _ledger(self, opened: ExitStack) -> Ledger:
        ledger = Ledger(
            self.store.ledger,
            run=digest(self.experiment),
            dataset=self.federation.fingerprint,
            told=accounts.charges(self.plan),
            first=self.account.reserve if self.account is not None else None,
        )
        return opened.enter_context(closing(ledger))

    def _settle(self) -> None:
        """Charges the data set what this run's own ledgers hold and its does not."""
        if self.account is not None:
            self.account.settle(self.ledger.spent(loop.UNIT))
        if self.example_accounts is not None and self.silo_ledger is not None:
            self.example_accounts.settle(self.ledger, self.silo_ledger)

    def _standardize(self) -> Constants | None:
        standardize = self.experiment.data.standardize
        if not isinstance(standardize, Private):
            return None
        self.federation, constants = standardization.standardized(
            self.federation,
            standardize,
            self.ledger,
            noise=self.noise,
            folder=self.folder,
            unit=loop.UNIT,
            neighbours=self.plan.neighbours,
        )
        return constants

    def _silo_ledger(self, opened: ExitStack) -> Ledger | None:
        if self.plan.example is None:
            return None
        ledger = Ledger(
            self.store.silo_ledger,
            run=digest(self.experiment),
            dataset=self.federation.fingerprint,
            told=self.plan.example.charges,
        )
        return opened.enter_context(closing(ledger))

    def _link(self, plugins: Sequence[str]) -> Link:
        experiment, example, personal = self.experiment, self.plan.example, self.store.personal
        noise = None if example is None else example.noise
        link: Link
        if self._connect is not None:
            link = self._connect(self)
            self._wire = link.counted if isinstance(link, RemoteLink) else None
        elif experiment.engine.kind == "pool":
            workers = experiment.engine.workers or os.cpu_count() or 1
            link = PoolLink(
                experiment, self.federation, personal=personal, workers=workers, plugins=plugins, noise=noise
            )
        else:
            host = setup.host(experiment, self.federation, personal=personal, noise=noise)
            rows = Changing(host, self.federation, experiment.data.shift)
            link = LocalLink(host, chunk=setup.chunk(experiment, self.model), rows=rows)
        if self.roles is not None:
            host = setup.host(experiment, self.federation, personal=personal, noise=noise)
            link = AttackedLink(link, host=host, roles=self.roles, poisoner=self._poisoner(self.roles))
        if example is not None and self.silo_ledger is not None:
            link = AccountedLink(link, ledger=self.silo_ledger, events=example.events)
        if not experiment.privacy.audit.canaries:
            return link
        return CanaryLink(
            link,
            participation=auditing.participation(experiment, self.plan),
            channel=planning.AUDITED,
            sizes=experiment.strategy.channels(self.model.start.numel()),
            seed=experiment.seed,
            local=protection(experiment),
        )

    def _sinks(self, opened: ExitStack, *, resumed: bool) -> telling.Sinks:
        sinks = telling.Sinks.of(self.experiment, private=self.records)
        opened.callback(sinks.close)
        config = telling.config_of(self.experiment)
        sinks.open(Told(self.experiment.name, self.folder, config, self.store.rows), resumed=resumed)
        return sinks

    def _poisoner(self, roles: Roles) -> Callable[[int], Poisoner]:
        made: dict[int, Poisoner] = {}

        def of(round_: int) -> Poisoner:
            rows = self.held(round_)
            return made.setdefault(id(rows), Poisoner(roles, rows.train, seed=self.experiment.seed))

        return of

    def held(self, round_: int) -> Federation:
        """The rows as they are in a round."""
        shift = self.experiment.data.shift
        return self.federation if shift is None or round_ < shift.round else self._later

    @cached_property
    def _later(self) -> Federation:
        assert self.experiment.data.shift is not None
        return shifted(self.federation, self.experiment.data.shift)

    def _roles(self) -> Roles | None:
        experiment, silos = self.experiment, len(self.federation.train)
        if not experiment.attacks:
            return None
        return Roles(experiment.attacks, seed=experiment.seed, silos=silos, rounds=experiment.rounds)

    def _training(self) -> Training:
        experiment, plan = self.experiment, self.plan
        canaries = self.link.expected if isinstance(self.link, CanaryLink) else 0.0
        return Training(
            strategy=experiment.strategy,
            model=self.model.start,
            layout=setup.layout(self.model),
            sampler=plan.sampler,
            mechanisms=plan.mechanisms,
            rounds=experiment.rounds,
            seed=experiment.seed,
            noise=self.noise,
            expected=plan.sampler.expected + canaries,
            neighbours=plan.neighbours,
            delta=plan.delta,
            budget=experiment.budget.epsilon if experiment.budget is not None else None,
            before=plan.before,
            record=self.records,
            every=experiment.metrics.every,
            evaluate=self._public_evaluation(1),
            later=self._later_evaluation(),
            identity=self._identity,
            watcher=auditing.watcher(experiment, self.model.start.numel()),
            ledgers=self._beside,
            admit=self.example_accounts.admit if self.example_accounts is not None else loop.always,
            local=plan.local.charge if plan.local is not None else None,
            values=experiment.wire.values,
            tells=self._watch(),
            wire=None if self._wire is None else self._wire.take,
        )

    def _watch(self) -> Watch | None:
        if self.roles is None:
            return None
        return Watch(self.roles, self.experiment.strategy, self.minority)

    @property
    def records(self) -> bool:
        """Whether private numbers (losses, clip fraction, per-silo accuracies) may be recorded."""
        here = self.exact and self._connect is None  # Silos elsewhere show nothing that they are not asked for by name.
        return here or self.experiment.metrics.privacy == "research"

    @cached_property
    def minority(self) -> frozenset[int]:
        """The silos whose rows are mostly of rare classes, where private numbers may be recorded."""
        train = self.federation.train
        return minority_silos(train, self.federation.classes) if self.records else frozenset()

    @property
    def exact(self) -> bool:
        """Whether nothing is protected: neither silos, nor their updates, nor their examples."""
        privacy = self.experiment.privacy
        return privacy.silo is None and privacy.local is None and privacy.example is None

    def _later_evaluation(self) -> tuple[int, Evaluate] | None:
        shift = self.experiment.data.shift
        measure = None if shift is None else self._public_evaluation(shift.round)
        return None if shift is None or measure is None else (shift.round, measure)

    def _public_evaluation(self, round_: int) -> Evaluate | None:
        held = self.held(round_)
        rows = held.public_test
        if rows is None:
            return None
        task, device = self.experiment.task, chosen(self.experiment.engine.device)
        module = self.model.module.to(device)
        tests = attack_tests(self.experiment.attacks, rows, held.train)

        def measure(model: torch.Tensor, guard: Guard | None = None) -> dict[str, float]:
            there = model.to(device)
            found = evaluate_served(task, module, there, guard, rows.features, rows.targets)
            for name, test in tests.items():
                found[name] = evaluate_served(task, module, there, guard, test.features, test.targets)["accuracy"]
            return found

        return measure


def run(
    config: str | Path | Experiment,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    on_round: Callable[[RoundResult], None] | None = None,
) -> Outcome:
    """Runs an experiment to its end, or to the end of its budget.

    Args:
        config: a YAML file, the name of a shipped experiment, or an experiment.
        out: the run's folder; default `runs/NAME-DATE`.
        overrides: `a.b=c`, as `--set` takes them; only with a file.
        on_round: called after every committed round.

    >>> from simulations import run  # doctest: +SKIP
    >>> run("quickstart", overrides=["rounds=5"]).result["metrics"]  # doctest: +SKIP
    """
    experiment = config if isinstance(config, Experiment) else load(find(str(config)), overrides)
    with ActiveRun(experiment, Path(out) if out is not None else default_folder(experiment)) as active:
        train(active, on_round)
        return active.finish()


def train(
    active: ActiveRun,
    on_round: Callable[[RoundResult], None] | None = None,
    *,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Iterates an open run to its end, or until its budget or `stop` ends it, which it notes in `active.stopped`.

    Args:
        active: the run.
        on_round: called after every committed round.
        stop: asked before the first round and after every other one, so that a round in flight is always ended.
    """
    if stop is not None and stop():
        active.stopped = INTERRUPTED
        return
    try:
        for result in active:
            if on_round is not None:
                on_round(result)
            if stop is not None and stop() and result.round < active.experiment.rounds:
                active.stopped = INTERRUPTED
                return
    except BudgetSpent as spent:
        active.stopped = f"budget: {spent}"
