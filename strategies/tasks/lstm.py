"""A character model: what comes next, at every position of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from strategies.schema import key
from strategies.tasks.base import Shape, Task, task


@task("lstm")
@dataclass(frozen=True)
class LSTM(Task):
    """An embedding, LSTM layers and a dense layer to the vocabulary's logits.

    The defaults are the Shakespeare model of McMahan et al. 2017 (section 3): 8-dimensional embedding, two layers of
    256 units.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"sequence"})
    tokens: ClassVar[bool] = True

    embedding: int = key(8, at_least=1, help="numbers per character")
    hidden: int = key(256, at_least=1, help="units per layer")
    layers: int = key(2, at_least=1, help="LSTM layers on top of each other")

    def module(self, shape: Shape) -> nn.Module:
        """The model for rows of `(length,)` tokens; the length itself does not matter.

        Raises:
            ValueError: a row is not a sequence of tokens.
        """
        if len(shape.features) != 1:
            raise ValueError(f"task lstm: needs rows of tokens (length,), found features of shape {shape.features}")
        return CharacterModel(shape.outputs, embedding=self.embedding, hidden=self.hidden, layers=self.layers)


class CharacterModel(nn.Module):
    """Logits of the next token at each position."""

    def __init__(self, vocabulary: int, *, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.recurrent = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `(rows, length)` int64 to logits `(rows, length, vocabulary)`; each sees only what came before."""
        states, _ = self.recurrent(self.embedding(tokens))
        logits: Tensor = self.output(states)
        return logits
