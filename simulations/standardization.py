"""Standardisation by moments of all silos' features, released once with noise and charged as round 0.

Each silo gives its mean and mean square of every feature, scaled by public bounds into [-1/2, 1/2], so the vector of a
silo has norm at most sqrt(2 features) / 2 whatever it holds. The sum over silos takes the way of every other release:
clip, sum, noise, divide by the constant population.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from client.examples import Examples, Shards
from privacy.contributions import Contributions
from privacy.durable import atomic_write
from privacy.events import Event, Gaussian
from privacy.ledger import Ledger
from privacy.mechanism import GaussianSum
from privacy.noise import NoiseSource
from privacy.release import Collector
from server.store import StoreError
from simulations.data.federation import Federation
from strategies.standardize import Constants, Private, spread

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
) -> tuple[Federation, Constants]:
    """The federation with standardised features, and the constants it was standardised with.

    The reserve stands in the ledger before the moments are released. A resumed run draws the same noise from the same
    seed, or reads what was released with noise that is secret: it releases nothing new and is charged once.

    Args:
        federation: features within the public bounds.
        standardize: bounds and noise.
        ledger: of the run.
        noise: of the run.
        folder: the run's; it keeps what was released with secret noise.
        unit: whose privacy is charged.
        neighbours: the relation that epsilon is for.

    Raises:
        StoreError: the moments were charged, but what was released cannot be had again.
    """
    kept = folder / SAVED if noise.secret else None
    if any(e.unit == unit and e.round == ROUND and not e.torn for e in ledger.counted()):
        constants = moments(federation.train, standardize, noise=noise) if kept is None else _read(kept)
    else:
        ledger.reserve(ROUND, cost(standardize), unit=unit, neighbours=neighbours)
        constants = moments(federation.train, standardize, noise=noise)
        if kept is not None:
            atomic_write(kept, json.dumps(asdict(constants)).encode())
    for entry in ledger.open_reserves():
        if entry.round == ROUND:
            ledger.commit(entry)
    public = federation.public_test
    scaled = replace(
        federation,
        train=Shards(_rows(federation.train.rows, constants), federation.train.offsets),
        validation=_scaled(federation.validation, constants),
        test=_scaled(federation.test, constants),
        public_test=None if public is None else _rows(public, constants),
    )
    return scaled, constants


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


def moments(shards: Shards, standardize: Private, *, noise: NoiseSource) -> Constants:
    """Mean and standard deviation of every feature (images: channel) over silos, with noise."""
    features = shards.rows.features
    low = spread("low", standardize.low, features).double()
    width = spread("high", standardize.high, features).double() - low
    dims = [0, *range(2, features.dim())]
    vectors = torch.stack(
        [_vector((shards.silo(silo).features.double() - low) / width, dims) for silo in range(len(shards))]
    )
    size = vectors.shape[1]
    mechanism = {"moments": GaussianSum((size**0.5) / 2, standardize.noise_multiplier)}
    sums = Contributions(mechanism, {"moments": size})
    sums.add({"moments": vectors}, 1.0, range(len(shards)))
    collector = Collector(mechanism, {"moments": size}, expected=len(shards), population=len(shards))
    collector.add(sums.partial(0))
    released = collector.release(noise, stream=("noise",)).mean("moments").double()
    mean, square = (released + 0.5).chunk(2)
    std = (square - mean.square()).clamp(min=LEAST_STD**2).sqrt()
    shape = [1, -1, *[1] * (features.dim() - 2)]
    unscaled = (low + width * mean.view(shape)).flatten(), (width * std.view(shape)).flatten()
    return Constants(mean=tuple(unscaled[0].tolist()), std=tuple(unscaled[1].tolist()))


def _vector(scaled: Tensor, dims: list[int]) -> Tensor:
    """A silo's contribution, every entry in [-1/2, 1/2]."""
    return torch.cat([scaled.mean(dims), scaled.square().mean(dims)]) - 0.5


def _scaled(shards: Shards | None, constants: Constants) -> Shards | None:
    return None if shards is None else Shards(_rows(shards.rows, constants), shards.offsets)


def _rows(rows: Examples, constants: Constants) -> Examples:
    return Examples(constants.apply(rows.features, reference=rows.features), rows.targets, rows.groups)
