"""Weights for a base: read by name or path, copied where they fit, and named by a digest of what stays frozen."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from strategies.backbones import BACKBONES, backbone, frozen_digest, read
from strategies.experiment import digest
from strategies.loading import parse
from strategies.lora import adapters
from strategies.schema import ConfigError
from strategies.tasks import Shape, initial
from strategies.tasks.cnn import CNN
from strategies.tasks.dense import MLP, Logistic
from strategies.tasks.lora import LoRA
from strategies.tasks.lstm import LSTM

SHAPE = Shape((6,), 4)
BASE = MLP((7, 5))


def state(outputs: int = 4, seed: int = 11) -> dict[str, Tensor]:
    module, _ = initial(BASE, Shape((6,), outputs), seed=seed)
    return dict(module.state_dict())


def written(folder: Path, tensors: dict[str, Tensor], name: str = "model.safetensors") -> str:
    save_file(tensors, folder / name)
    return str(folder / name)


def test_the_base_is_that_of_the_weights_and_the_adapted_model_starts_as_it(tmp_path: Path) -> None:
    tensors = state()
    module, start = initial(LoRA(BASE, weights=written(tmp_path, tensors), rank=2, dropout=0.0), SHAPE, seed=0)
    assert list(adapters(module)) == ["1", "3"]
    assert torch.equal(module.state_dict()["1.base_layer.weight"], tensors["1.weight"])
    assert torch.equal(module.state_dict()["3.base_layer.bias"], tensors["3.bias"])
    assert torch.equal(module.state_dict()["5.weight"], tensors["5.weight"])
    assert len(start) == 2 * (6 + 7) + 2 * (7 + 5) + 5 * 4 + 4  # By hand: two adapters of rank 2, and the head.
    plain, _ = initial(BASE, SHAPE, seed=11)
    rows = torch.randn(3, 6)
    assert torch.equal(module(rows), plain(rows))


def test_a_head_of_other_outputs_starts_anew_and_says_so(tmp_path: Path) -> None:
    task = LoRA(BASE, weights=written(tmp_path, state(outputs=9)), rank=2)
    module, _ = initial(task, SHAPE, seed=0)
    own, _ = initial(BASE, SHAPE, seed=0)
    assert torch.equal(module.state_dict()["1.base_layer.weight"], state(outputs=9)["1.weight"])
    assert torch.equal(module.state_dict()["5.weight"], own.state_dict()["5.weight"])
    (note,) = task.notes(SHAPE)
    assert re.fullmatch(
        r"task\.weights: the head starts anew, since \S+ holds float32 of shape \(9, 5\) for '5\.weight' \(4, 5\)", note
    )
    assert replace(task, weights=written(tmp_path, state())).notes(SHAPE) == ()
    with pytest.raises(ValueError, match="the head must fit where it is not trained: set head: true"):
        replace(task, weights=written(tmp_path, state(outputs=9)), head=False).module(SHAPE)


def test_a_file_without_a_head_is_a_backbone_too(tmp_path: Path) -> None:
    tensors = {name: value for name, value in state().items() if not name.startswith("5.")}
    task = LoRA(BASE, weights=written(tmp_path, tensors), rank=2)
    assert torch.equal(task.module(SHAPE).state_dict()["3.base_layer.weight"], tensors["3.weight"])
    assert "the head starts anew" in task.notes(SHAPE)[0]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda tensors: tensors.pop("1.bias"), "nothing for '1.bias', which has shape (7,); is the base the same?"),
        (
            lambda tensors: tensors.update({"3.weight": torch.zeros(5, 8)}),
            "float32 of shape (5, 8) for '3.weight', which has shape (5, 7); is the base the same?",
        ),
        (
            lambda tensors: tensors.update({"1.bias": torch.zeros(7, dtype=torch.int64)}),
            "int64 of shape (7,) for '1.bias', which has shape (7,); is the base the same?",
        ),
        (lambda tensors: tensors.update({"7.weight": torch.zeros(1)}), "holds '7.weight', which the base has no place"),
        (
            lambda tensors: tensors.update({"1.lora_A.weight": torch.zeros(1)}),
            "holds adapters (1.lora_A.weight); merge",
        ),
    ],
)
def test_weights_of_another_base_are_refused_in_one_line(spoil, line, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tensors = state()
    spoil(tensors)
    path = written(tmp_path, tensors)
    with pytest.raises(ValueError, match="^" + re.escape(f"task.weights: {path}: {line}")) as caught:
        LoRA(BASE, weights=path).module(SHAPE)
    assert "\n" not in str(caught.value)


def test_no_weights_of_that_name_or_path_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^task\.weights: no backbone 'nothing'; there are: .*; a file in this folder"
    ):
        LoRA(BASE, weights="nothing").module(SHAPE)
    with pytest.raises(ValueError, match=r"^task\.weights: \S+none\.safetensors: cannot be read \(No such file or dir"):
        LoRA(BASE, weights=str(tmp_path / "none.safetensors")).module(SHAPE)
    (tmp_path / "model.pt").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match=r"^task\.weights: \S+model\.pt: cannot be read \(no safetensors file"):
        LoRA(BASE, weights=str(tmp_path / "model.pt")).module(SHAPE)


def test_a_backbone_is_found_by_its_name(tmp_path: Path) -> None:
    path, tensors = Path(written(tmp_path, state())), state()
    backbone("tried_here", about="for this test")(lambda: path)
    try:
        found = read("tried_here")
    finally:
        del BACKBONES["tried_here"]
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with pytest.raises(ValueError, match="a name is letters"):
        backbone("a/b", about="a path")(lambda: path)


def test_what_has_nothing_to_adapt_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^task\.targets: Sequential has no dense or convolutional layer besides its"):
        LoRA(Logistic()).module(SHAPE)
    with pytest.raises(ValueError, match=r"^task\.targets: CharacterModel has no dense or convolutional layer besides"):
        LoRA(LSTM(4, 8, 1)).module(Shape((12,), 20))
    with pytest.raises(ValueError, match=r"^task\.targets: no part outside of the head ends in 'query'"):
        LoRA(BASE, targets=("query",)).module(SHAPE)
    with pytest.raises(ValueError, match="base: adapters on adapters"):
        LoRA(LoRA(BASE))
    lines = r"task\.base\.name: unknown 'lora'"
    with pytest.raises(ConfigError, match=lines):
        parse({"rounds": 1, "task": {"name": "lora", "base": "lora"}, "data": {"name": "digits", "silos": 3}})


def test_a_frozen_head_does_not_train() -> None:
    module, start = initial(LoRA(BASE, rank=2, head=False), SHAPE, seed=0)
    assert len(start) == 2 * (6 + 7) + 2 * (7 + 5)
    assert not any(parameter.requires_grad for parameter in module.get_submodule("5").parameters())


def test_an_instance_is_for_what_its_base_is_for() -> None:
    assert LoRA(BASE).kinds == {"classification", "regression"}
    assert LoRA(CNN()).structure(Shape((1, 8, 8), 1)).state_dict().keys() >= {"0.lora_A.weight", "0.base_layer.weight"}


def test_structure_needs_no_weights_and_fits_a_saved_model(tmp_path: Path) -> None:
    path = written(tmp_path, state())
    task = LoRA(BASE, weights=path, rank=2)
    saved = task.module(SHAPE).state_dict()
    Path(path).unlink()
    task.structure(SHAPE).load_state_dict(saved)


def test_the_digest_of_what_is_frozen_sees_every_change_of_it_and_nothing_else() -> None:
    def changed(name: str) -> str | None:
        module, _ = initial(LoRA(BASE, rank=2), SHAPE, seed=0)
        module.state_dict()[name].flatten()[0] += 1e-3
        return frozen_digest(module)

    module, _ = initial(LoRA(BASE, rank=2), SHAPE, seed=0)
    same = frozen_digest(module)
    names = [name for name in module.state_dict() if ".base_layer." in name]
    assert len(names) == 4
    assert same not in {changed(name) for name in names}
    assert {changed(name) for name in module.state_dict() if name not in names} == {same}
    assert frozen_digest(nn.Linear(2, 2)) is None


def test_paths_leave_the_digest_alone_and_names_do_not() -> None:
    def of(weights: str | None) -> str:
        task = {"name": "lora", "weights": weights}
        return digest(parse({"rounds": 1, "task": task, "data": {"name": "digits", "silos": 3}}))

    assert of("/a/x.safetensors") == of("../b/y.safetensors")
    assert len({of("/a/x.safetensors"), of("digits_upright"), of("other"), of(None)}) == 4
