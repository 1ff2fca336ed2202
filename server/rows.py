"""What a round's line in rounds.jsonl says of its updates, and of the time that it took."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from privacy.adaptive import clip_norms
from privacy.mechanism import Mechanism
from privacy.release import Tally
from server.link import Request
from strategies.traffic import message
from strategies.wire import Values


class Phases:
    """Seconds spent in the named phases of a round.

    A round's line is written before the round is stored, so its `store` is the time of the round before.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"store": 0.0}
        self.trained: list[float] = []
        """Seconds of each silo, where they may be recorded."""
        self._mark = time.perf_counter()

    def begin(self) -> None:
        """Starts a round."""
        self.seconds = {"store": self.seconds["store"]}
        self._mark = time.perf_counter()

    def done(self, name: str) -> None:
        """Books the time since the last mark under a name."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._mark, 6)
        self._mark = now


def counts(
    tally: Tally,
    mechanisms: Mapping[str, Mechanism],
    requests: Sequence[Request],
    *,
    record: bool,
    values: Values = "float32",
) -> dict[str, Any]:
    """What may be said of the updates: counts always, private numbers only where they are recorded.

    Args:
        tally: of the round.
        mechanisms: of the round, by channel.
        requests: what was sent to whom.
        record: whether private numbers may be shown.
        values: the type that numbers travel as.
    """
    failures = Counter(failure.reason for failure in tally.failures)
    asked = [(request.instruction, len(request.silos)) for request in requests]
    down = [(message(instruction.sizes, instruction.kept, values), silos) for instruction, silos in asked]
    row: dict[str, Any] = {
        "arrived": tally.arrived,
        "failures": sum(failures.values()),
        "failure_reasons": dict(sorted(failures.items())),
        "parameters_up": tally.payload,
        "parameters_down": sum(sent.numbers * silos for sent, silos in down),
        "bytes_up": tally.bytes,
        "bytes_down": sum(sent.bytes * silos for sent, silos in down),
        "clip_norms": clip_norms(mechanisms),  # Of released votes alone: public.
        "train_loss": None,
        "clip_fraction": None,
    }
    if record:
        losses = [loss for loss in tally.losses if not math.isnan(loss)]
        mean = sum(losses) / len(losses) if losses else math.inf
        row["train_loss"] = mean if math.isfinite(mean) else None  # JSON has no infinity.
        row |= _spread(losses)
        if any(mechanism.private for mechanism in mechanisms.values()) and tally.arrived:
            row["clip_fraction"] = tally.clipped / tally.arrived
    return row


def _spread(losses: Sequence[float]) -> dict[str, Any]:
    """Percentiles of the training loss over silos; nothing where no silo reported one."""
    if not losses or not all(map(math.isfinite, losses)):
        return {}
    p10, p50, p90 = np.percentile(losses, [10, 50, 90]).tolist()
    return {"train_loss_silos": {"p10": p10, "p50": p50, "p90": p90}}


def finite(measured: Mapping[str, float | None]) -> dict[str, float | None]:
    """A finite model may still have an infinite loss, and JSON has no infinity: None stands for it."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in measured.items()}
