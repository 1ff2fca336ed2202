"""How much an update or an instruction is on its way: numbers that travel, and bytes of the message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from privacy.contributions import Message
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
        found = max(travelling(channels[name]), default=0)
        if found > count:
            raise ValueError(f"strategy: channel {name!r} holds {found} numbers where {count} were to travel")


def crowded(channels: Mapping[str, Tensor], kept: Mapping[str, int], silos: Sequence[int]) -> dict[int, str]:
    """The silos whose update holds more numbers than travel, with the reason to refuse it.

    Vectors of another form than was asked are not judged: whoever sums them refuses them.
    """
    found: dict[int, str] = {}
    for name, count in kept.items():
        vector = channels.get(name)
        if isinstance(vector, Tensor) and vector.dim() and vector.numel() == len(silos) * vector.shape[-1]:
            numbers = zip(silos, travelling(vector))
            found |= {
                silo: f"channel {name!r} holds more numbers than travel" for silo, held in numbers if held > count
            }
    return found


def travelling(vector: Tensor) -> list[int]:
    """How many numbers of each row `(N,)` or `(rows, N)` are not zero; 0 of a row that is not finite."""
    rows = vector.reshape(-1, vector.shape[-1])
    numbers = (rows != 0).sum(-1) * rows.isfinite().all(-1)  # What is not finite is refused by whoever sums it.
    return [int(number) for number in numbers.tolist()]
