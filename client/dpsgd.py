"""Example-level DP-SGD of a host's silos: planned steps, Poisson batches, one stream of noise per silo and fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from client.batches import Ints, Plan
from client.examples import Examples
from client.planted import Planted
from client.poisson import poisson
from client.private import PrivateTrainer
from client.private_stacked import PrivateStackedTrainer
from privacy import streams
from privacy.noise import SystemNoise
from privacy.steps import NoisySteps
from strategies.base import Correction, Penalty, Reweight
from strategies.experiment import Train
from strategies.tasks import Chain, Task


class DPSGD:
    """What `fit` does under example-level privacy.

    Args:
        silos: clip, noise, divisor and rate of every silo.
        module: a model of the task; copied.
        task: model and loss.
        train: the experiment's training section; its `steps` are the steps of one fit.
        chain: the model as a chain of dense layers, to train stacks of silos; None: one by one.
        fits: fits of a round that were priced.
        seed: of the experiment.
        secret: noise and batches come from the operating system, and no seed gives them again.
        planted: canaries in the batches of some silos, or None.

    Raises:
        UnsupportedModel: nobody can tell the module's per-example gradients.
    """

    def __init__(
        self,
        silos: Sequence[NoisySteps],
        *,
        module: nn.Module,
        task: Task,
        train: Train,
        chain: Chain | None,
        fits: int,
        seed: int,
        secret: bool,
        planted: Planted | None = None,
    ) -> None:
        if train.steps is None:
            raise ValueError("train.steps: missing, privacy.example charges a planned number of steps a round")
        self.silos, self.steps, self.fits, self.seed = tuple(silos), train.steps, fits, seed
        self.secret, self.planted = secret, planted
        self.trainer: PrivateTrainer | PrivateStackedTrainer
        self.trainer = PrivateStackedTrainer(chain, train) if chain is not None else PrivateTrainer(module, task, train)

    def fit(
        self,
        start: Tensor,
        rows: Examples,
        starts: Ints,
        sizes: Ints,
        *,
        silos: Sequence[int],
        round_: int,
        fit: int,
        correct: Correction | None,
        record: bool,
        penalty: Penalty | None = None,
        reweight: Reweight | None = None,
    ) -> tuple[Tensor, list[float]]:
        """Trains some silos; returns `(N,)` or `(silos, N)`, and with `record` their private mean losses.

        Args:
            start: where to begin.
            rows: all silos' rows.
            starts: `(silos,)`, where the rows of each of these silos begin.
            sizes: `(silos,)`, how many they have.
            silos: their indices.
            round_: the round.
            fit: which fit of the round, from 0.
            correct: acts after the noise.
            record: whether to bring back losses.
            penalty: added to every example's gradient before it is clipped.
            reweight: multiplies every example's loss before that.

        Raises:
            ValueError: the round's fits are used up; nobody paid for another.
        """
        if not fit < self.fits:
            raise ValueError(f"privacy.example paid for {self.fits} fit(s) a round, this is one more; raise `fits`")
        keys = streams.keys(streams.derive(self.seed, "example batches", round_, fit), silos)
        rates = [self.silos[silo].rate for silo in silos]
        plan: Plan = poisson(starts, sizes, rates, self.steps, None if self.secret else keys)
        noise = [self._noise(round_, fit, silo) for silo in silos]
        own = [self._steps(round_, fit, silo) for silo in silos]
        trainer = self.trainer
        if isinstance(trainer, PrivateStackedTrainer):
            trained = trainer.fit(
                start,
                rows,
                plan,
                steps=own,
                noise=noise,
                correct=correct,
                penalty=penalty,
                reweight=reweight,
                record=record,
            )
        else:
            key = int(keys[0] >> np.uint64(1))
            trained = trainer.fit(
                start,
                rows,
                plan,
                steps=own[0],
                noise=noise[0],
                correct=correct,
                penalty=penalty,
                reweight=reweight,
                key=key,
                record=record,
            )
        losses, trainer.losses = trainer.losses, []
        return trained, losses

    def _steps(self, round_: int, fit: int, silo: int) -> NoisySteps:
        own = self.silos[silo]
        return own if self.planted is None else self.planted.join(own, silo, steps=self.steps, round_=round_, fit=fit)

    def _noise(self, round_: int, fit: int, silo: int) -> torch.Generator | SystemNoise:
        return SystemNoise() if self.secret else streams.generator(self.seed, "example noise", round_, fit, silo)
