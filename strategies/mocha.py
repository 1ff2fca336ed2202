"""Mocha in its primal form: silos are pulled by all others, as strongly as their models have proved to be related.

Source: Smith, Chiang, Sanjabi, Talwalkar, "Federated Multi-Task Learning", NeurIPS 2017, arXiv 1705.10467, with the
covariance of Zhang & Yeung 2010 (arXiv 1203.3536): (W W^T)^(1/2), one row of W per silo. Their solver works on the
dual; here a silo does its steps of SGD, as under all other strategies. The server must see every silo's model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from privacy.release import Release
from strategies.base import Instruction, Silo, State, Strategy, Update
from strategies.layout import Layout
from strategies.registry import strategy
from strategies.schema import key

if TYPE_CHECKING:
    from strategies.experiment import Experiment


@strategy("mocha")
@dataclass(frozen=True)
class Mocha(Strategy):
    """The silos' models lie in the rows of a matrix, which a silo's update changes in its own row.

    Vectors sent are as long as all models together: this is for small models and tens of silos.
    """

    lam: float = key(0.1, at_least=0.0, help="pull of silos on each other, by the inverse of the covariance")
    silos: int = key(8, at_least=1, help="number of silos of the data")
    ridge: float = key(0.1, above=0, help="added to the covariance, of mean 1 on its diagonal, before it is inverted")

    reveals: ClassVar[bool] = True

    def misfits(self, experiment: Experiment, silos: int) -> list[str]:
        """A row for each silo, and steps that are stable whatever the covariance."""
        found, train = [], experiment.train
        if self.silos != silos:
            found.append(f"strategy.silos: the data has {silos} silos, got {self.silos}; write {silos}")
        limit = 2.0 * (1.0 + train.momentum) / train.learning_rate
        if not self.lam / self.ridge < limit:
            found.append(
                f"strategy.lam: lam / ridge must be < 2 (1 + momentum) / train.learning_rate = {limit:g}, "
                f"got {self.lam / self.ridge:g}; lower it, or raise ridge"
            )
        return found

    def channels(self, size: int) -> Mapping[str, int]:
        """The changes of all models, of which a silo sends its own."""
        return {"delta": self.silos * size}

    def personal(self, size: int) -> Mapping[str, int]:
        """The silo's model."""
        return {"model": size}

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """All silos start alike."""
        return {"models": model.repeat(self.silos, 1), "initial": model.clone()}

    def instruct(self, state: State, round_: int, tier: int = 0) -> Instruction:
        """For each silo, what the others' models pull by, and how strongly its own counts."""
        moved = state["models"] - state["initial"]
        inverse = self._precision(moved)
        own = inverse.diagonal().clone()
        vectors = {"initial": state["initial"], "mean": self.predictor(state), "own": own}
        return Instruction(round_, vectors | {"others": inverse @ moved - own.unsqueeze(-1) * moved}, tier)

    def _precision(self, moved: Tensor) -> Tensor:
        """The inverse of the covariance of silos `(silos, silos)`; of the identity while nobody has moved."""
        values, vectors = torch.linalg.eigh((moved @ moved.T).double())
        roots = values.clamp(min=0.0).sqrt()
        total = roots.sum()
        scaled = roots * (self.silos / total) if bool(total > 0) else torch.ones_like(roots)
        inverse: Tensor = (vectors / (scaled + self.ridge)) @ vectors.T
        return inverse.to(moved.dtype)

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Trains the silo's own model, pulled by the others as they were sent."""
        initial, index = instruction["initial"], silo.index
        own, others = instruction["own"][index].unsqueeze(-1), instruction["others"][index]
        before = silo.state.get("model", initial)
        after = silo.fit(before, correct=lambda weights, g: g + self.lam * (own * (weights - initial) + others))
        silo.state["model"] = after
        place = torch.nn.functional.one_hot(index, self.silos).to(after.dtype).unsqueeze(-1)
        return Update({"delta": (place * (after - before).unsqueeze(-2)).flatten(-2)})

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """Every row takes its silo's change."""
        models = state["models"] + release.sum("delta").view_as(state["models"])
        return {"models": models, "initial": state["initial"].clone()}

    def predictor(self, state: State) -> Tensor:
        """The mean of all models."""
        mean: Tensor = state["initial"] + (state["models"] - state["initial"]).mean(0)
        return mean

    def evaluate(self, silo: Silo, instruction: Instruction) -> Mapping[str, Tensor]:
        """A silo is served its own model; one that was never asked, the mean."""
        return silo.evaluate(silo.state.get("model", instruction["mean"]))
