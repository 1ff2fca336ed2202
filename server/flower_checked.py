"""Flower's own strategies behind our checks: `Checked(FedAvg(...), ledger="ledger.jsonl")`.

Replies are judged before the strategy sees them, and every round is written to a ledger before its messages leave. The
price of a round is that of no protection: the strategy sees single updates, and noise that Flower's wrappers add comes
from a seeded generator of doubles whose last bits tell what it was added to, so no epsilon is claimed for it.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from privacy.checks import positive
from privacy.events import NonPrivate
from server.flower_replies import checked
from server.flower_rounds import Asked, RoundLedger
from server.flower_strategy import FlowerStrategy
from strategies.base import MOST_ROWS
from strategies.flower_records import NUMPY

LOG = logging.getLogger("flwr")  # Where a user of Flower looks.


class Checked(Strategy):
    """A Flower strategy of the family of FedAvg, which is given no reply that was refused.

    Args:
        strategy: to be given the others; FedAvg, FedAdam, Krum, a median and so on.
        ledger: file that every round is charged to before it begins; made when missing.
        weighted_by_key: the metric that replies are weighed by; None: that of the strategy.
        heaviest: the largest weight that is believed.

    Raises:
        ValueError: a strategy of ours, which has these checks already.
        LedgerError: the ledger cannot be used.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        ledger: str | Path,
        weighted_by_key: str | None = None,
        heaviest: float = MOST_ROWS,
    ) -> None:
        if isinstance(strategy, FlowerStrategy | Checked):
            raise ValueError(f"strategy: {type(strategy).__name__} checks replies itself; give it to Flower as it is")
        positive(heaviest=heaviest)
        inner = getattr(strategy, "strategy", strategy)  # Flower's wrappers keep what they wrap under this name.
        self.strategy, self.heaviest = strategy, heaviest
        self.weight = weighted_by_key or str(getattr(inner, "weighted_by_key", "num-examples"))
        event = NonPrivate(f"Flower's {type(strategy).__name__} is not priced")
        self.ledger = RoundLedger(Path(ledger), run=secrets.token_hex(8), event=event)
        self.reasons: Counter[str] = Counter()
        """Why replies were refused, and how often."""
        self._model = ArrayRecord()
        self._asked: Asked | None = None
        self._evaluated: Asked | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages, once the round is in the ledger."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        if not self._model:  # Later ones are means: Flower makes those of whole numbers doubles, and silos do not.
            self._model = _plain(arrays)
        self._asked = _asked(server_round, messages)
        self.ledger.reserve(server_round)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the strategy makes of the replies that can be used, and how many those are."""
        good, refused = self._checked(server_round, self._asked, replies, self._model)
        self._asked = None
        arrays, metrics = self.strategy.aggregate_train(server_round, good)
        self.ledger.commit()
        return arrays, _counted(metrics, good, refused)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages."""
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self._evaluated = _asked(server_round, messages)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """What the strategy makes of the replies that can be used, and how many those are."""
        good, refused = self._checked(server_round, self._evaluated, replies, None)
        self._evaluated = None
        metrics = self.strategy.aggregate_evaluate(server_round, good)
        return _counted(metrics, good, refused) if good or refused else None

    def summary(self) -> None:
        """As the strategy's."""
        self.strategy.summary()

    def close(self) -> None:
        """Lets the ledger go."""
        self.ledger.close()

    def _checked(
        self, round_: int, asked: Asked | None, replies: Iterable[Message], arrays: ArrayRecord | None
    ) -> tuple[list[Message], Counter[str]]:
        asked = asked if asked is not None and asked.round == round_ else Asked(round_, [], [])
        good, reasons = checked(asked, list(replies), weight=self.weight, arrays=arrays, heaviest=self.heaviest)
        self.reasons += reasons
        for reason, times in reasons.items():
            LOG.warning("round %d: %d replies were refused: %s", round_, times, reason)
        return good, reasons


def _asked(round_: int, messages: list[Message]) -> Asked:
    """Silos are told apart by their nodes."""
    nodes = {node: place for place, node in enumerate(sorted({each.metadata.dst_node_id for each in messages}))}
    return Asked(round_, messages, [nodes[message.metadata.dst_node_id] for message in messages])


def _plain(arrays: ArrayRecord) -> ArrayRecord:
    for name, array in arrays.items():
        if array.stype != NUMPY:
            raise ValueError(f"initial_arrays: {name!r} is of type {array.stype!r}; replies are checked as {NUMPY}")
    return ArrayRecord(dict(arrays.items()))


def _counted(metrics: MetricRecord | None, good: list[Message], refused: Counter[str]) -> MetricRecord:
    counts = {"arrived": len(good), "refused": refused.total()}
    return MetricRecord({**(metrics or {}), **counts})
