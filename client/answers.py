"""What one silo answers when it is asked from afar: its update as it leaves, checked but not yet clipped.

The server clips, last, on what it decoded. What it would refuse is refused here already, by the same rules and in the
same words: then the silo can forget what it staged, as in every engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from client.host import SiloHost
from privacy.adaptive import AdaptiveSum
from privacy.contributions import Contributions
from privacy.mechanism import Mechanism
from strategies.base import Instruction
from strategies.traffic import crowded


@dataclass(frozen=True)
class Answer:
    """An update that leaves its silo.

    Attributes:
        channels: `(N,)` each.
        weight: of the update.
        kept: how many numbers of a channel travel; left out, all do.
        losses: private training losses, where they were asked for.
        refused: why it cannot be used, in words that may be shown to all; None where it can.
        longer: channel to how many times longer than its clip norm it is, of those that the server will clip; private.
            Of a clip norm that adapts a silo knows the first value alone, so nothing is said of such a channel.
    """

    channels: Mapping[str, Tensor]
    weight: float
    kept: Mapping[str, int]
    losses: tuple[float, ...]
    refused: str | None
    longer: Mapping[str, float] = field(default_factory=dict)


def answer(
    host: SiloHost, instruction: Instruction, silo: int, mechanisms: Mapping[str, Mechanism], *, record: bool
) -> Answer:
    """Trains one silo; what it keeps for itself is staged, or forgotten where the update is of no use.

    Args:
        host: whose rows of this silo are here.
        instruction: of its tier.
        silo: its number.
        mechanisms: channel to its mechanism, which decides on weights.
        record: whether losses are asked for.
    """
    [trained] = host.trained(instruction, [silo], record=record)
    channels, spoilt = host.leaving(trained, instruction)
    out = Contributions(mechanisms, host.channel_sizes, heaviest=host.strategy.heaviest)
    chosen = host.strategy.kept(host.single.layout, instruction.round, instruction.tier)
    out.judge(channels, trained.update.weight, [silo], refused=crowded(trained.update.channels, chosen, [silo]))
    if host.personal is not None and (out.failures or spoilt):
        host.personal.forget([silo])
    refused = out.failures[0].reason if out.failures else None
    weight = float(trained.update.weight) if refused is None else 0.0
    flat = (
        {} if refused is not None else {name: vector.detach().reshape(-1).float() for name, vector in channels.items()}
    )
    kept, losses = host.kept(instruction), tuple(trained.session.losses)
    return Answer(flat, weight, kept, losses, refused, _longer(flat, mechanisms))


def _longer(channels: Mapping[str, Tensor], mechanisms: Mapping[str, Mechanism]) -> dict[str, float]:
    fixed = {name: each for name, each in mechanisms.items() if not isinstance(each, AdaptiveSum) and name in channels}
    factors = {name: float(each.factors(torch.linalg.vector_norm(channels[name]))) for name, each in fixed.items()}
    return {name: 1 / factor for name, factor in factors.items() if factor < 1}
