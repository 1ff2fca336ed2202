"""Mean-regularised multi-task learning: every silo keeps a model of its own, pulled towards the mean of all.

Source: Liu, Hu, Wu, Smith, "On Privacy and Personalization in Cross-Silo Federated Learning", NeurIPS 2022, arXiv
2206.07902. The pull reads no data, so it is added after the noise, at no price; the authors' code has it inside the
clipped gradient of every example (`proximal: inside`), where a strong pull leaves the data no room below the clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from privacy.release import Release
from strategies import spread
from strategies.base import Instruction, Silo, State, Strategy, Update
from strategies.layout import Layout
from strategies.registry import strategy
from strategies.schema import key

if TYPE_CHECKING:
    from strategies.experiment import Experiment


@strategy("mr_mtl")
@dataclass(frozen=True)
class MRMTL(Strategy):
    """The server keeps the mean, which equals that of all silos' models; it never sees one of them.

    `lam: 0` is local training. `lam: inf` is federated averaging: every silo starts from the mean. With one number per
    silo, lam_k proportional to a silo's noise makes the mean that of least variance by itself (its weights are those of
    1 / (1 + lam_k)), so nothing is weighted again.
    """

    lam: tuple[float, ...] | Literal["auto", "inf"] = key(
        (0.1,), at_least=0.0, help="pull towards the mean: one number, one per silo, inf, or auto (by the known noise)"
    )
    proximal: Literal["outside", "inside"] = key(
        "outside", help="the pull acts after the noise, or in every example's gradient before it is clipped"
    )
    mean: Literal["uniform", "precision"] = key(
        "uniform",
        help="all models alike, or each by 1 / (variance of its noise in a step + apart): one lam, own noises",
    )
    apart: float = key(0.0, at_least=0, help="mean: precision: added to every silo's variance; large: all alike")
    warmup: int = key(10, at_least=2, help="lam: auto: rounds without a pull, which show how far silos are apart")

    def problems(self, *, private: bool) -> list[str]:
        """Weights by a noise that is not there."""
        if self.mean == "precision" and not private:
            return ["strategy.mean: precision goes by the noise of privacy.example, which is missing; use uniform"]
        return []

    def misfits(self, experiment: Experiment, silos: int) -> list[str]:
        """A number per silo, steps that are stable, and for `auto` noise to go by."""
        train = experiment.train
        if found := self._mean_misfits(experiment):
            return found
        if self.lam == "auto":
            return self._auto_misfits(experiment, silos)
        if self.lam == "inf":
            return []
        if len(self.lam) not in (1, silos):
            return [f"strategy.lam: found {len(self.lam)} numbers for {silos} silos; give one, or one per silo"]
        limit = 2.0 * (1.0 + train.momentum) / train.learning_rate  # Of a loss without curvature of its own.
        if not max(self.lam) < limit:
            return [
                f"strategy.lam: must be < 2 (1 + momentum) / train.learning_rate = {limit:g}, got {max(self.lam):g}; "
                "lower either, or use inf"
            ]
        return []

    def _mean_misfits(self, experiment: Experiment) -> list[str]:
        if self.mean == "uniform":
            return []
        found, privacy = [], experiment.privacy
        if privacy.example is None or privacy.silo is not None or privacy.local is not None:
            found.append("strategy.mean: precision goes by the noise of privacy.example alone; use uniform")
        if experiment.cohort.sampling != "all":
            found.append("strategy.mean: precision weighs all silos in every round; use cohort.sampling: all")
        if self.lam == "auto" or (self.lam != "inf" and len(self.lam) > 1):
            found.append("strategy.mean: a lam of each silo's own weighs the mean already; use uniform, or one lam")
        return found

    def _auto_misfits(self, experiment: Experiment, silos: int) -> list[str]:
        train, found = experiment.train, []
        if experiment.privacy.example is None:
            found.append("strategy.lam: auto goes by the noise of privacy.example, which is missing; give a number")
        if not self.warmup < experiment.rounds or self.warmup % 2:
            found.append(f"strategy.warmup: must be even and < rounds = {experiment.rounds}, got {self.warmup}")
        if silos < 2 or experiment.cohort.sampling != "all":
            found.append(
                "strategy.lam: auto compares silos after equal steps; use cohort.sampling: all, or give a number"
            )
        if train.momentum or train.weight_decay:
            found.append("strategy.lam: auto is derived for SGD without momentum and weight_decay; set them to 0")
        return found

    def channels(self, size: int) -> Mapping[str, int]:
        """The change of the silo's model; for `auto` also how far it came, and its noise."""
        weighed = {"weight": 1} if self.mean == "precision" else {}
        return {"delta": size} | ({"spread": 3} if self.lam == "auto" else {}) | weighed

    def personal(self, size: int) -> Mapping[str, int]:
        """The silo's model; for `auto` also as it was in the middle of the warm-up."""
        return {"model": size} | ({"half": size} if self.lam == "auto" else {})

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """All silos, late ones too, start where the mean does."""
        state = {"mean": model, "initial": model.clone()}
        if self.mean == "precision":
            state |= {"weight": torch.zeros(1)}
        if self.lam == "auto":
            state |= {"round": torch.zeros(1, dtype=torch.int64), "half": model.clone(), "seen": torch.zeros(4)}
        return state

    def instruct(self, state: State, round_: int, tier: int = 0) -> Instruction:
        """The mean to be pulled to, the start of all, and for `auto` how far silos were seen to be apart."""
        return Instruction(round_, {name: state[name] for name in ("mean", "initial", "seen") if name in state}, tier)

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Trains the silo's own model, which the mean never overwrites, and sends how it changed."""
        mean = instruction["mean"]
        before = silo.state.get("model", instruction["initial"])
        if self.lam == "inf":
            before = mean.expand_as(before)
        lam = self._strength(silo, instruction).unsqueeze(-1)

        def pull(weights: Tensor) -> Tensor:
            return lam * (weights - mean)

        if not bool(lam.any()):
            after = silo.fit(before)
        elif self.proximal == "inside":
            after = silo.fit(before, penalty=pull)
        else:
            after = silo.fit(before, correct=lambda weights, gradient: gradient + pull(weights))
        silo.state["model"] = after
        channels = {"delta": after - before}
        if self.mean == "precision":
            weight = 1.0 / (silo.step_noise.square() + self.apart).unsqueeze(-1)
            channels = {"delta": weight * (after - before), "weight": weight}
        if self.lam == "auto":
            channels["spread"] = self._spread(silo, instruction, after)
        return Update(channels)

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """Moves the mean by the changes of all, those of silos not asked being zero."""
        if self.mean == "precision":
            # Of all silos: where an update was refused, its weight is missing from this sum, not from the mean.
            weight = torch.maximum(state["weight"], release.sum("weight"))
            return {**state, "weight": weight, "mean": state["mean"] + release.sum("delta") / weight}
        mean = state["mean"] + release.sum("delta") / release.population
        after = {name: value.clone() for name, value in state.items()} | {"mean": mean}
        if self.lam != "auto":
            return after
        after["round"] = state["round"] + 1
        if 2 * int(after["round"]) == self.warmup:
            after["half"] = mean.clone()
        if int(after["round"]) == self.warmup:
            after["seen"] = self._seen(after, release)
        return after

    def _seen(self, state: State, release: Release) -> Tensor:
        """How far silos are apart and moved in the second half, their mean noise, and how sure that is, `(4,)`."""
        apart, moved, variance = release.sum("spread") / release.population
        mean, silos = state["mean"], release.population
        shifts = torch.stack([(mean - state[since]).square().mean() for since in ("initial", "half")])
        seen = (torch.stack([apart, moved]) - shifts) / (1.0 - 1.0 / silos)
        return torch.cat([seen, torch.stack([variance, torch.tensor(spread.doubt(mean.numel(), silos))])])

    def predictor(self, state: State) -> Tensor:
        """The mean: what a silo starts from that was never asked."""
        return state["mean"]

    def evaluate(self, silo: Silo, instruction: Instruction) -> Mapping[str, Tensor]:
        """A silo is served its own model.

        One that never trained is served the mean; so is each under `inf`, and under `auto` one whose noise leaves its
        own model further from its best than the mean is.
        """
        mean = instruction["mean"]
        if self.lam == "inf":
            return silo.evaluate(mean)
        if self.lam == "auto" and instruction.round > self.warmup:
            _, error, tau2 = self._best(silo, instruction)
            if not bool(error < tau2):
                return silo.evaluate(mean)
        return silo.evaluate(silo.state.get("model", mean))

    def _strength(self, silo: Silo, instruction: Instruction) -> Tensor:
        """Lambda, `()` or `(silos,)`; 0 where nothing pulls."""
        if self.lam == "inf" or (self.lam == "auto" and instruction.round <= self.warmup):
            return torch.zeros(())
        if self.lam == "auto":
            return self._best(silo, instruction)[0]
        lams = torch.tensor(self.lam)
        return lams[silo.index] if len(self.lam) > 1 else lams[0]

    def _best(self, silo: Silo, instruction: Instruction) -> tuple[Tensor, Tensor, Tensor]:
        """The best lambda and its error by the model of `strategies.spread`, each `()` or `(silos,)`; and tau^2."""
        assert silo.train.steps is not None  # privacy.example asks for it.
        rate, steps = silo.train.learning_rate, silo.train.steps * self.warmup
        tau2, curvature = spread.between(instruction["seen"], steps=steps, rate=rate)
        lam, error = spread.strength(tau2, silo.step_noise.square(), curvature=curvature, rate=rate)
        return lam, error, tau2

    def _spread(self, silo: Silo, instruction: Instruction, after: Tensor) -> Tensor:
        """At the end of the warm-up, how far the silo came, and its noise, `(3,)` or `(silos, 3)`; else zeros.

        Under example-level privacy models are private already, and how far they came follows from them for nothing.
        """
        half = silo.state.get("half", after)
        if 2 * instruction.round == self.warmup:
            half = after
        silo.state["half"] = half
        if instruction.round != self.warmup:
            return torch.zeros(*after.shape[:-1], 3)
        apart, moved = ((after - since).square().mean(-1) for since in (instruction["initial"], half))
        return torch.stack([apart, moved, silo.step_noise.square()], dim=-1)
