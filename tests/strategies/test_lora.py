"""Adapters: what trains, that they start as nothing, add (alpha / rank) B A, and leave again; parameter counts."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from strategies.layout import Layout
from strategies.lora import LoRAConv1D, LoRAConv2d, LoRALinear, adapt, adapter_state, adapters, merge


class Conv1D(nn.Module):
    """The dense layer of the transformers library: its weight is `(in, out)`."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.Tanh(),
        Conv1D(4, 5),
        nn.Linear(4, 2),
    )


def stirred(module: nn.Module) -> nn.Module:
    """With every trained number drawn anew, so that B is not zero."""
    with torch.no_grad():
        for value in adapter_state(module).values():
            value.normal_()
    return module


IMAGES = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def test_every_kind_of_layer_is_adapted_and_the_head_trains_in_full() -> None:
    module = model()
    assert adapt(module, rank=2, head=["5"]) == ["0", "2", "4"]
    kinds = [type(each) for each in adapters(module).values()]
    assert kinds == [LoRAConv2d, LoRALinear, LoRAConv1D]
    assert list(adapter_state(module)) == [
        *("0.lora_A.weight", "0.lora_B.weight", "2.lora_A.weight", "2.lora_B.weight"),
        *("4.lora_A.weight", "4.lora_B.weight", "5.weight", "5.bias"),
    ]
    assert Layout.of(module).names == tuple(adapter_state(module))  # A then B, in the model's order, the head last.


def test_an_adapted_model_starts_as_its_base_bit_for_bit() -> None:
    base, module = model(), model()
    adapt(module, rank=2, dropout=0.0, head=["5"])
    assert torch.equal(module(IMAGES), base(IMAGES))


def test_a_starts_uniform_with_bound_one_over_root_of_its_inputs_and_b_at_zero() -> None:
    # Of 40,000 uniform numbers the largest is within 0.1% of the bound but with chance .999**40000 < 1e-17; the mean
    # square is bound**2 / 3, estimated with relative deviation sqrt(4/5) / 200 = .45%: 3% is 6.7 of these.
    module = nn.Sequential(nn.Linear(400, 7))
    torch.manual_seed(3)
    adapt(module, rank=100)
    into, out = adapter_state(module).values()
    assert into.shape == (100, 400)
    assert out.shape == (7, 100)
    assert 0.999 / 20 <= float(into.abs().max()) <= 1 / 20
    assert float(into.square().mean()) == pytest.approx(1 / 400 / 3, rel=0.03)
    assert not out.any()


@pytest.mark.parametrize(("rank", "alpha"), [(2, 2.0), (2, 6.0), (1, 16.0)])
def test_the_effective_weight_is_base_plus_scaled_product(rank: int, alpha: float) -> None:
    module = nn.Sequential(nn.Linear(3, 4))
    weight, bias = module[0].weight.detach().clone(), module[0].bias.detach().clone()
    adapt(module, rank=rank, alpha=alpha, dropout=0.0)
    stirred(module)
    into, out = adapter_state(module).values()
    rows = torch.randn(5, 3)
    torch.testing.assert_close(module(rows), rows @ (weight + alpha / rank * out @ into).T + bias)


def test_merging_changes_no_output_and_gives_back_the_names_of_the_base() -> None:
    base, module = model(), model()
    adapt(module, rank=2, alpha=3.0, head=["5"])
    stirred(module).eval()
    before = module(IMAGES)
    assert merge(module) == ["0", "2", "4"]
    torch.testing.assert_close(module(IMAGES), before)
    assert list(module.state_dict()) == list(base.state_dict())
    assert not torch.allclose(module(IMAGES), base(IMAGES))


def test_dropout_acts_in_training_alone_and_on_the_adapter_alone() -> None:
    module = nn.Sequential(nn.Linear(50, 4))
    adapt(module, rank=2, dropout=0.5)
    rows = torch.randn(3, 50)
    plain = module[0].base_layer(rows)
    assert torch.equal(module.train()(rows), plain)  # B is zero: the base's inputs lose nothing.
    stirred(module)
    assert not torch.equal(module.train()(rows), module(rows))
    assert torch.equal(module.eval()(rows), module(rows))


def test_training_moves_adapters_and_head_and_nothing_else() -> None:
    module = model()
    adapt(module, rank=2, dropout=0.0, head=["5"])
    stirred(module)
    before = copy.deepcopy(module.state_dict())
    trained = set(adapter_state(module))
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module(IMAGES).square().sum().backward()
    optimizer.step()
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == trained


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"rank": 0}, "rank must be >= 1, got 0"),
        ({"alpha": math.nan}, "alpha must be > 0 and finite, got nan"),
        ({"dropout": 1.0}, "dropout must be >= 0 and < 1, got 1.0"),
        ({"head": ["9"]}, "head: Sequential has no part '9'; there are 0, 1, 2, 3, 4, 5"),
        ({"targets": ["query"]}, "targets: no part outside of the head ends in 'query'"),
        ({"targets": ["3"]}, "targets: '3' is a Tanh, for which there is no adapter here"),
        ({"targets": ["5"], "head": ["5"]}, "targets: no part outside of the head ends in '5'"),
        ({"head": ["0", "2", "4", "5"]}, "targets: Sequential has no dense or convolutional layer besides its head"),
    ],
)
def test_what_cannot_be_adapted_is_refused_and_left_as_it_was(settings: dict[str, object], line: str) -> None:
    module = model()
    with pytest.raises(ValueError, match="^" + line.replace("(", r"\(")):
        adapt(module, **settings)  # type: ignore[arg-type]
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert list(module.state_dict()) == list(model().state_dict())


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular", "padding": 1}])
def test_a_convolution_that_a_could_not_follow_is_refused(options: dict[str, object]) -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3, **options))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^targets: '0' is a Conv2d, for which there is no adapter"):
        adapt(module, targets=["0"])


def test_adapting_twice_is_refused() -> None:
    module = model()
    adapt(module)
    with pytest.raises(ValueError, match="has adapters already"):
        adapt(module)


def blocks(count: int, layers: dict[str, nn.Module], head: nn.Module | None) -> nn.Module:
    """Layers with the shapes of a transformer's; nothing is computed, so the meta device is enough."""
    module = nn.Module()
    module.layers = nn.ModuleList([nn.ModuleDict(copy.deepcopy(layers)) for _ in range(count)])  # type: ignore[assignment]
    if head is not None:
        module.head = head
    return module


def vit(outputs: int | None) -> tuple[nn.Module, Sequence[str]]:
    """ViT-B/16: 12 layers of width 768, hidden 3072."""
    with torch.device("meta"):
        dense = {name: nn.Linear(768, 768) for name in ("query", "key", "value", "output")}
        layers = dense | {"up": nn.Linear(768, 3072), "down": nn.Linear(3072, 768)}
        return blocks(12, layers, None if outputs is None else nn.Linear(768, outputs)), ["query", "value"]


def gpt2(outputs: int | None) -> tuple[nn.Module, Sequence[str]]:
    """GPT-2 small: 12 layers of width 768."""
    with torch.device("meta"):
        sizes = {"c_attn": (2304, 768), "attn_c_proj": (768, 768), "c_fc": (3072, 768), "c_proj": (768, 3072)}
        layers: dict[str, nn.Module] = {name: Conv1D(out, into) for name, (out, into) in sizes.items()}
        head = None if outputs is None else nn.Linear(768, outputs, bias=False)
        return blocks(12, layers, head), ["c_attn", "attn_c_proj", "c_fc", "c_proj"]


# The counts of Kuo et al. 2024 (arXiv 2406.05233), at rank 16. By hand: ViT 12 x 2 x 16 (768 + 768); GPT-2
# 12 x 16 ((768 + 2304) + (768 + 768) + 2 (768 + 3072)); heads 768 x 10 + 10, 768 x 17 + 17, 768 x 20.
COUNTS = [
    (vit, None, 589_824),
    (vit, 10, 597_514),
    (vit, 17, 602_897),
    (gpt2, None, 2_359_296),
    (gpt2, 20, 2_374_656),
]


@pytest.mark.parametrize(("build", "outputs", "count"), COUNTS)
def test_parameter_counts_of_the_paper_from_layers_of_the_same_shapes(build, outputs, count) -> None:  # type: ignore[no-untyped-def]
    module, targets = build(outputs)
    adapt(module, rank=16, targets=targets, head=["head"] if outputs else [])
    assert Layout.of(module).size == count


@pytest.mark.parametrize(("outputs", "count"), [(None, 589_824), (10, 597_514), (17, 602_897)])
def test_parameter_counts_of_the_paper_for_vit_from_its_own_code(outputs: int | None, count: int) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        config = transformers.ViTConfig(num_labels=outputs or 2)
        module = transformers.ViTForImageClassification(config)
    if outputs is None:
        module.classifier = nn.Identity()
    names = [name for name, _ in module.named_modules()]
    query, value = ("q_proj", "v_proj") if any(name.endswith("q_proj") for name in names) else ("query", "value")
    adapt(module, targets=[query, value], head=["classifier"] if outputs else [])
    assert Layout.of(module).size == count


@pytest.mark.parametrize(("outputs", "count"), [(None, 2_359_296), (20, 2_374_656)])
def test_parameter_counts_of_the_paper_for_gpt2_from_its_own_code(outputs: int | None, count: int) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        module = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(num_labels=outputs or 2))
    if outputs is None:
        module.score = nn.Identity()
    names = adapt(module, targets=["c_attn", "c_proj", "c_fc"], head=["score"] if outputs else [])
    assert len(names) == 48
    assert Layout.of(module).size == count
