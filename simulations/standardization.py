"""Standardisation by moments of all silos' features, released once with noise and charged as round 0.

Each silo gives its mean and mean square of every feature, scaled by public bounds into [-1/2, 1/2], so the vector of a
silo has norm at most sqrt(2 features) / 2 whatever it holds. The sum over silos takes the way of every other release:
clip, sum, noise, divide by the constant population.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from client.examples import Examples, Shards
from privacy.contributions import Contributions, Partial
from privacy.durable import atomic_write
from privacy.events import Event, Gaussian
from privacy.ledger import Ledger
from privacy.mechanism import GaussianSum, Mechanism
from privacy.noise import NoiseSource
from privacy.release import Collector
from server.store import StoreError
from simulations.data.federation import Federation
from strategies.messages import MOMENTS
from strategies.standardize import Constants, Private, spread

Gather = Callable[[Mapping[str, Mechanism], Mapping[str, int]], Partial]
ROUND = 0
SAVED = "moments.json"
LEAST_STD = 1e-2  # Of the scaled features: a smaller released spread is noise, and dividing by it would blow it up.


def cost(standardize: Private) -> Event:
    """What the release costs a silo: every silo takes part, so nothing amplifies."""
    return Gaussian(standardize.noise_multiplier)


def standardized(
    federation: Federation,
    standardize: Private,
    ledger: Ledger,
    *,
    noise: NoiseSource,
    folder: Path,
    unit: str,
    neighbours: str,
    gather: Gather | None = None,
) -> tuple[Federation, Constants]:
    """The federation with standardised features, and the constants it was standardised with.

    The reserve stands in the ledger before the moments are released. A resumed run draws the same noise from the same
    seed, or reads what was released with noise that is secret: it releases nothing new and is charged once. From silos
    elsewhere it always reads; where nothing was released before a stop, they are asked, and charged, again.

    Args:
        federation: features within the public bounds.
        standardize: bounds and noise.
        ledger: of the run.
        noise: of the run.
        folder: the run's; it keeps what was released with secret noise.
        unit: whose privacy is charged.
        neighbours: the relation that epsilon is for.
        gather: sums what silos on machines of their own send; None: their rows are here.

    Raises:
        StoreError: the moments were charged, but what was released cannot be had again.
    """
    kept = folder / SAVED if noise.secret or gather is not None else None
    charged = any(e.unit == unit and e.round == ROUND and not e.torn for e in ledger.counted())
    if charged and (gather is None or (kept is not None and kept.exists())):
        constants = moments(federation.train, standardize, noise=noise) if kept is None else _read(kept)
    else:
        ledger.reserve(ROUND, cost(standardize), unit=unit, neighbours=neighbours)
        constants = moments(federation.train, standardize, noise=noise, gather=gather)
        if kept is not None:
            atomic_write(kept, json.dumps(asdict(constants)).encode())
    for entry in ledger.open_reserves():
        if entry.round == ROUND:
            ledger.commit(entry)
    return applied(federation, constants), constants


def applied(federation: Federation, constants: Constants) -> Federation:
    """The federation with its features standardised."""
    public = federation.public_test
    return replace(
        federation,
        train=Shards(_rows(federation.train.rows, constants), federation.train.offsets),
        validation=_scaled(federation.validation, constants),
        test=_scaled(federation.test, constants),
        public_test=None if public is None else _rows(public, constants),
    )


def _read(kept: Path) -> Constants:
    """What an earlier stretch of the run released; a second release with fresh noise would be a second price."""
    try:
        found = json.loads(kept.read_bytes())
        return Constants(mean=tuple(found["mean"]), std=tuple(found["std"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(
            f"{kept}: the released moments cannot be read ({reason}), and secret noise gives them once; "
            "restore it from a copy or start a new run"
        ) from error


def moments(shards: Shards, standardize: Private, *, noise: NoiseSource, gather: Gather | None = None) -> Constants:
    """Mean and standard deviation of every feature (images: channel) over silos, with noise."""
    features = shards.rows.features
    low, width = _bounds(standardize, features)
    sizes = {MOMENTS: 2 * features.shape[1]}
    mechanisms = {MOMENTS: GaussianSum((sizes[MOMENTS] ** 0.5) / 2, standardize.noise_multiplier)}
    partial = _summed(shards, standardize, mechanisms, sizes) if gather is None else gather(mechanisms, sizes)
    collector = Collector(mechanisms, sizes, expected=len(shards), population=len(shards))
    collector.add(partial)
    released = collector.release(noise, stream=("noise",)).mean(MOMENTS).double()
    mean, square = (released + 0.5).chunk(2)
    std = (square - mean.square()).clamp(min=LEAST_STD**2).sqrt()
    shape = [1, -1, *[1] * (features.dim() - 2)]
    unscaled = (low + width * mean.view(shape)).flatten(), (width * std.view(shape)).flatten()
    return Constants(mean=tuple(unscaled[0].tolist()), std=tuple(unscaled[1].tolist()))


def contribution(features: Tensor, standardize: Private) -> Tensor:
    """A silo's own moments, `(2 features,)`, every entry in [-1/2, 1/2]; float32, as they travel."""
    low, width = _bounds(standardize, features)
    scaled, dims = (features.double() - low) / width, [0, *range(2, features.dim())]
    return (torch.cat([scaled.mean(dims), scaled.square().mean(dims)]) - 0.5).float()


def _bounds(standardize: Private, features: Tensor) -> tuple[Tensor, Tensor]:
    low = spread("low", standardize.low, features).double()
    return low, spread("high", standardize.high, features).double() - low


def _summed(
    shards: Shards, standardize: Private, mechanisms: Mapping[str, Mechanism], sizes: Mapping[str, int]
) -> Partial:
    """The clipped sum over the silos whose rows are here."""
    sums = Contributions(mechanisms, sizes)
    vectors = [contribution(shards.silo(silo).features, standardize) for silo in range(len(shards))]
    sums.add({MOMENTS: torch.stack(vectors)}, 1.0, range(len(shards)))
    return sums.partial(0)


def _scaled(shards: Shards | None, constants: Constants) -> Shards | None:
    return None if shards is None else Shards(_rows(shards.rows, constants), shards.offsets)


def _rows(rows: Examples, constants: Constants) -> Examples:
    return Examples(constants.apply(rows.features, reference=rows.features), rows.targets, rows.groups)
