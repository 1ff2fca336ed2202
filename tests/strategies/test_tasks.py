"""Tasks: objectives against torch's own, starts that repeat, chains that are their modules, and honest evaluation."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from strategies.codec import decode
from strategies.layout import Layout
from strategies.tasks import TASKS, Chain, Shape, Task, evaluate, initial, task
from strategies.tasks.cnn import CNN
from strategies.tasks.dense import MLP, Linear, Logistic
from strategies.tasks.lora import LoRA
from strategies.tasks.lstm import LSTM
from strategies.tasks.transformer import Transformer

torch.set_num_threads(1)

CLASSES = Shape((1, 8, 8), 10)
NUMBER = Shape((5,), 1)
TEXT = Shape((12,), 20)
CASES: list[tuple[Task, Shape]] = [
    (Linear(), NUMBER),
    (Linear(), Shape((2, 3), 1)),
    (Logistic(), CLASSES),
    (MLP(), CLASSES),
    (MLP((7, 6), "tanh"), CLASSES),
    (MLP((9,)), NUMBER),
    (CNN(), CLASSES),
    (CNN((4, 6, 8), 16), Shape((3, 17, 10), 4)),
    (CNN((4,), 8), Shape((1, 3, 3), 1)),
    (LSTM(hidden=16), TEXT),
    (LSTM(4, 8, 1), TEXT),
    (LoRA(MLP((9, 7)), rank=2), CLASSES),
    (LoRA(CNN((4,), 8), rank=2), CLASSES),
    (LoRA(MLP((9,)), rank=2, dropout=0.0), NUMBER),
]
each = pytest.mark.parametrize(("model", "shape"), CASES, ids=str)


def rows_of(model: Task, shape: Shape, rows: int = 6) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    if "sequence" in model.kinds:
        tokens = torch.randint(shape.outputs, (rows, shape.features[0] + 1), generator=rng)
        return tokens[:, :-1], tokens[:, 1:]
    features = torch.randn(rows, *shape.features, generator=rng)
    if shape.metric == "mse":
        return features, torch.randn(rows, generator=rng)
    return features, torch.randint(shape.outputs, (rows,), generator=rng)


def test_every_registered_task_is_tried() -> None:
    apart = {"transformer": Transformer}  # Needs the extra hf: tests/strategies/test_transformer.py.
    assert {type(model) for model, _ in CASES} | set(apart.values()) == set(TASKS.values())
    assert set(TASKS) == {"linear", "logistic", "mlp", "cnn", "lora", "lstm", "transformer"}


@each
def test_outputs_and_losses_are_per_row(model: Task, shape: Shape) -> None:
    module, vector = initial(model, shape, seed=3)
    features, targets = rows_of(model, shape)
    outputs = module(features)
    assert outputs.shape == (*targets.shape, shape.outputs)
    assert vector.shape == (Layout.of(module).size,)
    for values in (model.losses(outputs, targets), model.score(outputs, targets)):
        assert values.shape == (6,)
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()


@each
def test_a_row_is_predicted_by_itself(model: Task, shape: Shape) -> None:
    # No normalisation may mix rows: then a row's gradient is its own, which per-example clipping relies on.
    module, _ = initial(model, shape, seed=3)
    features, _ = rows_of(model, shape)
    together = module(features)
    alone = torch.cat([module(features[row : row + 1]) for row in range(len(features))])
    torch.testing.assert_close(together, alone)


@each
def test_gradients_reach_every_trainable_parameter(model: Task, shape: Shape) -> None:
    module, start = initial(model, shape, seed=3)
    stirred = start + 0.1 * torch.randn(len(start), generator=torch.Generator().manual_seed(2))
    Layout.of(module).load(module, stirred)  # An adapter's B starts at zero, which hides A.
    features, targets = rows_of(model, shape)
    model.losses(module(features), targets).sum().backward()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@each
def test_a_start_repeats_and_leaves_the_global_generators_alone(model: Task, shape: Shape) -> None:
    states = torch.random.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    _, first = initial(model, shape, seed=3)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.random.get_state()[1].tobytes() == states[1]
    assert random.getstate() == states[2]
    torch.rand(5)
    module, again = initial(model, shape, seed=3)
    assert torch.equal(first, again)
    assert torch.equal(Layout.of(module).flatten(module), again)
    _, other = initial(model, shape, seed=4)
    assert torch.equal(first, other) == isinstance(model, Linear | Logistic)


def test_a_start_seeds_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    initial(MLP(), CLASSES, seed=3)
    assert seeded == []
    torch.manual_seed(torch.initial_seed())
    assert len(seeded) == 1  # So the recorder does record what seeding everything does.


@pytest.mark.parametrize(("model", "shape"), [(Linear(), NUMBER), (Logistic(), CLASSES)], ids=str)
def test_convex_models_start_at_zero(model: Task, shape: Shape) -> None:
    assert (initial(model, shape, seed=3)[1] == 0).all()


def forward(chain: Chain, vector: Tensor, features: Tensor) -> Tensor:
    """A chain read off a flat vector as its docstring says, by plain products."""
    x, at = features.flatten(1), 0
    for layer, (into, out) in enumerate(pairwise(chain.widths)):
        if layer > 0:
            x = torch.relu(x) if chain.activation == "relu" else torch.tanh(x)
        weight = vector[at : at + out * into].view(out, into)
        bias = vector[at + out * into : at + out * into + out]
        x, at = x @ weight.T + bias, at + out * into + out
    assert at == len(vector)
    return x


@pytest.mark.parametrize(("model", "shape"), [case for case in CASES if case[0].stack(case[1]) is not None], ids=str)
def test_a_chain_is_its_module(model: Task, shape: Shape) -> None:
    chain = model.stack(shape)
    assert chain is not None
    module, _ = initial(model, shape, seed=3)
    layout = Layout.of(module)
    assert layout.shapes == tuple(size for into, out in pairwise(chain.widths) for size in ((out, into), (out,)))
    vector = torch.randn(layout.size, generator=torch.Generator().manual_seed(2))
    features, targets = rows_of(model, shape)
    outputs = forward(chain, vector, features)
    torch.testing.assert_close(outputs, functional_call(module, layout.unflatten(vector), (features,)))
    if chain.loss == "squared":
        expected = 0.5 * functional.mse_loss(outputs[:, 0], targets, reduction="none")
    else:
        expected = functional.cross_entropy(outputs, targets, reduction="none")
    torch.testing.assert_close(model.losses(outputs, targets), expected)


def test_only_dense_models_stack() -> None:
    assert {type(model) for model, shape in CASES if model.stack(shape) is not None} == {Linear, Logistic, MLP}


def test_squared_loss_is_half_the_squared_error() -> None:
    outputs, targets = torch.tensor([[3.0], [-1.0]]), torch.tensor([1.0, -1.0])
    for model in (Linear(), MLP(), CNN()):
        assert model.losses(outputs, targets).tolist() == [2.0, 0.0]
        assert model.score(outputs, targets).tolist() == [4.0, 0.0]


def test_cross_entropy_of_equal_logits_is_the_log_of_the_classes() -> None:
    losses = Logistic().losses(torch.zeros(3, 10), torch.tensor([0, 5, 9]))
    assert losses.tolist() == pytest.approx([np.log(10)] * 3, rel=1e-6)


def test_class_scores_are_one_or_zero() -> None:
    outputs = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    assert Logistic().score(outputs, torch.tensor([1, 2])).tolist() == [1.0, 0.0]


def test_a_sequence_counts_as_the_mean_over_its_positions() -> None:
    rng = torch.Generator().manual_seed(5)
    outputs, targets = torch.randn(3, 4, 7, generator=rng), torch.randint(7, (3, 4), generator=rng)
    expected = functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)
    torch.testing.assert_close(LSTM().losses(outputs, targets), expected)
    outputs = torch.eye(7)[targets]
    outputs[0, :1] = outputs[0, :1].roll(1, dims=-1)
    assert LSTM().score(outputs, targets).tolist() == [0.75, 1.0, 1.0]


def test_a_character_model_sees_only_the_past() -> None:
    module, _ = initial(LSTM(4, 8, 2), TEXT, seed=3)
    tokens, _ = rows_of(LSTM(), TEXT)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % TEXT.outputs
    before, after = module(tokens), module(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@each
def test_evaluation_does_not_depend_on_the_batch(model: Task, shape: Shape) -> None:
    module, vector = initial(model, shape, seed=3)
    features, targets = rows_of(model, shape)
    layout = Layout.of(module)
    whole = evaluate(model, module, layout, vector, features, targets)
    assert whole.keys() == {"loss", shape.metric}
    for batch in (1, 4, 6):
        assert evaluate(model, module, layout, vector, features, targets, batch=batch) == pytest.approx(whole, rel=1e-5)
    with torch.no_grad():
        outputs = module(features)
    assert whole["loss"] == pytest.approx(model.losses(outputs, targets).mean().item(), rel=1e-5)
    assert whole[shape.metric] == pytest.approx(model.score(outputs, targets).mean().item(), rel=1e-5)


def test_evaluation_is_of_the_vector_given_and_leaves_the_module_alone() -> None:
    module, vector = initial(MLP(), CLASSES, seed=3)
    features, targets = rows_of(MLP(), CLASSES)
    layout = Layout.of(module)
    found = evaluate(MLP(), module, layout, torch.zeros_like(vector), features, targets)
    assert found["loss"] == pytest.approx(np.log(10), rel=1e-6)
    assert torch.equal(layout.flatten(module), vector)


@dataclass(frozen=True)
class Dropped(Task):
    """A task of a user's own, whose model behaves otherwise in training."""

    kinds = frozenset({"regression"})

    def module(self, shape: Shape) -> nn.Module:
        return nn.Sequential(nn.Linear(shape.features[0], 1), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5)))


def test_evaluation_is_not_training_and_modes_come_back() -> None:
    module, vector = initial(Dropped(), NUMBER, seed=3)
    module.train()
    module[2].eval()
    features, targets = rows_of(Dropped(), NUMBER)
    modes = [child.training for child in module.modules()]
    found = evaluate(Dropped(), module, Layout.of(module), vector, features, targets)
    assert [child.training for child in module.modules()] == modes == [True, True, True, False, False]
    expected = functional.mse_loss(module[0](features)[:, 0], targets).item()
    assert found == pytest.approx({"loss": expected / 2, "mse": expected}, rel=1e-5)


@pytest.mark.parametrize(("rows", "batch"), [(0, 4), (6, 0), (6, -1)])
def test_evaluating_nothing_is_an_error(rows: int, batch: int) -> None:
    module, vector = initial(Linear(), NUMBER, seed=3)
    features, targets = rows_of(Linear(), NUMBER, rows=rows)
    with pytest.raises(ValueError, match="must be at least 1"):
        evaluate(Linear(), module, Layout.of(module), vector, features, targets, batch=batch)


UNFIT: list[tuple[Task, Shape, str]] = [
    (CNN(), Shape((64,), 10), r"task cnn: needs images \(channels, height, width\), found .*\(64,\): use mlp"),
    (Linear(), CLASSES, "task linear: regression has 1 output, found 10 classes: use logistic or mlp"),
    (Logistic(), NUMBER, "task logistic: needs at least 2 classes, found 1 output: use linear or mlp"),
    (LSTM(), CLASSES, r"task lstm: needs rows of tokens \(length,\), found features of shape \(1, 8, 8\)"),
]


@pytest.mark.parametrize(("model", "shape", "said"), UNFIT, ids=lambda value: str(value)[:20])
def test_a_model_that_does_not_fit_says_so(model: Task, shape: Shape, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        initial(model, shape, seed=3)


@pytest.mark.parametrize(("features", "outputs"), [((), 2), ((0,), 2), ((3, -1), 2), ((3,), 0), ((3,), -2)])
def test_an_impossible_shape_is_refused(features: tuple[int, ...], outputs: int) -> None:
    with pytest.raises(ValueError, match=r"features has shape|outputs must be >= 1"):
        Shape(features, outputs)


def test_regression_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match=r"outputs has shape \(3, 3\), targets \(3,\): need one per row"):
        Linear().losses(torch.zeros(3, 3), torch.zeros(3))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_reads_from_yaml_with_its_defaults(name: str) -> None:
    assert decode(TASKS[name], {}) == TASKS[name]()
    assert TASKS[name].name == name
    assert TASKS[name].kinds <= {"classification", "regression", "sequence"}
    assert TASKS[name].kinds


@pytest.mark.parametrize(
    ("cls", "raw", "said"),
    [
        (MLP, {"hidden": []}, "hidden is empty"),
        (MLP, {"hidden": [0]}, r"hidden\[0\]: must be >= 1"),
        (MLP, {"activation": "gelu"}, "activation"),
        (CNN, {"channels": []}, "channels is empty"),
        (CNN, {"hidden": 0}, "hidden"),
        (LSTM, {"layers": 0}, "layers"),
    ],
)
def test_bad_settings_are_refused(cls: type[Task], raw: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decode(cls, raw)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="task 'linear' is already"):
        task("linear")(MLP)
    assert task("linear")(Linear) is Linear
