"""Canary silos: vectors known to the auditor, sent beside the real updates through the very same clip, sum and noise.

Source: Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", ICLR 2024, arXiv 2302.03098. What
the final model remembers of them is a measurement of what it could remember of a silo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from privacy.audit import LENGTH, direction
from privacy.contributions import Contributions, Partial
from privacy.local import CANARY, LocalNoise
from privacy.mechanism import GaussianSum, Mechanism
from server.link import Link, Passing, Request
from server.participation import Participation

BLOCK = 64  # Canaries summed at a time at most: directions are regenerated, never stored whole.
NUMBERS = 2**22  # Numbers in a block of directions: 32 MiB.


class CanaryLink(Passing):
    """A link that adds canaries to what another link brings.

    Canaries are never trained, do not vote on a clip norm that adapts, and count neither as silos, nor as bytes, nor in
    the clip fraction.

    Args:
        link: the silos.
        participation: in which rounds each canary takes part.
        channel: the audited channel; canaries send zeros on the others.
        sizes: channel to the length of its vectors.
        seed: of the experiment.
        local: how silos protect their own updates, or None; canaries take the same way.
    """

    def __init__(
        self,
        link: Link,
        *,
        participation: Participation,
        channel: str,
        sizes: Mapping[str, int],
        seed: int,
        local: LocalNoise | None = None,
    ) -> None:
        super().__init__(link)
        self.participation, self.channel, self.seed, self.local = participation, channel, seed, local
        self.sizes = dict(sizes)
        self.block = max(1, min(BLOCK, NUMBERS // self.sizes[channel]))

    @property
    def expected(self) -> float:
        """Canaries expected in a round: they add to the constant divisor of the mean."""
        return self.participation.expected

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        """The link's chunks, then the canaries' own."""
        chunks = 0
        for partial in self.link.ask(requests, mechanisms, record=record):
            chunks += 1
            yield partial
        yield self._contribute(requests[0].instruction.round, mechanisms, chunks)

    def _contribute(self, round_: int, mechanisms: Mapping[str, Mechanism], chunk: int) -> Partial:
        total = Contributions(mechanisms, self.sizes)
        drawn, audited = self.participation.drawn(round_), mechanisms[self.channel]
        length = LENGTH * (audited.clip_norm if isinstance(audited, GaussianSum) else 1.0)
        for at in range(0, len(drawn), self.block):
            block = drawn[at : at + self.block]
            update = self._update(block, length)
            if self.local is not None:
                update, _ = self.local.protect(update, 1.0, block, round_=round_, purpose=CANARY)
            total.add(update, 1.0, block)
        return replace(total.partial(chunk), weight=0.0, arrived=0, clipped=0, payload=0, bytes=0, votes={})

    def _update(self, canaries: Sequence[int], length: float) -> dict[str, Tensor]:
        size = self.sizes[self.channel]
        channels = {name: torch.zeros(len(canaries), other) for name, other in self.sizes.items()}
        channels[self.channel] = length * torch.stack([direction(self.seed, canary, size) for canary in canaries])
        return channels
