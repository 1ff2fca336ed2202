"""IFCA: several federated models, of which each silo trains the one that fits its rows best; or is pulled towards it.

Source: Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, arXiv
2006.04088. Which model fits best is a question about rows: under example-level privacy it is answered by noised sums of
losses, once a round, at epsilon^2 / 8 of zero-concentrated privacy each (`privacy.queries`), as Liu et al. 2022 (arXiv
2206.07902) charge it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from privacy.queries import NoisyQuery
from privacy.release import Release
from strategies.base import Instruction, Silo, State, Strategy, Update
from strategies.layout import Layout
from strategies.registry import strategy
from strategies.schema import key

CHOICE = "choice"


@strategy("ifca")
@dataclass(frozen=True)
class IFCA(Strategy):
    """A silo's change is added to the model of its cluster, and divided by how many chose that.

    With `lam`, each silo keeps a model of its own, pulled towards its cluster's, which is the mean of those models that
    took part (IFCA with mean-regularisation inside of clusters).
    """

    clusters: int = key(2, at_least=2, help="models to choose from")
    lam: float | None = key(None, at_least=0.0, help="pull of each silo's own model towards its cluster's; null: IFCA")
    choice_epsilon: float = key(0.1, above=0, help="privacy.example: of each choice, one a round; beside the steps")
    choice_clip: float = key(1.0, above=0, help="privacy.example: largest norm of how one row's losses differ")
    apart: float = key(0.1, above=0, help="std that sets the models apart at the start, all but the first")

    @property
    def queries(self) -> Mapping[str, NoisyQuery]:
        """The choice."""
        return {
            CHOICE: NoisyQuery.costing(self.choice_epsilon, size=self.clusters, clip_norm=self.choice_clip),
        }

    def channels(self, size: int) -> Mapping[str, int]:
        """The changes of all models, of which a silo sends one, and who chose which."""
        return {"delta": self.clusters * size, "chosen": self.clusters}

    def kept(self, layout: Layout, round_: int, tier: int) -> Mapping[str, int]:
        """The change of one model."""
        return {"delta": layout.size}

    def personal(self, size: int) -> Mapping[str, int]:
        """The silo's cluster, and its own model where it has one."""
        return {"cluster": 1} | ({} if self.lam is None else {"model": size})

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """The initial model, and others around it: models that are alike would stay so."""
        models = model.repeat(self.clusters, 1)
        models[1:] += self.apart * torch.randn(self.clusters - 1, model.numel(), generator=rng)
        return {"models": models, "votes": torch.zeros(self.clusters)}

    def instruct(self, state: State, round_: int, tier: int = 0) -> Instruction:
        """All models."""
        return Instruction(round_, {"models": state["models"], "votes": state["votes"]}, tier)

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Chooses, trains and sends the change in the place of the model chosen."""
        models = instruction["models"]
        # What all models miss alike says nothing about the choice: without it, rows are shorter and less is clipped.
        costs = silo.query(CHOICE, models, rows=lambda losses, _: losses - losses.mean(-1, keepdim=True))
        chosen = costs.argmin(-1)
        start = models[chosen]
        after = self._train(silo, start)
        silo.state["cluster"] = chosen.float().unsqueeze(-1)
        votes = one_hot(chosen, self.clusters).float()
        delta = votes.unsqueeze(-1) * (after - start).unsqueeze(-2)
        return Update({"delta": delta.flatten(-2), "chosen": votes})

    def _train(self, silo: Silo, start: Tensor) -> Tensor:
        if self.lam is None:
            return silo.fit(start)
        lam = self.lam
        after = silo.fit(silo.state.get("model", start), correct=lambda weights, g: g + lam * (weights - start))
        silo.state["model"] = after
        return after

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """Every model takes the mean of what came for it; noised counts below 1 count as 1."""
        votes = release.sum("chosen")
        moved = release.sum("delta").view_as(state["models"]) / votes.clamp(min=1.0).unsqueeze(-1)
        return {"models": state["models"] + moved, "votes": votes}

    def predictor(self, state: State) -> Tensor:
        """The model that most chose in the last round."""
        return state["models"][state["votes"].argmax()]

    def evaluate(self, silo: Silo, instruction: Instruction) -> Mapping[str, Tensor]:
        """A silo is served its own model or its cluster's; one that was never asked, what most chose."""
        cluster = silo.state.get("cluster", instruction["votes"].argmax().float().reshape(1))
        model = instruction["models"][int(cluster)]
        return silo.evaluate(model if self.lam is None else silo.state.get("model", model))
