"""The silo half of a strategy in a plain Flower ClientApp: the user's own training loop, and one call.

    @app.train()
    def train(message, context):
        return reply(message, model, train=lambda model: fit(model, rows))

It runs in the user's own process, on the user's own rows: it charges nothing and clips nothing. The server does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from flwr.app import Message
from torch import Tensor, nn

from strategies.flower_records import answer, read_task
from strategies.flower_silo import OwnLoop, refuse_other
from strategies.layout import Layout


def reply(
    message: Message, module: nn.Module, train: Callable[[nn.Module], object], *, rows: int | None = None
) -> Message:
    """Runs a round of the server's strategy, and answers.

    Args:
        message: as the ClientApp got it.
        module: the model, of which the parameters with `requires_grad` are trained; overwritten.
        train: trains the module in place, as long and with what it likes.
        rows: training rows, for a strategy that weighs by them.

    Raises:
        ValueError: another model than the server's, a message that is none of ours, or a strategy that asks for more
            than a training function; one line.
    """
    terms, instruction = read_task(message.content)
    layout = Layout.of(module)
    refuse_other(terms, layout)

    def fit(start: Tensor) -> Tensor:
        layout.load(module, start)
        with torch.enable_grad():
            train(module)
        return layout.flatten(module).cpu()

    update = terms.strategy.local(OwnLoop(layout, fit, rows=rows), instruction)
    kept = terms.strategy.kept(layout, instruction.round, instruction.tier)
    return Message(answer(update, terms, kept), reply_to=message)
