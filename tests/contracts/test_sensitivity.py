"""One unit more, less or other moves what is released by at most what its price was computed for.

Two federations that differ in one silo, or in one example, go through the whole path of a round: host, canaries, clip,
collector, noise. The noise of both is the same, so that their releases differ by what the data does. Numbers may be as
wild as floating point allows; the bound is the declared sensitivity plus what rounding may add.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.examples import Examples, Shards
from client.host import SiloHost
from client.personal import PersonalStore
from privacy import streams
from privacy.adaptive import AdaptiveSum
from privacy.local import LocalNoise
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from privacy.noise import SimulatedNoise, grid
from privacy.release import Collector, Release
from privacy.steps import NoisySteps
from server.canaries import CanaryLink
from server.link import by_tier
from server.participation import Coins
from simulations.engines.local import LocalLink
from strategies.base import Instruction, Silo, State, Strategy, Update
from strategies.experiment import Train
from strategies.layout import Layout
from strategies.registry import STRATEGIES
from strategies.tasks import Shape, Task, initial
from strategies.tasks.cnn import CNN
from strategies.tasks.dense import MLP, Linear, Logistic
from strategies.tasks.lstm import LSTM

torch.set_num_threads(1)

CLIP, NOISE, ROUNDING = 0.5, 1.0, 1e-5  # Each silo's float32 arithmetic, relative to the clip norm.
WILD = (0.0, 1e-30, 1e4, -1e18, 3e38, math.inf, -math.inf, math.nan)
Relation = Literal["add_remove", "zero_out", "replace"]


@dataclass(frozen=True)
class Stubborn(Strategy):
    """A silo half that does what a silo half should not: weights from its rows, and updates that are mangled.

    Top-k, rounding to half precision and a scale stand for whatever compresses an update before it is sent.
    """

    weight: float = 1.0
    scale: float = 1.0
    share: float = 0.3

    def channels(self, size: int) -> Mapping[str, int]:
        return {"delta": size, "sums": 3}

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        start = instruction["model"]
        delta = self.scale * (silo.fit(start) - start)
        count = max(1, int(self.share * delta.shape[-1]))
        least = delta.abs().nan_to_num(nan=math.inf).topk(count, dim=-1).values[..., -1:]
        sparse = torch.where(delta.abs() >= least, delta, 0.0).half().float()
        weight = (self.weight * silo.examples / 10.0).clamp(max=self.weight)
        return Update({"delta": sparse, "sums": delta[..., :3] * 7.0}, weight=weight)

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        return {"model": state["model"] + release.mean("delta")}


@dataclass(frozen=True)
class Unweighted(Stubborn):
    """The same, where the server reads weights, so that they must be 1."""

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        return Update(super().local(silo, instruction).channels)


RELATIONS: tuple[Relation, ...] = ("add_remove", "zero_out", "replace")


def private_strategies() -> list[tuple[Strategy, tuple[Relation, ...]]]:
    """Every registered strategy that runs under silo-level privacy, and, each relation alone, some to break out."""
    registered = [cls() for cls in STRATEGIES.values() if not cls().problems(private=True) and cls().channels(1)]
    wild = [Stubborn(), Stubborn(weight=5.0), Stubborn(scale=1e9), Stubborn(weight=0.3, share=1.0)]
    return [(each, RELATIONS) for each in registered] + [(each, (one,)) for each in wild for one in RELATIONS]


@dataclass(frozen=True)
class World:
    """A federation, as both neighbours share it.

    Attributes:
        strategy: of the run.
        rows: each silo's examples.
        seed: of model and streams.
        stacked: train silos together.
        absent: silos that drop out.
    """

    strategy: Strategy
    rows: tuple[Examples, ...]
    seed: int
    stacked: bool
    absent: frozenset[int] = frozenset()

    def host(self, folder: Path) -> SiloHost:
        rows = Examples(torch.cat([r.features for r in self.rows]), torch.cat([r.targets for r in self.rows]))
        groups = torch.cat(
            [r.targets % 2 for r in self.rows]
        )  # Neighbours share the rule, as they share a file's columns.
        rows = Examples(rows.features, rows.targets, groups)
        offsets = torch.tensor([0, *(len(r) for r in self.rows)]).cumsum(0)
        module, start = initial(TASK, SHAPE, seed=self.seed)
        kept = self.strategy.personal(start.numel())
        return SiloHost(
            strategy=self.strategy,
            task=TASK,
            module=module,
            shape=SHAPE,
            train=Train(steps=2, batch_size=3, learning_rate=0.5),
            shards=Shards(rows, offsets),
            held_out=None,
            seed=self.seed,
            stacked=self.stacked,
            personal=PersonalStore(folder, silos=len(self.rows), sizes=kept) if kept else None,
        )

    def release(self, cohort: Sequence[int], mechanisms: Mapping[str, Mechanism]) -> Release:
        """What a round releases when `cohort` is asked."""
        start = initial(TASK, SHAPE, seed=self.seed)[1]
        sizes = self.strategy.channels(start.numel())
        layout = Layout.of(initial(TASK, SHAPE, seed=self.seed)[0])
        state = self.strategy.init(start, streams.generator(self.seed, "init"), layout)
        with tempfile.TemporaryDirectory() as name:
            host = self.host(Path(name))
            canaries = Coins(3, 1.0, self.seed)
            link = CanaryLink(
                LocalLink(host, chunk=4), participation=canaries, channel="delta", sizes=sizes, seed=self.seed
            )
            collector = Collector(mechanisms, sizes, expected=4.0, population=len(self.rows))
            for partial in link.ask(by_tier(self.strategy, state, 1, cohort), mechanisms, record=True):
                collector.add(partial)
        return collector.release(SimulatedNoise(self.seed), stream=("noise", 1))


SHAPE, TASK = Shape((4,), 3), MLP((5,), "tanh")


def examples(seed: int, size: int, *, wild: float) -> Examples:
    """Random rows; each number is wild by a chance."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(size, *SHAPE.features, generator=rng)
    odd = torch.tensor(WILD)[torch.randint(len(WILD), features.shape, generator=rng)]
    features = torch.where(torch.rand(features.shape, generator=rng) < wild, odd, features)
    return Examples(features, torch.randint(SHAPE.outputs, (size,), generator=rng))


@st.composite
def worlds(draw: st.DrawFn, strategy: Strategy) -> World:
    """Federations of two to six silos, some of them empty, some wild, some absent."""
    seed, count = draw(st.integers(0, 2**32)), draw(st.integers(2, 6))
    sizes = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    wild = draw(st.lists(st.sampled_from([0.0, 0.0, 0.02, 0.5]), min_size=count, max_size=count))
    rows = tuple(examples(seed + at, size, wild=w) for at, (size, w) in enumerate(zip(sizes, wild)))
    absent = draw(st.frozensets(st.integers(0, count - 1), max_size=count - 1))
    return World(strategy, rows, seed, draw(st.booleans()), absent)


def moved(one: Release, other: Release, channel: str) -> float:
    return float(torch.linalg.vector_norm(one.sums[channel] - other.sums[channel]))


@pytest.mark.parametrize(("strategy", "relations"), private_strategies(), ids=str)
@given(data=st.data())
@settings(max_examples=30)
def test_one_silo_moves_each_released_sum_by_at_most_its_sensitivity(
    data: st.DataObject, strategy: Strategy, relations: tuple[Relation, ...]
) -> None:
    world, relation = data.draw(worlds(strategy)), data.draw(st.sampled_from(relations))
    silo = data.draw(st.integers(0, len(world.rows) - 1))
    other, without = world, [at for at in range(len(world.rows)) if at not in world.absent - {silo}]
    cohort = list(without)
    if relation == "replace":
        rows = examples(world.seed + 99, data.draw(st.integers(0, 9)), wild=data.draw(st.sampled_from([0.0, 0.5])))
        other = replace(world, rows=(*world.rows[:silo], rows, *world.rows[silo + 1 :]))
    else:
        without.remove(silo)
    size = initial(TASK, SHAPE, seed=0)[1].numel()
    sizes = strategy.channels(size)
    mechanisms: dict[str, Mechanism] = dict.fromkeys(sizes, GaussianSum(CLIP, NOISE))
    one, two = world.release(cohort, mechanisms), other.release(without, mechanisms)
    sensitivity = CLIP * (2 if relation == "replace" else 1)
    for channel, length in sizes.items():
        slack = ROUNDING * CLIP * len(cohort) + 2 * grid(CLIP * NOISE) * math.sqrt(length)
        assert moved(one, two, channel) <= sensitivity + slack
    assert one.divisors == two.divisors  # Nor does who answered change what a mean divides by.


@pytest.mark.parametrize("relation", ["add_remove", "zero_out", "replace"])
@given(data=st.data())
@settings(max_examples=30)
def test_one_silo_moves_each_channel_and_each_vote_by_at_most_what_that_is_priced_for(
    data: st.DataObject, relation: Relation
) -> None:
    """Channels with clip norms of their own, of which one adapts: a vote is 1/2, and 1 where data is replaced.

    Zeroed out means that the silo sends zeros, which casts no vote: as if it were not there.
    """
    strategy = Stubborn(weight=data.draw(st.sampled_from([0.3, 1.0, 5.0])), share=1.0)
    world = data.draw(worlds(strategy))
    silo = data.draw(st.integers(0, len(world.rows) - 1))
    cohort = [at for at in range(len(world.rows)) if at not in world.absent - {silo}]
    other, without, size = world, list(cohort), initial(TASK, SHAPE, seed=0)[1].numel()
    if relation == "replace":
        rows = examples(world.seed + 99, data.draw(st.integers(0, 9)), wild=data.draw(st.sampled_from([0.0, 0.5])))
        other = replace(world, rows=(*world.rows[:silo], rows, *world.rows[silo + 1 :]))
    elif relation == "zero_out":  # Without rows nothing is trained: an update of zeros.
        other = replace(world, rows=(*world.rows[:silo], examples(0, 0, wild=0.0), *world.rows[silo + 1 :]))
    else:
        without.remove(silo)
    clip = data.draw(st.sampled_from([1e-3, 0.1, 2.0]))
    adaptive = AdaptiveSum.costing(NOISE, clip_norm=clip, quantile=0.5, rate=0.2, count_noise=4.0, voters=4.0)
    mechanisms: dict[str, Mechanism] = {"delta": adaptive, "sums": GaussianSum(3.0 * CLIP, NOISE)}
    one, two = world.release(cohort, mechanisms), other.release(without, mechanisms)
    twice = 2 if relation == "replace" else 1
    for channel, norm, length in (("delta", clip, size), ("sums", 3.0 * CLIP, 3)):
        slack = ROUNDING * norm * len(cohort) + 2 * grid(2 * norm) * math.sqrt(length)
        assert moved(one, two, channel) <= twice * norm + slack
    assert abs(one.votes["delta"] - two.votes["delta"]) <= twice * 0.5 + 2 * grid(4.0)
    assert one.divisors == two.divisors


@pytest.mark.parametrize("relation", ["zero_out", "replace"])
@given(data=st.data())
@settings(max_examples=30)
def test_one_silos_own_update_moves_by_at_most_what_the_servers_view_is_priced_for(
    data: st.DataObject, relation: Relation
) -> None:
    """What leaves the silo, not a sum over silos: its noise is the same on both sides, so it differs by the data."""
    world = data.draw(worlds(Stubborn(share=1.0)))
    rows = examples(world.seed + 99, data.draw(st.integers(0, 9)), wild=data.draw(st.sampled_from([0.0, 0.5])))
    noise = SimulatedNoise(world.seed)
    local = LocalNoise({"delta": GaussianSum(CLIP, NOISE), "sums": GaussianSum(3.0 * CLIP, NOISE)}, noise)
    start = initial(TASK, SHAPE, seed=world.seed)[1]
    session = Instruction(1, {"model": start})

    def sent(held: Examples) -> Mapping[str, Tensor]:
        with tempfile.TemporaryDirectory() as name:
            host = replace(world, strategy=Unweighted(share=1.0), rows=(held, *world.rows[1:])).host(Path(name))
            host.local = local
            return host.contribute(session, [0], dict.fromkeys(("delta", "sums"), ExactSum()), chunk=0).sums

    mine, other = sent(world.rows[0]), sent(rows if relation == "replace" else examples(0, 0, wild=0.0))
    for channel, norm in (("delta", CLIP), ("sums", 3.0 * CLIP)):
        distance = float((mine[channel] - other[channel]).norm())
        assert distance <= norm * ((2 if relation == "replace" else 1) + 10 * ROUNDING)


def test_the_bound_is_reached() -> None:
    """Without this the property could hold because nothing moves at all."""
    strategy = Stubborn(share=1.0, scale=100.0)
    world = World(strategy, tuple(examples(at, 9, wild=0.0) for at in range(4)), 7, True)
    sizes = strategy.channels(initial(TASK, SHAPE, seed=0)[1].numel())
    mechanisms: dict[str, Mechanism] = dict.fromkeys(sizes, GaussianSum(CLIP, NOISE))
    one, two = world.release([0, 1, 2, 3], mechanisms), world.release([0, 1, 2], mechanisms)
    weight = 0.9
    assert moved(one, two, "delta") == pytest.approx(weight * CLIP, rel=1e-3)


def example_rows(task: Task, shape: Shape, seed: int, size: int, *, wild: float) -> Examples:
    rng = torch.Generator().manual_seed(seed)
    if isinstance(task, LSTM):
        tokens = torch.randint(shape.outputs, (size, *shape.features), generator=rng)
        return Examples(tokens, torch.randint(shape.outputs, (size, *shape.features), generator=rng))
    features = torch.randn(size, *shape.features, generator=rng)
    odd = torch.tensor(WILD)[torch.randint(len(WILD), features.shape, generator=rng)]
    features = torch.where(torch.rand(features.shape, generator=rng) < wild, odd, features)
    targets = torch.randint(shape.outputs, (size,), generator=rng)
    return Examples(features, targets.float() if isinstance(task, Linear) else targets)


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        (Logistic(), Shape((4,), 3)),
        (Linear(), Shape((4,), 1)),
        (MLP((5,)), Shape((4,), 3)),
        (CNN((2,), 4), Shape((1, 8, 8), 3)),
        (LSTM(4, 5), Shape((6,), 7)),
    ],
    ids=lambda value: value.name if isinstance(value, Task) else "",
)
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "one by one"])
@given(data=st.data())
@settings(max_examples=20)
def test_one_example_moves_a_step_by_at_most_the_clip_norm(
    data: st.DataObject, task: Task, shape: Shape, stacked: bool
) -> None:
    """A silo's update after one noisy step is -rate * (sum + noise) / batch: the sum is read off it."""
    seed, size = data.draw(st.integers(0, 2**32)), data.draw(st.integers(1, 8))
    wild = data.draw(st.sampled_from([0.0, 0.02, 0.5]))
    rows = example_rows(task, shape, seed, size, wild=wild)
    steps = NoisySteps(CLIP, 0.01, batch=4.0, rows=5)  # Little noise: its rounding in float32 must not hide a thing.

    def stepped(held: Examples) -> Tensor:
        module, _ = initial(task, shape, seed=seed)
        host = SiloHost(
            strategy=STRATEGIES["fedavg"](),
            task=task,
            module=module,
            shape=shape,
            train=Train(steps=1, learning_rate=1.0),
            shards=Shards(held, torch.tensor([0, len(held)])),
            held_out=None,
            seed=seed,
            stacked=stacked,
            personal=None,
            examples=[steps],
        )
        start = torch.zeros(initial(task, shape, seed=seed)[1].numel())  # Exact differences: nothing to round off.
        start += initial(task, shape, seed=seed)[1] if task.stack(shape) is None else 0.0
        partial = host.contribute(Instruction(1, {"model": start}), [0], {"delta": ExactSum()}, chunk=0)
        assert partial.arrived == 1
        return partial.sums["delta"] * steps.batch

    # The last row of a silo is no special one: which row is last is as random as the rows are.
    distance = float((stepped(rows) - stepped(rows.select(slice(0, size - 1)))).norm())
    assert distance <= CLIP * (1 + ROUNDING * 10 * size)
