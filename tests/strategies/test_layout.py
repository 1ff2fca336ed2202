"""The flat vector: flatten and unflatten undo each other, views are views, and unfit modules are named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from strategies.layout import Layout

torch.set_num_threads(1)

shapes = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=5)


def a_layout(shapes: list[tuple[int, ...]]) -> Layout:
    return Layout(tuple(f"p{index}" for index in range(len(shapes))), tuple(shapes))


def a_module(shapes: list[tuple[int, ...]]) -> nn.Module:
    module = nn.Module()
    for index, shape in enumerate(shapes):
        module.register_parameter(f"p{index}", nn.Parameter(torch.zeros(shape)))
    return module


@given(shapes)
def test_load_then_flatten_is_the_identity(shapes: list[tuple[int, ...]]) -> None:
    module, layout = a_module(shapes), a_layout(shapes)
    assert Layout.of(module) == layout
    vector = torch.arange(layout.size, dtype=torch.float32)
    layout.load(module, vector)
    assert torch.equal(layout.flatten(module), vector)


@given(shapes, st.lists(st.integers(1, 3), max_size=2))
def test_parameters_follow_one_another_on_the_last_axis(shapes: list[tuple[int, ...]], lead: list[int]) -> None:
    layout = a_layout(shapes)
    vector = torch.arange(layout.size * torch.Size(lead).numel(), dtype=torch.float32).view(*lead, layout.size)
    named = layout.unflatten(vector)
    assert tuple(named) == layout.names
    assert [tuple(part.shape) for part in named.values()] == [(*lead, *shape) for shape in shapes]
    assert torch.equal(torch.cat([part.reshape(*lead, -1) for part in named.values()], dim=-1), vector)


def test_a_stack_unflattens_row_by_row() -> None:
    layout = Layout.of(nn.Linear(3, 2))
    stack = torch.arange(5 * 8, dtype=torch.float32).view(5, 8)
    stacked = layout.unflatten(stack)
    for silo in range(5):
        for name, value in layout.unflatten(stack[silo]).items():
            assert torch.equal(stacked[name][silo], value)


@pytest.mark.parametrize("lead", [(), (4,)])
def test_unflattened_parameters_are_views(lead: tuple[int, ...]) -> None:
    layout = Layout.of(nn.Linear(3, 2))
    vector = torch.zeros(*lead, layout.size)
    named = layout.unflatten(vector)
    named["bias"].fill_(7.0)
    assert (vector[..., 6:] == 7.0).all()
    assert (vector[..., :6] == 0.0).all()


def test_gradients_of_the_views_arrive_in_the_vector() -> None:
    layout = Layout.of(nn.Linear(3, 2))
    vector = torch.zeros(8, requires_grad=True)
    named = layout.unflatten(vector)
    (named["weight"].sum() + 2 * named["bias"].sum()).backward()
    assert vector.grad is not None
    assert vector.grad.tolist() == [1.0] * 6 + [2.0] * 2


def test_flatten_copies() -> None:
    module = nn.Linear(3, 2)
    layout = Layout.of(module)
    before = layout.flatten(module)
    kept = before.clone()
    layout.load(module, kept + 1)
    assert torch.equal(before, kept)
    assert not before.requires_grad


def test_load_copies_in_place() -> None:
    module = nn.Linear(3, 2)
    layout, weight, vector = Layout.of(module), module.weight, torch.ones(8)
    layout.load(module, vector)
    vector.zero_()
    assert module.weight is weight
    assert (weight == 1).all()


def test_frozen_parameters_and_constant_buffers_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False), nn.GroupNorm(1, 1))
    module.register_buffer("positions", torch.arange(3))
    module[0].requires_grad_(False)
    assert Layout.of(module).names == ("1.weight", "2.weight", "2.bias")


def _tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    return module


def _sharing_memory() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight.data = module[0].weight.data
    return module


def _own_statistics() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_buffer("running_mean", torch.zeros(2))
    return module


REFUSED = {
    "batch norm": (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "module '1' (BatchNorm1d) "),
    "batch norm without statistics": (
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)),
        "module '1' (BatchNorm1d) ",
    ),
    "batch norm alone": (nn.BatchNorm2d(2), "module BatchNorm2d "),
    "instance norm with statistics": (nn.InstanceNorm1d(2, affine=True, track_running_stats=True), "InstanceNorm1d "),
    "a norm of one's own": (_own_statistics(), "module '0' (Linear) "),
    "float64": (nn.Linear(2, 2).double(), "parameter 'weight' is torch.float64"),
    "half": (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).half()), "parameter '1.weight' is torch.float16"),
    "tied": (_tied(), "parameters '0.weight' and '1.weight' are tied"),
    "shared memory": (_sharing_memory(), "parameters '0.weight' and '1.weight' are tied"),
    "no parameter": (nn.ReLU(), "ReLU has no trainable parameter"),
    "all frozen": (nn.Linear(2, 2).requires_grad_(False), "Linear has no trainable parameter"),
    "lazy": (nn.LazyLinear(2), "parameter 'weight' has no shape yet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unfit_modules_are_named_in_one_line(case: str) -> None:
    module, said = REFUSED[case]
    with pytest.raises(ValueError) as caught:
        Layout.of(module)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert ("use GroupNorm or LayerNorm" in message) == ("norm" in case)


@pytest.mark.parametrize("vector", [torch.zeros(7), torch.zeros(9), torch.zeros(8, 1), torch.tensor(0.0)])
def test_a_vector_of_another_length_is_refused(vector: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be 8 long"):
        Layout.of(nn.Linear(3, 2)).unflatten(vector)


def test_one_module_takes_one_vector() -> None:
    module = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"one module takes \(8,\)"):
        Layout.of(module).load(module, torch.zeros(2, 8))


@pytest.mark.parametrize("other", [nn.Linear(2, 3), nn.Linear(3, 2, bias=False), nn.Bilinear(1, 1, 2)])
def test_a_module_of_another_layout_is_refused(other: nn.Module) -> None:
    layout = Layout.of(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="does not fit this layout"):
        layout.flatten(other)
    with pytest.raises(ValueError, match="does not fit this layout"):
        layout.load(other, torch.zeros(8))
