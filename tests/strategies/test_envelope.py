"""Envelopes: what goes in comes out, each message has one spelling, and nothing else is taken, at any cost."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.chain import Head
from strategies import wire
from strategies.envelope import (
    Columns,
    EnvelopeError,
    Expected,
    Limits,
    Reply,
    Schema,
    Task,
    decode_reply,
    decode_task,
    encode,
    refusal,
    scalar,
)
from strategies.envelope_header import PREFIX

RUN, DIGEST = "ab" * 16, "cd" * 32
SCHEMA = Schema(kind="classification", shape=(1, 8, 8), classes=10, class_names=("0", "é"))
HELLO = Task(kind="hello", run=RUN, digest=DIGEST, experiment="name: quick\nseed: 1\n", schema=SCHEMA)
MODEL = torch.tensor([1.0, 0.0, -1.0, 2.0**-149, 3.25, 0.0, 0.0, 0.0])
TRAIN = Task(
    kind="train",
    run=RUN,
    digest=DIGEST,
    round=3,
    attempt=2,
    tier=1,
    committed=2,
    record=True,
    deadline_s=12.5,
    vectors={
        "model": MODEL,
        "table": torch.tensor([[1.0, -0.0], [float("inf"), 2.0], [0.0, -3.0]]),
        "steps": torch.tensor(7),
        "mass": torch.rand(3).double(),
    },
    kept={"model": 5},
)
REPLY = Reply(
    run=RUN,
    digest=DIGEST,
    round=3,
    attempt=2,
    silo=4,
    weight=0.5,
    losses=(0.25, None),
    ledger=Head(9, "ef" * 32),
    seconds=1.5,
    channels={"delta": MODEL},
    kept={"delta": 5},
)
EXPECTED = Expected({"delta": 8}, {"delta": 5})


def same(left: Task | Reply, right: Task | Reply) -> bool:
    one, other = (each.vectors if isinstance(each, Task) else each.channels for each in (left, right))
    bare = {"vectors": {}} if isinstance(left, Task) else {"channels": {}}
    return (
        replace(left, **bare) == replace(right, **bare)
        and list(one) == list(other)
        and all(
            one[name].dtype == other[name].dtype
            and one[name].shape == other[name].shape
            and one[name].numpy().tobytes() == other[name].numpy().tobytes()
            for name in one
        )
    )


def header_of(data: bytes) -> Any:
    length = PREFIX.unpack_from(data)[4]
    return json.loads(data[PREFIX.size : PREFIX.size + length])


def forged(data: bytes, text: bytes) -> bytes:
    """The envelope with another header."""
    magic, version, kind, zero, length = PREFIX.unpack_from(data)
    return PREFIX.pack(magic, version, kind, zero, len(text)) + text + data[PREFIX.size + length :]


def rewritten(data: bytes, **changes: Any) -> bytes:
    text = json.dumps(header_of(data) | changes, sort_keys=True, separators=(",", ":"))
    return forged(data, text.encode())


# What goes in comes out.


@pytest.mark.parametrize("task", [HELLO, TRAIN, replace(TRAIN, kind="evaluate", split="validation", fresh=True)])
def test_a_task_comes_back_bit_for_bit(task: Task) -> None:
    assert same(decode_task(encode(task)), task)


@pytest.mark.parametrize(
    "reply", [REPLY, replace(REPLY, channels={}, kept={}, evaluation=Columns(rows=3, loss=None, score=0.5))]
)
def test_a_reply_comes_back_bit_for_bit(reply: Reply) -> None:
    assert same(decode_reply(encode(reply), EXPECTED if reply.channels else None), reply)


def test_the_bytes_after_the_header_are_those_of_the_wire_format() -> None:
    data = encode(replace(TRAIN, vectors={"model": MODEL}))
    assert data.endswith(wire.encode(MODEL, kept=5))
    assert len(data) == PREFIX.size + PREFIX.unpack_from(data)[4] + wire.size(8, 5)


def test_a_negative_zero_is_no_number_that_travels_where_some_are_left_out() -> None:
    """Masks make them: -3 times 0 is -0.0, and a strategy that keeps one number of two has kept its word."""
    masked = torch.tensor([-3.0, 2.0]) * torch.tensor([0.0, 1.0])
    back = decode_reply(
        encode(replace(REPLY, channels={"delta": masked}, kept={"delta": 1})), Expected({"delta": 2}, {"delta": 1})
    )
    assert back.channels["delta"].tolist() == [0.0, 2.0]


def test_float16_is_rounded_once_and_comes_as_float32() -> None:
    third = torch.full((4, 1), 1 / 3)
    data = encode(replace(TRAIN, vectors={"model": third}, kept={}), values="float16")
    back = decode_task(data)
    assert back.vectors["model"].dtype == torch.float32
    assert torch.equal(back.vectors["model"], wire.rounded(third, "float16"))
    assert encode(back, values="float16") == data


names = st.text(min_size=1, max_size=6).filter(lambda name: name.encode("utf-8", "ignore").decode() == name)
vectors = st.builds(
    lambda sides, seed: torch.randn(sides, generator=torch.Generator().manual_seed(seed)),
    st.lists(st.integers(0, 5), max_size=4),
    st.integers(0, 9),
)


@given(st.dictionaries(names, vectors, max_size=4), st.integers(1, 2**53), st.floats(1e-6, 1e7))
def test_every_task_comes_back(tensors: dict[str, torch.Tensor], round_: int, deadline_s: float) -> None:
    task = Task(kind="train", run=RUN, digest=DIGEST, round=round_, deadline_s=deadline_s, vectors=tensors)
    data = encode(task)
    assert same(decode_task(data), task)
    assert encode(decode_task(data)) == data


# Nothing else is taken.


@settings(max_examples=300)
@given(st.integers(0, len(encode(TRAIN)) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_is_another_message_in_its_one_spelling(place: int, change: int) -> None:
    data = bytearray(encode(TRAIN))
    data[place] ^= change
    try:
        task = decode_task(bytes(data))
    except EnvelopeError:
        return
    assert encode(task) == bytes(data)


@pytest.mark.parametrize("data", [encode(HELLO), encode(TRAIN)])
def test_every_part_of_an_envelope_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(EnvelopeError):
            decode_task(data[:length])
    with pytest.raises(EnvelopeError, match="bytes follow a header"):
        decode_task(data + b"\0")


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_an_envelope_error(tail: bytes) -> None:
    for data in (tail, encode(HELLO)[: PREFIX.size] + tail, forged(encode(HELLO), tail)):
        with pytest.raises(EnvelopeError):
            decode_task(data)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"extra": 1}, "keys"),
        ({"round": True}, "an integer"),
        ({"round": 1.5}, "an integer"),
        ({"round": -1}, ">= 0"),
        ({"round": 2**60}, "<="),
        ({"deadline_s": float("nan")}, "finite"),
        ({"deadline_s": float("inf")}, "finite"),
        ({"deadline_s": 12}, "canonical"),
        ({"deadline_s": "12"}, "number"),
        ({"kind": "exec"}, "must be one of"),
        ({"run": "../../etc/passwd"}, "hexadecimal"),
        ({"run": RUN.upper()}, "hexadecimal"),
        ({"digest": None}, "expected"),
        ({"experiment": "name: x"}, "belong to a hello"),
        ({"blobs": {}}, "list"),
        ({"blobs": [{}]}, "missing"),
        ({"vectors": {}}, "keys"),
    ],
)
def test_a_header_that_says_something_else_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(EnvelopeError, match=reason) as caught:
        decode_task(rewritten(encode(TRAIN), **changes))
    assert "\n" not in str(caught.value)


def test_one_message_has_one_spelling() -> None:
    data = encode(HELLO)
    header = header_of(data)
    spaced = json.dumps(header, sort_keys=True).encode()
    doubled = b'{"attempt":2,' + json.dumps(header, sort_keys=True, separators=(",", ":")).encode()[1:]
    for text in (spaced, doubled):  # The last of two equal keys would win: two readers could see two messages.
        with pytest.raises(EnvelopeError, match="canonical"):
            decode_task(forged(data, text))


def test_half_a_character_is_refused_since_nobody_could_write_it_down() -> None:
    with pytest.raises(EnvelopeError):
        decode_task(rewritten(encode(HELLO), experiment="\ud800"))


def test_a_deep_header_and_a_long_number_are_refused() -> None:
    for text in (b"[" * 100_000, b'{"a":' * 50_000, b"1" * 10_000):
        with pytest.raises(EnvelopeError):
            decode_task(forged(encode(HELLO), text))


@pytest.mark.parametrize("kind", ["task", "reply"])
def test_other_versions_and_other_kinds_are_told_apart(kind: str) -> None:
    data = bytearray(encode(TRAIN) if kind == "task" else encode(REPLY))
    decode = decode_reply if kind == "task" else decode_task
    with pytest.raises(EnvelopeError, match="of kind"):
        decode(bytes(data))
    data[4] = 2
    with pytest.raises(EnvelopeError, match="version 2") as caught:
        decode(bytes(data))
    assert caught.value.code == "version"


# Sizes are looked at before memory is taken.


@pytest.mark.parametrize(
    "blob",
    [
        {"bytes": 12, "kept": 0, "name": "a", "shape": [2**28, 1], "type": "float32"},  # All zeros: 12 bytes, 1 GiB.
        {"bytes": 2**33, "kept": 2**30, "name": "a", "shape": [2**30], "type": "float64"},
        {"bytes": 12, "kept": 0, "name": "a", "shape": [2**32 - 1] * 4, "type": "float32"},
        {"bytes": -1, "kept": 1, "name": "a", "shape": [0], "type": "int64"},
        {"bytes": 16, "kept": 2, "name": "a", "shape": [1], "type": "float32"},
        {"bytes": 0, "kept": 0, "name": "a", "shape": [0] * 5, "type": "float64"},
    ],
)
def test_a_blob_that_asks_for_more_than_it_brings_takes_no_memory(blob: dict[str, Any]) -> None:
    data = rewritten(encode(replace(TRAIN, vectors={}, kept={})), blobs=[blob]) + b"\0" * 12
    tracemalloc.start()
    try:
        with pytest.raises(EnvelopeError):
            decode_task(data, limits=Limits(numbers=2**20))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("shape", "kept", "bytes_"), [([2], 2, 8), ([1], 0, 8), ([1], 2, 8), ([1], 1, 9), ([], 1, 16)])
def test_bytes_that_are_not_those_of_a_shape_are_refused(shape: list[int], kept: int, bytes_: int) -> None:
    """Two numbers in 8 bytes; one that does not travel; two of one; an odd byte; a number too many."""
    blob = {"bytes": bytes_, "kept": kept, "name": "a", "shape": shape, "type": "float64"}
    data = rewritten(encode(replace(TRAIN, vectors={}, kept={})), blobs=[blob]) + b"\0" * bytes_
    with pytest.raises(EnvelopeError, match="which its shape does not"):
        decode_task(data)


def test_a_million_tiny_vectors_are_refused_by_the_length_of_the_header() -> None:
    data = bytearray(encode(HELLO))
    data[8:12] = (2**31).to_bytes(4, "little")
    with pytest.raises(EnvelopeError, match="limit") as caught:
        decode_task(bytes(data))
    assert caught.value.code == "too_large"
    blob = {"bytes": 0, "kept": 0, "name": "a", "shape": [0], "type": "float64"}
    with pytest.raises(EnvelopeError, match="at most 256"):
        decode_task(rewritten(encode(TRAIN), blobs=[blob | {"name": str(n)} for n in range(257)]))
    with pytest.raises(EnvelopeError, match="one name"):
        decode_task(rewritten(encode(TRAIN), blobs=[blob, blob]))


def test_limits_are_the_receivers_and_exact() -> None:
    data = encode(TRAIN)
    decode_task(data, limits=Limits(bytes=len(data), numbers=8 + 6 + 1 + 3))
    for limits in (Limits(bytes=len(data) - 1), Limits(numbers=17), Limits(header=10)):
        with pytest.raises(EnvelopeError, match="limit"):
            decode_task(data, limits=limits)


# A reply is what was asked.


@pytest.mark.parametrize(
    "expected",
    [
        Expected({"delta": 8}),
        Expected({"delta": 7}, {"delta": 5}),
        Expected({"delta": 8}, {"delta": 5}, "float16"),
        Expected({"other": 8}, {"other": 5}),
        Expected({"delta": 8, "other": 1}, {"delta": 5}),
        Expected({}),
        None,
    ],
)
def test_channels_that_were_not_asked_for_are_refused(expected: Expected | None) -> None:
    with pytest.raises(EnvelopeError, match="asked"):
        decode_reply(encode(REPLY), expected)


def test_a_vector_in_a_shape_that_would_broadcast_is_refused() -> None:
    for shape in ((1, 8), (8, 1), (2, 4)):
        with pytest.raises(EnvelopeError, match="asked"):
            decode_reply(encode(replace(REPLY, channels={"delta": MODEL.reshape(shape)})), EXPECTED)


def test_more_numbers_than_travel_are_not_even_sent() -> None:
    with pytest.raises(EnvelopeError, match="may travel"):
        encode(replace(REPLY, kept={"delta": 2}))
    with pytest.raises(EnvelopeError, match="travel"):
        encode(replace(REPLY, channels={"delta": torch.ones(8, dtype=torch.complex64)}))


@pytest.mark.parametrize("changes", [{"weight": "1"}, {"weight": 1}, {"losses": [0.1] * 65}, {"silo": -2}])
def test_a_reply_with_other_numbers_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeError):
        decode_reply(rewritten(encode(REPLY), **changes), EXPECTED)


def test_a_refusal_carries_a_code_and_a_line_and_no_numbers() -> None:
    said = refusal("budget", "one\n two\x1b[2J" + "x" * 600, task=TRAIN, silo=2)
    back = decode_reply(encode(said), EXPECTED)
    assert (back.code, back.silo, back.round, back.attempt) == ("budget", 2, 3, 2)
    assert back.reason.startswith("one two?[2Jxxx")
    assert len(back.reason) == 500
    for changes in ({"losses": [0.1]}, {"code": "because"}, {"code": None}, {"reason": "a\nb"}):
        with pytest.raises(EnvelopeError):
            decode_reply(rewritten(encode(said), **changes), EXPECTED)
    smuggled = rewritten(encode(REPLY), status="refused", code="policy", losses=[])
    with pytest.raises(EnvelopeError, match="no numbers"):
        decode_reply(smuggled, EXPECTED)


def test_numbers_that_json_has_not_travel_as_none() -> None:
    assert [scalar(each) for each in (0.5, math.inf, -math.inf, math.nan, 1e39)] == [0.5, None, None, None, None]


def test_a_relay_can_refuse_without_loading_torch() -> None:
    code = (
        "import sys; from strategies.envelope import encode, refusal; "
        "encode(refusal('silo_unreachable', 'nobody')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
