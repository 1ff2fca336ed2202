"""The transformer task, on tiny random BERTs of two layers: nothing is fetched, and nothing is downloaded."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from client.batches import Plan  # noqa: E402
from client.example_sums import ExampleSums  # noqa: E402
from client.examples import Examples  # noqa: E402
from client.single import SingleTrainer  # noqa: E402
from privacy.steps import NoisySteps  # noqa: E402
from strategies.experiment import Train, digest  # noqa: E402
from strategies.layout import Layout  # noqa: E402
from strategies.loading import parse  # noqa: E402
from strategies.schema import ConfigError  # noqa: E402
from strategies.tasks import Shape, initial  # noqa: E402
from strategies.tasks.transformer import Classifier, Transformer  # noqa: E402

torch.set_num_threads(1)

SHAPE, WIDTH, RANK = Shape((6,), 3), 8, 2
# Two layers, a query and a value in each: A is 2 x 8, B 8 x 2. And a head of 3 x 8 and 3.
TRAINED = 2 * 2 * (RANK * WIDTH + WIDTH * RANK) + SHAPE.outputs * WIDTH + SHAPE.outputs


def config(**changes: Any) -> Any:
    sizes = {"vocab_size": 20, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    known = {"intermediate_size": 16, "max_position_embeddings": 10, "pad_token_id": 1}
    return transformers.BertConfig(**(sizes | known | changes))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return saved(tmp_path / "bert", config())


def saved(place: Path, settings: Any) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        transformers.BertModel(settings).save_pretrained(place)
    return str(place)


def task(weights: str, **changes: Any) -> Transformer:
    return Transformer(**({"weights": weights, "rank": RANK, "alpha": 4.0, "dropout": 0.0} | changes))


def rows(count: int = 5) -> Examples:
    rng = torch.Generator().manual_seed(2)
    tokens = torch.randint(2, 20, (count, 6), generator=rng)
    tokens[0, 3:] = 1  # Padding.
    return Examples(tokens, torch.randint(3, (count,), generator=rng))


def same(name: str) -> str:
    """peft's name of a parameter, in ours: it adds its own wrapper, and the name of its one adapter."""
    return name.replace("base_model.model.", "").replace(".default.", ".")


def stirred(module: nn.Module) -> Tensor:
    """A vector off the start, where every B is zero."""
    start = Layout.of(module).flatten(module)
    return start + 0.3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(4))


def test_only_adapters_and_the_head_train(folder: str) -> None:
    module, start = initial(task(folder), SHAPE, seed=0)
    layout = Layout.of(module)
    assert start.shape == (TRAINED,)
    sides = [f"{part}.lora_{side}.weight" for part in ("query", "value") for side in "AB"]
    places = [f"encoder.encoder.layer.{layer}.attention.self.{side}" for layer in range(2) for side in sides]
    assert layout.names == (*places, "head.weight", "head.bias")
    assert torch.equal(initial(task(folder), SHAPE, seed=0)[1], start)
    assert not torch.equal(initial(task(folder), SHAPE, seed=1)[1], start)


def test_the_start_is_the_encoder_as_it_was_saved(folder: str) -> None:
    module, _ = initial(task(folder), SHAPE, seed=0)
    plain = transformers.BertModel.from_pretrained(folder, local_files_only=True).eval()
    assert isinstance(module, Classifier)
    module.eval()
    tokens = rows().features
    mask = (tokens != 1).long()
    with torch.no_grad():
        states = plain(input_ids=tokens, attention_mask=mask).last_hidden_state
        means = torch.stack([own[kept.bool()].mean(0) for own, kept in zip(states, mask)])
        assert torch.allclose(module(tokens), module.head(means), atol=1e-6)


def test_padding_changes_nothing_and_a_row_of_it_is_finite(folder: str) -> None:
    module, _ = initial(task(folder), SHAPE, seed=0)
    Layout.of(module).load(module, stirred(module))
    module.eval()
    tokens = rows().features
    longer = torch.cat([tokens, torch.ones(5, 3, dtype=torch.int64)], dim=1)
    with torch.no_grad():
        assert torch.allclose(module(longer), module(tokens), atol=1e-5)
        assert bool(torch.isfinite(module(torch.ones_like(tokens))).all())


def test_adapters_of_peft_are_the_same_numbers_in_the_same_order(folder: str) -> None:
    (own, start), (theirs, other) = (
        initial(task(folder, adapter=adapter), SHAPE, seed=0) for adapter in ("own", "peft")
    )
    layout, wrapped = Layout.of(own), Layout.of(theirs)
    assert tuple(map(same, wrapped.names)) == layout.names
    assert wrapped.shapes == layout.shapes
    assert other.shape == start.shape == (TRAINED,)
    vector = stirred(own)
    layout.load(own, vector)
    wrapped.load(theirs, vector)
    own.eval()
    theirs.eval()
    with torch.no_grad():
        assert torch.allclose(own(rows().features), theirs(rows().features), atol=1e-6)


class Prompted(Transformer):
    """A task of one's own with another kind of peft's adapters: what peft left trainable is what travels."""

    def module(self, shape: Shape) -> nn.Module:
        encoder = transformers.AutoModel.from_pretrained(self.weights, local_files_only=True)
        scaled = peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[])
        model = Classifier(encoder, shape)
        model.encoder = peft.inject_adapter_in_model(scaled, encoder)
        return model


@pytest.mark.parametrize("kind", [Transformer, Prompted])
def test_any_model_that_peft_wrapped_trains(folder: str, kind: type[Transformer]) -> None:
    problem = kind(weights=folder, rank=RANK, adapter="peft")
    module, start = initial(problem, SHAPE, seed=0)
    frozen = {name: value.clone() for name, value in module.named_parameters() if not value.requires_grad}
    plan = Plan(torch.arange(5).view(1, 1, 5), torch.tensor([[5]]), full=True)
    trainer = SingleTrainer(module, problem, Train(steps=1, learning_rate=0.5))
    after = trainer.fit(start, rows(), plan)
    assert not torch.equal(after, start)
    assert frozen
    assert all(torch.equal(dict(module.named_parameters())[name], value) for name, value in frozen.items())


@pytest.mark.parametrize("adapter", ["own", "peft"])
def test_clipped_sums_are_those_of_brute_force(folder: str, adapter: str) -> None:
    still = task(folder, adapter=adapter)
    module, _ = initial(still, SHAPE, seed=0)
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = 0.0
    Layout.of(module).load(module, stirred(module))
    held, clip = rows(), 0.5
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    truth = torch.zeros(TRAINED)
    for row in range(len(held)):
        loss = still.losses(module(held.features[[row]]), held.targets[[row]]).sum()
        own = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters)])
        truth += own * min(1.0, clip / float(own.norm()))
    sums = ExampleSums(module, still)
    found = torch.cat(
        [part.reshape(-1) for part in sums.total(held.features, held.targets, NoisySteps(clip, 1, 5, 5))[0]]
    )
    assert float((found - truth).norm() / truth.norm()) < 1e-5
    assert sums.books is not None  # One backward pass, not Opacus' hooks.


def test_a_saved_model_is_loaded_without_the_weights(folder: str) -> None:
    module, _ = initial(task(folder), SHAPE, seed=0)
    Layout.of(module).load(module, stirred(module))
    (Path(folder) / "model.safetensors").unlink()
    again = task(folder).structure(SHAPE)
    again.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(rows().features), module.eval()(rows().features))


def test_nothing_is_asked_of_a_network(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    initial(task(folder, adapter="peft"), SHAPE, seed=0)
    (Path(folder) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^task\.weights: .*cannot read it"):
        initial(task(folder), SHAPE, seed=0)


def test_pickled_weights_are_not_read(folder: str) -> None:
    place = Path(folder)
    torch.save({}, place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^task\.weights: .*cannot read it"):
        initial(task(folder), SHAPE, seed=0)


BAD: list[tuple[dict[str, Any], dict[str, Any], Shape, str]] = [
    ({}, {"rank": 2, "targets": ("quary",)}, SHAPE, r"^task\.targets: no part outside of the head ends in 'quary'"),
    ({}, {"targets": ("quary",), "adapter": "peft"}, SHAPE, r"^task\.targets: .*quary"),
    ({}, {}, Shape((11,), 3), r"^task\.weights: takes texts of up to 10 tokens, the data's have 11$"),
    ({}, {}, Shape((1, 8, 8), 3), r"^task transformer: needs rows of tokens .* shape \(1, 8, 8\): use cnn$"),
    ({"pad_token_id": None}, {}, SHAPE, r"^task\.weights: its config names no pad_token_id; give an encoder"),
]


@pytest.mark.parametrize(("settings", "changes", "shape", "message"), BAD)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, settings: dict[str, Any], changes: dict[str, Any], shape: Shape, message: str
) -> None:
    place = saved(tmp_path / "bert", config(**settings))
    with pytest.raises(ValueError, match=message) as error:
        initial(task(place, **changes), shape, seed=0)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_there_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"^task\.weights: minilm is not in .*; bring it with: confide data fetch minilm$"
    ):
        initial(Transformer(), SHAPE, seed=0)
    with pytest.raises(
        ValueError, match=r"^task\.weights: .*/none is no folder with a config\.json; give minilm or a tr"
    ):
        initial(task(str(tmp_path / "none")), SHAPE, seed=0)


def test_an_encoder_with_a_part_missing_is_refused(folder: str) -> None:
    from safetensors.torch import load_file, save_file

    file = Path(folder) / "model.safetensors"
    tensors = load_file(file)
    del tensors["pooler.dense.weight"]  # Not used here, and often left out.
    save_file(tensors, file, metadata={"format": "pt"})
    initial(task(folder), SHAPE, seed=0)
    del tensors["encoder.layer.1.attention.self.query.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^task\.weights: .*: holds nothing for 'encoder\.layer\.1\.attention"):
        initial(task(folder), SHAPE, seed=0)


def test_code_beside_the_weights_never_runs(folder: str) -> None:
    settings = json.loads((Path(folder) / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}}
    (Path(folder) / "config.json").write_text(json.dumps(settings))
    (Path(folder) / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match=r"^task\.weights: .*cannot read it"):
        initial(task(folder), SHAPE, seed=0)


def test_a_path_is_no_part_of_the_experiment_and_a_name_is() -> None:
    def of(weights: str) -> str:
        data = {"name": "healthtweets", "partition": "column"}
        return digest(parse({"rounds": 1, "data": data, "task": {"name": "transformer", "weights": weights}}))

    assert of("/a/bert") == of("/b/bert") != of("minilm")
    with pytest.raises(ConfigError, match="targets is empty"):
        parse({"rounds": 1, "data": {"name": "x", "silos": 1}, "task": {"name": "transformer", "targets": []}})
