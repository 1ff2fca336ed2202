"""A federation in one process: a Grid of Flower whose nodes are ClientApps, called where they stand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from uuid import uuid4

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Reply = Callable[[Message], Message | list[Message]]


@contextmanager
def identity() -> Iterator[None]:
    """Messages can be made only where Flower says which run it is."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_run_id": 7, "_node_id": 1, "_task_id": 1}.items():
            patch.setattr(TaskIdentity, name, value)
        yield


class FakeGrid(Grid):
    """Nodes by id; a node is a ClientApp, or a function from a message to its reply, or its replies.

    Attributes:
        pushed: every message that was sent.
        before: called before messages are sent.
    """

    def __init__(self, nodes: Mapping[int, ClientApp | Reply], before: Callable[[], object] = lambda: None) -> None:
        self.nodes, self.before = dict(nodes), before
        self.pushed: list[Message] = []
        self._replies: list[Message] = []

    def set_run(self, run: object) -> None:
        raise AssertionError("not used")

    @property
    def run(self) -> object:  # type: ignore[override]
        raise AssertionError("not used")

    def create_message(self, *given: object, **named: object) -> Message:
        raise AssertionError("not used")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.before()
        sent = list(messages)
        for message in sent:
            message.metadata.__dict__["_message_id"] = uuid4().hex
            self.pushed.append(message)
            found = self._ask(message)
            self._replies += found if isinstance(found, list) else [found]
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies, self._replies = self._replies[::-1], []  # In an order of their own.
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _ask(self, message: Message) -> Message | list[Message]:
        node = self.nodes[message.metadata.dst_node_id]
        try:
            if isinstance(node, ClientApp):
                told = copy.deepcopy(message)
                return node(told, Context(7, message.metadata.dst_node_id, {}, RecordDict(), {}))
            return node(message)
        except Exception as error:  # As a SuperNode does, whatever a ClientApp raises.
            return Message(Error(1, f"{type(error).__name__}: {error}"), reply_to=message)
