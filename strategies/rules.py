"""The rules between the keys of an experiment.

Each is given whole sections, and is left out while one of them has problems of its own: one mistake is one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from strategies.clipping import AdaptiveClip, channel_problems
from strategies.experiment import FILES, Budget, Cohort, Data, Experiment, Privacy, Train, Wire
from strategies.rules_attacks import attack_rules, attacked_rules
from strategies.rules_audit import alone_rules, audited_rules, planted_rules
from strategies.rules_engine import apart_rules, engine_rules, inline_rules
from strategies.rules_example import budget_rules, lengths_rules, numbers_rules, steps_rules
from strategies.words import spell

if TYPE_CHECKING:  # It imports torch.
    from strategies.base import Strategy

MOST_BANDED_ROUNDS = 10_000  # As `privacy.band.MOST_ROUNDS`, which loads numpy.


def _name_rules(name: str) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name):  # It becomes a folder: no `../`, no hidden files.
        yield f"name: use up to 100 letters, digits, - _ or . (not first), found {name[:40]!r}"


def _data_rules(data: Data) -> Iterator[str]:
    if data.name in FILES:  # With a path of that ending it is left out, see `Data`.
        ends = f"{data.path} does not end in .{data.name}" if data.path is not None else f"missing, name: {data.name}"
        yield f"data.path: {ends}" + ("; correct one of them" if data.path is not None else " needs the file's path")
    elif (data.name is None) == (data.path is None):
        found = "neither" if data.name is None else "both"
        yield f"data: give one of name and path, found {found}"
    if data.name is not None and not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._:-]{0,99}", data.name):
        yield f"data.name: not the name of a data set, found {data.name[:40]!r}; see confide list, or use data.path"
    if data.named and data.name not in FILES and data.kind is not None:
        yield f"data.kind: found {data.kind!r}, but a data set by name has its own; remove it, or use data.path"
    csv = data.path is not None and data.path.lower().endswith(".csv")
    if csv and data.target is None:
        yield "data.target: missing, give the CSV column to predict"
    by_column = data.partition.name == "column"
    if data.silo is not None and not by_column and not data.named:
        yield (
            f"data.partition: found {data.partition.name}, but data.silo: {data.silo} says whose row it is; use "
            "partition: column (or leave it out), or remove data.silo"
        )
    if by_column and csv and data.silo is None:
        yield "data.silo: missing, partition: column needs the CSV column that says whose row it is"
    if by_column and data.silos is not None:
        yield f"data.silos: found {data.silos}, but partition: column takes the silos of the data; remove it"
    if not by_column and data.silos is None and (data.silo is None or data.named):
        yield "data.silos: missing, give the number of silos, or use partition: column for those of the data"
    if not data.validation + data.test < 1:
        yield f"data.test: validation + test must be < 1, got {data.validation} + {data.test}; leave rows to train on"


def _shift_rules(rounds: int, data: Data) -> Iterator[str]:
    if data.shift is None:
        return
    yield from (f"data.shift.{line}" for line in data.shift.problems())
    if data.shift.round > rounds:
        yield f"data.shift.round: must be <= rounds = {rounds}, got {data.shift.round}; it would never come"


def _cohort_rules(cohort: Cohort) -> Iterator[str]:
    if cohort.sampling == "fixed" and cohort.size is None:
        yield "cohort.size: missing, sampling: fixed needs the number of silos in a round"
    if cohort.sampling != "fixed" and cohort.size is not None:
        yield f"cohort.size: found {cohort.size}, but only sampling: fixed uses it; remove it"
    if cohort.sampling == "cyclic" and cohort.separation is None:
        yield "cohort.separation: missing, sampling: cyclic needs the rounds from a silo's turn to its next"
    if cohort.sampling != "cyclic" and cohort.separation is not None:
        yield f"cohort.separation: found {cohort.separation}, but only sampling: cyclic uses it; remove it"
    if cohort.sampling != "poisson" and cohort.rate != 1:
        yield f"cohort.rate: found {cohort.rate}, but only sampling: poisson uses it; remove it"
    if cohort.cap is not None and cohort.sampling != "poisson":
        yield f"cohort.cap: found {cohort.cap}, but only sampling: poisson uses it; remove it"
    elif cohort.cap is not None and cohort.rate == 1:
        yield f"cohort.cap: with rate: 1 every cohort has that size; use sampling: fixed and size: {cohort.cap}"


def _size_rules(cohort: Cohort, data: Data) -> Iterator[str]:
    if cohort.size is not None and data.silos is not None and cohort.size > data.silos:
        yield f"cohort.size: must be <= data.silos = {data.silos}, got {cohort.size}"
    if cohort.separation is not None and data.silos is not None and cohort.separation > data.silos:
        yield f"cohort.separation: must be <= data.silos = {data.silos}, got {cohort.separation}"


def _train_rules(train: Train) -> Iterator[str]:
    if train.steps is not None and train.epochs is not None:
        yield f"train: give one of steps and epochs, found both ({train.steps} and {train.epochs}); set one to null"


def _privacy_rules(privacy: Privacy) -> Iterator[str]:
    silo = privacy.silo
    if silo is not None and (silo.noise_multiplier is None) == (silo.epsilon is None):
        found = "neither" if silo.epsilon is None else "both"
        yield f"privacy.silo: give one of noise_multiplier and epsilon, found {found}"
    if silo is None and privacy.audit.canaries:
        yield (
            f"privacy.audit.canaries: found {privacy.audit.canaries}, but there is no privacy.silo to audit; "
            "add it or use canaries: 0"
        )
    if privacy.noise == "system" and privacy.silo is None and privacy.local is None and privacy.example is None:
        yield "privacy.noise: found 'system', but there is no privacy section to add noise for; use simulated"
    if privacy.local is not None and privacy.example is not None:  # Two promises against the server, in one update.
        yield "privacy.local: stands beside privacy.example, and no statement is made for both; remove one of them"
    audit = privacy.audit
    if audit.participation != "spread" and audit.repeats != 1:
        yield f"privacy.audit.repeats: found {audit.repeats}, but only participation: spread uses it; remove it"


def _banded(privacy: Privacy) -> bool:
    return privacy.silo is not None and privacy.silo.mechanism == "banded"


def _banded_rules(rounds: int, privacy: Privacy) -> Iterator[str]:
    if not _banded(privacy):
        return
    if rounds > MOST_BANDED_ROUNDS:
        yield f"rounds: banded noise is for up to {MOST_BANDED_ROUNDS} rounds, got {rounds}; use mechanism: gaussian"
    if privacy.audit.participation == "spread":
        yield (
            "privacy.audit.participation: found 'spread', but banded noise has a price for turns only; use bernoulli, "
            "by which canaries take turns, too"
        )
    if privacy.silo is not None and isinstance(privacy.silo.clip_norm, AdaptiveClip):
        yield "privacy.silo.clip_norm: banded noise is for one clip norm; give a number"


def _local_rules(privacy: Privacy, cohort: Cohort, data: Data) -> Iterator[str]:
    local = privacy.local
    if local is None:
        return
    if (local.noise_multiplier is None) == (local.epsilon is None):
        found = "neither" if local.epsilon is None else "both"
        yield f"privacy.local: give one of noise_multiplier and epsilon, found {found}"
    if local.neighbours == "add_remove":
        yield "privacy.local.neighbours: the server sees who answers, so add_remove has no price; use replace, zero_out"
    if data.silos is not None and not local.delta * data.silos < 1:
        yield f"privacy.local.delta: must be < 1 / silos = {1 / data.silos:.4g}, got {spell(local.delta)}; lower it"
    if data.standardize.name == "private":
        yield "data.standardize: private shows each silo's moments to the server before noise; use own or constants"
    if privacy.silo is not None and privacy.silo.neighbours == "zero_out":
        # Zeros become noise before they are summed, and that may point the other way: two clip norms, priced as one.
        yield "privacy.silo.neighbours: with privacy.local a silo that has zeros sends noise; use add_remove or replace"
    known = cohort.sampling in ("all", "cyclic") or (cohort.sampling == "poisson" and cohort.rate == 1)
    if local.budget is not None and privacy.silo is not None and not known:
        # Its end would depend on cohorts that the price of privacy.silo takes for secret.
        yield "privacy.local.budget: ends the run by who was asked, which privacy.silo keeps secret; remove one of them"


def _repeats_rules(rounds: int, privacy: Privacy) -> Iterator[str]:
    if privacy.audit.repeats > rounds:
        yield f"privacy.audit.repeats: must be <= rounds = {rounds}, got {privacy.audit.repeats}"


def _sampling_rules(cohort: Cohort, privacy: Privacy) -> Iterator[str]:
    # Adding a silo changes no cohort of fixed size: only relations that keep the number of silos have a price.
    if privacy.silo is not None and cohort.sampling == "fixed" and privacy.silo.neighbours == "add_remove":
        yield "privacy.silo.neighbours: cohorts of fixed size have no add_remove price; use neighbours: replace"
    if _banded(privacy) and cohort.sampling != "cyclic":
        yield (
            f"privacy.silo.mechanism: banded noise has a price only where silos take turns, found sampling: "
            f"{cohort.sampling}; use cohort: {{sampling: cyclic, separation: N}}, or mechanism: gaussian"
        )


def _delta_rules(privacy: Privacy, data: Data) -> Iterator[str]:
    silo = privacy.silo
    if silo is None or data.silos is None or silo.allow_large_delta:
        return
    if not silo.delta * data.silos < 1:  # Publishing one silo at random, whole, is (0, 1 / silos)-private.
        yield (
            f"privacy.silo.delta: must be < 1 / silos = {1 / data.silos:.4g}, got {spell(silo.delta)}; "
            "lower it, or set allow_large_delta: true"
        )


def _budget_rules(budget: Budget | None, privacy: Privacy) -> Iterator[str]:
    if budget is None:
        return
    given = budget.epsilon is not None or budget.delta is not None
    if not given and budget.example is None:
        yield "budget: limits nothing, give epsilon and delta, or example; or remove it"
    elif given and privacy.silo is None:
        yield "budget: there is no privacy.silo to spend it, so epsilon is infinite; add privacy.silo or remove budget"
    elif given and (budget.epsilon is None or budget.delta is None):
        missing = "epsilon" if budget.epsilon is None else "delta"
        yield f"budget.{missing}: missing, a budget of silos has epsilon and delta; give both or neither"
    elif given and privacy.silo is not None and budget.delta != privacy.silo.delta:
        yield f"budget.delta: must equal privacy.silo.delta = {spell(privacy.silo.delta)}, got {spell(budget.delta)}"


def _standardize_rules(data: Data, privacy: Privacy) -> Iterator[str]:
    if data.standardize.name == "private" and privacy.silo is None:
        yield "data.standardize: private spends privacy.silo, which is missing; add it, or use own or constants"
    elif data.standardize.name not in ("none", "constants") and privacy.example is not None:
        # Every scaled row would depend on every other row, which clipping one example's gradient does not bound.
        yield (
            f"data.standardize: {data.standardize.name} looks at all rows of a silo, which has no price under "
            "privacy.example; use constants"
        )


def _strategy_rules(strategy: Strategy, privacy: Privacy) -> Iterator[str]:
    sections = (privacy.silo, privacy.local, privacy.example)
    yield from strategy.problems(private=any(section is not None for section in sections))
    names = list(strategy.channels(1))
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_]{1,40}", name):  # It names a stream of noise, which no other may share.
            yield f"strategy: {strategy.name} has a channel {name[:40]!r}; name it by letters, digits and _"
    if privacy.silo is not None and names:  # Who sends nothing is told so by the strategy.
        yield from channel_problems(privacy.silo.channels, names)
    if privacy.audit.canaries and "delta" not in strategy.channels(1):
        yield f"privacy.audit.canaries: strategy {strategy.name} has no channel 'delta' to audit; use canaries: 0"
    if privacy.audit.canaries and strategy.reveals:
        yield (
            f"privacy.audit.canaries: strategy {strategy.name} sees single updates, so silos have no privacy to "
            "measure; use canaries: 0"
        )


def _wire_rules(wire: Wire, privacy: Privacy) -> Iterator[str]:
    if wire.feedback and wire.values == "float32":
        yield "wire.feedback: found true, but float32 rounds nothing off; use values: float16, or feedback: false"
    if wire.values != "float32" and privacy.local is not None:  # What travels is the noised update, clipped before it.
        yield "wire.values: found 'float16', but with privacy.local a silo's noise is float32; use values: float32"


_RULES: tuple[tuple[tuple[str, ...], Callable[..., Iterator[str]]], ...] = (
    (("name",), _name_rules),
    (("data",), _data_rules),
    (("rounds", "data"), _shift_rules),
    (("cohort",), _cohort_rules),
    (("cohort", "data"), _size_rules),
    (("train",), _train_rules),
    (("strategy", "privacy"), _strategy_rules),
    (("data", "privacy"), _standardize_rules),
    (("privacy",), _privacy_rules),
    (("privacy", "cohort", "data"), _local_rules),
    (("rounds", "privacy"), _repeats_rules),
    (("privacy",), numbers_rules),
    (("privacy", "data"), lengths_rules),
    (("privacy",), planted_rules),
    (("privacy", "data"), audited_rules),
    (("privacy", "metrics"), alone_rules),
    (("train", "privacy"), steps_rules),
    (("rounds", "privacy"), _banded_rules),
    (("cohort", "privacy"), _sampling_rules),
    (("privacy", "data"), _delta_rules),
    (("budget", "privacy"), _budget_rules),
    (("budget", "privacy", "data"), budget_rules),
    (("attacks", "rounds"), attack_rules),
    (("attacks", "strategy", "privacy"), attacked_rules),
    (("engine", "privacy"), engine_rules),
    (("engine", "data", "privacy", "attacks"), apart_rules),
    (("engine", "metrics"), inline_rules),
    (("wire", "privacy"), _wire_rules),
)


def broken(parts: Mapping[str, Any]) -> list[str]:
    """The rules that the sections of an experiment break, a line each; `parts` may lack sections."""
    known = [(needs, rule) for needs, rule in _RULES if parts.keys() >= set(needs)]
    return [line for needs, rule in known for line in rule(*(parts[name] for name in needs))]


def problems(experiment: Experiment) -> list[str]:
    """The rules between keys that an experiment breaks, a line each."""
    return broken(vars(experiment))
