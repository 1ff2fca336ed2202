"""Flower's own strategies behind our checks: what a hostile reply does to them alone, and what is left of it here."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, Krum, Result, Strategy

from privacy.accountant import upper_epsilon
from privacy.chain import load
from privacy.events import NonPrivate
from server.flower_checked import Checked
from server.flower_strategy import FlowerStrategy
from strategies.fedavg import FedAvg as OurFedAvg
from tests.server.flower_grid import FakeGrid, Reply, identity

START = {"weight": np.zeros((2, 3), np.float32), "steps": np.zeros((), np.int64)}
MADE: list[Checked] = []


@pytest.fixture(autouse=True)
def run() -> Iterator[None]:
    with identity():
        yield
    while MADE:
        MADE.pop().close()


def arrays(value: float = 0.0) -> ArrayRecord:
    return ArrayRecord({"weight": Array(START["weight"] + np.float32(value)), "steps": Array(np.asarray(1))})


def content(value: float, **changes: Any) -> RecordDict:
    metrics = MetricRecord({"num-examples": 2, "loss": value, **changes})
    return RecordDict({"arrays": arrays(value), "metrics": metrics})


def honest(value: float) -> Reply:
    """A client whose model is `value` everywhere, in every round."""

    def node(message: Message) -> Message:
        if message.metadata.message_type == "evaluate":
            return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": value})}), reply_to=message)
        return Message(content(value), reply_to=message)

    return node


def hostile(reply: Callable[[], RecordDict]) -> Reply:
    def node(message: Message) -> Message:
        return Message(reply(), reply_to=message)

    return node


def checked(tmp_path: Path, inner: Strategy | None = None, **settings: Any) -> Checked:
    inner = inner or FedAvg(fraction_evaluate=0.0)
    MADE.append(Checked(inner, ledger=tmp_path / "ledger.jsonl", **settings))
    return MADE[-1]


def play(chosen: Strategy, nodes: Mapping[int, Any], *, rounds: int = 1, before: Any = lambda: None) -> Result:
    return chosen.start(
        FakeGrid(nodes, before), ArrayRecord({k: Array(v) for k, v in START.items()}), num_rounds=rounds
    )


def weight_of(result: Result) -> float:
    values = result.arrays["weight"].numpy()
    assert len(np.unique(values)) == 1
    return float(values.flat[0])


GOOD = {1: honest(1.0), 2: honest(2.0), 3: honest(3.0)}


def test_what_is_well_is_left_as_it_is(tmp_path: Path) -> None:
    ours, theirs = checked(tmp_path, FedAvg()), FedAvg()
    for result in (found := play(ours, GOOD, rounds=2), play(theirs, GOOD, rounds=2)):
        assert weight_of(result) == 2.0
        assert result.evaluate_metrics_clientapp[2]["loss"] == pytest.approx(2.0)
    assert found.train_metrics_clientapp[1] == {"loss": 2.0, "arrived": 3, "refused": 0}
    assert ours.reasons == {}


def saved(value: Any, *, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(value), version=version, allow_pickle=False)
    return file.getvalue()


def array(data: bytes, *, shape: tuple[int, ...] = (2, 3), dtype: str = "float32") -> Callable[[], RecordDict]:
    def reply() -> RecordDict:
        found = content(9.0)
        found.array_records["arrays"]["weight"] = Array(dtype, shape, "numpy.ndarray", data)
        return found

    return reply


def metric(**changes: Any) -> Callable[[], RecordDict]:
    return lambda: content(9.0, **changes)


def without(name: str) -> Callable[[], RecordDict]:
    def reply() -> RecordDict:
        found = content(9.0)
        del found.array_records["arrays"][name]
        return found

    return reply


OTHER_ARRAY = "an array has another shape or type than was sent"
HOSTILE: Mapping[str, tuple[Callable[[], RecordDict], str]] = {
    "NaN": (array(saved(np.full((2, 3), np.nan, np.float32))), "an array is not finite"),
    "infinite": (array(saved(np.full((2, 3), np.inf, np.float32))), "an array is not finite"),
    "wrong key": (without("steps"), "arrays are not named as those that were sent"),
    "wrong shape": (array(saved(np.zeros((3, 2), np.float32)), shape=(3, 2)), OTHER_ARRAY),
    "wrong type": (array(saved(np.zeros((2, 3))), dtype="float64"), OTHER_ARRAY),
    "another shape inside": (array(saved(np.zeros((3, 2), np.float32))), OTHER_ARRAY),
    "another type inside": (array(saved(np.zeros((2, 3), np.int32))), OTHER_ARRAY),
    "longer than it says": (array(saved(np.zeros((2, 3), np.float32)) + b"\0"), OTHER_ARRAY),
    "cut": (array(saved(np.zeros((2, 3), np.float32))[:-1]), OTHER_ARRAY),
    "no array": (array(b"cos\nsystem\n"), "an array cannot be read"),
    "a pickle": (array(b"\x93NUMPY\x01\x00\x10\x00{'descr': '|O'} \n"), "an array cannot be read"),
    "heavy": (metric(**{"num-examples": 1e12}), "weight is not in (0, 1e+09]"),
    "weightless": (metric(**{"num-examples": 0}), "weight is not in (0, 1e+09]"),
    "negative": (metric(**{"num-examples": -1}), "weight is not in (0, 1e+09]"),
    "weight NaN": (metric(**{"num-examples": math.nan}), "weight is not in (0, 1e+09]"),
    "weights": (metric(**{"num-examples": [1.0, 2.0]}), "weight is missing, or not one number"),
    "metric NaN": (metric(loss=math.nan), "a metric is not finite"),
    "metric infinite in a list": (metric(loss=[1.0, math.inf]), "a metric is not finite"),
    "another metric": (metric(extra=1.0), "metrics are not named as those of most replies"),
    "a list of metrics": (metric(loss=[1.0]), "metrics are not named as those of most replies"),
    "nothing": (RecordDict, "reply has not one record of metrics, and one of arrays where they were asked"),
}  # fmt: skip


@pytest.mark.parametrize("inner", [FedAvg, Krum])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_reply_is_refused_and_counted_and_the_round_goes_on(
    name: str, inner: type[FedAvg], tmp_path: Path
) -> None:
    """Without node 2, whose good reply would be 2 as well: of 1, 2, 2, 3 the mean and Krum's choice are 2."""
    reply, reason = HOSTILE[name]
    chosen = checked(tmp_path, inner(fraction_evaluate=0.0))
    nodes = {1: honest(1.0), 2: hostile(reply), 3: honest(2.0), 4: honest(2.0), 5: honest(3.0)}
    result = play(chosen, nodes)
    assert weight_of(result) == 2.0
    assert chosen.reasons == {reason: 1}
    assert (result.train_metrics_clientapp[1]["arrived"], result.train_metrics_clientapp[1]["refused"]) == (4, 1)


def test_alone_flower_averages_a_nan_and_stops_at_another_metric() -> None:
    """Why the checks are there: if Flower learns to refuse these, they can go."""
    result = play(FedAvg(fraction_evaluate=0.0), GOOD | {4: hostile(HOSTILE["NaN"][0])})
    assert np.isnan(result.arrays["weight"].numpy()).all()
    with pytest.raises(InconsistentMessageReplies):
        play(FedAvg(fraction_evaluate=0.0), GOOD | {4: hostile(HOSTILE["another metric"][0])})


def test_who_answers_twice_or_with_an_error_or_an_old_reply_is_left_out(tmp_path: Path) -> None:
    old: list[Message] = []

    def twice(message: Message) -> list[Message]:
        return [Message(content(3.0), reply_to=message) for _ in range(2)]

    def replayed(message: Message) -> list[Message]:
        old.append(Message(content(9.0), reply_to=message))
        return old[:1]

    def broken(message: Message) -> Message:
        raise RuntimeError("no")

    chosen = checked(tmp_path)
    result = play(chosen, {1: honest(1.0), 2: twice, 3: broken, 4: replayed}, rounds=2)
    assert chosen.reasons == {
        "silo answered before in this round": 2,
        "node answered with an error": 2,
        "reply answers no message of this round": 1,
    }
    assert weight_of(result) == 2.0


def test_arrays_in_the_order_of_columns_are_read_by_flower_and_so_by_us(tmp_path: Path) -> None:
    columns = np.asfortranarray(np.full((2, 3), 2.0, np.float32))
    good = content(2.0)
    good.array_records["arrays"]["weight"] = Array(columns)
    chosen = checked(tmp_path)
    assert weight_of(play(chosen, {1: honest(2.0), 2: hostile(lambda: good)})) == 2.0
    assert chosen.reasons == {}


def test_if_nothing_can_be_used_the_model_stays(tmp_path: Path) -> None:
    chosen = checked(tmp_path)
    result = play(chosen, {node: hostile(HOSTILE["NaN"][0]) for node in (1, 2)})
    assert list(result.arrays) == []  # As Flower's own strategies do when nobody answers.
    assert result.train_metrics_clientapp[1] == {"arrived": 0, "refused": 2}


def test_what_clients_say_of_the_model_is_checked_too(tmp_path: Path) -> None:
    def lies(message: Message) -> Message:
        reply: Message = honest(2.0)(message)  # type: ignore[assignment]
        if message.metadata.message_type == "evaluate":
            reply.content.metric_records["metrics"]["loss"] = math.nan
        return reply

    result = play(checked(tmp_path, FedAvg()), GOOD | {4: lies})
    assert result.evaluate_metrics_clientapp[1] == {"loss": pytest.approx(2.0), "arrived": 3, "refused": 1}


def test_every_round_is_in_the_ledger_before_a_message_is_pushed_and_claims_nothing(tmp_path: Path) -> None:
    seen: list[int] = []

    def charged() -> list[Any]:
        return load(tmp_path / "ledger.jsonl").chain.spent("silo")

    play(checked(tmp_path), GOOD, rounds=2, before=lambda: seen.append(len(charged())))
    assert seen == [1, 1, 2, 2]
    assert charged() == [NonPrivate("Flower's FedAvg is not priced")] * 2
    assert math.isinf(upper_epsilon(charged()[0], 1e-5))
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert kinds == ["reserve", "commit"] * 2


def test_noise_of_flowers_wrapper_is_not_claimed(tmp_path: Path) -> None:
    private = DifferentialPrivacyServerSideFixedClipping(FedAvg(fraction_evaluate=0.0), 1.0, 1.0, 3)
    chosen = checked(tmp_path, private)
    assert chosen.weight == "num-examples"
    assert isinstance(chosen.ledger.event, NonPrivate)
    assert chosen.ledger.epsilon() is None


def test_the_weight_is_the_strategys_own_metric_and_limit(tmp_path: Path) -> None:
    def rows(value: float, count: float) -> Reply:
        metrics = MetricRecord({"rows": count})
        return hostile(lambda: RecordDict({"arrays": arrays(value), "metrics": metrics}))

    chosen = checked(tmp_path, FedAvg(fraction_evaluate=0.0, weighted_by_key="rows"), heaviest=10.0)
    assert weight_of(play(chosen, {1: rows(1.0, 10.0), 2: rows(1.0, 5.0), 3: rows(9.0, 10.5)})) == 1.0
    assert chosen.reasons == {"weight is not in (0, 10]": 1}


def test_arrays_of_another_kind_than_numpys_are_refused(tmp_path: Path) -> None:
    chosen = checked(tmp_path)
    with pytest.raises(ValueError, match="initial_arrays: 'weight' is of type 'own'"):
        chosen.start(FakeGrid(GOOD), ArrayRecord({"weight": Array("float32", (1,), "own", b"")}), num_rounds=1)


def test_ours_are_not_wrapped_and_limits_are_numbers(tmp_path: Path) -> None:
    ours = FlowerStrategy(OurFedAvg(), silos=2, ledger=tmp_path / "ours.jsonl")
    with pytest.raises(ValueError, match="strategy: FlowerStrategy checks replies itself"):
        Checked(ours, ledger=tmp_path / "ledger.jsonl")
    ours.close()
    for heaviest in (0.0, math.nan):
        with pytest.raises(ValueError, match="heaviest must be > 0"):
            Checked(FedAvg(), ledger=tmp_path / "ledger.jsonl", heaviest=heaviest)
