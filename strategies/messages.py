"""A task and the reply to it, as frozen dataclasses that refuse what no server and no silo would say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from privacy.chain import Head
from strategies.envelope_header import EnvelopeError
from strategies.schema import key

if TYPE_CHECKING:  # A relay says that a silo cannot be reached without loading torch.
    from torch import Tensor

    Vectors = Mapping[str, Tensor]
else:
    Vectors = Mapping[str, Any]

Code = Literal[
    "malformed",  # No encoder writes such a message.
    "version",  # It is of another version of confide.
    "too_large",  # It is larger than what is taken.
    "signature",  # It is not signed by a server that the policy names.
    "unknown_run",  # The silo does not know the run, or forgot it: say hello (again).
    "wrong_experiment",  # The digest is not that of the run's experiment.
    "stale",  # A round or an attempt that is over.
    "unsupported",  # What is not done across machines.
    "schema",  # The silo's rows are not of that form.
    "data",  # The silo's rows cannot be read.
    "policy",  # The data holder's policy does not allow it.
    "dry_run",  # The policy would allow it, and says that nothing leaves yet.
    "budget",  # It would pass the data holder's budget.
    "ledger",  # What it costs could not be written down.
    "busy",  # The silo is at another task.
    "deadline",  # It took too long.
    "training_failed",  # The silo half failed.
    "silo_unreachable",  # The relay found nobody at the silo's socket.
]
MOST_LOSSES, MOST_REASON = 64, 500
MOMENTS = "moments"  # The vector and the channel of a private standardisation.
HUGE = 2**53  # Whole numbers that every reader of JSON reads alike.


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The form that every silo's rows must have; public.

    Attributes:
        kind: what the targets are.
        shape: of one row's features.
        tokens: whether features are tokens of a text.
        classes: how many, or size of the vocabulary; None for regression.
        feature_names: one per feature, where they have names.
        class_names: one per class, where they have names.
        group_names: what the numbers of groups mean.
    """

    kind: str = key(help="of the targets")
    shape: tuple[int, ...] = key(at_least=0, at_most=HUGE, help="of one row's features")
    tokens: bool = key(False, help="whether features are tokens")
    classes: int | None = key(None, at_least=1, at_most=HUGE, help="how many")
    feature_names: tuple[str, ...] = key((), help="of features")
    class_names: tuple[str, ...] = key((), help="of classes")
    group_names: tuple[str, ...] = key((), help="of groups")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a silo is asked.

    Attributes:
        kind: `hello` introduces a run; `moments` asks for what features are standardised with, once, in round 0;
            `train` and `evaluate` carry an instruction; `close` ends a run.
        run: id of the run, random and hexadecimal, the same when it is resumed.
        digest: of the experiment, see `strategies.experiment.digest`.
        round: of the instruction.
        attempt: how often this round was begun, from 1: each further attempt is charged anew.
        tier: of silos, see `Strategy.tier`.
        committed: the last round that stands and that used this silo's update, 0 for none; -1 says nothing of it.
        record: whether private training losses are asked for.
        split: evaluate: which held-out rows.
        fresh: evaluate: as if the silo had never been asked.
        deadline_s: seconds after which nobody waits for the reply.
        experiment: hello: the experiment as YAML.
        schema: hello: what rows must look like.
        vectors: of the instruction; of a hello: the constants that were released to standardise with, if they were.
        kept: how many numbers of a vector travel, where not all do.
    """

    kind: Literal["hello", "moments", "train", "evaluate", "close"] = key(help="what is asked")
    run: str = key(help="id of the run")
    digest: str = key(help="of the experiment")
    round: int = key(0, at_least=0, at_most=HUGE, help="of the instruction")
    attempt: int = key(1, at_least=1, at_most=HUGE, help="at this round")
    tier: int = key(0, at_least=0, at_most=HUGE, help="of silos")
    committed: int = key(-1, at_least=-1, at_most=HUGE, help="last round that stands and used it")
    record: bool = key(False, help="private losses")
    split: Literal["validation", "test"] = key("test", help="held-out rows")
    fresh: bool = key(False, help="never asked before")
    deadline_s: float = key(600.0, above=0, at_most=1e7, help="seconds")
    experiment: str | None = key(None, help="as YAML")
    schema: Schema | None = key(None, help="of rows")
    vectors: Vectors = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_hex(run=self.run, digest=self.digest)
        hello = self.kind == "hello"
        if hello != (self.experiment is not None) or hello != (self.schema is not None):
            raise EnvelopeError("envelope: experiment and schema belong to a hello, and to nothing else")
        if self.vectors and self.kind not in ("train", "evaluate") and not (hello and set(self.vectors) == {MOMENTS}):
            raise EnvelopeError(f"envelope: a {self.kind} carries no vectors")
        if self.kind == "moments" and self.round != 0:
            raise EnvelopeError("envelope: moments are released in round 0")
        if self.kind == "train" and not self.round >= 1:
            raise EnvelopeError("envelope: rounds to train in are counted from 1")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How a silo is served on its held-out rows; private numbers, None for those that are not finite.

    Attributes:
        rows: held-out rows.
        loss: mean loss of them.
        score: accuracy, or mean squared error.
    """

    rows: int = key(at_least=1, at_most=HUGE, help="held-out rows")
    loss: float | None = key(help="mean loss")
    score: float | None = key(help="accuracy or error")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a silo answers.

    Attributes:
        run: of the task; empty where that could not be read.
        digest: of the task; likewise.
        round: of the task.
        attempt: of the task.
        silo: the number of who answers; -1 where somebody else does in its place.
        status: `ok`, or `refused` with a code and a reason.
        code: None where all is well.
        reason: one line for people.
        weight: of the update; None for one that is not finite.
        losses: private training losses, one for each time that it trained; None for those that are not finite.
        evaluation: None where the silo has no such held-out rows.
        ledger: last line of the silo's own ledger.
        seconds: that it worked.
        channels: the update, `(N,)` each.
        kept: how many numbers of a channel travel, where not all do.
    """

    run: str = key("", help="id of the run")
    digest: str = key("", help="of the experiment")
    round: int = key(0, at_least=0, at_most=HUGE, help="of the task")
    attempt: int = key(1, at_least=1, at_most=HUGE, help="of the task")
    silo: int = key(-1, at_least=-1, at_most=HUGE, help="who answers")
    status: Literal["ok", "refused"] = key("ok", help="how it went")
    code: Code | None = key(None, help="why not")
    reason: str = key("", help="in one line")
    weight: float | None = key(1.0, help="of the update")
    losses: tuple[float | None, ...] = key((), help="of training")
    evaluation: Columns | None = key(None, help="on held-out rows")
    ledger: Head | None = key(None, help="last line")
    seconds: float = key(0.0, at_least=0, help="of work")
    channels: Vectors = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_hex(empty=True, run=self.run, digest=self.digest)
        if self.ledger is not None:
            _require_hex(ledger=self.ledger.hash)
        if (self.status == "refused") != (self.code is not None):
            raise EnvelopeError("envelope: a refusal has a code, and nothing else has")
        if self.status == "refused" and (self.channels or self.losses or self.evaluation is not None):
            raise EnvelopeError("envelope: a refusal carries no numbers")
        if len(self.reason) > MOST_REASON or not self.reason.isprintable():
            raise EnvelopeError(f"envelope: a reason is one line of at most {MOST_REASON} printable characters")
        if len(self.losses) > MOST_LOSSES:
            raise EnvelopeError(f"envelope: {len(self.losses)} losses, at most {MOST_LOSSES} travel")


def _require_hex(*, empty: bool = False, **values: str) -> None:
    for name, value in values.items():
        if not re.fullmatch(r"[0-9a-f]{16,64}", value) and not (empty and value == ""):
            raise EnvelopeError(f"envelope: {name} must be 16 to 64 hexadecimal digits")
