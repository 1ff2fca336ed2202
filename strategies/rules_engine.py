"""The rules between the keys of `engine`, and what silos on machines of their own cannot do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from strategies.attacks import Attack
from strategies.experiment import Data, Engine, Metrics, Privacy


def engine_rules(engine: Engine, privacy: Privacy) -> Iterator[str]:
    """Keys that only one kind of engine uses."""
    if engine.kind != "pool" and engine.workers is not None:
        yield f"engine.workers: found {engine.workers}, but only kind: pool uses it; remove it or use kind: pool"
    if engine.quorum is None:
        return
    if engine.kind != "flower":
        yield f"engine.quorum: found {engine.quorum}, but only kind: flower uses it; remove it"
    if any(section is not None for section in (privacy.silo, privacy.local, privacy.example)):
        # Who is fast would decide who counts, and every silo's share would depend on every other silo.
        yield "engine.quorum: under privacy a round never ends on a count of answers; remove it, and use deadline_s"


def inline_rules(engine: Engine, metrics: Metrics) -> Iterator[str]:
    """An endpoint lives in the process that it is about."""
    if metrics.inline and engine.kind == "flower":
        yield (
            "metrics.inline: found true, but a run across machines is in a process of Flower's; "
            "remove it, and use: confide metrics serve"
        )


def apart_rules(engine: Engine, data: Data, privacy: Privacy, attacks: Sequence[Attack]) -> Iterator[str]:
    """What needs all silos in one place."""
    if engine.kind != "flower":
        return
    if data.name == "dataset":
        yield "data.name: dataset is rows of one process; with engine.kind: flower give a file or a named data set"
    if data.path is not None and data.silos is None:
        yield "data.silos: missing; with engine.kind: flower silos have files of their own, and have to be counted"
    if data.shift is not None:
        yield "data.shift: is simulated; remove it with engine.kind: flower"
    if attacks:
        yield "attacks: are simulated; remove them with engine.kind: flower"
    if privacy.audit.examples.canaries:
        yield (
            "privacy.audit.examples.canaries: their scores stay with the silos, and are not read across machines; "
            "use canaries: 0 with engine.kind: flower"
        )
