"""The budgets of examples in a run: whom a round is charged to, where that is kept, and what all runs have spent.

Where the price for silos counts on nobody learning who was in a round, a budget that stopped a run because of who was
asked would tell it. There every silo is charged for every round, asked or not; otherwise a silo pays for what it is
asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from privacy.account import Account, Cumulative
from privacy.events import Event, Gaussian
from privacy.ledger import Ledger
from privacy.silo_accounts import SiloAccounts
from server import loop
from server.sampler import Sampler
from simulations.accounts import identity, place
from simulations.data.federation import Federation
from simulations.example_privacy import NEIGHBOURS, UNIT, ExamplePlan, groups
from strategies.experiment import Experiment


def secret(experiment: Experiment, sampler: Sampler) -> bool:
    """Whether who is in a round must stay unknown: the price of a round for a silo is then less than its noise's.

    >>> from server.sampler import FullCohort, PoissonCohort
    >>> from strategies.loading import load
    >>> from simulations.shipped import find
    >>> config = load(find("quickstart"))
    >>> secret(config, PoissonCohort(0.5, 10)), secret(config, PoissonCohort(1.0, 10)), secret(config, FullCohort(10))
    (True, False, False)
    """
    alone = Gaussian(1.0)
    return experiment.privacy.silo is not None and sampler.event(alone) != alone


@dataclass(frozen=True)
class ExampleAccounts:
    """The accounts of a run's silos in its data set's ledger.

    Attributes:
        accounts: of the data set.
        events: what a round costs an example of each silo.
        everyone: whether every silo counts as asked in every round.
    """

    accounts: SiloAccounts
    events: Sequence[Event]
    everyone: bool

    def admit(self, round_: int, cohort: Sequence[int]) -> AbstractContextManager[None]:
        """What a round has to be reserved inside of; see `SiloAccounts.admit`."""
        silos = range(len(self.events)) if self.everyone else cohort
        return self.accounts.admit(round_, groups(self.events, silos))

    def settle(self, own: Ledger, silos: Ledger) -> None:
        """Charges to the data set what the run's ledgers hold and that ledger does not.

        Args:
            own: the run's ledger, which knows how many rounds were begun.
            silos: the silos' ledger, which knows who was asked.
        """
        spent = silos.spent_by(UNIT, range(len(self.events)))
        if self.everyone:
            begun = own.charges(loop.UNIT)
            spent = {silo: spent[silo] | Counter({event: begun}) for silo, event in enumerate(self.events)}
        self.accounts.settle(spent)

    def total(self) -> Cumulative:
        """What all runs have spent, for the silo that spent most."""
        return self.accounts.total()


def open_accounts(
    experiment: Experiment,
    plan: ExamplePlan | None,
    sampler: Sampler,
    folder: Path,
    federation: Federation,
    *,
    beside: Account | None,
    opened: ExitStack,
) -> ExampleAccounts | None:
    """The accounts of a run with a budget of examples; None for one without.

    Args:
        experiment: of the run.
        plan: its example-level side.
        sampler: who is asked.
        folder: of the run.
        federation: its silos.
        beside: the account of whole silos in the same ledger, or None.
        opened: closes what is opened here.

    Raises:
        LedgerError: the data set's ledger cannot be used, or is for another relation.
    """
    if plan is None or not plan.budgets:
        return None
    run, fingerprint = identity(folder), federation.fingerprint
    if beside is not None:
        ledger = beside.ledger  # One lock for both units.
    else:
        ledger = opened.enter_context(closing(Ledger(place(fingerprint), run=run, dataset=fingerprint, shared=True)))
    hidden = secret(experiment, sampler)
    accounts = SiloAccounts(
        ledger,
        run=run,
        unit=UNIT,
        neighbours=NEIGHBOURS,
        delta=plan.delta,
        deal=federation.deal,
        budgets=plan.budgets,
        names=None if hidden else federation.silo_names,
    )
    return ExampleAccounts(accounts, plan.events, hidden)
