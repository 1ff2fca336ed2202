"""Adapters on disk: peft reads what we write, we read what peft writes, and both compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from strategies.adapter_files import load_adapter, save_adapter
from strategies.lora import adapt, adapter_state, adapters

ROWS = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(1))


def dense() -> nn.Module:
    torch.manual_seed(0)
    # `0.2` ends in the name of another dense layer, which a list of ends would adapt too.
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(12, 5)), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3)
    )


def images() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, (1, 2), bias=False),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


class LastLogits(nn.Module):
    """GPT-2's logits of a class, from its own code, with random weights."""

    def __init__(self) -> None:
        transformers = pytest.importorskip("transformers")
        super().__init__()
        torch.manual_seed(0)
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "vocab_size": 50}
        config = transformers.GPT2Config(**sizes, num_labels=3, pad_token_id=0)
        self.gpt = transformers.GPT2ForSequenceClassification(config)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.gpt(input_ids=tokens).logits
        return logits


CASES: list[tuple[Callable[[], nn.Module], Tensor, list[str], list[str]]] = [
    (dense, ROWS, ["0.2"], ["3"]),
    (dense, ROWS, ["2"], []),
    (images, IMAGES, ["0", "2"], ["4"]),
    (LastLogits, TOKENS, ["c_attn", "c_proj", "c_fc"], ["gpt.score"]),
]


def stirred(module: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return module.eval()


@pytest.mark.parametrize(("build", "inputs", "targets", "head"), CASES)
def test_peft_reads_what_we_write(
    build: Callable[[], nn.Module], inputs: Tensor, targets: list[str], head: list[str], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    ours = build()
    adapt(ours, rank=2, alpha=3.0, targets=targets, head=head)
    stirred(ours)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    assert not torch.allclose(ours(inputs), build().eval()(inputs), atol=1e-3)
    torch.testing.assert_close(theirs(inputs), ours(inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("build", "inputs", "targets", "head"), CASES)
def test_we_read_what_peft_writes(
    build: Callable[[], nn.Module], inputs: Tensor, targets: list[str], head: list[str], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    settings = {"r": 2, "lora_alpha": 6, "lora_dropout": 0.25, "target_modules": targets, "modules_to_save": head}
    turned = build is LastLogits  # peft warns where it has to find this out.
    theirs = stirred(peft.get_peft_model(build(), peft.LoraConfig(**settings, fan_in_fan_out=turned)))
    theirs.save_pretrained(tmp_path)
    ours = build()
    load_adapter(ours, tmp_path)
    assert {each.scaling for each in adapters(ours).values()} == {3.0}
    assert not torch.allclose(ours.eval()(inputs), build().eval()(inputs), atol=1e-3)
    torch.testing.assert_close(ours.eval()(inputs), theirs(inputs), rtol=0, atol=1e-6)


def test_what_we_write_we_read_bit_for_bit(tmp_path: Path) -> None:
    ours, again = images(), images()
    adapt(ours, rank=2, alpha=3.0, head=["4"])
    stirred(ours)
    save_adapter(ours, tmp_path)
    assert load_adapter(again, tmp_path) == ["0", "2"]
    for (name, value), (other, found) in zip(adapter_state(ours).items(), adapter_state(again).items(), strict=True):
        assert name == other
        assert torch.equal(value, found)
    assert torch.equal(ours(IMAGES), again.eval()(IMAGES))


def test_files_have_the_names_and_keys_of_peft(tmp_path: Path) -> None:
    ours = dense()
    adapt(ours, rank=2, alpha=3.0, dropout=0.25, targets=["0.2"], head=["3"])
    save_adapter(ours, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    prefix = "base_model.model."
    assert sorted(load_file(tmp_path / "adapter_model.safetensors")) == [
        *(prefix + "0.2.lora_A.weight", prefix + "0.2.lora_B.weight", prefix + "3.bias", prefix + "3.weight"),
    ]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    wanted = {"peft_type": "LORA", "r": 2, "lora_alpha": 3.0, "lora_dropout": 0.25, "modules_to_save": ["3"]}
    assert wanted.items() <= config.items()


def saved(folder: Path, **changes: Any) -> Path:
    ours = dense()
    adapt(ours, rank=2, head=["3"])
    save_adapter(ours, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"peft_type": "LOHA"}, "no configuration of a LoRA adapter"),
        ({"use_dora": True}, "use_dora is True; only plain adapters can be loaded"),
        ({"use_rslora": True}, "use_rslora is True; only plain adapters can be loaded"),
        ({"bias": "all"}, "bias is 'all'; only plain adapters can be loaded"),
        ({"rank_pattern": {"2": 4}}, "rank_pattern is {'2': 4}; only plain adapters"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base"),
        ({"r": None}, "needs r, lora_alpha and target_modules"),
        ({"r": 3}, r"shape \(2, 12\) for '0.2.lora_A.weight', which has shape \(3, 12\); is it of this model"),
        ({"target_modules": ["0.2"]}, "holds 'base_model.model.2.lora_A.weight', which this model has no place for"),
        ({"target_modules": ["0.1"]}, "targets: '0.1' is a Tanh"),
    ],
)
def test_an_adapter_of_another_kind_or_model_is_refused_in_one_line(
    changes: dict[str, Any], line: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, **changes)
    with pytest.raises(ValueError, match=line) as caught:
        load_adapter(dense(), folder)
    assert "\n" not in str(caught.value)


def test_missing_or_spoilt_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter_config\.json: cannot be read"):
        load_adapter(dense(), tmp_path)
    folder = saved(tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: cannot be read"):
        load_adapter(dense(), folder)
    save_file({"base_model.model.3.bias": torch.zeros(3)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"nothing for '0\.2\.lora_A\.weight'"):
        load_adapter(dense(), folder)


def test_heads_that_peft_would_not_find_are_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.pre_head, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    ours = Two()
    adapt(ours, targets=["body"], head=["head"])
    with pytest.raises(ValueError, match=r"head: peft would not train exactly \['head'\], because of 'pre_head'"):
        save_adapter(ours, tmp_path)
    with pytest.raises(ValueError, match="has no adapters to save"):
        save_adapter(Two(), tmp_path)
