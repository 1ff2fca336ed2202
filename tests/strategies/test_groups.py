"""Groups of rows: their counts and losses, whoever takes part, and the strategies that weigh groups otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from client.examples import Examples, Shards
from client.host import SiloHost
from client.personal import PersonalStore
from privacy.accountant import epsilon
from privacy.events import Composed, Gaussian, Poisson, Repeated, Sampled
from privacy.mechanism import ExactSum
from privacy.noise import SimulatedNoise
from privacy.queries import NoisyQuery
from privacy.release import Collector, Release
from privacy.steps import NoisySteps
from server.link import by_tier
from strategies.afl import AFL
from strategies.base import State, Strategy
from strategies.bounded_group_loss import BoundedGroupLoss
from strategies.experiment import Train
from strategies.fedavg import FedAvg
from strategies.groups import CHANNEL, Groups
from strategies.layout import Layout
from strategies.q_fedavg import QFedAvg
from strategies.registry import STRATEGIES
from strategies.silo_group_loss import SiloGroupLoss
from strategies.tasks import Shape, Task, initial
from strategies.tasks.dense import Linear, Logistic
from strategies.term import TERM

torch.set_num_threads(1)

SHAPE = Shape((1,), 1)
LINEAR, ONE_STEP = Linear(), Train(steps=1, learning_rate=0.1)
GROUPED = ("bounded_group_loss", "afl", "term")


def host_of(
    strategy: Strategy,
    shards: Shards,
    *,
    task: Task = LINEAR,
    shape: Shape = SHAPE,
    train: Train = ONE_STEP,
    personal: PersonalStore | None = None,
    examples: Sequence[NoisySteps] | None = None,
) -> SiloHost:
    return SiloHost(
        strategy=strategy,
        task=task,
        module=initial(task, shape, seed=1)[0],
        shape=shape,
        train=train,
        shards=shards,
        held_out=None,
        seed=3,
        stacked=True,
        personal=personal,
        examples=examples,
    )


def run(host: SiloHost, rounds: int, *, cohort: list[int] | None = None, rate: float = 1.0) -> State:
    """From zeros on; every round asks the same silos."""
    strategy, size, silos = host.strategy, host.single.layout.size, len(host.shards)
    state = strategy.init(torch.zeros(size), torch.Generator(), host.single.layout)
    sizes = strategy.channels(size)
    bounds = dict.fromkeys(sizes, ExactSum())
    for number in range(1, rounds + 1):
        collector = Collector(bounds, sizes, expected=float(silos), population=silos, rate=rate)
        asked = list(range(silos)) if cohort is None else cohort
        for chunk, request in enumerate(by_tier(strategy, state, number, asked)):
            collector.add(host.contribute(request.instruction, list(request.silos), bounds, chunk=chunk))
        state = strategy.aggregate(state, collector.release(SimulatedNoise(1), stream=("n", number)), torch.Generator())
        if host.personal is not None:
            host.personal.commit(number)
    return state


def line(groups: Sequence[int], at: Sequence[float], sizes: Sequence[int]) -> Shards:
    """Rows whose loss is (w - at of the group)^2 / 2, w being the bias."""
    named = torch.tensor(groups)
    rows = Examples(torch.zeros(len(groups), 1), torch.tensor(at)[named], named)
    return Shards(rows, torch.tensor([0, *sizes]).cumsum(0))


FEW = line([0, 0, 0, 0, 1, 1, 0, 1, 0, 0], (0.0, 3.0), [4, 2, 4])  # 7 rows of group 0, 3 of group 1.


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("name", GROUPED)
def test_counts_come_in_round_1_and_losses_of_the_model_sent_after_it(name: str, weighting: str) -> None:
    groups = Groups(number=2, weighting=weighting)  # type: ignore[arg-type]
    host = host_of(STRATEGIES[name](groups=groups), FEW)  # type: ignore[call-arg]
    first, second, third = (run(host, rounds) for rounds in (1, 2, 3))
    assert first["counts"].tolist() == [7.0, 3.0]
    assert first["losses"].tolist() == [0.0, 0.0]
    for before, after in ((first, second), (second, third)):
        assert after["counts"].tolist() == [7.0, 3.0]
        bias = float(before["model"][1])
        truth = [0.5 * bias**2, 0.5 * (bias - 3.0) ** 2]
        assert after["losses"].tolist() == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("name", GROUPED)
def test_public_counts_spare_the_round(name: str) -> None:
    groups = Groups(number=2, counts=(7.0, 3.0))
    state = run(host_of(STRATEGIES[name](groups=groups), FEW), 1)  # type: ignore[call-arg]
    assert state["losses"].tolist() == pytest.approx([0.0, 4.5])


def test_losses_err_to_no_side_whoever_takes_part() -> None:
    # Each of 3 silos alone at a rate of 1/3: the mean over these cohorts is what all of them give.
    known = Groups(number=2, counts=(7.0, 3.0))
    host = host_of(BoundedGroupLoss(groups=known), FEW)
    every = [run(host, 1, cohort=[silo], rate=1 / 3)["losses"] for silo in range(3)]
    nobody = run(host, 1, cohort=[], rate=1 / 3)
    assert torch.stack(every).mean(0).tolist() == pytest.approx([0.0, 4.5])
    assert every[0].tolist() == [0.0, 0.0]  # A silo without the group is no special case.
    assert nobody["losses"].tolist() == [0.0, 0.0]
    assert not nobody["model"].any()


def test_an_estimate_can_keep_some_of_the_last_one() -> None:
    groups = Groups(number=1, counts=(4.0,), smooth=0.75)
    state = groups.start()
    seen = []
    for total in (8.0, 16.0, 4.0):
        release = Release({CHANNEL: torch.tensor([total], dtype=torch.float64)}, {CHANNEL: 1.0}, 3)
        state = groups.seen(state, release)
        seen.append(float(state["losses"]))
    assert seen == pytest.approx([2.0, 0.75 * 2 + 0.25 * 4, 0.75 * 2.5 + 0.25 * 1])  # The first has none before it.


def test_pairs_of_group_and_class_are_groups() -> None:
    groups, targets = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 2])
    pairs = Groups(number=2, labels=2).of(groups, targets)
    assert pairs is not None
    assert pairs.tolist() == [0, 1, 2, 3, 3]  # Classes from the last label on are one.
    assert Groups(number=2).of(groups, targets) is groups
    assert Groups(number=2, labels=2).of(None, targets) is None
    with pytest.raises(ValueError, match="labels: 1"):
        Groups(labels=2).of(groups, targets.float())


def test_bounds_of_pairs_are_kept_in_each() -> None:
    # Group 1's rows of class 1 alone are hard: their pair is what gets a multiplier.
    rng = torch.Generator().manual_seed(2)
    groups, targets = torch.arange(80) % 2, (torch.arange(80) // 2) % 2
    features = torch.randn(80, 2, generator=rng) + 2.0 * targets.unsqueeze(1) - 1.0
    features[(groups == 1) & (targets == 1)] -= 0.7
    shards = Shards(Examples(features, targets, groups), torch.tensor([0, 30, 80]))
    strategy = BoundedGroupLoss((0.4,), groups=Groups(number=2, labels=2), dual_rate=1.0)
    train = Train(steps=1, learning_rate=0.5)
    state = run(host_of(strategy, shards, task=Logistic(), shape=Shape((2,), 2), train=train), 400)
    assert state["lam"].shape == (4,)
    assert float(state["lam"][3]) > 0.05
    assert float(state["losses"].max()) <= 0.4 + 1e-3
    free = run(host_of(FedAvg(), shards, task=Logistic(), shape=Shape((2,), 2), train=train), 400)
    assert float(pair_losses(free["model"], shards).max()) > 0.5


def pair_losses(model: Tensor, shards: Shards) -> Tensor:
    rows, task = shards.rows, Logistic()
    module = initial(task, Shape((2,), 2), seed=1)[0]
    Layout.of(module).load(module, model)
    assert rows.groups is not None
    with torch.no_grad():
        losses = task.losses(module(rows.features), rows.targets)
    return torch.stack([losses[rows.groups * 2 + rows.targets == pair].mean() for pair in range(4)])


def test_afl_finds_the_least_worst_loss() -> None:
    # (w - 0)^2 / 2 and (w - 3)^2 / 2 are equal at w = 1.5, in a mixture of halves, whatever the groups' sizes.
    state = run(host_of(AFL(dual_rate=0.1, groups=Groups(number=2)), FEW), 600)
    assert float(state["model"][1]) == pytest.approx(1.5, abs=1e-2)
    assert state["lam"].tolist() == pytest.approx([0.5, 0.5], abs=1e-2)
    assert float(state["lam"].sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("tilt", [0.0, 0.3, 2.0])
def test_term_is_where_the_tilted_loss_is_least(tilt: float) -> None:
    """Of 1/t log sum_a (n_a / n) exp(t L_a): 7 rows at 0 and 3 at 3; a tilt of 0 is the mean, at 0.9."""
    host = host_of(TERM(tilt=tilt, groups=Groups(number=2)), FEW, train=Train(steps=1, learning_rate=0.02))
    found = float(run(host, 1500)["model"][1])
    points = torch.linspace(0, 3, 300001, dtype=torch.float64)
    losses = torch.stack([points.square() / 2, (points - 3).square() / 2], 1)
    parts = torch.tensor([0.7, 0.3], dtype=torch.float64)
    values = losses @ parts if tilt == 0 else torch.logsumexp(parts.log() + tilt * losses, 1) / tilt
    assert found == pytest.approx(float(points[values.argmin()]), abs=2e-3)
    assert (found > 0.95) == (tilt > 0)


def test_q_fedavg_is_its_formula() -> None:
    # Silos at 0 (4 rows), 3 (2 rows), and in between; L = 10, w = 0, one step of rate .1 along the silo's own slope.
    host = host_of(QFedAvg(q=2.0), FEW)
    found = float(run(host, 1)["model"][1])
    means, losses = (0.0, 3.0, 0.75), (0.0, 4.5, 4.5 / 4)
    moved = [10 * 0.1 * mean for mean in means]
    up = sum(loss**2 * step for loss, step in zip(losses, moved))
    below = sum(2 * loss * step**2 + 10 * loss**2 for loss, step in zip(losses, moved))
    assert found == pytest.approx(up / below, rel=1e-5)


def test_q_fedavg_of_q_0_is_fedavg() -> None:
    train = Train(epochs=2, batch_size=2, learning_rate=0.1)
    found = [run(host_of(each, FEW, train=train), 3)["model"] for each in (QFedAvg(q=0.0), FedAvg())]
    assert torch.allclose(*found, atol=1e-6)


def test_bounds_kept_silo_by_silo_know_nothing_of_other_silos(tmp_path: object) -> None:
    strategy = SiloGroupLoss((0.5,), dual_rate=1.0, groups=Groups(number=2))
    personal = PersonalStore(tmp_path, silos=3, sizes=strategy.personal(2))  # type: ignore[arg-type]
    host = host_of(strategy, FEW, personal=personal)
    run(host, 3)
    lam = torch.stack([personal.rows([silo], stacked=False)["lam"] for silo in range(3)])
    assert float(lam[0, 1]) == 0.0  # It has group 0 alone.
    assert float(lam[1, 0]) == 0.0  # It has group 1 alone.
    assert float(lam[1, 1]) > 1.0
    assert float(lam[2, 1]) > 1.0
    assert float(lam.sum(1).max()) <= strategy.bound * (1 + 1e-6)


def test_bounds_kept_silo_by_silo_weigh_by_the_silos_own_counts(tmp_path: object) -> None:
    # One step of the third silo from w = 0: losses 0 and 4.5, so lam = (0, 4) of 3 * 0 + 1 rows; u of its row is 17.
    strategy = SiloGroupLoss((0.5,), dual_rate=1.0, bound=9.0, groups=Groups(number=2))
    personal = PersonalStore(tmp_path, silos=3, sizes=strategy.personal(2))  # type: ignore[arg-type]
    state = run(host_of(strategy, FEW, personal=personal), 1, cohort=[2])
    assert float(state["model"][1]) == pytest.approx(0.1 * (17 * 3.0) / 4, rel=1e-5)


def test_bounds_kept_silo_by_silo_clip_a_rows_loss_and_count_together(tmp_path: object) -> None:
    # At a loss_clip of 4.5 the row at 3 adds (4.5, 4.5): it is 4.5 * 2^.5 long, and neither number is cut.
    own = Groups(number=2, loss_clip=4.5, noise_multiplier=1e-9)
    strategy = SiloGroupLoss((0.5,), dual_rate=1.0, bound=9.0, groups=own)
    personal = PersonalStore(tmp_path, silos=3, sizes=strategy.personal(2))  # type: ignore[arg-type]
    steps = [NoisySteps(clip_norm=1.0, noise_multiplier=1.0, batch=2.0, rows=4)] * 3
    run(host_of(strategy, FEW, personal=personal, examples=steps), 1)
    assert personal.rows([2], stacked=False)["lam"].tolist() == pytest.approx([0.0, 4.0], abs=1e-5)


def test_sums_of_losses_are_priced_beside_the_steps_and_not_inside_of_their_batches() -> None:
    """q = .01, z = 1, 100 rounds of 10 steps, and sums with z_g = 5: 10.27; as a part of the batches it seems 1.91."""
    groups = Groups(noise_multiplier=5.0)
    steps = NoisySteps(clip_norm=1.0, noise_multiplier=1.0, batch=10.0, rows=1000).event(10)
    truth = epsilon(Repeated(Composed((steps, groups.query.event)), 100), 1e-5, neighbours="add_remove").upper
    assert truth == pytest.approx(10.27, abs=0.01)
    inside = Sampled(Poisson(0.01), Composed((Gaussian(1.0), Gaussian(5.0))))
    wrong = epsilon(Repeated(inside, 1000), 1e-5, neighbours="add_remove").upper
    assert wrong == pytest.approx(1.91, abs=0.01)


def test_a_rows_losses_are_clipped_and_noised_where_rows_are_private() -> None:
    groups = Groups(number=2, counts=(7.0, 3.0), loss_clip=2.0, noise_multiplier=1e-9)
    steps = [NoisySteps(clip_norm=1.0, noise_multiplier=1.0, batch=2.0, rows=4)] * 3
    host = host_of(BoundedGroupLoss(groups=groups), FEW, examples=steps)
    assert run(host, 1)["losses"].tolist() == pytest.approx([0.0, 2.0], abs=1e-5)  # Of 4.5 each.
    assert BoundedGroupLoss(groups=groups).queries == {CHANNEL: NoisyQuery(2, 2.0, 1e-9)}


def test_counts_are_noised_as_losses_are() -> None:
    loud = Groups(number=2, loss_clip=2.0, noise_multiplier=3.0)
    steps = [NoisySteps(clip_norm=1.0, noise_multiplier=1.0, batch=2.0, rows=4)] * 3
    counts = run(host_of(BoundedGroupLoss(groups=loud), FEW, examples=steps), 1)["counts"]
    assert float((counts - torch.tensor([7.0, 3.0])).abs().max()) > 0.1
    assert float(counts.min()) >= 1.0
    quiet = Groups(number=2, loss_clip=2.0, noise_multiplier=1e-9)
    exact = run(host_of(BoundedGroupLoss(groups=quiet), FEW, examples=steps), 1)["counts"]
    assert exact.tolist() == pytest.approx([7.0, 3.0])


def test_what_is_told_is_json() -> None:
    for name in GROUPED:
        strategy = STRATEGIES[name](groups=Groups(number=2))  # type: ignore[call-arg]
        for rounds in (0, 3):
            told = strategy.report(run(host_of(strategy, FEW), rounds))
            numbers = [each for value in told.values() for each in (value if isinstance(value, list) else [value])]
            assert all(isinstance(each, str | bool) or math.isfinite(each) for each in numbers)
