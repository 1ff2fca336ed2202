"""What a run leaves at its end: the model, result.json, the report."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save
from torch import Tensor

from privacy.accountant import upper_epsilon
from privacy.durable import atomic_write
from privacy.events import Composed, Repeated
from server.loop import final_epsilon
from server.loop import served as served_by
from server.rows import finite
from server.turns import charged
from simulations import (
    auditing,
    certificates,
    channels,
    evaluation,
    example_privacy,
    group_metrics,
    local_privacy,
    reproducing,
)
from simulations.attacks import measuring
from simulations.engines import setup
from simulations.metrics.names import WITHHELD
from strategies.base import Guard, Reported
from strategies.experiment import digest
from strategies.guarded import Guarded

if TYPE_CHECKING:
    from simulations.running import ActiveRun

MODEL = "model.safetensors"
PACKAGES = ("torch", "flwr", "numpy", "opacus", "dp-accounting", "safetensors", "cryptography")


def finish(active: ActiveRun) -> dict[str, Any]:
    """Writes model.safetensors, result.json and report.html; returns what result.json holds."""
    experiment, rows = active.experiment, active.store.rows()
    checkpoint = active.store.load()
    state = checkpoint.state if checkpoint is not None else active.training.first()
    predictor = experiment.strategy.predictor(state)
    metrics = _metrics(active, state, predictor, len(rows))
    result = {
        "name": experiment.name,
        "strategy": experiment.strategy.name,
        "data": experiment.data.name or "file",
        "rounds": len(rows),
        "seed": experiment.seed,
        "engine": experiment.engine.kind,
        "metrics": metrics,
        "attacks": _attacks(active, rows, metrics),
        "privacy": _privacy(active, experiment.strategy.audited(state), rows),
        "updates": _updates(rows),
        "communication": _communication(rows, predictor.numel()),
        "model": _model(active, predictor, experiment.strategy.guard(state)),
        "seconds": round(sum(sum(row["seconds"].values()) for row in rows), 3),
        "shown": {"privacy": _shown(active), "withheld": list(WITHHELD) if _shown(active) == "strict" else []},
        "standardize": None if active.released is None else asdict(active.released),
        "versions": versions(),
        "digest": digest(experiment),
        "command": reproducing.command(experiment, active.plugins),
        "strategy_report": _reported({**experiment.strategy.report(state), **certificates.certified(active, state)}),
        "stopped": active.stopped,
        "silos": len(active.federation.train),
        "notes": [*active.federation.notes, *active.notes, *_stamps(active)],
        "ledger": asdict(active.ledger.head),
        "ledgers": {other.path.name: asdict(other.head) for other in active.training.ledgers},
    }
    active.sinks.close(result)
    result["sinks"] = dict(active.sinks.failed)
    active.store.finish(result)
    from simulations.report.page import write_report

    write_report(active.folder)
    return result


def _metrics(active: ActiveRun, state: Mapping[str, Tensor], predictor: Tensor, rounds: int) -> dict[str, Any]:
    """Loss and score on the public test set, and the spread over silos where private numbers may be shown."""
    measured: dict[str, Any] = {active.model.shape.metric: None, "loss": None, "per_silo": None}
    variants = active.experiment.strategy.variants(state, rounds)
    evaluate = active.training.evaluation(rounds)
    if evaluate is not None:
        measured |= finite(evaluate(*served_by(active.experiment.strategy, state)))
        measured["variants"] = {name: finite(evaluate(each)) for name, each in variants.items()}
    served = evaluation.served(active, state, rounds)
    if "test" in served:
        measured["per_silo"] = served["test"]["per_silo"]
        if evaluate is None:
            measured |= {name: served["test"][name] for name in measured}
    guard = active.experiment.strategy.guard(state)
    by_group = group_metrics.served(active.held(rounds), active, predictor, guard, variants)
    return measured | served | ({} if by_group is None else {"groups": by_group})


def _reported(numbers: Mapping[str, Reported]) -> dict[str, Any]:
    """What the strategy tells, as JSON."""
    return {
        name: [_number(each) for each in value]
        if isinstance(value, list)
        else _number(value)
        if isinstance(value, float)
        else value
        for name, value in numbers.items()
    }


def _attacks(active: ActiveRun, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """How far attacks got; None where nobody attacked."""
    if active.roles is None:
        return None
    return measuring.summary(rows, metrics, active.experiment.attacks, len(active.minority) if active.records else None)


def _privacy(active: ActiveRun, audited: Tensor, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    plan, silo = active.plan, active.experiment.privacy.silo
    found: dict[str, Any] = {"silo": None, "local": None, "example": None, **_cumulative(active)}
    if plan.local is not None:
        found["local"] = local_privacy.described(plan.local, active.ledger, active.link.population)
    if plan.example is not None and active.silo_ledger is not None:
        found["example"] = example_privacy.claimed(plan.example, active.silo_ledger)
    if silo is None:
        return found | auditing.audit(active, audited, None)
    spent = final_epsilon(active.training, active.ledger)
    claimed = {
        "epsilon_lower": _number(spent.lower),
        "epsilon_upper": _number(spent.upper),
        "delta": silo.delta,
        "neighbours": spent.neighbours,
        "method": spent.method,
        "note": spent.note,
        "noise_multiplier": active.plan.noise_multiplier,
        **channels.described(active.plan.mechanisms, last=rows[-1]["clip_norms"] if rows else {}),
        "charged_rounds": active.ledger.charges("silo"),
        "epsilon_planned": _planned(active, len(rows), spent.upper),
    }
    return found | {"silo": claimed} | auditing.audit(active, audited, claimed)


def _planned(active: ActiveRun, rounds: int, spent: float) -> float | None:
    """Upper epsilon of a stopped run had it gone on; None for a run that nobody stopped.

    What ran is a part of what would have run, so this price holds whatever made somebody stop it.
    """
    if active.stopped is None or active.stopped.startswith("budget"):
        return None
    training = active.training
    rest = charged(training.sampler, active.experiment.rounds) - charged(training.sampler, rounds)
    history = Composed((*active.ledger.spent("silo"), Repeated(training.event, rest)))
    assert training.delta is not None  # It has privacy, or nothing was claimed.
    whole = upper_epsilon(history, training.delta, neighbours=training.neighbours)
    return _number(whole if training.budget is None else max(spent, min(whole, training.budget)))


def _cumulative(active: ActiveRun) -> dict[str, Any]:
    """What all runs with a budget have spent on this data set, of silos and of examples; None without that budget."""
    found: dict[str, Any] = {"cumulative": None, "cumulative_example": None}
    if active.account is not None:
        total = asdict(active.account.total())
        found["cumulative"] = total | {"epsilon_upper": _number(total["epsilon_upper"])}
    if active.example_accounts is not None:
        total = asdict(active.example_accounts.total()) | {"all_silos": active.example_accounts.everyone}
        found["cumulative_example"] = total | {"epsilon_upper": _number(total["epsilon_upper"])}
    return found


def _updates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Updates that arrived over all rounds, and why others did not."""
    reasons: Counter[str] = Counter()
    for row in rows:
        reasons.update(row["failure_reasons"])
    arrived, failed = (sum(row[name] for row in rows) for name in ("arrived", "failures"))
    return {"arrived": arrived, "failed": failed, "reasons": dict(sorted(reasons.items()))}


def _communication(rows: Sequence[Mapping[str, Any]], size: int) -> dict[str, Any]:
    """Totals, and their ratio to sending the dense model both ways."""
    names = ("bytes_up", "bytes_down", "parameters_up", "parameters_down")
    totals: dict[str, Any] = {name: sum(row[name] for row in rows) for name in names}
    dense = 2 * size * sum(row["arrived"] + row["failures"] for row in rows)
    totals["ratio"] = (totals["parameters_up"] + totals["parameters_down"]) / dense if dense else None
    return totals


def _model(active: ActiveRun, predictor: Tensor, guard: Guard | None) -> dict[str, Any]:
    """Saves the model; says what it takes and gives, so that it can be used without the data."""
    shape, federation = active.model.shape, active.federation
    return {
        "file": MODEL,
        "sha256": _save_model(active, predictor, guard),
        "guarded": None if guard is None else guard.label,
        "features": list(shape.features),
        "outputs": shape.outputs,
        "feature_names": list(federation.feature_names),
        "class_names": list(federation.class_names),
    }


def _save_model(active: ActiveRun, predictor: Tensor, guard: Guard | None) -> str:
    layout, module = setup.layout(active.model), active.model.module
    layout.load(module, predictor)
    if guard is not None:
        module = Guarded(module, label=guard.label)
        layout.load(module.guard, guard.model)
    tensors = {name: value.contiguous() for name, value in module.state_dict().items()}
    data = save(tensors)
    atomic_write(active.folder / MODEL, data)
    return hashlib.sha256(data).hexdigest()


def _stamps(active: ActiveRun) -> list[str]:
    """What a reader must know before trusting the numbers."""
    stamps = []
    if active.roles is not None:
        stamps.append("some silos are malicious on purpose (attacks): what a run says of privacy is of the others")
    if not active.exact:
        stamps.append(active.noise.stamp)
        stamps.append("epsilon does not cover counts (silos, cohorts, failures, bytes) and times, which are exact")
        if active.records:
            stamps.append("metrics.privacy is research: numbers computed on private rows are shown and are not priced")
        else:
            stamps.append(f"metrics.privacy is strict: withheld are {', '.join(WITHHELD)}")
    return stamps


def _shown(active: ActiveRun) -> str:
    """Which numbers on private rows may be shown, as `simulations.metrics.replay` has it."""
    if active.exact:
        return "none"
    return "research" if active.records else "strict"


def versions() -> dict[str, str]:
    """Of confide itself, of Python and of the packages that decide numbers."""
    own = {"confide": f"{version('confide')} (source {reproducing.source()[:12]})", "python": platform.python_version()}
    return own | {package: version(package) for package in PACKAGES}


def _number(value: float) -> float | None:
    """JSON has no infinity: None stands for it."""
    return float(value) if np.isfinite(value) else None
