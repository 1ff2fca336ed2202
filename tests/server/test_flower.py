"""Letters over Flower's grid: an answer that breaks off on its way holds up nobody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest
from flwr.serverapp import Grid

from server.flower import WAYS, GridPost, letter
from server.post import Answer

ENOUGH_S = 60.0  # Of waiting for what has to come; nothing waits so long but where a test fails.


class BreakingGrid:
    """Has answers to letters, of which some never come to their end.

    Args:
        endless: letters whose answers break off.
    """

    def __init__(self, endless: Iterable[str] = ()) -> None:
        self.endless, self.over = set(endless), Event()
        self.answered: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failing = self.ended = False

    def pull_messages(self, letters: list[str]) -> Iterator[Any]:
        self.asked += letters
        if self.failing:
            raise ConnectionError("no SuperLink")
        for each in letters:
            if each in self.endless:
                self.ended = not self.over.wait(ENOUGH_S)  # As Flower waits for the rest, and then gives up.
            elif each in self.answered:
                yield SimpleNamespace(
                    metadata=SimpleNamespace(reply_to_message_id=each),
                    has_error=lambda: False,
                    content=letter(self.answered.pop(each)),
                )


@pytest.fixture
def grid() -> Iterator[BreakingGrid]:
    found = BreakingGrid()
    yield found
    found.over.set()


def post(grid: BreakingGrid) -> GridPost:
    return GridPost(cast(Grid, grid))


def until(there: GridPost, letters: list[str], count: int) -> list[Answer]:
    """What comes for some letters; asked again and again, as the server does until its deadline."""
    found: list[Answer] = []
    for _ in range(round(ENOUGH_S / 0.1)):
        found += there.fetch(letters)
        if len(found) >= count:
            break
    return found


def test_an_answer_that_breaks_off_holds_up_neither_the_caller_nor_another_answer(grid: BreakingGrid) -> None:
    letters = [f"letter {number}" for number in range(WAYS)]
    grid.endless = {letters[2]}
    grid.answered = {each: each.encode() for each in letters}
    there = post(grid)
    found = until(there, letters, WAYS - 1)
    assert sorted(found, key=lambda each: each.letter) == [
        Answer(each, each.encode()) for each in letters if each != letters[2]
    ]
    for _ in range(3):
        assert there.fetch([letters[2]]) == []
    assert grid.asked.count(letters[2]) == 1  # One thread waits for it, and no second one.
    assert not grid.ended  # It waits still.


def test_an_answer_that_is_not_there_yet_is_looked_for_again(grid: BreakingGrid) -> None:
    there = post(grid)
    assert there.fetch(["late"]) == []
    grid.answered = {"late": b"here"}
    assert until(there, ["late"], 1) == [Answer("late", b"here")]


def test_an_answer_that_comes_while_others_are_asked_for_is_kept(grid: BreakingGrid) -> None:
    grid.answered = {"one": b"1"}
    there = post(grid)
    there._pull(["one"])
    assert there.fetch(["another"]) == []
    assert there.fetch(["one"]) == [Answer("one", b"1")]
    assert there.fetch(["one"]) == []


def test_what_fails_in_a_thread_is_heard(grid: BreakingGrid) -> None:
    grid.failing = True
    with pytest.raises(ConnectionError, match="no SuperLink"):
        until(post(grid), ["any"], 1)
