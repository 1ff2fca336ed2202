"""Server optimizers: the published rules in numpy, step by step, and slots that survive a checkpoint bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from strategies.codec import decode
from strategies.optimizers import OPTIMIZERS, SGD, Adagrad, Adam, AdamW, Optimizer, Yogi, optimizer

torch.set_num_threads(1)

Array = NDArray[np.float64]
STEPS, SIZE = 6, 5


def updates() -> Tensor:
    return torch.randn(STEPS, SIZE, generator=torch.Generator().manual_seed(0))


def start() -> Tensor:
    return torch.linspace(-2, 2, SIZE)


def walk(rule: Optimizer, steps: Tensor) -> Tensor:
    """The model after every step, `(steps, N)`."""
    model, slots, seen = start(), {}, []
    for update in steps:
        model, slots = rule.apply(model, update, slots)
        seen.append(model)
    return torch.stack(seen)


# The rules as published, on gradients g = -update, in float64.


def sgd(x: Array, gradients: Array, *, lr: float, momentum: float, nesterov: bool) -> list[Array]:
    v, seen = np.zeros_like(x), []
    for g in gradients:
        v = momentum * v + g
        x = x - lr * (g + momentum * v if nesterov else v)
        seen.append(x)
    return seen


def adam(x: Array, gradients: Array, *, lr: float, b1: float, b2: float, eps: float, decay: float) -> list[Array]:
    """Kingma & Ba 2015, algorithm 1; decay as in Loshchilov & Hutter 2019, algorithm 2."""
    m, v, seen = np.zeros_like(x), np.zeros_like(x), []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        x = x - lr * (m_hat / (np.sqrt(v_hat) + eps) + decay * x)
        seen.append(x)
    return seen


def adagrad(x: Array, gradients: Array, *, lr: float, eps: float, first: float) -> list[Array]:
    """Reddi et al. 2021, algorithm 2, FedAdagrad with beta1 = 0."""
    v, seen = np.full_like(x, first), []
    for g in gradients:
        v = v + g**2
        x = x - lr * g / (np.sqrt(v) + eps)
        seen.append(x)
    return seen


def yogi(x: Array, gradients: Array, *, lr: float, b1: float, b2: float, eps: float, first: float) -> list[Array]:
    """Zaheer et al. 2018, algorithm 2; Reddi et al. 2021, algorithm 2, FedYogi."""
    m, v, seen = np.zeros_like(x), np.full_like(x, first), []
    for g in gradients:
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * np.sign(v - g**2) * g**2
        x = x - lr * m / (np.sqrt(v) + eps)
        seen.append(x)
    return seen


Reference = Callable[[Array, Array], list[Array]]
PUBLISHED: list[tuple[Optimizer, Reference]] = [
    (SGD(), lambda x, g: sgd(x, g, lr=1, momentum=0, nesterov=False)),
    (SGD(0.3, 0.9), lambda x, g: sgd(x, g, lr=0.3, momentum=0.9, nesterov=False)),
    (SGD(0.3, 0.9, True), lambda x, g: sgd(x, g, lr=0.3, momentum=0.9, nesterov=True)),
    (Adam(), lambda x, g: adam(x, g, lr=0.01, b1=0.9, b2=0.99, eps=1e-3, decay=0)),
    (Adam(0.3, 0.5, 0.9, 0.1), lambda x, g: adam(x, g, lr=0.3, b1=0.5, b2=0.9, eps=0.1, decay=0)),
    (AdamW(), lambda x, g: adam(x, g, lr=0.01, b1=0.9, b2=0.99, eps=1e-3, decay=0.01)),
    (AdamW(0.3, 0.5, 0.9, 0.1, 0.4), lambda x, g: adam(x, g, lr=0.3, b1=0.5, b2=0.9, eps=0.1, decay=0.4)),
    (Adagrad(), lambda x, g: adagrad(x, g, lr=0.01, eps=1e-3, first=1e-6)),
    (Adagrad(0.3, 0.1, 0.5), lambda x, g: adagrad(x, g, lr=0.3, eps=0.1, first=0.5)),
    (Yogi(), lambda x, g: yogi(x, g, lr=0.01, b1=0.9, b2=0.99, eps=1e-3, first=1e-6)),
    (Yogi(0.3, 0.5, 0.9, 0.1, 0.5), lambda x, g: yogi(x, g, lr=0.3, b1=0.5, b2=0.9, eps=0.1, first=0.5)),
]
EVERY = [rule for rule, _ in PUBLISHED]


@pytest.mark.parametrize(("rule", "reference"), PUBLISHED, ids=[str(rule) for rule in EVERY])
def test_steps_follow_the_published_rule(rule: Optimizer, reference: Reference) -> None:
    expected = np.stack(reference(start().double().numpy(), -updates().double().numpy()))
    # float32 keeps 24 bits; the walk takes 6 steps of a few roundings on numbers up to about 10.
    np.testing.assert_allclose(walk(rule, updates()).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_every_registered_optimizer_is_compared_with_its_paper() -> None:
    assert {type(rule) for rule in EVERY} == set(OPTIMIZERS.values())
    assert set(OPTIMIZERS) == {"sgd", "adam", "adamw", "adagrad", "yogi"}


numbers = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8))
def test_plain_sgd_adds_the_update_exactly(pairs: list[tuple[float, float]]) -> None:
    model, update = torch.tensor(pairs).unbind(1)
    after, slots = SGD().apply(model, update, {})
    assert torch.equal(after, model + update)
    assert slots == {}


def test_the_first_yogi_step_by_hand() -> None:
    # g = -1: m = 0.1 * -1; v = 0 + 0.01 * 1; x = 0 + 1 * 0.1 / (0.1 + 0.1).
    after, slots = Yogi(1.0, 0.9, 0.99, 0.1, 0.0).apply(torch.zeros(1), torch.ones(1), {})
    assert after.item() == pytest.approx(0.5, rel=1e-6)
    assert slots["exp_avg"].item() == pytest.approx(-0.1, rel=1e-6)
    assert slots["exp_avg_sq"].item() == pytest.approx(0.01, rel=1e-6)


def test_yogi_forgets_slowly_where_adam_forgets_fast() -> None:
    # After one large update (v about 1e4 * 0.01 = 100), 50 small ones: Yogi gives up 50 * 0.01 * 1e-4 of it.
    steps = torch.tensor([[100.0]] + [[0.01]] * 50)
    held = {}
    for rule in (Yogi(), Adam()):
        model, slots = torch.zeros(1), {}
        for update in steps:
            model, slots = rule.apply(model, update, slots)
        held[type(rule)] = slots["exp_avg_sq"].item()
    assert held[Yogi] == pytest.approx(100, rel=1e-4)
    assert held[Adam] == pytest.approx(100 * 0.99**50, rel=1e-4)


@pytest.mark.parametrize("rule", EVERY, ids=str)
@pytest.mark.parametrize("stop", range(1, STEPS))
def test_a_checkpoint_between_steps_changes_no_bit(rule: Optimizer, stop: int) -> None:
    whole = walk(rule, updates())
    model, slots = start(), {}
    for update in updates()[:stop]:
        model, slots = rule.apply(model, update, slots)
    stored = load(save({"model": model, **{f"server.{name}": value for name, value in slots.items()}}))
    model = stored.pop("model")
    slots = {name.removeprefix("server."): value for name, value in stored.items()}
    for update in updates()[stop:]:
        model, slots = rule.apply(model, update, slots)
    assert torch.equal(model, whole[-1])


@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_nothing_given_is_changed(rule: Optimizer) -> None:
    model, slots = rule.apply(start(), updates()[0], {})
    update = updates()[1]
    given = [model, update, *slots.values()]
    copies = [tensor.clone() for tensor in given]
    after, kept = rule.apply(model, update, slots)
    for tensor, copy in zip(given, copies, strict=True):
        assert torch.equal(tensor, copy)
    memory = {tensor.data_ptr() for tensor in given}
    assert memory.isdisjoint(tensor.data_ptr() for tensor in [after, *kept.values()])
    assert not after.requires_grad


@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_slots_are_the_declared_ones(rule: Optimizer) -> None:
    _, slots = rule.apply(start(), updates()[0], {})
    assert slots.keys() == rule.slots


@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_coordinates_do_not_mix(rule: Optimizer) -> None:
    whole = walk(rule, updates())
    order = torch.tensor([3, 0, 4, 1, 2])
    model, slots = start()[order], {}
    for update in updates()[:, order]:
        model, slots = rule.apply(model, update, slots)
    torch.testing.assert_close(model, whole[-1][order])


def test_slots_of_another_optimizer_are_refused() -> None:
    _, slots = Adam().apply(start(), updates()[0], {})
    with pytest.raises(ValueError, match=r"'yogi' keeps \['exp_avg', 'exp_avg_sq'\], found .*'step'"):
        Yogi().apply(start(), updates()[1], slots)


@pytest.mark.parametrize("update", [torch.zeros(1), torch.zeros(SIZE, 1), torch.zeros(SIZE, dtype=torch.float64)])
def test_an_update_of_another_shape_or_type_is_refused(update: Tensor) -> None:
    with pytest.raises(ValueError, match="they must agree"):
        SGD().apply(start(), update, {})


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match=r"nesterov needs momentum > 0, got momentum 0\.0"):
        SGD(nesterov=True)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_reads_from_yaml_with_its_defaults(name: str) -> None:
    assert decode(OPTIMIZERS[name], {}) == OPTIMIZERS[name]()
    assert OPTIMIZERS[name].name == name
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="learning_rate"):
            decode(OPTIMIZERS[name], {"learning_rate": value})


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="server optimizer 'sgd' is already"):
        optimizer("sgd")(Adam)
    assert optimizer("sgd")(SGD) is SGD
