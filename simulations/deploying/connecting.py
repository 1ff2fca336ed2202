"""Links an open run to the silos of a federation: what they are told of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.book import Book
from server.exchange import Clock
from server.link import Link
from server.post import Answer, MeteredPost, Post
from server.remote import RemoteLink
from server.terms import Terms
from simulations.data.federation import Federation
from simulations.deploying.certificates import signing_key
from simulations.deploying.flower import SIGNING
from simulations.engines import setup
from strategies.codec import encode
from strategies.envelope import Schema
from strategies.experiment import Engine, Experiment, Metrics, digest
from strategies.signing import signed
from strategies.yaml_text import yaml_of

if TYPE_CHECKING:
    from simulations.running import ActiveRun

BOOK = "federation.json"


@dataclass(frozen=True)
class SignedPost:
    """A post whose letters say who wrote them.

    Attributes:
        post: carries them.
        key: of the server.
    """

    post: Post
    key: Ed25519PrivateKey

    def nodes(self) -> Sequence[int]:
        """The nodes that can be written to now."""
        return self.post.nodes()

    def send(self, letters: Mapping[int, bytes], *, ttl_s: float) -> Mapping[str, int]:
        """Signs and sends; a letter that several get is signed once."""
        done = {data: signed(data, self.key) for data in set(letters.values())}
        return self.post.send({node: done[data] for node, data in letters.items()}, ttl_s=ttl_s)

    def fetch(self, letters: Collection[str]) -> Sequence[Answer]:
        """Answers so far."""
        return self.post.fetch(letters)


def connect(post: Post, *, clock: Clock = Clock()) -> Callable[[ActiveRun], Link]:  # noqa: B008  # Frozen.
    """What `ActiveRun` needs to reach silos through a post; letters are signed where the server has a key for that.

    Raises:
        CertificateError: the key cannot be used.
    """
    metered = post = MeteredPost(post)
    if path := os.environ.get(SIGNING):
        post = SignedPost(post, signing_key(Path(path)))

    def link(active: ActiveRun) -> Link:
        return RemoteLink(post, Book(active.folder / BOOK), terms(active), clock=clock, metered=metered)

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
    """An experiment without what is of the server's machine alone: its engine, its sinks, the folders of its files."""
    path = experiment.data.path
    data = experiment.data if path is None else replace(experiment.data, path=f"./{Path(path).name}")
    metrics = Metrics(privacy=experiment.metrics.privacy, every=experiment.metrics.every)
    return replace(experiment, data=data, engine=Engine(), metrics=metrics)


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
