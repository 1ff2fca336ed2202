"""Where multipliers live: projections onto a simplex, and onto all that lies below it."""

from __future__ import annotations

import torch
from torch import Tensor


def simplex(values: Tensor, total: float) -> Tensor:
    """The nearest point with numbers >= 0 that add up to `total`, on the last axis (Duchi et al. 2008, figure 1)."""
    if total == 0:
        return torch.zeros_like(values)
    wide = values.double()
    ordered = wide.sort(dim=-1, descending=True).values
    excess = (ordered.cumsum(-1) - total) / torch.arange(1, values.shape[-1] + 1, dtype=torch.float64)
    last = (ordered > excess).sum(-1, keepdim=True).clamp(min=1) - 1
    return (wide - excess.gather(-1, last)).clamp(min=0.0).to(values.dtype)


def below(values: Tensor, bound: float) -> Tensor:
    """The nearest point with numbers >= 0 that add up to at most `bound`, on the last axis."""
    kept = values.clamp(min=0.0)
    return torch.where(kept.double().sum(-1, keepdim=True) <= bound, kept, simplex(values, bound))


def exponentiated(theta: Tensor, bound: float) -> Tensor:
    """bound * exp(theta_a) / (1 + sum_b exp(theta_b)): the slack coordinate leaves room below the bound."""
    top = theta.max(-1, keepdim=True).values.clamp(min=0.0)  # Of theta and the slack's 0, so that nothing overflows.
    powers = (theta - top).exp()
    return bound * powers / ((-top).exp() + powers.sum(-1, keepdim=True))
