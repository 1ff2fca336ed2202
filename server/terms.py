"""What a server and the silos of its federation agree on for a whole run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from privacy.mechanism import Mechanism
from strategies.base import Instruction, Strategy
from strategies.envelope import Expected, Schema
from strategies.layout import Layout
from strategies.wire import Values


@dataclass(frozen=True)
class Terms:
    """What all silos of a run are told, and how long they are waited for.

    Attributes:
        strategy: whose channels come back.
        layout: of the model.
        digest: of the experiment.
        experiment: as YAML.
        schema: of rows.
        population: silos of the federation.
        chunk: silos summed together.
        values: type that numbers travel as.
        noised: silos noise their own updates, so that no number of them is zero.
        keeps: silos keep vectors from round to round.
        deadline_s: for an answer.
        quorum: part of a cohort whose answers end a round, or None; under privacy it is not used.
    """

    strategy: Strategy
    layout: Layout
    digest: str
    experiment: str
    schema: Schema
    population: int
    chunk: int
    values: Values = "float32"
    noised: bool = False
    keeps: bool = False
    deadline_s: float = 600.0
    quorum: float | None = None

    def expected(self, instruction: Instruction) -> Expected:
        """The form of an update."""
        kept = {} if self.noised else self.strategy.kept(self.layout, instruction.round, instruction.tier)
        return Expected(self.strategy.channels(self.layout.size), kept, self.values)

    def enough(self, cohort: int, mechanisms: Mapping[str, Mechanism]) -> float:
        """Answers that end a round; infinite under privacy, where who is fast must not decide who counts."""
        if self.quorum is None or self.noised or any(mechanism.private for mechanism in mechanisms.values()):
            return math.inf
        return max(1, math.ceil(self.quorum * cohort))
