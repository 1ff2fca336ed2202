"""Adapters on disk, in the format of the peft library: what one writes, the other reads.

A folder holds adapter_config.json and adapter_model.safetensors, whose names are `base_model.model.` and then ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from strategies.lora import LoRAConv1D, adapt, adapter_state, adapters

CONFIG, MODEL = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

# Settings of peft under which its adapter is not W0 + (alpha / rank) B A; each must be as here, or absent.
PLAIN: Mapping[str, Any] = {
    "bias": "none",
    "lora_bias": False,
    "use_dora": False,
    "use_rslora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "velora_config": None,
    "arrow_config": None,
    "kasa_config": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "layers_to_transform": None,
    "exclude_modules": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
}
WRITTEN = ("bias", "use_dora", "use_rslora", "rank_pattern", "alpha_pattern")  # Older releases know no more.


def save_adapter(module: nn.Module, folder: str | Path) -> None:
    """Writes the adapters and the head of an adapted module; the folder is made where it is missing.

    Raises:
        ValueError: the module has no adapters, or names by which peft would find other parts, too.
    """
    found = adapters(module)
    if not found:
        raise ValueError(f"{type(module).__name__} has no adapters to save; see strategies.lora.adapt")
    first = next(iter(found.values()))
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "target_modules": _targets(module, list(found)),
        "modules_to_save": _heads(module) or None,
        "fan_in_fan_out": any(isinstance(each, LoRAConv1D) for each in found.values()),
        "init_lora_weights": True,
        **{name: PLAIN[name] for name in WRITTEN},
    }
    tensors = {PREFIX + name: value.cpu().contiguous() for name, value in adapter_state(module).items()}
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (target / MODEL).write_bytes(save_tensors(tensors))


def load_adapter(module: nn.Module, folder: str | Path) -> list[str]:
    """Adapts a module as a folder says, in place, and loads its adapters and head; returns the adapted layers' names.

    Args:
        module: the base, not adapted yet; on an error it may be left adapted.
        folder: written by `save_adapter`, or by peft's `save_pretrained`.

    Raises:
        ValueError: no such files, settings that mean another kind of adapter, or tensors that do not fit; one line.
    """
    config = _config(Path(folder) / CONFIG)
    heads = [name for name in _whole(module) if _ends(name, config.get("modules_to_save") or ())]
    names = adapt(
        module,
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout") or 0.0),
        targets=_matching(module, config["target_modules"], heads),
        head=heads,
    )
    path = Path(folder) / MODEL
    try:
        tensors = load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())}); save the adapter again") from error
    _fill(path, adapter_state(module), tensors)
    return names


def _fill(path: Path, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        given = tensors.get(PREFIX + name)
        if given is None or given.shape != value.shape:
            what = "nothing" if given is None else f"shape {tuple(given.shape)}"
            raise ValueError(f"{path}: {what} for {name!r}, which has shape {tuple(value.shape)}; is it of this model?")
    if odd := sorted(set(tensors) - {PREFIX + name for name in state}):
        raise ValueError(f"{path}: holds {odd[0]!r}, which this model has no place for; is it of this model?")
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(tensors[PREFIX + name])


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())}); save the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: no configuration of a LoRA adapter (peft_type LORA)")
    for name, plain in PLAIN.items():
        if (config.get(name) or plain) != plain:
            raise ValueError(f"{path}: {name} is {config[name]!r}; only plain adapters can be loaded ({name}: {plain})")
    start = config.get("init_lora_weights")
    if start not in (None, True, False, "gaussian"):  # Others take a part of the base's weights away.
        raise ValueError(
            f"{path}: init_lora_weights is {start!r}, which changes the base; convert it to a plain adapter"
        )
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if type(rank) is not int or type(alpha) not in (int, float) or not isinstance(targets, str | list):
        raise ValueError(f"{path}: needs r, lora_alpha and target_modules; save the adapter again")
    return config


def _targets(module: nn.Module, names: Sequence[str]) -> list[str] | str:
    """Names as peft takes them: a list, which it matches by their ends, or else an expression for exactly these."""
    taken = {name for name, _ in _parts(module) if _ends(name, names)}
    return list(names) if taken == set(names) else "|".join(re.escape(name) for name in names)


def _matching(module: nn.Module, targets: str | list[str], heads: Sequence[str]) -> list[str]:
    """The full names of what peft's `target_modules` means in this module."""
    inside = [name for name, _ in _parts(module) if not any(f"{name}.".startswith(f"{head}.") for head in heads)]
    if isinstance(targets, str):
        return [name for name in inside if re.fullmatch(targets, name)]
    return [name for name in inside if _ends(name, targets)]


def _heads(module: nn.Module) -> list[str]:
    """The largest parts outside of adapters that train in full."""
    heads = [name for name, part in _parts(module) if _trains(part)]
    heads = [name for name in heads if not any(name.startswith(f"{other}.") for other in heads)]
    loose = {
        name
        for name in adapter_state(module)
        if ".lora_" not in name and not any(name.startswith(f"{head}.") for head in heads)
    }
    taken = {name for name in _whole(module) if any(name.endswith(head) for head in heads)}  # As peft matches them.
    if loose or taken - set(heads):
        odd = sorted(loose | (taken - set(heads)))[0]
        raise ValueError(
            f"head: peft would not train exactly {heads}, because of {odd!r}; rename the parts of the head"
        )
    return heads


def _trains(part: nn.Module) -> bool:
    parameters = list(part.parameters())
    return bool(parameters) and all(each.requires_grad for each in parameters)


def _whole(module: nn.Module) -> list[str]:
    return [name for name, _ in _parts(module)]


def _parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The module's parts as its base has them: adapters count as the layers that they adapt."""
    inside = tuple(f"{name}." for name in adapters(module))
    return [(name, part) for name, part in module.named_modules() if name and not name.startswith(inside)]


def _ends(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)
