"""A pretrained transformer that sorts texts into classes: a frozen encoder, adapters and a head."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from strategies import pretrained
from strategies.lora import adapt
from strategies.schema import key
from strategies.tasks.base import Shape, Task, task


@task("transformer")
@dataclass(frozen=True)
class Transformer(Task):
    """An encoder whose states are averaged over a text's tokens, and one dense layer on top (needs the extra `hf`).

    The encoder is frozen but for low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on its queries and values; they
    and the head travel. Averaging is what MiniLM's sentence embeddings were trained for.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"classification"})
    places: ClassVar[frozenset[str]] = frozenset({"weights"})
    tokens: ClassVar[bool] = True

    weights: str = key("minilm", help="minilm (confide data fetch minilm), or the folder of a transformers encoder")
    rank: int = key(16, at_least=1, help="rank of every adapter")
    alpha: float = key(16.0, above=0, help="adapters are scaled by alpha / rank")
    dropout: float = key(0.1, at_least=0, below=1, help="chance that a number into an adapter is zero in training")
    targets: tuple[str, ...] = key(("query", "value"), help="layers to adapt, by the ends of their names")
    adapter: Literal["own", "peft"] = key("own", help="whose adapters: confide's, or the same of the peft library")

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets is empty; name the layers to adapt, such as query and value")

    def module(self, shape: Shape) -> nn.Module:
        """The model for rows of `(length,)` tokens.

        Raises:
            ValueError: no such encoder, rows that are too long for it or no tokens, or nothing to adapt; one line.
        """
        return self._built(shape, start=True)

    def structure(self, shape: Shape) -> nn.Module:
        """The same names and shapes, from the encoder's config alone."""
        return self._built(shape, start=False)

    def _built(self, shape: Shape, *, start: bool) -> nn.Module:
        if len(shape.features) != 1:
            line = f"needs rows of tokens (length,), found features of shape {shape.features}"
            raise ValueError(f"task transformer: {line}: use cnn")
        try:
            base = pretrained.encoder(self.weights, start=start)
            classifier = Classifier(base, shape)
        except ValueError as error:
            raise ValueError(f"task.weights: {error}") from error
        try:
            if self.adapter == "peft":
                classifier.encoder = wrapped(classifier.encoder, self)
            else:
                adapt(
                    classifier,
                    rank=self.rank,
                    alpha=self.alpha,
                    dropout=self.dropout,
                    targets=self.targets,
                    head=["head"],
                )
        except ValueError as error:
            raise ValueError(f"task.{error}") from error
        return classifier


class Classifier(nn.Module):
    """An encoder, the mean over a text's tokens, and a dense head.

    Args:
        encoder: of the transformers library.
        shape: length and classes.

    Attributes:
        vocabulary: how many tokens it knows; a row's are from 0 to below that.
        padding: the token that fills up short texts.

    Raises:
        ValueError: an encoder that names no padding, or takes shorter texts.
    """

    def __init__(self, encoder: nn.Module, shape: Shape) -> None:
        super().__init__()
        config: Any = encoder.config
        longest = getattr(config, "max_position_embeddings", None)
        if config.pad_token_id is None:
            raise ValueError("its config names no pad_token_id; give an encoder (of BERT's kind), not a text generator")
        if longest is not None and shape.features[0] > longest:
            raise ValueError(f"takes texts of up to {longest} tokens, the data's have {shape.features[0]}")
        self.padding: int = config.pad_token_id
        self.vocabulary: int = config.vocab_size
        self.encoder = encoder
        self.head = nn.Linear(config.hidden_size, shape.outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `(rows, length)` int64 to logits `(rows, classes)`; padding changes nothing."""
        # The first token always counts, so that a row of nothing but padding has a mean.
        mask = torch.cat([torch.ones_like(tokens[:, :1]), (tokens[:, 1:] != self.padding).long()], dim=1)
        states: Tensor = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        logits: Tensor = self.head((states * weight).sum(1) / weight.sum(1))
        return logits


def wrapped(encoder: nn.Module, settings: Transformer) -> nn.Module:
    """An encoder with the adapters of the peft library: the same numbers in the same order as confide's own.

    Any other model that peft wrapped is used likewise, from a task of one's own (`--plugin`): what it left trainable is
    what travels, in the model's order.

    Raises:
        ValueError: peft is not installed, or finds nothing to adapt; one line.
    """
    pretrained.transformers()
    try:
        import peft
    except ImportError as error:
        raise ValueError("adapter: needs the package peft; pip install 'confide[hf]'") from error
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        bias="none",
    )
    try:
        with warnings.catch_warnings():  # Both libraries are pinned; what one calls of the other is between them.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            model: nn.Module = peft.get_peft_model(encoder, config)
    except ValueError as error:
        raise ValueError(f"targets: {' '.join(str(error).split())[:200]}") from error
    return model
