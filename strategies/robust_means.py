"""Means of updates that a few hostile ones cannot move far, as pure functions of `(updates, N)`.

None of them looks at weights: whoever may say how much it counts has no bound. Distances and sums are taken in
float64, and updates come in the order of their silos, so that the order of arrival changes no bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distances(updates: Tensor) -> Tensor:
    """Between every two updates, `(updates, updates)` float64; by differences, since products would cancel."""
    wide = updates.double()
    return torch.stack([(wide - row).square().sum(-1) for row in wide])


def krum_scores(updates: Tensor, malicious: int) -> Tensor:
    """How far each update is from those next to it, `(updates,)`; the lower the better.

    Source: Blanchard et al. 2017, section 4: the sum of the squared distances to the n - f - 2 nearest others.

    Args:
        updates: `(n, N)`, with n >= 2 f + 3.
        malicious: the paper's f.
    """
    count = len(updates)
    require_enough(count, malicious)
    apart = squared_distances(updates)
    apart.fill_diagonal_(-1.0)  # An update is nearest to itself: first, however many are equal to it.
    return apart.sort(dim=1).values[:, 1 : count - malicious - 1].sum(1)


def krum_choice(updates: Tensor, malicious: int, keep: int) -> Tensor:
    """The `keep` updates of the lowest scores, `(keep,)` int64 in rising order; of equals, those that come first."""
    return krum_scores(updates, malicious).argsort(stable=True)[:keep].sort().values


def enough(count: int, malicious: int) -> bool:
    """Whether Krum's guarantee stands: 2 f + 2 < n (Blanchard et al. 2017, proposition 4.2)."""
    return count > 2 * malicious + 2


def require_enough(count: int, malicious: int) -> None:
    """Requires as many updates as Krum's guarantee needs.

    Raises:
        ValueError: there are fewer.
    """
    if not enough(count, malicious):
        raise ValueError(f"krum needs more than 2 x {malicious} + 2 updates, got {count}")


def median(updates: Tensor) -> Tensor:
    """The median of each number, `(N,)`; of an even number of updates the mean of the middle two.

    Source: Yin et al. 2018, definition 1.
    """
    count = len(updates)
    ordered = updates.double().sort(dim=0).values
    return 0.5 * (ordered[(count - 1) // 2] + ordered[count // 2])


def trimmed_mean(updates: Tensor, trim: float) -> Tensor:
    """The mean of each number without its floor(trim * n) largest and smallest, `(N,)`.

    Source: Yin et al. 2018, definition 2.
    """
    count = len(updates)
    cut = int(trim * count)
    return updates.double().sort(dim=0).values[cut : count - cut].mean(0)


def geometric_median(updates: Tensor, *, iterations: int, smoothing: float) -> Tensor:
    """The point of the least sum of distances to updates, nearly, `(N,)`, by the smoothed Weiszfeld algorithm.

    Source: Pillutla, Kakade and Harchaoui 2022 (RFA), algorithm 2, with equal weights. It starts from the median of
    each number, not from the mean: of five updates with one at distance D the mean is D / 5 away, each step comes four
    times nearer, and a D of a million times as much needs ten more of them.

    Args:
        updates: `(n, N)`, one at least.
        iterations: steps taken.
        smoothing: the paper's nu: distances below it count as it.
    """
    wide = updates.double()
    centre = median(wide)
    for _ in range(iterations):
        weights = 1.0 / (wide - centre).norm(dim=-1).clamp(min=smoothing)
        centre = (weights / weights.sum()) @ wide
    return centre


def foolsgold_weights(history: Tensor, *, confidence: float) -> Tensor:
    """How much each silo counts, `(silos,)` in [0, 1]: little where its history is like another's.

    Source: Fung, Yoon and Beschastnikh 2020, algorithm 1, all features weighed alike.

    Args:
        history: sums of each silo's updates over rounds, `(silos, N)`.
        confidence: the paper's kappa, which stretches the logit.
    """
    count = len(history)
    if count < 2:
        return torch.ones(count, dtype=torch.float64)
    likeness = cosines(history).fill_diagonal_(-torch.inf)
    highest = likeness.max(1).values
    # Pardon: whoever is like one that is more alike to another. Who is like nobody needs none.
    above = (highest.unsqueeze(0) > highest.unsqueeze(1)) & (highest.unsqueeze(1) > 0)
    likeness = torch.where(above, likeness * (highest.unsqueeze(1) / highest.unsqueeze(0)), likeness)
    likeness.fill_diagonal_(-torch.inf)
    weights = (1.0 - likeness.max(1).values).clamp(0.0, 1.0)
    if not bool(weights.max() > 0):
        return torch.zeros(count, dtype=torch.float64)  # All alike: nobody is known to be honest.
    weights = (weights / weights.max()).clamp(max=0.99)
    return (confidence * (torch.logit(weights) + 0.5)).clamp(0.0, 1.0)


def cosines(vectors: Tensor) -> Tensor:
    """Between every two vectors, `(vectors, vectors)` float64; 0 for a vector of length 0."""
    wide = vectors.double()
    units = wide / wide.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return (units @ units.T).clamp(-1.0, 1.0)


def majority(vectors: Tensor) -> Tensor:
    """Which vectors are of the cluster of more than half of them, by their directions, `(vectors,)` bool.

    Source: Nguyen et al. 2022 (FLAME), section 4.2: HDBSCAN on cosine distances, clusters of n / 2 + 1 at least.
    """
    count = len(vectors)
    if count < 3:  # Of two, neither is the majority's.
        return torch.ones(count, dtype=torch.bool)
    from sklearn.cluster import HDBSCAN

    apart = (1.0 - cosines(vectors)).clamp(min=0.0).fill_diagonal_(0.0).numpy()
    found = HDBSCAN(
        metric="precomputed", min_cluster_size=count // 2 + 1, min_samples=1, allow_single_cluster=True, copy=True
    ).fit(apart)
    return torch.from_numpy(found.labels_ == 0)
