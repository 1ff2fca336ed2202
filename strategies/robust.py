"""Federated averaging with a mean that hostile updates cannot move far: Krum, medians, trimmed mean.

They see single updates, so their silo-level epsilon is infinite. A silo counts once, whatever it says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from privacy.release import Release
from privacy.revealed import Revealed
from strategies import robust_means
from strategies.base import Instruction, Silo, State, Strategy, Update
from strategies.layout import Layout
from strategies.optimizers import OPTIMIZERS, SGD, Optimizer, step
from strategies.registry import strategy
from strategies.schema import key

if TYPE_CHECKING:
    from strategies.experiment import Experiment


@dataclass(frozen=True)
class Verdict:
    """What a robust mean makes of a round.

    Attributes:
        mean: of the updates, `(N,)`; None leaves the model as it is.
        flagged: the silos that were left out, `(flagged,)` int64; None where nobody is judged.
        kept: what the strategy remembers besides, by name; what is not named stays as it was.
    """

    mean: Tensor | None
    flagged: Tensor | None = None
    kept: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Robust(Strategy):
    """Silos train as in FedAvg; the server moves by a mean of its own."""

    server: Optimizer = key(SGD(), variants=lambda: OPTIMIZERS, help="optimizer of the server's step")

    reveals: ClassVar[bool] = True

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """The model, and nobody judged."""
        return {"model": model, "flagged": torch.zeros(0, dtype=torch.int64), "judged": torch.tensor(False)}

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Trains from the server's model and sends what changed."""
        start = instruction["model"]
        return Update({"delta": silo.fit(start) - start})

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """One step of the server's optimizer along the robust mean; none where there is no such mean."""
        seen = by_silo(release.reveal())
        verdict = self.judge(state, seen, rng) if seen.silos else Verdict(None)
        flagged = verdict.flagged if verdict.flagged is not None else torch.zeros(0, dtype=torch.int64)
        judged = {"flagged": flagged.clone(), "judged": torch.tensor(verdict.flagged is not None)}
        known = {**state, **(verdict.kept or {}), **judged}
        if verdict.mean is None:
            return {name: value.clone() for name, value in known.items()}
        return step(self.server, known, verdict.mean.to(state["model"].dtype))

    def judge(self, state: State, seen: Revealed, rng: torch.Generator) -> Verdict:
        """The mean of a round's updates, of which there is one at least, in the order of their silos."""
        raise TypeError(f"strategy {self.name!r} defines no judge(state, seen, rng)")

    def flagged(self, state: State) -> Tensor | None:
        """The silos that the last round left out."""
        return state["flagged"] if bool(state["judged"]) else None


def by_silo(seen: Revealed) -> Revealed:
    """Updates in the order of their silos: the order in which they came must not matter, not even in the last bit."""
    order = sorted(range(len(seen.silos)), key=lambda place: seen.silos[place])
    channels = {name: rows[order] for name, rows in seen.channels.items()}
    return Revealed(tuple(seen.silos[place] for place in order), seen.weights[order], channels)


def left_out(seen: Revealed, kept: Tensor) -> Tensor:
    """The silos whose updates are not among those kept, by their places."""
    out = torch.ones(len(seen.silos), dtype=torch.bool)
    out[kept] = False
    return torch.tensor(seen.silos, dtype=torch.int64)[out]


@strategy("krum")
@dataclass(frozen=True)
class Krum(Robust):
    """The update that is nearest to its neighbours (Blanchard et al. 2017, section 4)."""

    malicious: float = key(0.2, at_least=0, below=0.5, help="fraction of a round's updates that may be hostile")

    def misfits(self, experiment: Experiment, silos: int) -> list[str]:
        """Cohorts that are too small for the guarantee would leave the model as it is, round for round."""
        cohort = experiment.cohort
        most = cohort.size if cohort.size is not None else cohort.cap if cohort.cap is not None else silos
        if robust_means.enough(most, self._hostile(most)):
            return []
        return [
            f"strategy.malicious: {self.malicious:g} of {most} updates leaves no room, since n > 2 f + 2 must hold "
            f"with f = {self._hostile(most)}; lower it, or ask more silos"
        ]

    def _hostile(self, updates: int) -> int:
        return math.ceil(self.malicious * updates - 1e-9)

    def _keep(self, updates: int) -> int:
        return 1

    def judge(self, state: State, seen: Revealed, rng: torch.Generator) -> Verdict:
        """The mean of those kept; a round with too few updates for the guarantee changes nothing."""
        updates, count = seen.channels["delta"], len(seen.silos)
        if not robust_means.enough(count, self._hostile(count)):
            return Verdict(None)
        kept = robust_means.krum_choice(updates, self._hostile(count), self._keep(count))
        return Verdict(updates[kept].double().mean(0), left_out(seen, kept))


@strategy("multi_krum")
@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the updates of Krum's lowest scores (Blanchard et al. 2017, section 5)."""

    keep: int | None = key(None, at_least=1, help="updates that are averaged; null: all but the hostile fraction")

    def _keep(self, updates: int) -> int:
        return min(self.keep or updates - self._hostile(updates), updates)


@strategy("median")
@dataclass(frozen=True)
class Median(Robust):
    """The median of each number (Yin et al. 2018, algorithm 1, option I)."""

    def judge(self, state: State, seen: Revealed, rng: torch.Generator) -> Verdict:
        """Judges numbers, not silos."""
        return Verdict(robust_means.median(seen.channels["delta"]))


@strategy("trimmed_mean")
@dataclass(frozen=True)
class TrimmedMean(Robust):
    """The mean of each number without its largest and smallest (Yin et al. 2018, algorithm 1, option II)."""

    trim: float = key(0.2, at_least=0, below=0.5, help="fraction that is cut off at each end")

    def judge(self, state: State, seen: Revealed, rng: torch.Generator) -> Verdict:
        """Judges numbers, not silos."""
        return Verdict(robust_means.trimmed_mean(seen.channels["delta"], self.trim))


@strategy("geometric_median")
@dataclass(frozen=True)
class GeometricMedian(Robust):
    """The point nearest to all updates together: RFA (Pillutla, Kakade and Harchaoui 2022, algorithm 2)."""

    iterations: int = key(10, at_least=1, help="steps of the smoothed Weiszfeld algorithm")
    smoothing: float = key(1e-6, above=0, help="distances below this count as this")

    def judge(self, state: State, seen: Revealed, rng: torch.Generator) -> Verdict:
        """Weighs silos by their distance, and leaves none out."""
        updates = seen.channels["delta"]
        return Verdict(robust_means.geometric_median(updates, iterations=self.iterations, smoothing=self.smoothing))
