"""How strongly silos should hold together: from the noise that is known and the distance that is seen.

The model is the quadratic one. A silo's loss has curvature h, its best vector lies tau^2 (per number) from the mean of
all, and every step of rate eta adds noise of variance v per number to the gradient. Pulled by lambda towards the mean,
the vector comes to rest around (h w* + lambda mean) / (h + lambda) and keeps moving about it, so that its mean squared
error per number is, with u = h + lambda,

    MSE(lambda) = (lambda / u)^2 tau^2 + eta v / (u (2 - eta u)).

The first part grows with lambda; the second falls until u = 1 / eta, so the best lambda is in [0, 1 / eta - h], where
steps are stable, too. For small eta it is h s^2 / (2 tau^2 - s^2), s^2 = eta v / (2 h) being the noise of local
training; without end where s^2 >= 2 tau^2. Averaging finished estimates (Liu et al. 2022, arXiv 2206.07902, section 5)
has its optimum at h s^2 / tau^2, twice as far where noise is small: there the pull shortens nothing, while here it also
shortens how long a step's noise is remembered.

Without a pull, a silo that started at w0 has after t steps, with rho = 1 - eta h,

    E |w_k - mean|^2 / N = (1 - 1/K) ((1 - rho^t)^2 tau^2 + eta^2 v (1 - rho^2t) / (1 - rho^2)),

which is what tau^2 is read off. What rows happened to be drawn also sets silos apart: that part counts as tau^2, so the
pull is, if anything, too weak.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

POINTS, LEAST = 2048, 1e-6  # Of the search, and its first point in units of h: neighbours are 1% apart.


def wander(variance: Tensor, steps: Tensor, *, rate: float, curvature: float) -> Tensor:
    """Variance per number of what noise did to a vector in so many steps; shape of `variance`.

    >>> wander(torch.tensor(4.0), torch.tensor(1.0), rate=0.5, curvature=1.0).item()  # One step: eta^2 v.
    1.0
    """
    keeps = 1.0 - rate * curvature
    found: Tensor = rate**2 * variance * (1.0 - keeps ** (2.0 * steps)) / (1.0 - keeps**2)
    return found


def progress(steps: Tensor, *, rate: float, curvature: float) -> Tensor:
    """Squared share of the way to its best vector that a silo went in so many steps; shape of `steps`."""
    found: Tensor = 1.0 - (1.0 - rate * curvature) ** steps
    return found.square()


def between(seen: Tensor, shift: Tensor, silos: int) -> Tensor:
    """Estimate of tau^2, never negative, `(1,)`.

    Args:
        seen: means over all silos of |w_k - w0|^2 / N, of its part that is noise, and of `progress`, `(3,)`.
        shift: |mean - w0|^2 / N.
        silos: how many.
    """
    apart, noise, way = seen
    found: Tensor = ((apart - shift) / (1.0 - 1.0 / silos) - noise) / way.clamp(min=torch.finfo(way.dtype).tiny)
    return found.clamp(min=0.0).reshape(1)


def error(lam: Tensor, tau2: Tensor, variance: Tensor, *, rate: float, curvature: float) -> Tensor:
    """The mean squared error per number that the model says, of shapes that broadcast."""
    both = curvature + lam
    return (lam / both).square() * tau2 + rate * variance / (both * (2.0 - rate * both))


def strength(tau2: Tensor, variance: Tensor, *, rate: float, curvature: float) -> Tensor:
    """The lambda of least error; shape of `variance`, and 0 where there is no noise.

    >>> found = strength(torch.tensor([1.0]), torch.tensor(1.0), rate=0.02, curvature=1.0)
    >>> round(found.item(), 3)  # s^2 = 0.01, so 0.01 / (2 - 0.01), to the grid.
    0.005
    """
    ends = math.log(LEAST * curvature), math.log(1.0 / rate - curvature)
    lams = torch.cat([torch.zeros(1), torch.linspace(*ends, POINTS).exp()])
    errors = error(lams, tau2.reshape(-1, 1), variance.reshape(-1, 1), rate=rate, curvature=curvature)
    return lams[errors.argmin(-1)].reshape(variance.shape)
