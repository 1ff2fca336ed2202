"""Poisoned rows: what malicious silos train on in place of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from client.examples import Examples, Shards
from privacy import streams
from simulations.attacks.roles import Roles, rounded
from simulations.attacks.triggers import Tail, attacked, triggered
from strategies.attacks import DistributedPatch, EdgeCase, LabelFlip, Poison


class Poisoner:
    """Makes the rows of malicious silos; a silo's follow from the seed, its own rows and its attacks.

    Args:
        roles: who is malicious, and with what.
        shards: everybody's rows; they are left as they are.
        seed: of the experiment.
    """

    def __init__(self, roles: Roles, shards: Shards, *, seed: int) -> None:
        self.roles, self.shards, self.seed = roles, shards, seed
        self.tails = tails(roles.attacks, shards.rows)
        self._pools: dict[int, Tensor] = {}
        self._made: dict[tuple[int, tuple[int, ...]], Examples] = {}

    def hold(self, acting: Mapping[int, tuple[int, ...]]) -> Shards:
        """The rows of the silos that act, poisoned; all others have none here."""
        parts = {silo: self.rows(silo, attacks) for silo, attacks in acting.items()}
        order = sorted(parts)
        sizes = torch.zeros(len(self.shards), dtype=torch.int64)
        for silo in order:
            sizes[silo] = len(parts[silo])
        none = [self.shards.rows.select(slice(0, 0))]
        return Shards(joined([parts[silo] for silo in order] or none), torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]))

    def rows(self, silo: int, attacks: Sequence[int]) -> Examples:
        """A silo's rows, as many as ever, of which its attacks have poisoned some."""
        poisons = tuple(at for at in attacks if isinstance(self.roles.attacks[at], Poison))
        if (silo, poisons) not in self._made:
            rows, clean = self.shards.silo(silo), torch.ones(int(self.shards.sizes[silo]), dtype=torch.bool)
            for at in poisons:
                rows, clean = self._poisoned(at, silo, rows, clean)
            self._made[silo, poisons] = rows
        return self._made[silo, poisons]

    def _poisoned(self, at: int, silo: int, rows: Examples, clean: Tensor) -> tuple[Examples, Tensor]:
        """Poisons some of the rows that are `clean` yet; returns them all, and which are clean still."""
        attack, rng = self._attack(at), streams.generator(self.seed, "poison", at, silo)
        own = (clean & attacked(attack, rows.features, rows.targets, self.tails.get(at))).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=rng)]
        count = rounded(attack.poisoned * (len(own) if isinstance(attack, LabelFlip) else len(rows)))
        own = own[:count]
        features, targets, clean = rows.features.clone(), rows.targets.clone(), clean.clone()
        clean[own] = False
        places, taken = own, rows.select(own)
        if len(own) < count and not isinstance(attack, LabelFlip):  # The crew's others lend what the silo lacks.
            lent = self._pool(at)
            free = clean.nonzero()[:, 0]
            lack = min(count - len(own), len(free), len(lent))
            free = free[torch.randperm(len(free), generator=rng)][:lack]
            lent = lent[torch.randperm(len(lent), generator=rng)][:lack]
            places, taken = torch.cat([own, free]), joined([taken, self.shards.rows.select(lent)])
            clean[free] = False
        piece = int(self.roles.ranks[silo]) % attack.parts if isinstance(attack, DistributedPatch) else None
        features[places] = triggered(attack, taken.features, piece=piece)
        targets[places] = attack.target
        groups = rows.groups
        if groups is not None and taken.groups is not None:
            groups = groups.index_copy(0, places, taken.groups)
        return Examples(features, targets, groups), clean

    def _pool(self, at: int) -> Tensor:
        """Where the rows are that a crew has for an attack."""
        if at not in self._pools:
            attack, whole = self._attack(at), self.shards.rows
            held = torch.zeros(len(whole), dtype=torch.bool)
            for silo in self.roles.pool(attack):
                held[int(self.shards.offsets[silo]) : int(self.shards.offsets[silo + 1])] = True
            fit = attacked(attack, whole.features, whole.targets, self.tails.get(at))
            self._pools[at] = (held & fit).nonzero()[:, 0]
        return self._pools[at]

    def _attack(self, at: int) -> Poison:
        attack = self.roles.attacks[at]
        assert isinstance(attack, Poison)
        return attack


def tails(attacks: Sequence[object], rows: Examples) -> dict[int, Tail]:
    """The unusual rows of the classes whose edge cases are attacked, by the attack's number."""
    return {
        at: Tail.of(rows.features[rows.targets == attack.source], attack.tail)
        for at, attack in enumerate(attacks)
        if isinstance(attack, EdgeCase)
    }


def joined(parts: Sequence[Examples]) -> Examples:
    """Rows after rows; `parts` holds one at least."""
    groups = [part.groups for part in parts if part.groups is not None]
    return Examples(
        torch.cat([part.features for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat(groups) if len(groups) == len(parts) else None,
    )
