"""DP-SGD's clipped sums are brute force's, whoever computes them; one example moves them by at most the clip norm."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.dpsgd import DPSGD
from client.example_sums import ExampleSums, UnsupportedModel
from client.examples import Examples, Shards
from client.poisson import poisson
from client.private import PrivateTrainer
from client.private_stacked import PrivateStackedTrainer
from privacy import streams
from privacy.steps import NoisySteps
from strategies.experiment import Train
from strategies.tasks import Shape, Task, initial
from strategies.tasks.cnn import CNN
from strategies.tasks.dense import MLP, Linear, Logistic
from strategies.tasks.lstm import LSTM

torch.set_num_threads(1)

STEPS = NoisySteps(clip_norm=0.7, noise_multiplier=1.0, batch=8.0, rows=40)
QUIET = NoisySteps(clip_norm=0.7, noise_multiplier=1e-12, batch=8.0, rows=40)
DENSE: list[tuple[Task, Shape]] = [
    (Logistic(), Shape((2, 3), 4)),
    (Linear(), Shape((6,), 1)),
    (MLP((7, 5), "tanh"), Shape((6,), 4)),
    (MLP((7,), "relu"), Shape((6,), 1)),
]
OTHERS: list[tuple[Task, Shape]] = [
    (CNN((4, 6), 8), Shape((1, 8, 8), 3)),
    (LSTM(embedding=3, hidden=5, layers=2), Shape((7,), 6)),
]
NAMES = ["logistic", "linear", "tanh", "regression", "cnn", "lstm"]
dense = pytest.mark.parametrize(("task", "shape"), DENSE, ids=NAMES[:4])
every = pytest.mark.parametrize(("task", "shape"), DENSE + OTHERS, ids=NAMES)


def rows_of(shape: Shape, count: int, *, task: Task, seed: int = 5) -> Examples:
    rng = torch.Generator().manual_seed(seed)
    if isinstance(task, LSTM):
        return Examples(*(torch.randint(shape.outputs, (count, *shape.features), generator=rng) for _ in range(2)))
    features = torch.randn(count, *shape.features, generator=rng)
    drawn = torch.randn(count, generator=rng)
    return Examples(features, drawn if shape.outputs == 1 else torch.randint(shape.outputs, (count,), generator=rng))


def model(task: Task, shape: Shape) -> tuple[nn.Module, Tensor]:
    module, start = initial(task, shape, seed=3)
    start = start + 0.3 * torch.randn(start.numel(), generator=torch.Generator().manual_seed(2))
    nn.utils.vector_to_parameters(start, module.parameters())
    return module, start


def brute(module: nn.Module, task: Task, rows: Examples, clip: float = STEPS.clip_norm) -> Tensor:
    """One example at a time, by autograd, in double precision."""
    module = copy.deepcopy(module).double()
    parameters = list(module.parameters())
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for row in range(len(rows)):
        x, y = (t.double() if t.is_floating_point() else t for t in (rows.features[[row]], rows.targets[[row]]))
        gradient = torch.autograd.grad(task.losses(module(x), y).sum(), parameters)
        flat = torch.cat([part.reshape(-1) for part in gradient])
        total += flat * min(1.0, clip / float(flat.norm()))
    return total


def hooked(module: nn.Module, task: Task, rows: Examples, *, double: bool, hooks: bool = False) -> Tensor:
    sums = ExampleSums(module, task, hooks=hooks)
    x, y = rows.features, rows.targets
    if double:
        sums.double()
        x, y = (t.double() if t.is_floating_point() else t for t in (x, y))
    return torch.cat([part.reshape(-1) for part in sums.total(x, y, STEPS)[0]])


def stacked(task: Task, shape: Shape, start: Tensor, rows: Examples, index: Tensor, count: Tensor) -> Tensor:
    chain = task.stack(shape)
    assert chain is not None
    weights = start.expand(len(count), -1).clone()
    return PrivateStackedTrainer(chain, Train(steps=1)).sums(weights, rows, index, count, [STEPS] * len(count))[0]


def apart(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


@every
@pytest.mark.parametrize("hooks", [False, True], ids=["as trained", "hooks"])
def test_sums_are_those_of_brute_force(task: Task, shape: Shape, hooks: bool) -> None:
    (module, _), rows = model(task, shape), rows_of(shape, 20, task=task)
    truth = brute(module, task, rows)
    assert apart(hooked(module, task, rows, double=True, hooks=hooks), truth) < 1e-12
    assert apart(hooked(module, task, rows, double=False, hooks=hooks), truth) < 1e-5  # Of float32's forward pass.


@dense
def test_stacked_sums_are_those_of_opacus_and_of_brute_force(task: Task, shape: Shape) -> None:
    (module, start), rows = model(task, shape), rows_of(shape, 30, task=task)
    index = torch.stack([torch.arange(10), torch.arange(10, 20), torch.arange(20, 30)])
    count = torch.tensor([10, 6, 0])  # Padded by rows of the silo's own, and by nothing else.
    found = stacked(task, shape, start, rows, index, count)
    for silo in range(2):
        own = rows.select(index[silo, : int(count[silo])])
        assert apart(found[silo], hooked(module, task, own, double=False)) < 1e-6
        assert apart(found[silo], brute(module, task, own)) < 1e-6
    assert not found[2].any()
    doubled = Examples(
        rows.features.double(), rows.targets.double() if rows.targets.is_floating_point() else rows.targets
    )
    assert (
        apart(
            stacked(task, shape, start.double(), doubled, index, count)[0], brute(module, task, rows.select(slice(10)))
        )
        < 1e-12
    )


@every
def test_removing_one_example_moves_the_sum_by_at_most_the_clip_norm(task: Task, shape: Shape) -> None:
    (module, _), rows = model(task, shape), rows_of(shape, 12, task=task)
    if rows.features.is_floating_point():
        rows.features[3] *= 1e4  # An outlier, whose gradient alone is far longer.
    whole = hooked(module, task, rows, double=True)
    for row in range(12):
        rest = rows.select(torch.tensor([other for other in range(12) if other != row]))
        assert float((whole - hooked(module, task, rest, double=True)).norm()) <= STEPS.clip_norm * (1 + 1e-6)


@dense
def test_removing_one_example_moves_a_stacks_sum_by_at_most_the_clip_norm(task: Task, shape: Shape) -> None:
    (_, start), rows = model(task, shape), rows_of(shape, 12, task=task)
    rows.features[3] *= 1e4
    rows = Examples(rows.features.double(), rows.targets.double() if rows.targets.is_floating_point() else rows.targets)
    index = torch.stack([torch.tensor([i for i in range(12) if i != row] + [row]) for row in range(12)])
    whole = stacked(task, shape, start.double(), rows, index, torch.full((12,), 12))
    without = stacked(task, shape, start.double(), rows, index, torch.full((12,), 11))
    assert float((whole - without).norm(dim=1).max()) <= STEPS.clip_norm * (1 + 1e-6)


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e30])
@dense
def test_an_example_that_is_not_finite_moves_nothing_even_as_padding(task: Task, shape: Shape, value: float) -> None:
    (module, start), rows = model(task, shape), rows_of(shape, 8, task=task)
    rows.features[0] = value
    clean = rows.select(torch.arange(1, 8))
    index = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 0, 0, 0, 0, 0]])
    found = stacked(task, shape, start, rows, index, torch.tensor([8, 3]))
    moved = found[0].double() - brute(module, task, clean)
    assert bool(moved.isfinite().all())
    assert float(moved.norm()) <= STEPS.clip_norm * (1 + 1e-5)
    assert apart(found[1], brute(module, task, rows.select(torch.arange(1, 4)))) < 1e-6
    alone = hooked(module, task, rows, double=False)
    assert float((alone.double() - brute(module, task, clean)).norm()) <= STEPS.clip_norm * (1 + 1e-5)


SIZES = [30, 0, 44, 3]


def federation(task: Task, shape: Shape) -> Shards:
    return Shards(rows_of(shape, sum(SIZES), task=task), torch.tensor([0, *SIZES]).cumsum(0))


def trained(
    task: Task, shape: Shape, *, together: bool, silos: list[NoisySteps], train: Train, pull: float = 0.0
) -> Tensor:
    shards, (module, start) = federation(task, shape), model(task, shape)
    chain = task.stack(shape) if together else None
    dpsgd = DPSGD(silos, module=module, task=task, train=train, chain=chain, fits=1, seed=7, secret=False)
    starts, sizes, results = shards.offsets[:-1].numpy(), shards.sizes.numpy(), []
    groups = [list(range(len(SIZES)))] if together else [[silo] for silo in range(len(SIZES))]
    for group in groups:
        result, _ = dpsgd.fit(
            start,
            shards.rows,
            starts[group],
            sizes[group],
            silos=group,
            round_=2,
            fit=0,
            correct=(lambda w, g: g + pull * (w - start)) if pull else None,
            record=False,
        )
        results.append(result.reshape(len(group), -1))
    return torch.cat(results)


@dense
@pytest.mark.parametrize(
    "train", [Train(steps=5), Train(steps=5, momentum=0.9, weight_decay=0.05)], ids=["plain", "momentum and decay"]
)
def test_a_stack_trains_as_silos_do_one_by_one_with_the_same_noise(task: Task, shape: Shape, train: Train) -> None:
    silos = [NoisySteps(0.7, z, 8.0, 40) for z in (1.0, 0.5, 2.0, 1.0)]
    together, alone = (trained(task, shape, together=way, silos=silos, train=train, pull=0.3) for way in (True, False))
    start = model(task, shape)[1]
    assert float((together - alone).norm() / (together - start).norm()) < 1e-5


@every
def test_one_silos_noise_changes_only_that_silo(task: Task, shape: Shape) -> None:
    for together in {task.stack(shape) is not None, False}:
        before, after = (
            trained(task, shape, together=together, silos=silos, train=Train(steps=2))
            for silos in ([STEPS] * 4, [STEPS, STEPS, NoisySteps(0.7, 9.0, 8.0, 40), STEPS])
        )
        same = [bool(torch.equal(a, b)) for a, b in zip(before, after)]
        assert same == [True, True, False, True]


@dense
@pytest.mark.parametrize("together", [True, False], ids=["stacked", "one by one"])
def test_a_silo_without_rows_steps_with_noise_like_any_other(task: Task, shape: Shape, together: bool) -> None:
    # Five steps of rate 1: std 5^.5 x 1.0 x 0.7 / 8 per coordinate. Over 4 models of 7 to 74 numbers and two ways, the
    # mean square is chi-square; both tails at 1e-8 each.
    from scipy.stats import chi2

    train = Train(steps=5, learning_rate=1.0)
    moved = (trained(task, shape, together=together, silos=[STEPS] * 4, train=train) - model(task, shape)[1])[1]
    scaled = float((moved.double() / (5**0.5 * 0.7 / 8)).square().sum())
    low, high = chi2.ppf([1e-8, 1 - 1e-8], df=moved.numel())
    assert low < scaled < high


def test_the_divisor_is_the_expected_batch_whatever_a_silo_holds() -> None:
    # Rate 1 of 40 nominal rows, no noise to speak of: one step is the clipped sum over ALL rows held, divided by 40.
    task, shape = DENSE[0]
    everyone = NoisySteps(0.7, 1e-12, 40.0, 40)
    shards, (module, start) = federation(task, shape), model(task, shape)
    for together in (True, False):
        train = Train(steps=1, learning_rate=1.0)
        after = trained(task, shape, together=together, silos=[everyone] * 4, train=train)
        for silo in (0, 2, 3):
            step = (start - after[silo]).double()
            assert apart(step, brute(module, task, shards.silo(silo)) / 40) < 1e-5


def test_a_correction_sees_the_noised_gradient_and_is_not_clipped() -> None:
    task, shape = DENSE[0]
    train = Train(steps=1, learning_rate=1.0)
    for together in (True, False):
        plain = trained(task, shape, together=together, silos=[QUIET] * 4, train=train)
        shards, (module, start) = federation(task, shape), model(task, shape)
        chain = task.stack(shape) if together else None
        dpsgd = DPSGD([QUIET] * 4, module=module, task=task, train=train, chain=chain, fits=1, seed=7, secret=False)
        moved, _ = dpsgd.fit(
            start, shards.rows, np.array([0]), np.array([30]), silos=[0], round_=2, fit=0,
            correct=lambda w, g: g + 100.0, record=False,
        )  # fmt: skip
        torch.testing.assert_close(moved.reshape(-1), plain[0] - 100.0)


def test_losses_are_means_over_all_rows_seen_and_come_back_only_when_asked() -> None:
    task, shape = DENSE[0]
    shards, (module, start) = federation(task, shape), model(task, shape)
    chain = task.stack(shape)
    assert chain is not None
    starts, sizes = shards.offsets[:-1].numpy(), shards.sizes.numpy()
    plan = poisson(starts, sizes, [0.2] * 4, 3, streams.keys(1, range(4)))
    noise = [torch.Generator().manual_seed(silo) for silo in range(4)]
    together = PrivateStackedTrainer(chain, Train(steps=3))
    together.fit(start, shards.rows, plan, steps=[QUIET] * 4, noise=noise)
    assert together.losses == []
    together.fit(start, shards.rows, plan, steps=[QUIET] * 4, noise=noise, record=True)
    alone = PrivateTrainer(module, task, Train(steps=3))
    for silo in range(4):
        own = poisson(starts[[silo]], sizes[[silo]], [0.2], 3, streams.keys(1, [silo]))
        alone.fit(start, shards.rows, own, steps=QUIET, noise=noise[silo], record=True)
    np.testing.assert_allclose(together.losses, alone.losses, rtol=1e-5)
    assert math.isnan(together.losses[1])


def test_no_two_silos_rounds_or_fits_share_noise() -> None:
    task, shape = DENSE[0]
    module, start = model(task, shape)
    rows = Examples(rows_of(shape, 1, task=task).features[:0], torch.zeros(0, dtype=torch.int64))
    for chain in (task.stack(shape), None):
        dpsgd = DPSGD(
            [STEPS] * 2, module=module, task=task, train=Train(steps=1), chain=chain, fits=2, seed=0, secret=False
        )
        moved = [
            dpsgd.fit(
                start, rows, np.array([0]), np.array([0]), silos=[silo], round_=round_, fit=fit, correct=None,
                record=False,
            )[0].reshape(-1)
            for silo, round_, fit in ((0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1))
        ]  # fmt: skip
        assert len({tuple(each.tolist()) for each in moved}) == 4


def test_secret_batches_do_not_follow_from_the_seed() -> None:
    """With next to no noise two fits of one seed end apart: 40 rows at .2 are drawn alike twice with chance 1e-7."""
    (task, shape), moved = DENSE[0], []
    module, start = model(task, shape)
    rows = rows_of(shape, 40, task=task)
    for secret in (False, False, True, True):
        dpsgd = DPSGD(
            [QUIET], module=module, task=task, train=Train(steps=1), chain=None, fits=1, seed=0, secret=secret
        )
        fit, _ = dpsgd.fit(
            start, rows, np.array([0]), np.array([40]), silos=[0], round_=1, fit=0, correct=None, record=False
        )
        moved.append(fit)
    assert torch.equal(moved[0], moved[1])
    assert float((moved[2] - moved[3]).norm()) > 1e-4
    assert float((moved[0] - moved[2]).norm()) > 1e-4


def test_no_more_fits_are_run_than_were_paid_for() -> None:
    task, shape = DENSE[0]
    module, start = model(task, shape)
    dpsgd = DPSGD([STEPS], module=module, task=task, train=Train(steps=1), chain=None, fits=1, seed=0, secret=False)
    rows = rows_of(shape, 4, task=task)
    with pytest.raises(ValueError, match=r"paid for 1 fit\(s\) a round"):
        dpsgd.fit(start, rows, np.array([0]), np.array([4]), silos=[0], round_=1, fit=1, correct=None, record=False)


def test_a_model_that_opacus_cannot_take_is_refused_in_one_line() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("seen", torch.zeros(1))  # Could carry one example's numbers to the next.

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out

    with pytest.raises(UnsupportedModel, match=r"^Buffered cannot be trained by DP-SGD: ") as caught:
        ExampleSums(Buffered(), Logistic())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        nn.RNN(3, 4, batch_first=True),
        nn.RNN(3, 4, nonlinearity="relu", batch_first=True),
        nn.GRU(3, 4, num_layers=2, batch_first=True),
        nn.LSTM(3, 4, bidirectional=True, batch_first=True),
    ],
    ids=str,
)
def test_recurrent_layers_are_trained_as_the_ones_that_they_stand_for(layer: nn.Module) -> None:
    """Else what is trained is not what is served: a relu would be trained as tanh."""
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    twin = ExampleSums(nn.Sequential(layer), Logistic(), hooks=True).twin
    assert type(twin[0]) is not type(layer)
    assert torch.allclose(twin(x)[0], layer(x)[0], atol=1e-6)


def test_a_projection_that_opacus_does_not_know_is_refused() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(3, 4, proj_size=2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0][:, -1]  # type: ignore[no-any-return]

    with pytest.raises(UnsupportedModel, match=r"^Projected cannot be trained by DP-SGD"):
        ExampleSums(Projected(), Logistic()).total(torch.zeros(2, 5, 3), torch.zeros(2, dtype=torch.int64), STEPS)
