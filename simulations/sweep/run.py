"""Does the runs of a sweep, one after the other, and remembers each in sweep.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.tables import Table
from privacy.ledger import Ledger
from server.loop import UNIT, Diverged
from server.sampler import CyclicCohort
from server.store import StoreError
from server.turns import again
from simulations.running import INTERRUPTED, ActiveRun, train
from simulations.sweep.choice import choose
from simulations.sweep.memory import DIVERGED, DONE, WAITING, held, remember
from simulations.sweep.plan import Drawn
from simulations.sweep.score import silo_score
from simulations.sweep.sweep import Sweep
from strategies.codec import encode
from strategies.experiment import Experiment
from strategies.yaml_text import yaml_of

LEDGER = "scores.jsonl"


@dataclass(frozen=True)
class Means:
    """What the runs of a sweep are done with, beside the sweep itself.

    Attributes:
        stop: asked before and between rounds; true ends the sweep, to be gone on with.
        show: told a line when a run starts.
        plugins: modules imported for it, which worker processes import too.
        table: rows for `data.name: dataset`.
    """

    stop: Callable[[], bool]
    show: Callable[[str], None]
    plugins: Sequence[str] = ()
    table: Table | None = None


def go_on(sweep: Sweep, memory: dict[str, Any], folder: Path, means: Means) -> bool:
    """Does the runs that wait, then chooses; False where `means.stop` ended it first.

    Raises:
        StoreError: another process works on this sweep, or a run's folder holds another experiment.
    """
    with held(folder), ExitStack() as opened:
        ledger = None
        if sweep.spec.score_noise is not None:
            ledger = opened.enter_context(closing(Ledger(folder / LEDGER, run="sweep", dataset=sweep.dataset)))
        for number, (run, entry) in enumerate(zip(sweep.drawn, memory["runs"]), 1):
            if entry["state"] != WAITING:
                continue
            means.show(f"{run.name} of {len(sweep.drawn)}: {', '.join(sweep.points[run.point])}")
            found = _one(sweep, run, folder / run.name, means, ledger)
            if found is None:
                return False
            entry |= found
            if ledger is not None:
                entry["scores"] = sum(each.kind == "reserve" and each.round == number for each in ledger.entries)
            remember(folder, memory)
        choose(sweep, memory, folder)
    return True


def _one(sweep: Sweep, run: Drawn, folder: Path, means: Means, ledger: Ledger | None) -> dict[str, Any] | None:
    """Does one run, or the rest of it; what to remember of it, None where it was stopped."""
    experiment, noise = sweep.experiment(run), sweep.spec.score_noise
    with ActiveRun(
        experiment, folder, resume=_begun(folder, experiment), plugins=means.plugins, table=means.table
    ) as active:
        try:
            train(active, stop=means.stop)
        except Diverged:  # Seen in a released model: the worst that a run can be, and no reason to draw another.
            return {"state": DIVERGED, "score": None, "charges": _charges(active)}
        if active.stopped == INTERRUPTED:
            return None
        score = active.finish().result["metrics"].get(sweep.spec.select or "")
        if ledger is not None and noise is not None:
            score = silo_score(active, ledger, run=sweep.drawn.index(run) + 1, noise=noise)
        return {"state": DONE, "score": score, "charges": _charges(active)}


def _begun(folder: Path, experiment: Experiment) -> bool:
    """Whether a run's folder holds its beginning.

    Raises:
        StoreError: it holds another run.
    """
    path = folder / "experiment.yaml"
    if not path.exists():
        return False
    if path.read_bytes() != yaml_of(encode(experiment)).encode():
        raise StoreError(f"{path}: not the experiment that this sweep drew; restore it, or start anew elsewhere")
    return True


def _charges(active: ActiveRun) -> int:
    """Rounds that the ledger charges, broken-off attempts included; turns are priced as if all were done."""
    if isinstance(active.plan.sampler, CyclicCohort):
        return active.plan.rounds + again(active.ledger.counted(), UNIT)
    return active.ledger.charges(UNIT) - len(active.plan.before)
