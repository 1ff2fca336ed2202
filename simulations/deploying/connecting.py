"""Links an open run to the silos of a federation: what they are told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from server.book import Book
from server.link import Link
from server.post import Post
from server.remote import RemoteLink, Terms
from simulations.data.federation import Federation
from simulations.engines import setup
from strategies.codec import encode
from strategies.envelope import Schema
from strategies.experiment import Engine, Experiment, digest
from strategies.yaml_text import yaml_of

if TYPE_CHECKING:
    from simulations.running import ActiveRun

BOOK = "federation.json"


def connect(post: Post) -> Callable[[ActiveRun], Link]:
    """What `ActiveRun` needs to reach silos through a post."""

    def link(active: ActiveRun) -> Link:
        return RemoteLink(post, Book(active.folder / BOOK), terms(active))

    return link


def terms(active: ActiveRun) -> Terms:
    """What silos are told of a run."""
    experiment, size = active.experiment, active.model.start.numel()
    rounding = setup.rounding(experiment).personal(experiment.strategy.channels(size))
    return Terms(
        strategy=experiment.strategy,
        layout=setup.layout(active.model),
        digest=digest(experiment),
        experiment=yaml_of(encode(public(experiment))),
        schema=schema(active.federation),
        population=len(active.federation.train),
        chunk=setup.chunk(experiment, active.model),
        values=experiment.wire.values,
        noised=experiment.privacy.local is not None,
        keeps=bool(experiment.strategy.personal(size)) or bool(rounding),
        deadline_s=experiment.engine.deadline_s,
        quorum=experiment.engine.quorum,
    )


def public(experiment: Experiment) -> Experiment:
    """An experiment without what is of the server's machine alone: its engine, and the folders of its files."""
    path = experiment.data.path
    data = experiment.data if path is None else replace(experiment.data, path=f"./{Path(path).name}")
    return replace(experiment, data=data, engine=Engine())


def schema(federation: Federation) -> Schema:
    """The form of rows that every silo must have, as the server's own have it."""
    return Schema(
        kind=federation.kind,
        shape=federation.shape,
        tokens=not federation.train.rows.features.is_floating_point(),
        classes=federation.classes,
        feature_names=federation.feature_names,
        class_names=federation.class_names,
        group_names=federation.group_names,
    )
