"""Book-keeping: each layer's rule against brute force, and models that it must leave to others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from client.book_keeping import BookKeeping, Unknown
from client.example_sums import ExampleSums, UnsupportedModel
from client.separate_rows import Mixed, separate
from privacy.steps import NoisySteps
from strategies.tasks import Task
from strategies.tasks.dense import Logistic

torch.set_num_threads(1)

ROWS = 9


class Pick(nn.Module):
    """The mean over positions, so that any `(rows, positions, width)` becomes logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Turned(nn.Module):
    """Rows become positions and positions rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.T


class Last(nn.Module):
    """The mean over positions where these come first."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


class Function(nn.Module):
    """A layer given as a function of an inner one."""

    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.inner, x)


def frozen(layer: nn.Module, *names: str) -> nn.Module:
    for name in names:
        getattr(layer, name).requires_grad_(False)
    return layer


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokens(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "dense": (lambda: nn.Linear(4, 3), normal(ROWS, 4)),
    "dense, no bias": (lambda: nn.Linear(4, 3, bias=False), normal(ROWS, 4)),
    "few positions": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), Pick(), nn.Linear(5, 3)), normal(ROWS, 4, 6)),
    "many positions": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), Pick()), normal(ROWS, 20, 2)),
    "two axes of positions": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Flatten(1, 2), Pick()),
        normal(ROWS, 2, 3, 4),
    ),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 3)),
        normal(ROWS, 2, 8, 8),
    ),
    "convolution, no bias": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, (2, 3), bias=False), nn.Flatten(2), nn.Tanh(), nn.Linear(12, 1), nn.Flatten()
        ),
        normal(ROWS, 1, 4, 6),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)),
        normal(ROWS, 1, 4, 4),
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)),
        normal(ROWS, 4),
    ),
    "layer norm of positions": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm((5, 6)), nn.LayerNorm(6), Pick(), nn.Linear(6, 3)),
        normal(ROWS, 5, 4),
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 4), nn.Tanh(), Pick(), nn.Linear(4, 3)),
        tokens(5, ROWS, 7),
    ),
    "frozen weight": (
        lambda: nn.Sequential(frozen(nn.Linear(4, 4), "weight"), nn.Tanh(), frozen(nn.Linear(4, 3), "bias")),
        normal(ROWS, 4),
    ),
    "frozen layer": (
        lambda: nn.Sequential(frozen(nn.Linear(4, 4), "weight", "bias"), nn.Tanh(), nn.Linear(4, 3)),
        normal(ROWS, 4),
    ),
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "used twice": (lambda: Function(nn.Linear(4, 4), lambda layer, x: layer(layer(x).tanh())), normal(ROWS, 4)),
    "grouped convolution": (lambda: nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Flatten()), normal(ROWS, 2, 2, 2)),
}
REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "changed in place": (lambda: Function(nn.Linear(4, 4), lambda layer, x: layer(x).tanh_()), normal(ROWS, 4)),
    "weight used outside": (
        lambda: Function(nn.Linear(4, 4), lambda layer, x: layer(x).tanh() @ layer.weight),  # type: ignore[operator]
        normal(ROWS, 4),
    ),
    "words before examples": (
        lambda: nn.Sequential(Turned(), nn.Embedding(5, 4), nn.Tanh(), nn.Linear(4, 3), Last()),
        tokens(5, ROWS, ROWS),  # As many words as examples: only their gradients tell which is which.
    ),
    "more words than examples": (
        lambda: nn.Sequential(Turned(), nn.Embedding(5, 4), nn.Tanh(), nn.Linear(4, 3), Last()),
        tokens(5, ROWS, ROWS + 2),
    ),
    "layer passed by": (
        lambda: nn.Sequential(
            Function(nn.Linear(4, 4), lambda layer, x: torch.nn.functional.linear(x, layer.weight)),  # type: ignore[arg-type]
            nn.Linear(4, 4),
        ),
        normal(ROWS, 4),
    ),
}


MIXED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "the batch's mean": lambda layer, x: layer(x - x.mean(0)),
    "the batch's mean, out of autograd's sight": lambda layer, x: layer(x - x.mean(0).detach()),
    "the order of the rows": lambda layer, x: layer(x.sort(0).values),
    "the number of larger rows": lambda layer, x: layer(x) + (x[:, None] > x).sum(0)[:, :3],
    "the outputs of others": lambda layer, x: layer(x) - layer(x.roll(1, 0)).detach(),
}


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    module = build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def brute(module: nn.Module, task: Task, features: Tensor, targets: Tensor) -> Tensor:
    """Each row's gradient, computed alone, `(rows, N)`."""
    module = module.double().train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rows = []
    for row in range(len(targets)):
        loss = task.losses(module(features[[row]]), targets[[row]]).sum()
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def summed(sums: ExampleSums, features: Tensor, targets: Tensor, clip: float) -> Tensor:
    parts, _ = sums.total(features, targets, NoisySteps(clip, 1.0, 1.0, 1))
    return torch.cat([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_clipped_sums_are_those_of_brute_force(name: str) -> None:
    build, features = (MODELS | OTHERS)[name]
    targets = tokens(3, ROWS)
    each = brute(made(build), Logistic(), features, targets)
    norms = each.norm(dim=1)
    clip = float(norms.median())  # Half of the rows are clipped.
    truth = ((clip / norms).clamp(max=1.0)[:, None] * each).sum(0)
    sums = ExampleSums(made(build), Logistic())
    sums.double()
    for _ in range(2):  # The first batch is checked besides.
        assert float((summed(sums, features, targets, clip) - truth).norm()) <= 1e-11 * float(truth.norm())
    assert (sums.books is not None) == (name in MODELS)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("hooks", [False, True], ids=["as trained", "hooks"])
def test_a_parameter_that_nobody_sees_used_is_refused(name: str, hooks: bool) -> None:
    """Opacus' hooks take no notice of it: the norms that they give are too small, and no error says so."""
    build, features = REFUSED[name]
    sums = ExampleSums(made(build), Logistic(), hooks=hooks)
    sums.double()
    with pytest.raises(UnsupportedModel, match=r"^Function|^Sequential"):
        summed(sums, features, tokens(3, ROWS), 1.0)


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("hooks", [False, True], ids=["as trained", "hooks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_looks_at_other_rows_is_refused(name: str, hooks: bool, dtype: torch.dtype) -> None:
    """One row more would move the gradients of all others, whatever each is clipped to."""
    sums = ExampleSums(made(lambda: Function(nn.Linear(4, 3), MIXED[name])), Logistic(), hooks=hooks)
    if dtype is torch.float64:
        sums.double()
    features, targets = normal(ROWS, 4).to(dtype), tokens(3, ROWS)
    with pytest.raises(UnsupportedModel, match=r"^Function cannot be trained by DP-SGD: it mixes the rows of a batch"):
        summed(sums, features, targets, 1.0)


def test_rows_that_are_alike_leave_it_open_and_the_next_batch_tells() -> None:
    """A batch of one row, or of equal ones, cannot show what a mean over rows does; the check is not done with it."""
    sums = ExampleSums(made(lambda: Function(nn.Linear(4, 3), MIXED["the batch's mean"])), Logistic())
    sums.double()
    features, targets = normal(ROWS, 4), tokens(3, ROWS)
    summed(sums, features[:1], targets[:1], 1.0)
    summed(sums, features[:1].expand(3, 4), targets[:1].expand(3), 1.0)
    with pytest.raises(UnsupportedModel, match="mixes the rows"):
        summed(sums, features, targets, 1.0)


def test_what_a_zero_hides_at_the_start_is_seen() -> None:
    """A frozen gate of 0 lets nothing of the mean through, until somebody opens it."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.gate = nn.Linear(4, 3), nn.Parameter(torch.zeros(()), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + self.gate * x.mean(0))  # type: ignore[no-any-return]

    with pytest.raises(Mixed):
        separate(Gated(), Logistic(), normal(ROWS, 4).float(), tokens(3, ROWS))


def test_dropout_and_single_precision_are_no_mixing() -> None:
    """A mask drawn for a batch is the same for batches of one shape; constants in single precision are allowed."""
    weights = torch.eye(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), Function(nn.Identity(), lambda _, x: x @ weights))
    assert separate(model, Logistic(), normal(ROWS, 4).float(), tokens(3, ROWS))


@pytest.mark.parametrize("name", [*OTHERS, *REFUSED])
def test_what_has_no_rule_is_left_to_opacus(name: str) -> None:
    build, features = (OTHERS | REFUSED)[name]
    module = made(build).double().train()
    with pytest.raises(Unknown):
        BookKeeping(module, list(module.parameters()), Logistic()).total(
            features, tokens(3, ROWS), NoisySteps(1.0, 1.0, 1.0, 1)
        )


@pytest.mark.parametrize("ghost", [True, False], ids=["ghost", "hooks"])
def test_sums_are_those_of_opacus_own_optimizers(ghost: bool) -> None:
    """The same batch, noise off: within float32, what Opacus would step along."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    from client.example_sums import traced

    build = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    features, targets, clip = normal(20, 1, 6, 6).float(), tokens(3, 20), 0.5
    module = made(build)
    wrapped: nn.Module = (
        GradSampleModuleFastGradientClipping(module, max_grad_norm=clip, loss_reduction="sum")
        if ghost
        else GradSampleModule(module, loss_reduction="sum")
    )
    kind = DPOptimizerFastGradientClipping if ghost else DPOptimizer
    optimizer = kind(
        torch.optim.SGD(module.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=clip,
        expected_batch_size=1, loss_reduction="sum",
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss(reduction="sum")
    loss = DPLossFastGradientClipping(wrapped, optimizer, criterion, loss_reduction="sum") if ghost else criterion
    before = torch.cat([p.detach().reshape(-1).clone() for p in module.parameters()])
    with traced():
        loss(wrapped(features), targets).backward()
    optimizer.step()
    theirs = before - torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    ours = summed(ExampleSums(made(build), Logistic()), features, targets, clip)
    assert float((ours - theirs).norm()) <= 1e-6 * float(ours.norm())


def test_a_row_that_is_not_finite_adds_nothing() -> None:
    build, features = MODELS["convolution"]
    features, targets = features.clone(), tokens(3, ROWS)
    sums = ExampleSums(made(build), Logistic())
    sums.double()
    without = summed(sums, features[1:], targets[1:], 0.5)
    features[0] = float("nan")
    torch.testing.assert_close(summed(sums, features, targets, 0.5), without, rtol=1e-12, atol=1e-12)
    assert not summed(sums, features[:1], targets[:1], 0.5).any()
