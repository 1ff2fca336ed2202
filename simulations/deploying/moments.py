"""Private standardisation across machines: both halves, around the one release of `simulations.standardization`.

A silo first joins with its features within the public bounds, and sends its moments in round 0, at a price. With the
next hello it is told what was released, standardises its rows with that, and can train.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client.errors import Refused
from simulations import standardization
from simulations.data.federation import Federation
from strategies.experiment import Experiment
from strategies.messages import MOMENTS, Task
from strategies.standardize import Constants, Private

if TYPE_CHECKING:
    from server.link import Link


def gather(link: Link | None) -> standardization.Gather | None:
    """What sums the moments of silos elsewhere; None where their rows are here."""
    if link is None:
        return None
    from server.moments import gathered
    from server.remote import RemoteLink

    assert isinstance(link, RemoteLink)
    return partial(gathered, link)


def tell(link: Link | None, constants: Constants) -> None:
    """Has silos elsewhere told what was released."""
    from server.remote import RemoteLink

    if isinstance(link, RemoteLink):
        link.tell(torch.tensor([constants.mean, constants.std], dtype=torch.float64))


def standardised(
    federation: Federation, experiment: Experiment, hello: Task, number: int
) -> tuple[Federation, Callable[[], Tensor] | None]:
    """A silo's rows as its hello asks for them; and its moments, where it was not told yet what all of them came to.

    Raises:
        Refused: constants that no server releases, or that the experiment does not ask for.
    """
    standardize, told = experiment.data.standardize, hello.vectors.get(MOMENTS)
    if not isinstance(standardize, Private):
        if told is not None:
            raise Refused("schema", "features are standardised with released moments, which the experiment has not")
        return federation, None
    if told is None:
        own = federation.train.silo(number).features
        return federation, lambda: standardization.contribution(own, standardize)
    if not _sound(told, size := federation.train.rows.features.shape[1]):
        raise Refused("schema", f"constants to standardise with are 2 x {size} finite numbers, spreads above 0")
    mean, std = told.tolist()
    return standardization.applied(federation, Constants(mean=tuple(mean), std=tuple(std))), None


def _sound(told: Tensor, size: int) -> bool:
    """Whether constants have the form of released ones; NaN has not."""
    if told.dtype != torch.float64 or tuple(told.shape) != (2, size):
        return False
    return bool(told.isfinite().all() & (told[1] > 0).all())
