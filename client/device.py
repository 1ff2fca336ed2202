"""Where the models of single silos are trained: on the processor, or on a graphics card where there is one.

Rows, plans, noise and a strategy's vectors stay on the processor; what a step reads is moved, and on the processor
moving is nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

CPU = torch.device("cpu")


def chosen(asked: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that `engine.device` stands for on this machine.

    Raises:
        ValueError: there is no such device here.
    """
    if asked == "cpu":
        return CPU
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if asked == "cuda":
        raise ValueError("engine.device: found 'cuda', but torch sees no graphics card here; use auto or cpu")
    return CPU


@contextmanager
def seeded(key: int, device: torch.device) -> Iterator[None]:
    """Layers that draw (dropout) draw from `key` inside; the process's own generators are left as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield
