"""Federated averaging over the silos whose updates SPECTRE does not flag: the filter on gradients.

Source of the filter: `strategies.spectre` (Hayase et al. 2021), which was made for what a model makes of single rows.
An update has more numbers than there are silos, and grows shorter as training settles; so here updates are made short
by a random sketch, and rounds comparable by their own middle and spread, before several of them are filtered together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from privacy.revealed import Revealed
from strategies import robust_means, spectre
from strategies.base import State
from strategies.layout import Layout
from strategies.registry import strategy
from strategies.robust import Robust, Verdict
from strategies.schema import key

REACH, LONGEST = 3.0, 2.0
"""An update farther from the middle than REACH median distances is left out; in the filter none is beyond LONGEST.

Principal directions follow lengths: one silo far out would be all that the filter sees, and hide its crew. It is at
most half of a round that is left out for its distance alone.
"""


@strategy("spectre")
@dataclass(frozen=True)
class Spectre(Robust):
    """The mean of the updates that stand out least: of those pooled, round(1.5 malicious n) are always left out."""

    malicious: float = key(0.2, above=0, below=0.5, help="fraction of silos that may be malicious")
    pool: int = key(5, at_least=1, help="rounds whose updates are filtered together; 5 or more above 0.2")
    width: int = key(256, at_least=2, help="numbers that an update is sketched as; shorter ones stay as they are")

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """No round is known. The sketch is drawn here, so that no silo knows where it is blind."""
        size = min(self.width, model.numel())
        known = {"pooled": torch.zeros(0, size), "ages": torch.zeros(0, dtype=torch.int64)}
        return {**super().init(model, rng, layout), **known, "sketch": torch.randint(2**62, (), generator=rng)}

    def judge(self, state: State, seen: Revealed, rng: torch.Generator) -> Verdict:
        """Filters this round's updates with those of the rounds before; where all are left out, the model stays."""
        updates = seen.channels["delta"]
        rows = comparable(sketched(updates, self.width, seed=int(state["sketch"])))
        lengths = rows.norm(dim=-1, keepdim=True)
        recent = state["ages"] + 1 < self.pool
        pooled = torch.cat([state["pooled"][recent], (rows / (lengths / LONGEST).clamp(min=1.0)).float()])
        ages = torch.cat([state["ages"][recent] + 1, torch.zeros(len(rows), dtype=torch.int64)])
        out = spectre.flagged(pooled, self.malicious)[ages == 0] | ~(lengths[:, 0] <= REACH)
        mean = None if bool(out.all()) else updates[~out].double().mean(0)
        return Verdict(mean, torch.tensor(seen.silos)[out], {"pooled": pooled, "ages": ages})


def sketched(rows: Tensor, width: int, *, seed: int) -> Tensor:
    """Rows `(n, N)` as `(n, width)` float64: each number is added, with a random sign, to a random one of them.

    Squared distances are kept on average, with a standard deviation of at most sqrt(2 / width) of them (Charikar, Chen
    and Farach-Colton 2002; Thorup and Zhang 2012, section 2). It takes a pass over the rows, and no matrix.

    >>> sketched(torch.tensor([[1.0, 2.0]]), 2, seed=0)
    tensor([[1., 2.]], dtype=torch.float64)
    """
    wide, size = rows.double(), rows.shape[-1]
    if size <= width:
        return wide
    rng = torch.Generator().manual_seed(seed)
    places, signs = torch.randint(width, (size,), generator=rng), 2.0 * torch.randint(2, (size,), generator=rng) - 1.0
    return torch.zeros(len(rows), width, dtype=torch.float64).index_add_(1, places, wide * signs)


def comparable(rows: Tensor) -> Tensor:
    """A round's rows from their geometric median, in units of their median distance to it.

    Middle and unit are those of the majority, wherever the others are.
    """
    centred = rows - robust_means.geometric_median(rows, iterations=10, smoothing=1e-6)
    lengths: Tensor = centred.norm(dim=-1)
    unit = lengths.median()
    if not bool(unit > 0):  # Most are alike.
        unit = lengths.max().clamp(min=torch.finfo(torch.float64).tiny)
    return centred / unit
