"""Weights that a model starts from: a safetensors file, or a backbone that confide makes once on this machine.

Builders register by name, as strategies and tasks do; what they need (data, training) lives where they are written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # The schema and the command line load without torch.
    from torch import Tensor, nn

Builder = Callable[[], Path]


@dataclass(frozen=True)
class Backbone:
    """Pretrained weights by name.

    Attributes:
        about: one line for people: which base, trained on what.
        build: gives the file, and makes it where it is missing.
    """

    about: str
    build: Builder


BACKBONES: dict[str, Backbone] = {}
"""The backbones by the name that a config gives them."""


def backbone(name: str, *, about: str) -> Callable[[Builder], Builder]:
    """Registers a function that gives the safetensors file of a backbone, the same bytes at every call.

    Raises:
        ValueError: the name is taken by another function, or would be taken for a path.
    """

    def register(build: Builder) -> Builder:
        taken = BACKBONES.get(name)
        if taken is not None and taken.build is not build:
            raise ValueError(f"backbone {name!r} is already {taken.build.__module__}.{taken.build.__qualname__}")
        if not is_name(name):
            raise ValueError(f"backbone {name!r}: a name is letters, digits, _ and -")
        BACKBONES[name] = Backbone(about, build)
        return build

    return register


def is_name(weights: str) -> bool:
    """Whether `weights` names a backbone; all else is a path.

    >>> [is_name(each) for each in ("digits_upright", "./digits_upright", "model.safetensors")]
    [True, False, False]
    """
    return re.fullmatch(r"[A-Za-z0-9_-]+", weights) is not None


def read(weights: str) -> dict[str, Tensor]:
    """The tensors of a backbone, or of a safetensors file.

    Raises:
        ValueError: no such backbone or file, or a file of another kind; one line.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if is_name(weights) and weights not in BACKBONES:
        there = ", ".join(sorted(BACKBONES)) or "none"
        raise ValueError(f"no backbone {weights!r}; there are: {there}; a file in this folder is written ./{weights}")
    path = BACKBONES[weights].build() if is_name(weights) else Path(weights)
    try:
        tensors: dict[str, Tensor] = load(path.read_bytes())
        return tensors
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no safetensors file, {error}"
        raise ValueError(
            f"{path}: cannot be read ({reason}); give a model.safetensors, or a backbone's name"
        ) from error


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, head: str) -> str | None:
    """Copies tensors into a module of the same parts; says why the head keeps its own start, where it does.

    Args:
        module: its parameters and buffers are overwritten.
        tensors: by the module's own names.
        head: the part that gives the outputs: it may be missing, or of other outputs.

    Returns:
        None where everything was copied; else why the head was not.

    Raises:
        ValueError: tensors that do not fit the rest; one line.
    """
    import torch

    state = dict(module.state_dict())
    own = {name for name in state if name.startswith(f"{head}.")}
    if odd := [name for name in tensors if ".lora_A." in name]:
        raise ValueError(f"holds adapters ({odd[0]}); merge them into its layers first (strategies.lora.merge)")
    if odd := [name for name in tensors if name not in state and not name.startswith(f"{head}.")]:
        raise ValueError(f"holds {odd[0]!r}, which the base has no place for; is the base the same?")
    missing = {name: _lack(tensors.get(name), value) for name, value in state.items()}
    for name, lack in missing.items():
        if lack and name not in own:
            raise ValueError(f"{lack} for {name!r}, which has shape {tuple(state[name].shape)}; is the base the same?")
    unfit = [f"{lack} for {name!r} {tuple(state[name].shape)}" for name, lack in missing.items() if lack]
    with torch.no_grad():
        for name, value in state.items():
            if not (unfit and name in own):
                value.copy_(tensors[name])
    return unfit[0] if unfit else None


def frozen_digest(module: nn.Module) -> str | None:
    """SHA-256 of all that a module holds and does not train, names and shapes included (hexadecimal); None: nothing."""
    import torch

    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    frozen = {name: value for name, value in module.state_dict().items() if name not in trained}
    if not frozen:
        return None
    seen = hashlib.sha256()
    for name, value in sorted(frozen.items()):
        seen.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        seen.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def _lack(given: Tensor | None, value: Tensor) -> str:
    if given is None:
        return "nothing"
    fits = given.shape == value.shape and given.is_floating_point() == value.is_floating_point()
    return "" if fits else f"{given.dtype} of shape {tuple(given.shape)}".removeprefix("torch.")
