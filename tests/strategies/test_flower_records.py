"""Records of a strategy's messages: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from strategies.base import Instruction, Update
from strategies.fedavg import FedAvg
from strategies.flasc import FLASC
from strategies.flower_records import (
    TERMS,
    UPDATE,
    VECTORS,
    Refused,
    answer,
    arrays_of,
    layout_of,
    read_answer,
    read_task,
    task,
    trainable,
    vector_of,
)
from strategies.flower_silo import misfit
from strategies.layout import Layout
from strategies.optimizers import Adam
from strategies.registry import STRATEGIES

LAYOUT = Layout(("a", "b.c"), ((2, 3), ()))
MODEL = torch.tensor([0.0, 1.0, -2.0, 0.0, 0.5, 0.0, 3.0])
INSTRUCTION = Instruction(4, {"model": MODEL}, kept={"model": 5})
SETTINGS = FLASC(density_up=0.3, every=2, server=Adam(learning_rate=0.01))


def written() -> RecordDict:
    return task(SETTINGS, INSTRUCTION, LAYOUT, run="ab")


def changed(**changes: Any) -> RecordDict:
    record = written()
    terms = json.loads(str(record.config_records[TERMS]["terms"]))
    record.config_records[TERMS]["terms"] = json.dumps({**terms, **changes})
    return record


def test_a_task_is_read_as_it_was_written() -> None:
    terms, instruction = read_task(written())
    assert (terms.run, terms.round, terms.strategy, terms.layout) == ("ab", 4, SETTINGS, LAYOUT)
    assert torch.equal(instruction["model"], MODEL)
    assert (instruction.round, instruction.tier, instruction.kept) == (4, 0, {"model": 5})


@pytest.mark.parametrize("name", sorted(name for name, cls in STRATEGIES.items() if misfit(cls()) is None))
def test_every_strategy_that_fits_keeps_its_settings(name: str) -> None:
    chosen = STRATEGIES[name]()
    assert read_task(task(chosen, INSTRUCTION, LAYOUT, run=""))[0].strategy == chosen


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (RecordDict(), "it has no instruction of confide"),
        (changed(version=2), "version: must be"),
        (changed(round=0), "round: must be"),
        (changed(round=True), "round: expected"),
        (changed(strategy={"name": "os:system"}), "would import code"),
        (changed(strategy={"name": "flasc", "density_up": 2.0}), "density_up: must be"),
        (changed(strategy={"name": "flasc", "density_up": float("nan")}), "NaN is not a number"),
        (changed(more=1), "more: unknown key"),
        (changed(vectors=[{"name": "model", "size": 8, "kept": 5}]), "not a vector of 8 numbers"),
        (changed(vectors=[{"name": "model", "size": 7, "kept": 4}]), "kept"),
        (changed(vectors=[{"name": "other", "size": 7, "kept": 5}]), "where \\['other'\\] were expected"),
        (RecordDict({**written(), TERMS: ConfigRecord({"terms": "[" * 100_000})}), "cannot be read"),
        (RecordDict({**written(), TERMS: ConfigRecord({"terms": '{"round": 1, "round": 2}'})}), "a key is there twice"),
        (RecordDict({**written(), TERMS: ConfigRecord({"terms": b"{}"})}), "it has no instruction of confide"),
        (RecordDict({**written(), VECTORS: ArrayRecord({"model": Array(MODEL.numpy())})}), "in the form confide.wire"),
    ],
)  # fmt: skip
def test_a_task_of_another_kind_is_refused_in_one_line(record: RecordDict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        read_task(record)
    assert "\n" not in str(caught.value)


EXPECTED: dict[str, Any] = {"run": "ab", "round_": 4, "sizes": {"delta": 7}, "kept": {"delta": 4}}


def reply() -> RecordDict:
    return answer(Update({"delta": MODEL}, weight=torch.tensor(0.5)), read_task(written())[0], {"delta": 4})


def test_an_answer_is_read_as_it_was_written() -> None:
    found = read_answer(reply(), **EXPECTED)
    assert torch.equal(found.channels["delta"], MODEL)
    assert found.weight == 0.5


def test_no_more_numbers_travel_than_were_said() -> None:
    with pytest.raises(ValueError, match="found 4 numbers that are not zero"):
        answer(Update({"delta": MODEL}), read_task(written())[0], {"delta": 3})
    with pytest.raises(Refused, match="a vector is not as it was asked"):
        read_answer(reply(), **{**EXPECTED, "kept": {"delta": 3}})


@pytest.mark.parametrize("change", [{"run": "ba"}, {"round_": 5}])
def test_an_answer_to_another_round_or_run_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="another round or run"):
        read_answer(reply(), **{**EXPECTED, **change})


CONFIG = st.one_of(st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=5), st.binary(max_size=5), st.booleans())
ARRAYS = st.builds(
    Array,
    st.sampled_from(["float32", "float64", ""]),
    st.lists(st.integers(0, 9), max_size=2).map(tuple),
    st.sampled_from(["confide.wire", "numpy.ndarray", ""]),
    st.one_of(st.binary(max_size=60), st.just(b"cw\x01\x00")),
)


@given(
    about=st.dictionaries(st.sampled_from(["run", "round", "weight", "x"]), CONFIG),
    arrays=st.dictionaries(st.sampled_from(["delta", "x"]), ARRAYS),
    names=st.tuples(st.sampled_from([TERMS, UPDATE, "x"]), st.sampled_from([TERMS, UPDATE, "x"])),
)
def test_whatever_comes_is_an_answer_or_refused(about: Any, arrays: Any, names: Any) -> None:
    content = RecordDict({names[0]: ConfigRecord(about), names[1]: ArrayRecord(arrays)})
    with pytest.raises(Refused):
        read_answer(content, **EXPECTED)


def test_arrays_become_a_vector_and_the_same_arrays_again() -> None:
    record = ArrayRecord({"z": Array(np.arange(6, dtype=np.float32).reshape(2, 3)), "a": Array(np.float32([7.0]))})
    vector = vector_of(record)
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7]
    back = arrays_of(layout_of(record), vector)
    assert list(back) == ["z", "a"]
    assert all(np.array_equal(back[name].numpy(), record[name].numpy()) for name in record)


def test_a_models_trained_parameters_are_its_arrays() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    assert layout_of(trainable(model)) == Layout.of(model) == Layout(("1.weight", "1.bias"), ((1, 3), (1,)))


def test_arrays_that_are_no_float32_are_refused_by_name() -> None:
    for array, found in ((Array(np.zeros(2)), "float64"), (Array("float32", (2,), "x", b""), "'x'")):
        with pytest.raises(ValueError, match=f"initial_arrays: 'b' is .*{found}"):
            layout_of(ArrayRecord({"a": Array(np.zeros(2, np.float32)), "b": array}))
    with pytest.raises(ValueError, match="holds no array"):
        layout_of(ArrayRecord())


def test_a_strategy_that_is_not_registered_does_not_travel() -> None:
    class Own(FedAvg):
        """Nobody else has it."""

    with pytest.raises(ValueError, match="not registered"):
        task(Own(), INSTRUCTION, LAYOUT, run="")
