"""The audit of a run: its scores in audit.json, and what they mean, recomputed from that file alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privacy.audit import Scores, measure, score
from simulations.words.audit import RUN_CLAIM

if TYPE_CHECKING:
    from torch import Tensor

    from server.iterates import MaximalCosines
    from server.participation import Participation
    from simulations.planning import Plan
    from simulations.running import ActiveRun
    from strategies.experiment import Experiment, Privacy

FILE = "audit.json"
VERSION = 2


class AuditError(ValueError):
    """A folder whose audit cannot be read; one line."""


@dataclass(frozen=True)
class Record:
    """All that the audit needs to know of a run; no model.

    Attributes:
        final: cosines of canaries with the whole change of the model.
        iterates: their largest cosines with one step of it, or None.
        iterates_off: why there are none; empty otherwise.
        delta: of every epsilon.
        claim: what canaries may show at most; infinite without one.
        compared_with: what that claim is, in words.
        reference: whether the change was taken from the start or from zero.
    """

    final: Scores
    iterates: Scores | None
    iterates_off: str
    delta: float
    claim: float
    compared_with: str
    reference: str


@dataclass(frozen=True)
class Audited:
    """All that was scored in a run.

    Attributes:
        silo: canary silos, against the final model; None where there were none.
        examples: audited silo to its canary examples, against that silo's own change.
    """

    silo: Record | None
    examples: Mapping[int, Record]


def participation(experiment: Experiment, plan: Plan) -> Participation:
    """In which rounds the experiment's canaries take part."""
    from server.participation import Coins, InTurns, Spread
    from server.sampler import CyclicCohort

    audit = experiment.privacy.audit
    if audit.participation == "spread":
        return Spread(audit.canaries, audit.repeats, experiment.rounds)
    if isinstance(plan.sampler, CyclicCohort):
        return InTurns(audit.canaries, plan.sampler.separation)
    return Coins(audit.canaries, plan.sampler.expected / plan.sampler.population, experiment.seed)


def watcher(experiment: Experiment, size: int) -> MaximalCosines | None:
    """What scores every round, where that is wanted and not too much work."""
    from server.iterates import MaximalCosines

    canaries = experiment.privacy.audit.canaries
    if not canaries or iterates_off(experiment.privacy, size):
        return None
    return MaximalCosines(canaries=canaries, size=size, seed=experiment.seed)


def iterates_off(privacy: Privacy, size: int) -> str:
    """Why rounds are not scored; empty where they are."""
    from server.iterates import WORK_LIMIT, too_much_work

    audit = privacy.audit
    if audit.iterates == "off":
        return "privacy.audit.iterates is off"
    if privacy.silo is not None and privacy.silo.mechanism == "banded":
        return "under banded noise a single step hides what sums of steps show, so its score says little"
    if too_much_work(audit.canaries, size):
        work = 2 * audit.canaries * size
        return f"scoring a round takes {work:,} numbers (2 x canaries x parameters), above the limit of {WORK_LIMIT:,}"
    return ""


def audit(active: ActiveRun, final: Tensor, claimed: Mapping[str, Any] | None) -> dict[str, Any]:
    """Scores canaries, writes audit.json where there were any, and says what it means, as result.json holds it.

    Args:
        active: the run.
        final: what its strategy has audited, after the last round, `(N,)`.
        claimed: the claim for silos, as result.json holds it; None without one.
    """
    from privacy.durable import atomic_write
    from simulations.example_audit import records

    silo = None if claimed is None else _silo_record(active, final, claimed)
    audited = Audited(silo, records(active))
    if audited.silo is not None or audited.examples:
        atomic_write(active.folder / FILE, encode(audited).encode())
    return results(audited)


def _silo_record(active: ActiveRun, final: Tensor, claimed: Mapping[str, Any]) -> Record | None:
    from server.iterates import MaximalCosines

    settings = active.experiment.privacy.audit
    if not settings.canaries or not bool((final - active.model.start).any()):
        return None
    change = final - active.model.start if settings.reference == "start" else final
    found = active.training.watcher
    claim, compared_with = _claim(active, claimed)
    return Record(
        final=score(change, seed=active.experiment.seed, canaries=settings.canaries),
        iterates=found.scores() if isinstance(found, MaximalCosines) else None,
        iterates_off=iterates_off(active.experiment.privacy, change.numel()),
        delta=float(claimed["delta"]),
        claim=claim,
        compared_with=compared_with,
        reference=settings.reference,
    )


def _claim(active: ActiveRun, claimed: Mapping[str, Any]) -> tuple[float, str]:
    """What canaries may show: the run's epsilon, or without amplification where they took part on a schedule."""
    from privacy.accountant import epsilon
    from privacy.events import Gaussian
    from privacy.mechanism import GaussianSum
    from simulations.planning import AUDITED

    settings, audited = active.experiment.privacy.audit, active.plan.mechanisms.get(AUDITED)
    if settings.participation == "bernoulli" or not isinstance(audited, GaussianSum):
        upper = claimed["epsilon_upper"]
        return (math.inf if upper is None else float(upper)), RUN_CLAIM
    # Canaries show on one channel alone, which may have more noise than all channels together.
    equivalent = audited.noise_multiplier / math.sqrt(settings.repeats)
    words = f"the unsampled Gaussian of noise multiplier {equivalent:.4g} (each canary in {settings.repeats} rounds)"
    return epsilon(Gaussian(equivalent), float(claimed["delta"])).upper, words


def results(audited: Audited) -> dict[str, Any]:
    """What all scores mean; None where nothing was scored."""
    examples = [{"silo": silo} | measured(record) for silo, record in audited.examples.items()]
    return {
        "measured": None if audited.silo is None else measured(audited.silo),
        "measured_example": examples or None,
    }


def measured(record: Record) -> dict[str, Any]:
    """What the scores mean, as plain values; None stands for infinity."""
    found = asdict(measure(record.final, delta=record.delta, claim=record.claim, iterates=record.iterates))
    found |= {name: getattr(record, name) for name in ("compared_with", "reference", "iterates_off")}
    return {name: _plain(value) for name, value in found.items()}


def encode(audited: Audited) -> str:
    """The text of audit.json."""
    silo = None if audited.silo is None else _coded(audited.silo)
    examples = [{"silo": silo} | _coded(record) for silo, record in audited.examples.items()]
    return json.dumps({"version": VERSION, "silo": silo, "examples": examples}, allow_nan=False) + "\n"


def _coded(record: Record) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in ("iterates_off", "delta", "compared_with", "reference")}
    scores = {"final": record.final, "iterates": record.iterates}
    written: dict[str, Any] = {**values, "claim": _plain(record.claim)}
    return written | {name: None if each is None else _scores(each) for name, each in scores.items()}


def read(folder: Path) -> Audited:
    """Reads audit.json of a run's folder.

    Raises:
        AuditError: it is missing, damaged, or of another version.
    """
    path = folder / FILE
    if not path.is_file():
        raise AuditError(f"{path}: missing; audit a run that had canaries (privacy.audit) and did a round")
    try:
        return _decode(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AuditError(f"{path}: cannot be read ({reason}); restore it from a copy") from error


def _decode(data: Mapping[str, Any]) -> Audited:
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']!r}, this confide reads {VERSION}")
    examples = {int(each["silo"]): _read_record(each) for each in data["examples"]}
    return Audited(None if data["silo"] is None else _read_record(data["silo"]), examples)


def _read_record(data: Mapping[str, Any]) -> Record:
    claim, delta = data["claim"], float(data["delta"])
    if not 0 < delta < 1:
        raise ValueError(f"delta {delta!r}")
    return Record(
        final=_read_scores(data["final"]),
        iterates=None if data["iterates"] is None else _read_scores(data["iterates"]),
        iterates_off=str(data["iterates_off"]),
        delta=delta,
        claim=math.inf if claim is None else float(claim),
        compared_with=str(data["compared_with"]),
        reference=str(data["reference"]),
    )


def _scores(scores: Scores) -> dict[str, Any]:
    return {"seen": scores.seen.tolist(), "unseen": scores.unseen.tolist(), "dimension": scores.dimension}


def _read_scores(data: Mapping[str, Any]) -> Scores:
    import numpy as np

    seen, unseen = (np.array(data[name], dtype=np.float64).reshape(-1) for name in ("seen", "unseen"))
    return Scores(seen, unseen, int(data["dimension"]))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
