"""Encoders of the transformers library (extra `hf`), read from a folder on this machine.

Nothing is ever downloaded: a folder with a config and safetensors is all that is looked at, and no code in it runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from strategies.cache import cache

CARRIED = ("minilm",)  # Weights that `confide data fetch` brings.
_UNUSED = ("pooler.",)  # A part that a sentence encoder is often saved without, and that is not used here.


def folder(weights: str) -> Path:
    """The folder of an encoder: in the cache by name, else a path.

    Raises:
        ValueError: it is not there, or holds no model; one line.
    """
    if weights in CARRIED:
        if not (found := cache() / weights).is_dir():
            raise ValueError(f"{weights} is not in {cache()}; bring it with: confide data fetch {weights}")
        return found
    found = Path(weights)
    if not (found / "config.json").is_file():
        names = ", ".join(CARRIED)
        raise ValueError(f"{weights} is no folder with a config.json; give {names} or a transformers model's folder")
    return found


def encoder(weights: str, *, start: bool = True) -> nn.Module:
    """An encoder, in evaluation mode as the library gives it: tokens and mask to `last_hidden_state`.

    Args:
        weights: a name or a path, see `folder`.
        start: with its weights; False: its names and shapes alone, with a random start.

    Raises:
        ValueError: no such folder, a file that is missing or broken, or weights that leave a part without; one line.
    """
    place, library = folder(weights), transformers()
    try:
        config = library.AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        if not start:
            return _module(library.AutoModel.from_config(config, trust_remote_code=False))
        with torch.random.fork_rng(devices=[]):  # What the library draws must not move the starts drawn after it.
            model, report = library.AutoModel.from_pretrained(
                place,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,  # Other formats are pickles, which run what they say.
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"{weights}: the transformers library cannot read it ({line})") from error
    if missing := sorted(name for name in _names(report["missing_keys"]) if not name.startswith(_UNUSED)):
        raise ValueError(f"{weights}: holds nothing for {missing[0]!r}, which would start at random; give all weights")
    return _module(model)


def transformers() -> Any:
    """The library, told to stay offline and not to draw progress bars.

    Raises:
        ValueError: it is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # Read when it is imported; every call here also says local_files_only.
    try:
        import transformers as library
    except ImportError as error:
        raise ValueError("needs the package transformers; pip install 'confide[hf]'") from error
    library.utils.logging.disable_progress_bar()
    return library


def _names(keys: Any) -> list[str]:
    return [key if isinstance(key, str) else key[0] for key in keys]


def _module(model: Any) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model
