"""Rows that change in the middle of a run (`data.shift`): pictures turned, or two labels exchanged."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from client.examples import Examples, Shards
from client.host import SiloHost
from simulations.data.federation import Federation
from strategies.schema import ConfigError
from strategies.shifts import Shift


def require_fit(shift: Shift | None, federation: Federation) -> None:
    """Requires images to turn and classes to exchange.

    Raises:
        ConfigError: with every problem, a line each.
    """
    lines = [] if shift is None else [f"data.shift.{line}" for line in _problems(shift, federation)]
    if lines:
        raise ConfigError(lines)


def _problems(shift: Shift, federation: Federation) -> list[str]:
    rows, found = federation.train.rows, []
    if shift.rotate and (len(federation.shape) != 3 or not rows.features.is_floating_point()):
        found.append(f"rotate: turns images, but rows of {federation.name} have shape {federation.shape}; remove it")
    if shift.swap and (federation.kind != "classification" or rows.targets.dim() != 1):
        found.append(f"swap: exchanges classes, but the targets of {federation.name} are {federation.kind}; remove it")
    elif shift.swap and not max(shift.swap) < (federation.classes or 0):
        found.append(
            f"swap: must be < {federation.classes}, the classes of {federation.name}, found {list(shift.swap)}"
        )
    return found


def shifted(federation: Federation, shift: Shift) -> Federation:
    """The same silos with the same number of rows, changed."""

    def changed(rows: Examples) -> Examples:
        return Examples(turned(rows.features, shift.rotate), exchanged(rows.targets, shift.swap), rows.groups)

    def each(shards: Shards | None) -> Shards | None:
        return None if shards is None else Shards(changed(shards.rows), shards.offsets)

    public = federation.public_test
    return replace(
        federation,
        train=Shards(changed(federation.train.rows), federation.train.offsets),
        validation=each(federation.validation),
        test=each(federation.test),
        public_test=None if public is None else changed(public),
    )


def turned(images: Tensor, degrees: float) -> Tensor:
    """Images `(rows, channels, height, width)` turned counter-clockwise about their middle; outside they are 0.

    A pixel is what lies between its four neighbours (bilinear); quarter turns of squares move pixels as they are, up to
    rounding.
    """
    if degrees == 0:
        return images
    angle, (height, width) = math.radians(degrees), images.shape[-2:]
    cos, sin = math.cos(angle), math.sin(angle)
    # Where a pixel comes from, in units of half the width and half the height; rows are counted downwards.
    back = torch.tensor([[[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]], dtype=images.dtype)
    grid = functional.affine_grid(back, [1, 1, height, width], align_corners=False)
    return functional.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=False)


def exchanged(targets: Tensor, swap: tuple[int, ...]) -> Tensor:
    """Targets `(rows,)` with two classes in each other's place."""
    if not swap:
        return targets
    first, second = swap
    return torch.where(targets == first, second, torch.where(targets == second, first, targets))


class Changing:
    """Gives a host the rows of the round that it works on.

    Args:
        host: holds the rows as they are at first.
        federation: of the same rows.
        shift: of the experiment, or None.
    """

    def __init__(self, host: SiloHost, federation: Federation, shift: Shift | None) -> None:
        self._host, self._first, self._shift = host, federation, shift
        self._changed = False

    @cached_property
    def _later(self) -> Federation:
        assert self._shift is not None
        return shifted(self._first, self._shift)

    def to(self, round_: int) -> None:
        """The rows of a round; before and after its shift, so that rounds may come in any order."""
        changed = self._shift is not None and round_ >= self._shift.round
        if changed != self._changed:
            rows = self._later if changed else self._first
            self._host.hold(rows.train)
            self._host.held_out = {"test": rows.test, "validation": rows.validation}
            self._changed = changed
