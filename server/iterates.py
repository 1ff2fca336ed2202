"""What single rounds show of canaries: the largest cosine of each with any step of the model.

Source: Andrew et al., ICLR 2024, arXiv 2302.03098, algorithm 3. Unseen canaries are scored alike, because a largest
cosine has no null in closed form.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from privacy.audit import Scores, score

WORK_LIMIT = 20_000_000
"""Numbers of regenerated directions (twice the canaries times the dimension) that a round may take to score; about a
fifth of a second."""


class MaximalCosines:
    """A watcher of the round loop; directions are regenerated, never stored.

    Args:
        canaries: that take part; as many unseen ones are scored.
        size: numbers in the model.
        seed: of the canaries.
    """

    def __init__(self, *, canaries: int, size: int, seed: int) -> None:
        self.canaries, self.size, self.seed = canaries, size, seed
        self._maxima = np.full((2, canaries), -1.0)

    def see(self, before: Tensor, after: Tensor) -> None:
        """Scores a round's step; a model that stayed where it was shows nothing."""
        step = after.double() - before.double()
        if not bool(step.any()):
            return
        found = score(step, seed=self.seed, canaries=self.canaries)
        self._maxima = np.maximum(self._maxima, np.stack([found.seen, found.unseen]))

    def kept(self) -> Mapping[str, Tensor]:
        """The largest cosines so far."""
        return {"cosines": torch.from_numpy(self._maxima)}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Goes on from these; from the least cosine there is where nothing was kept."""
        self._maxima = kept["cosines"].numpy().copy() if kept else np.full((2, self.canaries), -1.0)

    def scores(self) -> Scores:
        """The largest cosines of seen and unseen canaries."""
        return Scores(self._maxima[0], self._maxima[1], self.size)


def too_much_work(canaries: int, size: int) -> bool:
    """Whether scoring every round passes `WORK_LIMIT`."""
    return not 2 * canaries * size <= WORK_LIMIT
