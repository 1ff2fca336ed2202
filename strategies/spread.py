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
shortens how long the noise of a step is remembered.

Without a pull, after t steps from a common start, with rho = 1 - eta h and g(t) = eta^2 (1 - rho^2t) / (1 - rho^2),

    E |w_k(t) - mean|^2 / N            = (1 - rho^t)^2 tau^2 + g(t) v                                         = V
    E |w_k(t) - w_k(t/2) - mean|^2 / N = rho^t (1 - rho^(t/2))^2 tau^2 + (g(t/2) + (1 - rho^(t/2))^2 g(t/2)) v = D

(both times 1 - 1/K for K silos), two equations for tau^2 and h: what sets silos apart arrives early and stays, noise
comes in as fast in the second half as in the first. Slow signal looks like noise, though, so of all pairs that what was
seen does not contradict (two standard deviations of K N squares) the one of least tau^2 is taken: where noise hides the
silos' differences they hold together. What rows happened to be drawn sets silos apart as well, of which no public
number tells. That part counts as tau^2: with few rows a silo, or little noise, the pull is too weak, and a lambda
chosen on validation rows is better.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

POINTS = 2048  # Of each search: neighbours are about 1% apart.
LEAST_PULL, LEAST_WAY = 1e-6, 1e-3  # First points: of lambda, in units of h; of h, as the share of the way after t.


def _signal(keeps: Tensor, steps: float) -> tuple[Tensor, Tensor]:
    """What V and D hold of tau^2, where a step keeps `keeps` of the distance."""
    half = keeps ** (steps / 2)
    return (1.0 - half.square()).square(), half.square() * (1.0 - half).square()


def _noise(keeps: Tensor, steps: float, rate: float) -> tuple[Tensor, Tensor]:
    """What V and D hold of v."""
    half, single = keeps ** (steps / 2), rate**2 / (1.0 - keeps.square())
    early = single * (1.0 - half.square())
    return single * (1.0 - half**4), early * (1.0 + (1.0 - half).square())


def moments(tau2: float, curvature: float, variance: float, *, steps: float, rate: float) -> tuple[float, float]:
    """V and D of the model, for a K without end.

    >>> moments(4.0, 1.0, 0.0, steps=400, rate=0.1)  # Arrived: all of tau^2 is seen, and nothing of it is new.
    (4.0, 0.0)
    """
    keeps = torch.tensor(1.0 - rate * curvature, dtype=torch.float64)
    (v1, d1), (v2, d2) = _signal(keeps, steps), _noise(keeps, steps, rate)
    return round(float(v1 * tau2 + v2 * variance), 12), round(float(d1 * tau2 + d2 * variance), 12)


def doubt(numbers: int, silos: int) -> float:
    """Squared relative error of V and D together, at two standard deviations of a mean of so many squares."""
    return 2 * 4 * 2.0 / (numbers * (silos - 1))


def between(seen: Tensor, *, steps: int, rate: float) -> Tensor:
    """Estimates of tau^2 and h, `(2,)`: the least tau^2 that is as close to V and D as `doubt` allows.

    Args:
        seen: V, D, v (the mean over silos) and `doubt`, `(4,)`.
        steps: t.
        rate: eta.
    """
    pair, variance, allowed = seen[:2].double().clamp(min=torch.finfo(torch.float32).tiny), seen[2], seen[3].double()
    curvatures = torch.linspace(math.log(LEAST_WAY / (rate * steps)), math.log(0.999 / rate), POINTS).double().exp()
    keeps = 1.0 - rate * curvatures
    gains = torch.stack(_signal(keeps, steps), dim=1) / pair
    left = 1.0 - torch.stack(_noise(keeps, steps, rate), dim=1) * variance / pair
    tau2 = ((gains * left).sum(1) / gains.square().sum(1)).clamp(min=0.0)
    misses = (left - gains * tau2.unsqueeze(1)).square().sum(1)
    best = torch.where(misses <= allowed.maximum(misses.min()), tau2, math.inf).argmin()
    return torch.stack([tau2[best], curvatures[best]]).float()


def error(lam: Tensor, tau2: Tensor, variance: Tensor, *, curvature: Tensor, rate: float) -> Tensor:
    """The mean squared error per number that the model says, of shapes that broadcast."""
    both = curvature + lam
    return (lam / both).square() * tau2 + rate * variance / (both * (2.0 - rate * both))


def strength(tau2: Tensor, variance: Tensor, *, curvature: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """The lambda of least error, and that error; each of the shape of `variance`, and 0 where there is no noise.

    >>> lam, _ = strength(torch.tensor(1.0), torch.tensor(1.0), curvature=torch.tensor(1.0), rate=0.02)
    >>> round(lam.item(), 4)  # s^2 = 0.01, so 0.01 / (2 - 0.01), to the grid.
    0.005
    """
    ends = math.log(LEAST_PULL * float(curvature)), math.log(1.0 / rate - float(curvature))
    lams = torch.cat([torch.zeros(1), torch.linspace(*ends, POINTS).exp()])
    errors = error(lams, tau2, variance.reshape(-1, 1), curvature=curvature, rate=rate)
    least, place = errors.min(-1)
    return lams[place].reshape(variance.shape), least.reshape(variance.shape)
