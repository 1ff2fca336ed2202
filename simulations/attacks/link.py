"""A link whose malicious silos are trained apart from the others, by one adversary that sees all of theirs.

Honest silos are asked through the link that would ask them without an attack, so their updates are the same to the
bit; malicious ones train in this process, whatever the engine, and what they send takes the same way as any update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from client.host import SiloHost, Trained
from privacy.contributions import Partial
from privacy.mechanism import Mechanism
from server.link import Link, Passing, Request
from simulations.attacks.poison import Poisoner
from simulations.attacks.roles import Roles
from simulations.attacks.updates import changed
from strategies.attacks import Poison
from strategies.base import Instruction
from strategies.experiment import Train
from strategies.sparse import largest

ATTACKED = "delta"  # The channel that attacks on updates change.


class AttackedLink(Passing):
    """Asks honest silos through another link, and malicious ones through a host of their own.

    Args:
        link: all silos, as they would be without an attack.
        host: the same silos in this process, for the malicious ones; its rows and its training are changed. They add no
            noise of their own, which nobody can make them do.
        roles: who is malicious.
        poisoner: gives that of a round's rows.
    """

    def __init__(self, link: Link, *, host: SiloHost, roles: Roles, poisoner: Callable[[int], Poisoner]) -> None:
        super().__init__(link)
        self.host, self.roles, self.poisoner, self.train = host, roles, poisoner, host.train
        host.local = None

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        """The honest silos' chunks, then one of the malicious silos of each tier."""
        cohort = [silo for request in requests for silo in request.silos]
        acting = self.roles.acting(requests[0].instruction.round, cohort)
        honest = [
            replace(request, silos=[silo for silo in request.silos if silo not in acting]) for request in requests
        ]
        chunk = 0
        for partial in self.link.ask(honest, mechanisms, record=record):
            chunk += 1
            yield partial
        self.host.hold(self.poisoner(requests[0].instruction.round).hold(acting))
        for request in requests:
            silos = [silo for silo in request.silos if silo in acting]
            if silos:
                trained = self._trained(request.instruction, silos, acting, record=record)
                sent = self._corrupted(request.instruction, trained, acting, len(cohort))
                yield self.host.collect(request.instruction, sent, mechanisms, chunk=chunk)
                chunk += 1

    def _trained(
        self, instruction: Instruction, silos: Sequence[int], acting: Mapping[int, tuple[int, ...]], *, record: bool
    ) -> list[Trained]:
        """What malicious silos train, those that train longer apart."""
        trained: list[Trained] = []
        lengths = {silo: self._longer(acting[silo]) for silo in silos}
        for longer in sorted(set(lengths.values())):
            self.host.train = lengthened(self.train, longer)
            together = [silo for silo in silos if lengths[silo] == longer]
            trained += self.host.trained(instruction, together, record=record)
        self.host.train = self.train
        return trained

    def _longer(self, attacks: Sequence[int]) -> int:
        poisons = [self.roles.attacks[at] for at in attacks]
        return max((each.longer for each in poisons if isinstance(each, Poison)), default=1)

    def _corrupted(
        self, instruction: Instruction, trained: Sequence[Trained], acting: Mapping[int, tuple[int, ...]], cohort: int
    ) -> list[Trained]:
        """What malicious silos send, attack after attack; silos of one attack know each other's updates."""
        silos = [silo for each in trained for silo in each.silos]
        if all(isinstance(self.roles.attacks[at], Poison) for silo in silos for at in acting[silo]):
            return list(trained)
        shapes = [each.update.channels[ATTACKED].shape for each in trained]
        whole = torch.cat([each.update.channels[ATTACKED].reshape(len(each.silos), -1) for each in trained])
        for at, attack in enumerate(self.roles.attacks):
            mine = [place for place, silo in enumerate(silos) if at in acting[silo]]
            if mine:
                whole[mine] = changed(attack, whole[mine], cohort=cohort)
        whole = self._as_many(instruction, whole)
        rows = torch.split(whole, [len(each.silos) for each in trained])
        return [_sends(each, part.reshape(shape)) for each, part, shape in zip(trained, rows, shapes)]

    def _as_many(self, instruction: Instruction, vectors: Tensor) -> Tensor:
        """Vectors of no more numbers than travel: a longer message would be refused."""
        kept = self.host.strategy.kept(self.host.single.layout, instruction.round, instruction.tier)
        return largest(vectors, kept[ATTACKED]) if ATTACKED in kept else vectors


def lengthened(train: Train, times: int) -> Train:
    """Training of so many times the steps or epochs."""
    if train.steps is not None:
        return replace(train, steps=times * train.steps)
    return replace(train, epochs=times * (train.epochs or 1))


def _sends(trained: Trained, vector: Tensor) -> Trained:
    channels = {**trained.update.channels, ATTACKED: vector}
    return replace(trained, update=replace(trained.update, channels=channels))
