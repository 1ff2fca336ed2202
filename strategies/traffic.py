"""How much an update or an instruction is on its way: numbers that travel, and bytes of the message."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from privacy.release import Message
from strategies import wire


def message(sizes: Mapping[str, int], kept: Mapping[str, int], values: wire.Values = "float32") -> Message:
    """The size of a message that holds some vectors, as `strategies.wire` writes them.

    Args:
        sizes: name to the length of the vector.
        kept: name to how many of its numbers travel; left out, all of them.
        values: the type that numbers travel as.
    """
    numbers = {name: kept.get(name, size) for name, size in sizes.items()}
    return Message(sum(numbers.values()), sum(wire.size(sizes[name], numbers[name], values) for name in sizes))


def require_kept(channels: Mapping[str, Tensor], kept: Mapping[str, int]) -> None:
    """Requires that no vector holds more than it said would travel: its size was counted by that.

    Raises:
        ValueError: one does, or a channel of that name is not there.
    """
    for name, count in kept.items():
        if name not in channels:
            raise ValueError(f"strategy: {name!r} is to travel, a channel that the update has not")
        rows = channels[name].reshape(-1, channels[name].shape[-1])
        numbers = (rows != 0).sum(-1) * rows.isfinite().all(-1)  # What is not finite is refused by whoever sums it.
        found = int(numbers.max()) if len(numbers) else 0
        if found > count:
            raise ValueError(f"strategy: channel {name!r} holds {found} numbers where {count} were to travel")
