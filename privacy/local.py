"""Local privacy: every silo clips and noises its own update before it leaves, so that it need not trust the server.

The server sees each update by itself. A silo that is asked in k rounds has released k Gaussians, and nothing amplifies
them: the server knows whom it asked. So a line of the ledger charges the silos that are asked, and the price of a run
is that of the silo that was asked most. Whoever sees only the models sees no more than the server: that bound is all
that is claimed outside. (The noises of a cohort add up there, but a proof would have to know how many arrived, that
none of their owners tells them, and what rounding each update by itself does to the sum.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privacy.chain import Entry
from privacy.events import Event
from privacy.mechanism import GaussianSum, joint_event
from privacy.noise import NoiseSource

LOCAL = "silo/local"
"""The unit of lines that price single updates, noised by their silo and seen by the server; `silo` is seen outside."""

SILO, CANARY = "local noise", "canary's local noise"  # Purposes: no two share a stream, nor one with the server.


class NotProtected(ValueError):
    """An update that this mechanism has no guarantee for; nothing of it leaves the silo."""


@dataclass(frozen=True)
class LocalNoise:
    """What a silo does to its update as the last step on its side.

    Attributes:
        mechanisms: channel to its clip norm and noise.
        source: of the noise; every silo, round and channel has a stream of its own.
    """

    mechanisms: Mapping[str, GaussianSum]
    source: NoiseSource

    @property
    def event(self) -> Event:
        """What one update costs its silo."""
        return joint_event(self.mechanisms)

    def protect(
        self, channels: Mapping[str, Tensor], weight: object, silos: Sequence[int], *, round_: int, purpose: str = SILO
    ) -> tuple[dict[str, Tensor], list[int]]:
        """Clipped and noised vectors, `(silos, N)` float32, and the silos whose update was not finite.

        Those send noise alone: a refusal would tell the server something of the silo's data. Whose they are must not
        leave the silo.

        Args:
            channels: channel to `(N,)` of one silo, or `(silos, N)`.
            weight: of the updates; it leaves the silo as it is, so it must be 1.
            silos: whose updates they are.
            round_: in which round.
            purpose: silos or canaries, which have the same numbers.

        Raises:
            NotProtected: channels, shapes or weights that are not those of the mechanism.
        """
        rows = self._rows(channels, weight, len(silos))
        norms = {name: torch.linalg.vector_norm(vectors, dim=-1) for name, vectors in rows.items()}
        finite = torch.stack([torch.isfinite(norm) for norm in norms.values()]).all(0)
        sent = {}
        for name, mechanism in self.mechanisms.items():
            kept = torch.where(finite[:, None], rows[name], 0.0)
            factors = mechanism.factors(torch.where(finite, norms[name], 0.0))
            clipped = factors[:, None] * kept
            noised = [
                mechanism.privatize(vector, self.source, stream=(purpose, round_, silo, name))
                for silo, vector in zip(silos, clipped, strict=True)
            ]
            sent[name] = torch.stack(noised).float()  # Rounding what is noised already costs nothing.
        return sent, [silo for silo, fine in zip(silos, finite.tolist(), strict=True) if not fine]

    def _rows(self, channels: Mapping[str, Tensor], weight: object, count: int) -> dict[str, Tensor]:
        weights = torch.as_tensor(weight, dtype=torch.float64)
        if not bool((weights == 1.0).all()):  # Its value stays here: it may be computed from private rows.
            raise NotProtected("privacy.local: the strategy weighs its updates; a weight leaves the silo, use 1")
        if set(channels) != set(self.mechanisms):
            raise NotProtected(
                f"privacy.local: channels {sorted(channels)} where {sorted(self.mechanisms)} are declared"
            )
        rows = {}
        for name, vectors in channels.items():
            if not vectors.is_floating_point() or vectors.dim() not in (1, 2) or vectors.numel() % count:
                raise NotProtected(f"privacy.local: channel {name!r} holds no vector of numbers for each silo")
            rows[name] = vectors.detach().reshape(count, -1).double()
        return rows


def counts(entries: Iterable[Entry], population: int) -> list[int]:
    """How many reserves charge each silo of a federation."""
    asked = Counter[int]()
    everyone = 0
    for entry in entries:
        everyone += entry.silos is None
        asked.update(entry.silos or ())
    return [asked[silo] + everyone for silo in range(population)]
