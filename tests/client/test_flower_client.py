"""The silo half of a strategy around a user's own training loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from flwr.app import Message, RecordDict
from torch import nn

from client.flower_client import reply
from strategies.base import Instruction, Strategy
from strategies.ditto import Ditto
from strategies.fedavg import FedAvg
from strategies.flasc import FLASC
from strategies.flower_records import read_answer, task
from strategies.flower_silo import SMALL, Unfit, misfit
from strategies.layout import Layout
from strategies.rank_tiers import RankTiers
from tests.server.flower_grid import identity


@pytest.fixture(autouse=True)
def run() -> Iterator[None]:
    with identity():
        yield


def module() -> nn.Module:
    return nn.Linear(4, 2, bias=False)


def asked(strategy: Strategy, model: torch.Tensor, *, layout: Layout | None = None, kept: int = 8) -> Message:
    instruction = Instruction(2, {"model": model}, kept={"model": kept})
    return Message(task(strategy, instruction, layout or Layout.of(module()), run="ab"), 5, "train")


def add_up(model: nn.Module) -> None:
    """A loop that adds 1, 2, ... 8 to the parameters; autograd must be on, as in any loop."""
    (model(torch.ones(1, 4)).sum()).backward()
    for parameter in model.parameters():
        parameter.data += torch.arange(1.0, 9.0).reshape(2, 4)


def delta(message: Message, kept: int = 8) -> list[float]:
    update = read_answer(message.content, run="ab", round_=2, sizes={"delta": 8}, kept={"delta": kept})
    return update.channels["delta"].tolist()


def test_the_users_loop_starts_at_the_servers_model_and_what_it_changed_is_sent() -> None:
    model, start = module(), torch.linspace(-1, 1, 8)
    with torch.no_grad():
        found = reply(asked(FedAvg(), start), model, add_up)
    assert delta(found) == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8], abs=1e-6)
    assert model.weight.detach().flatten().tolist() == pytest.approx((start + torch.arange(1.0, 9.0)).tolist())


def test_only_the_largest_numbers_of_an_update_travel() -> None:
    """A quarter of 8 numbers are the last two."""
    found = reply(asked(FLASC(density_up=0.25), torch.zeros(8)), module(), add_up)
    assert delta(found, kept=2) == [0, 0, 0, 0, 0, 0, 7, 8]


def test_rows_are_told_only_where_they_are_weighed() -> None:
    def weight(strategy: Strategy, rows: int | None) -> float:
        found = reply(asked(strategy, torch.zeros(8)), module(), add_up, rows=rows)
        update = read_answer(found.content, run="ab", round_=2, sizes={"delta": 8}, kept={})
        return float(update.weight)

    assert weight(FedAvg(weighting="examples"), 30) == 30
    assert weight(FedAvg(), 30) == 1
    with pytest.raises(Unfit, match=r"did not tell: reply\(..., rows=len\(data\)\)"):
        weight(FedAvg(weighting="examples"), None)


def test_another_model_than_the_servers_is_refused_by_its_first_difference() -> None:
    for layout in (
        Layout(("weight",), ((2, 3),)),
        Layout(("other",), ((2, 4),)),
        Layout(("weight", "bias"), ((2, 4), (2,))),
    ):
        with pytest.raises(
            ValueError, match=r"model: the server's arrays .* differ, first .*trainable\(model\)"
        ) as caught:
            reply(asked(FedAvg(), torch.zeros(layout.size), layout=layout, kept=layout.size), module(), add_up)
        assert "\n" not in str(caught.value)


def test_a_message_of_a_plain_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does the server use server\.flower_strategy"):
        reply(Message(RecordDict(), 5, "train"), module(), add_up)


def test_a_strategy_that_asks_for_more_is_refused_by_the_client_too() -> None:
    with pytest.raises(Unfit, match="personal"):
        reply(asked(Ditto(), torch.zeros(8)), module(), add_up)


def test_what_fits_is_judged_on_the_real_model_where_a_small_one_does_not_do() -> None:
    """Ranks of adapters are there only in a model that has adapters: with one tier all else of it fits."""
    lonely = RankTiers(ranks=(1,))
    assert misfit(lonely, SMALL) is None
    with pytest.raises(ValueError, match="lora"):
        misfit(lonely, Layout.of(module()))
