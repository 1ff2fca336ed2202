"""What a round needs in somebody else's loop: its charge, its silos, and whose a reply is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from privacy.account import BudgetSpent
from privacy.accountant import upper_epsilon
from privacy.chain import load
from privacy.events import Gaussian, NonPrivate, Repeated
from privacy.ledger import LedgerError
from server.flower_rounds import Asked, Roster, RoundLedger
from tests.server.flower_grid import FakeGrid, identity

DELTA = 1e-3


@pytest.fixture(autouse=True)
def run() -> Iterator[None]:
    with identity():
        yield


def ledger(tmp_path: Path, **settings: Any) -> RoundLedger:
    named = {"run": "a", "event": Gaussian(2.0), "delta": DELTA, **settings}
    return RoundLedger(tmp_path / "folder" / "ledger.jsonl", **named)


def test_a_budget_is_the_price_of_the_rounds_that_it_affords(tmp_path: Path) -> None:
    """Exactly three rounds' price affords three; the fourth is not written."""
    three = upper_epsilon(Repeated(Gaussian(2.0), 3), DELTA)
    book = ledger(tmp_path, budget=three)
    for round_ in (1, 2, 3):
        book.reserve(round_)
        book.commit()
    assert book.epsilon() == three
    with pytest.raises(BudgetSpent, match=r"round 4 would bring epsilon to .*, above the budget of"):
        book.reserve(4)
    book.close()
    assert len(load(tmp_path / "folder" / "ledger.jsonl").chain.entries) == 6


def test_a_round_that_never_ended_counts(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.reserve(1)
    book.close()
    again = ledger(tmp_path)
    assert again.epsilon() == upper_epsilon(Gaussian(2.0), DELTA)
    again.close()


def test_a_torn_line_counts_as_a_round(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.reserve(1)
    book.close()
    path = tmp_path / "folder" / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    again = ledger(tmp_path)
    assert again.epsilon() == upper_epsilon(Gaussian(2.0), DELTA)
    again.close()


def test_without_a_price_nothing_is_claimed_and_no_budget_affords_a_round(tmp_path: Path) -> None:
    book = ledger(tmp_path, event=NonPrivate("exact"), delta=None)
    book.reserve(1)
    assert book.epsilon() is None
    book.close()
    other = ledger(tmp_path / "other", event=NonPrivate("exact"), budget=1e9)
    with pytest.raises(BudgetSpent, match="epsilon to infinity"):
        other.reserve(1)
    other.close()


@pytest.mark.parametrize(
    "settings", [{"event": Gaussian(3.0)}, {"neighbours": "replace"}, {"event": NonPrivate("exact")}, {"fresh": True}]
)
def test_rounds_of_another_kind_are_not_added_to_a_ledger(tmp_path: Path, settings: dict[str, Any]) -> None:
    book = ledger(tmp_path)
    book.reserve(1)
    book.close()
    with pytest.raises(LedgerError, match=r"ledger.jsonl: holds rounds .*; give a new ledger"):
        ledger(tmp_path, **settings)
    ledger(tmp_path).close()  # The refusal let the file go.


def nodes(*ids: int) -> FakeGrid:
    return FakeGrid(dict.fromkeys(ids, lambda message: message))


def test_places_go_by_node_and_stay(tmp_path: Path) -> None:
    roster = Roster(3, wait_s=0.0)
    assert roster.online(nodes(30, 10, 20)) == {0: 10, 1: 20, 2: 30}
    assert roster.online(nodes(30, 10)) == {0: 10, 2: 30}
    assert roster.online(nodes(30, 10, 20)) == {0: 10, 1: 20, 2: 30}  # Back before anybody else came.
    assert roster.online(nodes(30, 10, 5)) == {0: 10, 1: 5, 2: 30}
    assert roster.online(nodes(30, 10, 5, 20)) == {0: 10, 1: 5, 2: 30}  # No place is left.


def test_a_strategy_that_remembers_silos_keeps_their_places(tmp_path: Path) -> None:
    roster = Roster(2, wait_s=0.0, keep=True)
    assert roster.online(nodes(1, 2)) == {0: 1, 1: 2}
    assert roster.online(nodes(2, 3)) == {1: 2}


def test_more_nodes_than_silos_are_not_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("flwr")  # It passes nothing on.
    logger.addHandler(caplog.handler)
    try:
        assert Roster(2, wait_s=0.0).online(nodes(3, 1, 2)) == {0: 1, 1: 2}
    finally:
        logger.removeHandler(caplog.handler)
    assert "1 nodes have no place among 2 silos" in caplog.text


def sent(node: int, message_id: str) -> Message:
    message = Message(RecordDict(), node, "train")
    message.metadata.__dict__["_message_id"] = message_id
    return message


def test_replies_are_told_by_what_they_answer_and_come_in_the_order_of_silos() -> None:
    messages = [sent(50, "a"), sent(40, "b")]
    asked = Asked(1, messages, [0, 1])
    replies = [Message(RecordDict(), reply_to=message) for message in reversed(messages)]
    assert [(silo, problem) for silo, _, problem in asked.sorted(replies)] == [(0, None), (1, None)]
    stranger = Message(RecordDict(), reply_to=sent(50, "c"))
    assert [(silo, problem) for silo, _, problem in asked.sorted([stranger])] == [
        (-1, "reply answers no message of this round")
    ]


def test_a_message_that_was_never_sent_is_answered_by_nobody() -> None:
    """Flower gives no id to a message that it could not send, and an empty one must not match that."""
    message = sent(50, "")
    assert [silo for silo, *_ in Asked(1, [message], [0]).sorted([Message(RecordDict(), reply_to=message)])] == [-1]
