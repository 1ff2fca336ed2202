"""Personalised strategies on quadratic losses, in double precision: invariants, fixed points, and ends of lambda."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from privacy.contributions import Contributions
from privacy.mechanism import ExactSum
from privacy.release import Collector, Release
from strategies.base import Correction, Penalty, State, Strategy
from strategies.ditto import Ditto
from strategies.experiment import Train
from strategies.fedavg import FedAvg
from strategies.finetune import FineTune
from strategies.ifca import IFCA
from strategies.layout import Layout
from strategies.loading import parse
from strategies.local import Local
from strategies.mocha import Mocha
from strategies.mr_mtl import MRMTL

torch.set_num_threads(1)

SILOS, SIZE = 5, 3
BEST = torch.randn(SILOS, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
START = torch.randn(SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Personal(dict[str, Tensor]):
    """Personal vectors of a stack of silos; some have none yet."""

    def __init__(self, kept: dict[str, Tensor], silos: Tensor, present: Tensor) -> None:
        super().__init__()
        self.kept, self.silos, self.present = kept, silos, present

    def get(self, name: str, default: Tensor) -> Tensor:  # type: ignore[override]
        if name not in self.kept:
            return default.expand(len(self.silos), SIZE)
        return torch.where(self.present[self.silos].unsqueeze(-1), self.kept[name][self.silos], default)

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.kept.setdefault(name, torch.zeros(SILOS, value.shape[-1], dtype=torch.float64))
        self.kept[name][self.silos] = value.double()
        self.present[self.silos] = True


@dataclass
class Silos:
    """A stack of silos with losses |w - best|^2 / 2, full batches and double precision."""

    index: Tensor
    state: Any
    train: Train
    best: Tensor = field(default_factory=lambda: BEST)
    step_noise: Tensor = field(default_factory=lambda: torch.zeros(SILOS))
    costs: Tensor | None = None

    @property
    def examples(self) -> Tensor:
        return torch.ones(len(self.index))

    def fit(self, start: Tensor, *, correct: Correction | None = None, penalty: Penalty | None = None) -> Tensor:
        weights = start.expand(len(self.index), SIZE).clone()
        assert self.train.steps is not None
        for _ in range(self.train.steps):
            gradient = weights - self.best[self.index]
            gradient = gradient if penalty is None else gradient + penalty(weights)
            gradient = gradient if correct is None else correct(weights, gradient)
            weights = weights - self.train.learning_rate * gradient
        return weights

    def query(self, name: str, models: Tensor, *, rows: Any) -> Tensor:
        assert self.costs is not None
        return self.costs[self.index]

    def evaluate(self, model: Tensor) -> Mapping[str, Tensor]:
        return {"loss": model}


class Wide(Release):
    """A release that keeps its double precision."""

    def sum(self, channel: str) -> Tensor:
        return self.sums[channel]

    def mean(self, channel: str) -> Tensor:
        return self.sums[channel] / self.divisors[channel]


class World:
    def __init__(self, strategy: Strategy, *, steps: int = 4, rate: float = 0.1, best: Tensor = BEST) -> None:
        self.strategy, self.train, self.best = strategy, Train(steps=steps, learning_rate=rate), best
        self.kept: dict[str, Tensor] = {}
        self.present = torch.zeros(SILOS, dtype=torch.bool)
        self.step_noise = torch.zeros(SILOS)
        self.state: State = strategy.init(START, torch.Generator(), Layout(("weight",), ((SIZE,),)))
        self.deltas = torch.zeros(strategy.channels(SIZE).get("delta", SIZE), dtype=torch.float64)

    def round(self, number: int, asked: list[int] | None = None, *, costs: Tensor | None = None) -> None:
        index = torch.tensor(list(range(SILOS)) if asked is None else asked, dtype=torch.int64)
        held = Personal(self.kept, index, self.present)
        silos = Silos(index, held, self.train, self.best, step_noise=self.step_noise[index], costs=costs)
        sizes = self.strategy.channels(SIZE)
        update = self.strategy.local(silos, self.strategy.instruct(self.state, number))
        bounds = dict.fromkeys(sizes, ExactSum())
        total = Contributions(bounds, sizes)
        total.add(update.channels, update.weight, index.tolist())
        collector = Collector(bounds, sizes, expected=SILOS, population=SILOS)
        collector.add(total.partial(0))
        released = collector.release(None, stream=())  # type: ignore[arg-type]
        self.deltas += released.sums.get("delta", torch.zeros(SIZE, dtype=torch.float64))
        self.state = self.strategy.aggregate(
            self.state, Wide(released.sums, released.divisors, SILOS), torch.Generator()
        )

    def rounds(self, count: int) -> World:
        for number in range(1, count + 1):
            self.round(number)
        return self

    @property
    def models(self) -> Tensor:
        """Of all silos; of those never asked, where all started."""
        return torch.where(self.present.unsqueeze(-1), self.kept["model"], START)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


COHORTS = [[0, 1, 2, 3, 4], [1], [], [0, 3], [3], [2, 1], [4, 0], [1], [2]]


@pytest.mark.parametrize("lam", [(0.0,), (0.7,), (0.0, 0.1, 1.0, 3.0, 9.0)], ids=str)
@pytest.mark.parametrize("first", [0, 1], ids=["all at first", "late joiners"])
def test_the_mean_is_the_start_plus_all_deltas_over_all_silos_and_that_of_all_models(lam: Any, first: int) -> None:
    world = World(MRMTL(lam=lam))
    for number, asked in enumerate(COHORTS[first:] * 12, start=1):
        world.round(number, asked)
        assert apart(world.state["mean"], START + world.deltas / SILOS) <= 1e-10
        assert apart(world.state["mean"], world.models.mean(0)) <= 1e-10


def test_under_inf_the_mean_is_the_start_plus_all_deltas_over_all_silos() -> None:
    world = World(MRMTL(lam="inf"))
    for number, asked in enumerate(COHORTS, start=1):
        world.round(number, asked)
        assert apart(world.state["mean"], START + world.deltas / SILOS) <= 1e-10


@pytest.mark.parametrize("proximal", ["outside", "inside"])
@pytest.mark.parametrize("lam", [0.0, 0.1, 1.0, 10.0])
def test_models_come_to_rest_where_the_closed_form_says(lam: float, proximal: Any) -> None:
    world = World(MRMTL(lam=(lam,), proximal=proximal)).rounds(300)
    assert apart(world.models, (BEST + lam * BEST.mean(0)) / (1 + lam)) <= 1e-8
    assert apart(world.state["mean"], BEST.mean(0)) <= 1e-8


def test_the_mean_never_overwrites_a_silos_model() -> None:
    world = World(MRMTL(lam=(0.5,))).rounds(3)
    before = world.models.clone()
    world.round(4, [2])
    others = [0, 1, 3, 4]
    assert torch.equal(world.models[others], before[others])
    # One step of silo 2 from its own model, not from the mean.
    again = World(MRMTL(lam=(0.5,)), steps=1).rounds(3)
    kept, mean = again.models[2], again.state["mean"]
    again.round(4, [2])
    gradient = kept - BEST[2] + 0.5 * (kept - mean)
    assert apart(again.models[2], kept - 0.1 * gradient) <= 1e-12


def test_a_late_joiner_starts_from_the_first_model_of_all() -> None:
    world = World(MRMTL(lam=(0.0,)), steps=1)
    for number in range(1, 6):
        world.round(number, [0, 1])
    world.round(6, [4])
    assert apart(world.models[4], START - 0.1 * (START - BEST[4])) <= 1e-12


@pytest.mark.parametrize("lams", [(0.0, 0.5, 1.0, 4.0, 9.0), (2.0,) * SILOS], ids=["own", "equal"])
def test_own_pulls_weigh_the_mean_by_one_over_one_plus_lambda(lams: Any) -> None:
    # w_k = (best_k + lam_k mean) / (1 + lam_k) and mean = mean_k w_k: the mean is that of best_k / (1 + lam_k).
    world = World(MRMTL(lam=lams)).rounds(400)
    weights = 1 / (1 + torch.tensor(lams, dtype=torch.float64))
    mean = (weights / weights.sum()) @ BEST
    assert apart(world.state["mean"], mean) <= 1e-8
    pull = torch.tensor(lams, dtype=torch.float64).unsqueeze(1)
    assert apart(world.models, (BEST + pull * mean) / (1 + pull)) <= 1e-8


def noisy(strategy: Strategy, stds: Tensor, rounds: int) -> World:
    """Silos that add noise of known, different sizes; the noise itself is left out."""
    world = World(strategy)
    world.step_noise = stds
    return world.rounds(rounds)


def test_the_precision_weighted_mean_counts_each_silo_by_one_over_its_variance() -> None:
    stds = torch.linspace(0.5, 2.0, SILOS)
    for apart_, lam in ((0.0, (0.7,)), (1.0, (0.7,)), (1.0, "inf")):
        world = noisy(MRMTL(lam=lam, mean="precision", apart=apart_), stds, 400)  # type: ignore[arg-type]
        precisions = 1 / (stds.double().square() + apart_)
        mean = (precisions / precisions.sum()) @ BEST
        assert apart(world.state["mean"], mean) <= 1e-6
        if lam != "inf":
            assert apart(world.models, (BEST + 0.7 * mean) / 1.7) <= 1e-6


def test_a_large_spread_weighs_all_silos_alike() -> None:
    stds = torch.linspace(0.5, 2.0, SILOS)
    far = noisy(MRMTL(lam=(0.7,), mean="precision", apart=1e9), stds, 50)
    assert apart(far.state["mean"], World(MRMTL(lam=(0.7,))).rounds(50).state["mean"]) <= 1e-5


def test_an_update_that_is_missing_does_not_make_the_mean_run_away() -> None:
    world = noisy(MRMTL(lam=(0.7,), mean="precision", apart=1.0), torch.ones(SILOS), 1)
    before, sent = world.state["mean"].clone(), world.deltas.clone()
    world.round(2, [0])  # Each weighs 1 / (1 + 1).
    assert apart(world.state["mean"], before + (world.deltas - sent) / (SILOS / 2)) <= 1e-7


def test_half_the_rate_and_twice_the_steps_have_the_same_fixed_point() -> None:
    one = World(MRMTL(lam=(0.8,)), steps=4, rate=0.1).rounds(200)
    two = World(MRMTL(lam=(0.8,)), steps=8, rate=0.05).rounds(200)
    assert apart(one.models, two.models) <= 1e-6


def test_no_pull_is_local_training_to_the_bit() -> None:
    alone, free = World(Local()).rounds(5), World(MRMTL(lam=(0.0,))).rounds(5)
    assert torch.equal(alone.models, free.models)
    listed = World(MRMTL(lam=(0.0,) * SILOS)).rounds(5)
    assert torch.equal(alone.models, listed.models)


def test_inf_is_federated_averaging() -> None:
    mean, federated = World(MRMTL(lam="inf")), World(FedAvg())
    for number in range(1, 6):
        mean.round(number)
        federated.round(number)
        assert apart(mean.state["mean"], federated.state["model"]) <= 1e-12


@pytest.mark.parametrize("lam", [(0.3,), "inf"])
def test_a_silo_is_served_its_own_model_and_a_new_one_the_mean(lam: Any) -> None:
    world = World(MRMTL(lam=lam))
    world.round(1, [0, 1])
    asked = world.strategy.instruct(world.state, 2)

    def served(silo: int) -> Tensor:
        index = torch.tensor([silo])
        one = Silos(index, Personal(world.kept, index, world.present), world.train)
        return world.strategy.evaluate(one, asked)["loss"].reshape(-1)

    assert torch.equal(served(1), world.state["mean"] if lam == "inf" else world.models[1])
    assert torch.equal(served(4), world.state["mean"])


def test_ditto_trains_a_federated_model_and_pulls_its_own_to_that() -> None:
    world = World(Ditto(lam=0.5)).rounds(300)
    assert apart(world.state["model"], BEST.mean(0)) <= 1e-8
    assert apart(world.models, (BEST + 0.5 * BEST.mean(0)) / 1.5) <= 1e-8
    federated = World(FedAvg()).rounds(5)
    assert apart(World(Ditto(lam=0.5)).rounds(5).state["model"], federated.state["model"]) <= 1e-12


def test_ditto_without_a_pull_is_local_training_beside_federated_averaging() -> None:
    assert torch.equal(World(Ditto(lam=0.0)).rounds(5).models, World(Local()).rounds(5).models)


def test_finetune_is_federated_and_then_alone() -> None:
    world, federated = World(FineTune(shared=3)), World(FedAvg()).rounds(3)
    world.rounds(3)
    assert not world.kept  # Nothing of its own yet.
    shared = world.state["model"]
    assert apart(shared, federated.state["model"]) <= 1e-12
    sent = world.deltas.clone()
    for number in (4, 5):
        world.round(number)
    assert torch.equal(world.state["model"], shared)
    assert torch.equal(world.deltas, sent)  # Nothing more left a silo.
    alone = shared.expand(SILOS, SIZE)
    for _ in range(8):
        alone = alone - 0.1 * (alone - BEST)
    assert apart(world.models, alone) <= 1e-12


def test_mocha_keeps_what_silos_share_and_shrinks_what_they_do_not() -> None:
    # Bests lie far along one relation between silos and a little along another, one a column. A column is an
    # eigenvector of the covariance, with r = 5 (its length) / (all lengths), and comes to 1 / (1 + lam / (r + ridge)).
    best = torch.zeros(SILOS, SIZE, dtype=torch.float64)
    best[:, 0] = torch.tensor([2.0, 2.2, 1.8, 2.1, -2.0])
    best[:, 1] = torch.tensor([0.1, -0.1, 0.1, -0.1, 0.0])
    best[:, 1] -= best[:, 0] * (best[:, 0] @ best[:, 1]) / best[:, 0].square().sum()  # At right angles.
    world = World(Mocha(lam=0.2, silos=SILOS, ridge=0.2), best=best + START).rounds(300)
    lengths = (world.models - START).norm(dim=0)[:2]
    shares = SILOS * lengths / lengths.sum()
    assert apart(lengths / best.norm(dim=0)[:2], 1 / (1 + 0.2 / (shares + 0.2))) <= 1e-6
    assert lengths[0] / best[:, 0].norm() > 0.95 > 0.7 > lengths[1] / best[:, 1].norm()
    assert apart(world.state["models"], world.models) <= 1e-10  # The server knows every model.


def test_mochas_pull_is_by_the_inverse_of_the_covariance() -> None:
    world = World(Mocha(lam=0.2, silos=SILOS, ridge=0.2)).rounds(3)
    moved = world.models - START
    values, vectors = torch.linalg.eigh(moved @ moved.T)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    covariance = root * (SILOS / root.trace()) + 0.2 * torch.eye(SILOS, dtype=torch.float64)
    asked = world.strategy.instruct(world.state, 4)
    whole = asked["own"].unsqueeze(-1) * moved + asked["others"]
    assert apart(covariance @ whole, moved) <= 1e-8


def test_ifca_moves_each_model_by_the_mean_of_those_who_chose_it() -> None:
    world = World(IFCA(clusters=3))
    first = world.state["models"].clone()
    assert torch.equal(first[0], START)
    costs = torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 0, 1], [0, 1, 1], [0.5, 0.1, 0.2]])
    world.round(1, costs=costs)
    groups = [[0, 3], [1, 2, 4], []]
    for model, group in enumerate(groups):
        now = first[model]
        for _ in range(4):
            now = now - 0.1 * (now - BEST[group].mean(0)) if group else now
        assert apart(world.state["models"][model], now) <= 1e-12
    assert world.state["votes"].tolist() == [2, 3, 0]
    assert torch.equal(world.strategy.predictor(world.state), world.state["models"][1])


def test_ifca_with_a_pull_keeps_models_around_their_clusters_mean() -> None:
    world = World(IFCA(clusters=2, lam=0.5))
    costs = torch.tensor([[0.0, 1], [0, 1], [1, 0], [1, 0], [1, 0]])
    for number in range(1, 400):
        world.round(number, costs=costs)
    for group, model in (([0, 1], 0), ([2, 3, 4], 1)):
        mean = BEST[group].mean(0)
        assert apart(world.state["models"][model], mean) <= 1e-8
        assert apart(world.models[group], (BEST[group] + 0.5 * mean) / 1.5) <= 1e-8


@pytest.mark.parametrize(("proximal", "inside"), [("outside", False), ("inside", True)])
def test_the_pull_is_outside_of_the_clip_unless_asked_for(proximal: Any, inside: bool, monkeypatch: Any) -> None:
    seen: list[tuple[bool, bool]] = []
    original = Silos.fit

    def watched(self: Silos, start: Tensor, **pulls: Any) -> Tensor:
        seen.append(("correct" in pulls, "penalty" in pulls))
        return original(self, start, **pulls)

    monkeypatch.setattr(Silos, "fit", watched)
    World(MRMTL(lam=(0.5,), proximal=proximal)).rounds(2)
    assert seen == [(not inside, inside)] * 2
    assert MRMTL().proximal == "outside"


VOTES = {"privacy": {"silo": {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}}, "cohort": {"sampling": "all"}}


def fitted(strategy: dict[str, Any], **sections: Any) -> list[str]:
    content = {"rounds": 30, "task": "logistic", "data": {"name": "digits", "silos": 12}, "strategy": strategy}
    experiment = parse(content | VOTES | sections)
    return experiment.strategy.misfits(experiment, 12)


def test_a_clip_that_cuts_votes_is_refused() -> None:
    assert "channel 'chosen' sends vectors of norm 1" in fitted({"name": "ifca"})[0]
    own = {"silo": VOTES["privacy"]["silo"] | {"channels": [{"name": "chosen", "clip_norm": 1.0}]}}  # type: ignore[dict-item]
    assert not fitted({"name": "ifca"}, privacy=own)
    assert not fitted({"name": "ifca"}, privacy={})


def test_a_choice_too_dear_for_any_noise_is_a_line() -> None:
    assert "strategy.choice_epsilon" in IFCA(choice_epsilon=1e-300).problems(private=True)[0]
    assert not IFCA().problems(private=True)


@pytest.mark.parametrize(
    "strategy", [{"name": "flasc", "tiers": [{"down": 1, "up": 0.1}, {"down": 1, "up": 1}]}, {"name": "rank_tiers"}]
)
def test_lengths_of_messages_must_not_tell_a_secret_cohort(strategy: dict[str, Any]) -> None:
    """Sums of distinct lengths name who sent them: 332 + 10 + 2 numbers are of those three."""
    poisson = {"cohort": {"sampling": "poisson", "rate": 0.5}}
    secret = {"privacy": VOTES["privacy"] | {"noise": "system"}}
    assert "who is in a cohort" in fitted(strategy, **poisson, **secret)[0]
    assert not fitted(strategy, **poisson)
    assert not fitted(strategy, **secret)
    assert not fitted({"name": "flasc"}, **poisson, **secret)
