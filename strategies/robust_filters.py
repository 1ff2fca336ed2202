"""Federated averaging over the silos that pass a filter: FoolsGold and FLAME.

A filter on updates is one more `judge`: it says who is left out, and the mean of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from privacy.revealed import Revealed
from strategies import robust_means
from strategies.base import State
from strategies.layout import Layout
from strategies.registry import strategy
from strategies.robust import Robust, Verdict, left_out
from strategies.schema import key


@strategy("foolsgold")
@dataclass(frozen=True)
class FoolsGold(Robust):
    """Silos count less, the more alike their updates over all rounds are (Fung, Yoon and Beschastnikh 2020).

    The server keeps one vector for each silo that was ever asked.
    """

    confidence: float = key(1.0, above=0, help="the paper's kappa: how sharply silos are told apart")

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """Nobody has a history."""
        nobody = {"silos": torch.zeros(0, dtype=torch.int64), "history": torch.zeros(0, model.numel())}
        return {**super().init(model, rng, layout), **nobody}

    def judge(self, state: State, seen: Revealed, rng: torch.Generator) -> Verdict:
        """The weighted sum over the number of updates: with few that count the step is short.

        Silos are compared with all that were ever asked, so that twins need not meet in a round.
        """
        updates, asked = seen.channels["delta"], torch.tensor(seen.silos, dtype=torch.int64)
        silos, history = remembered(state["silos"], state["history"], asked, updates)
        everybody = robust_means.foolsgold_weights(history, confidence=self.confidence)
        weights = everybody[torch.searchsorted(silos, asked)]
        mean = weights @ updates.double() / len(asked)
        return Verdict(mean, asked[weights == 0], {"silos": silos, "history": history})


def remembered(silos: Tensor, history: Tensor, asked: Tensor, updates: Tensor) -> tuple[Tensor, Tensor]:
    """Histories with a round's updates added; silos that were never asked before come in with theirs.

    Args:
        silos: that have a history, `(known,)` int64 in rising order.
        history: sums of their updates, `(known, N)`.
        asked: silos of the round, in rising order.
        updates: `(asked, N)`.
    """
    every: Tensor = torch.unique(torch.cat([silos, asked]))
    sums = torch.zeros(len(every), updates.shape[-1], dtype=updates.dtype)
    sums[torch.searchsorted(every, silos)] = history
    sums[torch.searchsorted(every, asked)] += updates
    return every, sums


@strategy("flame")
@dataclass(frozen=True)
class Flame(Robust):
    """The largest cluster of updates, made as short as the median, and noised (Nguyen et al. 2022, algorithm 1).

    Its noise hides what passed the filter; it is public (simulated), and no epsilon rests on it.
    """

    angles: Literal["models", "updates"] = key("models", help="what is clustered by direction; models are the paper's")
    noise: float = key(0.001, at_least=0, help="the paper's lambda: noise std / median length of updates")

    def judge(self, state: State, seen: Revealed, rng: torch.Generator) -> Verdict:
        """Filters, clips and noises; where no cluster holds the majority, nobody passes and the model stays."""
        updates = seen.channels["delta"].double()
        clustered = updates + state["model"].double() if self.angles == "models" else updates
        kept = robust_means.majority(clustered).nonzero()[:, 0]
        flagged = left_out(seen, kept)
        if not len(kept):
            return Verdict(None, flagged)
        norms = updates.norm(dim=-1)
        length = robust_means.median(norms.unsqueeze(-1))[0]  # Of all updates, also of those left out.
        factors = (length / norms.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)
        mean = (factors[kept].unsqueeze(-1) * updates[kept]).mean(0)
        noise = torch.randn(mean.shape, generator=rng, dtype=torch.float64)
        return Verdict(mean + self.noise * length * noise, flagged)
