from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from strategies.codec import decode, decode_parts, encode
from strategies.schema import ConfigError, key
from strategies.yaml_text import override, read_yaml, yaml_of


@dataclass(frozen=True)
class Iid:
    pass


@dataclass(frozen=True)
class Dirichlet:
    alpha: float = key(above=0, help="skew")


@dataclass(frozen=True)
class Nested:
    inner: Any = key(Iid(), variants=lambda: SPLITS, help="one more split")


SPLITS: dict[str, type[Any]] = {"iid": Iid, "dirichlet": Dirichlet, "nested": Nested}


@dataclass(frozen=True)
class Bounds:
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be < high,\n got {self.low} and {self.high}")


@dataclass(frozen=True)
class Train:
    learning_rate: float = key(0.1, above=0, help="step size")
    steps: int = key(1, at_least=1, at_most=1000, help="steps")
    momentum: float = key(0.0, at_least=0, below=1, help="momentum")
    nesterov: bool = key(False, help="look ahead")
    widths: tuple[int, ...] = key((8,), at_least=1, help="layers")
    rates: tuple[float, ...] = key((), help="rates")
    tags: tuple[str, ...] = key((), help="labels")
    mode: Literal["fast", "exact"] = key("fast", help="how")
    device: str = key("cpu", choices=("cpu", "cuda"), help="where")
    note: str = key("", help="any text")
    limit: int | None = key(None, at_least=1, help="at most")


@dataclass(frozen=True)
class Config:
    rounds: int = key(at_least=1, help="rounds")
    train: Train = key(Train(), help="local training")
    split: Any = key("iid", variants=lambda: SPLITS, help="split")
    other: Any = key(None, variants=lambda: SPLITS, help="another split")
    bounds: Bounds | None = key(None, help="range")


def problem(config: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        decode(Config, config)
    return str(caught.value)


def attempt(call: Callable[[], Any]) -> tuple[Any, tuple[str, ...]]:
    try:
        return call(), ()
    except ConfigError as error:
        return None, error.problems


def train(**keys: Any) -> dict[str, Any]:
    return {"rounds": 1, "train": keys}


KEYS = "device, learning_rate, limit, mode, momentum, nesterov, note, rates, steps, tags, widths"

ONE_PROBLEM = [
    # Keys.
    ({}, "rounds: missing, give an integer >= 1 (rounds)"),
    ({"rouns": 3}, "rouns: unknown key, did you mean 'rounds'?"),
    (train(learning_rte=0.1), "train.learning_rte: unknown key, did you mean 'learning_rate'?"),
    (train(zzz=1), f"train.zzz: unknown key, choose from {KEYS}"),
    ({"rounds": 1, "split": {"name": "iid", "alpha": 1.0}}, "split.alpha: unknown key, remove it"),
    ({"rounds": 1, "train": None}, "train: expected a section of keys, found null"),
    ({"rounds": 1, "train": [1]}, "train: expected a section of keys, found a list"),
    # Numbers.
    (train(learning_rate="1e-5"), "train.learning_rate: expected a number, found the text '1e-5', write 1.0e-5"),
    (train(learning_rate="1e5"), "train.learning_rate: expected a number, found the text '1e5', write 1.0e+5"),
    (train(learning_rate="-2.5E3"), "train.learning_rate: expected a number, found the text '-2.5E3', write -2.5e+3"),
    (
        train(learning_rate="0.1"),
        "train.learning_rate: expected a number, found the text '0.1', write 0.1 without quotes",
    ),
    (train(learning_rate="fast"), "train.learning_rate: expected a number, found the text 'fast'"),
    (train(learning_rate=float("nan")), "train.learning_rate: must be finite, got nan"),
    (train(learning_rate=float("inf")), "train.learning_rate: must be finite, got inf"),
    (train(learning_rate=1e39), "train.learning_rate: must fit a float32, which ends at 3.4e+38, got 1e+39"),
    (train(rates=[1, -1e300]), "train.rates[1]: must fit a float32, which ends at 3.4e+38, got -1e+300"),
    (train(learning_rate=10**39), "train.learning_rate: must fit a float32, which ends at 3.4e+38, got 1e+39"),
    (train(learning_rate=-1), "train.learning_rate: must be > 0, got -1.0"),
    (train(learning_rate=0), "train.learning_rate: must be > 0, got 0.0"),
    (train(learning_rate=True), "train.learning_rate: expected a number, found true"),
    (train(learning_rate=None), "train.learning_rate: expected a number, found null"),
    (train(learning_rate={}), "train.learning_rate: expected a number, found a section of keys"),
    (
        train(learning_rate=10**400),
        f"train.learning_rate: expected a number, found 1{39 * '0'}...",
    ),
    (
        train(learning_rate=10**5000),
        "train.learning_rate: expected a number, found a number of thousands of digits",
    ),
    (train(momentum=1.0), "train.momentum: must be >= 0 and < 1, got 1.0"),
    (train(steps=0), "train.steps: must be >= 1 and <= 1000, got 0"),
    (train(steps=1001), "train.steps: must be >= 1 and <= 1000, got 1001"),
    (train(steps=True), "train.steps: expected an integer, found true"),
    (train(steps=3.0), "train.steps: expected an integer, found 3.0, write 3"),
    (train(steps=3.5), "train.steps: expected an integer, found 3.5"),
    (train(steps="3"), "train.steps: expected an integer, found the text '3', write 3 without quotes"),
    (train(limit=0), "train.limit: must be >= 1, got 0"),
    # Text, choices, lists.
    (train(nesterov=1), "train.nesterov: expected true or false, found 1"),
    (train(nesterov="yes"), "train.nesterov: expected true or false, found the text 'yes', write true"),
    (train(nesterov="Off"), "train.nesterov: expected true or false, found the text 'Off', write false"),
    (train(nesterov="maybe"), "train.nesterov: expected true or false, found the text 'maybe'"),
    (train(note=False), "train.note: expected text, found false, put it in quotes"),
    (train(note=12), "train.note: expected text, found 12, put it in quotes"),
    (train(note=None), "train.note: expected text, found null"),
    (train(mode="fats"), "train.mode: must be one of fast, exact, found the text 'fats', did you mean 'fast'?"),
    (train(device="tpu"), "train.device: must be one of cpu, cuda, found the text 'tpu', did you mean 'cpu'?"),
    (train(mode=["fast"]), "train.mode: must be one of fast, exact, found a list"),
    (train(tags="a"), "train.tags: expected a list of texts, found the text 'a', write [a]"),
    (train(widths=None), "train.widths: expected a list of integers >= 1, found null"),
    (train(widths={}), "train.widths: expected a list of integers >= 1, found a section of keys"),
    (train(widths=0), "train.widths: must be >= 1, got 0"),
    (train(widths=True), "train.widths: expected an integer, found true"),
    (train(rates="1e-3"), "train.rates: expected a number, found the text '1e-3', write 1.0e-3"),
    (train(rates=float("nan")), "train.rates: must be finite, got nan"),
    (train(widths=[8, 0]), "train.widths[1]: must be >= 1, got 0"),
    (train(rates=[0.1, "1e-3"]), "train.rates[1]: expected a number, found the text '1e-3', write 1.0e-3"),
    # Variants.
    (
        {"rounds": 1, "split": "dirichle"},
        "split.name: unknown 'dirichle', choose from dirichlet, iid, nested, did you mean 'dirichlet'?",
    ),
    ({"rounds": 1, "split": {"alpha": 1}}, "split.name: missing, choose from dirichlet, iid, nested"),
    ({"rounds": 1, "split": "dirichlet"}, "split.alpha: missing, give a number > 0 (skew)"),
    ({"rounds": 1, "split": {"name": "dirichlet", "alpha": 0}}, "split.alpha: must be > 0, got 0.0"),
    ({"rounds": 1, "split": {"name": 3}}, "split.name: unknown 3, choose from dirichlet, iid, nested"),
    (
        {"rounds": 1, "split": 3},
        "split: expected a name or a section with a name, found 3; choose from dirichlet, iid, nested",
    ),
    (
        {"rounds": 1, "split": None},
        "split: expected a name or a section with a name, found null; choose from dirichlet, iid, nested",
    ),
    (
        {"rounds": 1, "split": "os.path:join"},
        "split.name: 'os.path:join' would import code; give it on the command line: --plugin os.path",
    ),
    # The class's own checks.
    ({"rounds": 1, "bounds": {"low": 2, "high": 1}}, "bounds: low must be < high, got 2.0 and 1.0"),
    # Nothing that a file holds can add a line to a problem, or colour a terminal.
    ({"rounds": 1, "a\nb": 1}, "'a\\nb': unknown key, choose from bounds, other, rounds, split, train"),
    ({"rounds": "\x1b[31m"}, "rounds: expected an integer, found the text '\\x1b[31m'"),
]


@pytest.mark.parametrize(("config", "line"), ONE_PROBLEM)
def test_a_problem_is_one_line_with_path_value_and_remedy(config: dict[str, Any], line: str) -> None:
    assert problem(config) == line


def test_three_mistakes_are_three_lines() -> None:
    lines = problem({"rounds": -1, "train": {"learning_rte": 1.0, "steps": 2.5}}).split("\n")
    assert lines == [
        "rounds: must be >= 1, got -1",
        "train.learning_rte: unknown key, did you mean 'learning_rate'?",
        "train.steps: expected an integer, found 2.5",
    ]


def test_a_suggested_number_is_a_number_to_yaml() -> None:
    for text in ("1e-5", "1e5", "-2.5E3", "1.e7", "3E+2"):
        remedy = problem(train(learning_rate=text)).rpartition("write ")[2]
        assert yaml.safe_load(remedy) == float(text)


def test_an_integer_is_a_number() -> None:
    assert decode(Config, train(learning_rate=1)).train == Train(learning_rate=1.0)
    assert type(decode(Config, train(learning_rate=1)).train.learning_rate) is float


@given(st.integers(1, 10**38) | st.floats(-3e38, 3e38))
def test_one_number_is_a_list_of_one(number: float) -> None:
    assert decode(Config, train(rates=number)) == decode(Config, train(rates=[number]))
    assert decode(Config, train(widths=3)).train.widths == (3,)


def test_a_variant_may_be_its_name_alone() -> None:
    assert decode(Config, {"rounds": 1, "split": "iid"}) == decode(Config, {"rounds": 1, "split": {"name": "iid"}})
    assert decode(Config, {"rounds": 1}) == Config(rounds=1) == Config(rounds=1, split=Iid())


def test_a_field_that_the_schema_cannot_read_is_the_programmers_error() -> None:
    bad = dataclasses.make_dataclass("Bad", [("x", set[int])], namespace={"__module__": __name__})
    with pytest.raises(TypeError, match="cannot read a field of type"):
        decode(bad, {"x": 1})


def test_parts_keep_what_could_be_read() -> None:
    parts, lines = decode_parts(Config, {"rounds": 2, "train": {"steps": 0}})
    assert parts == {"rounds": 2, "split": Iid(), "other": None, "bounds": None}
    assert lines == ["train.steps: must be >= 1 and <= 1000, got 0"]


def test_path_goes_before_every_key() -> None:
    with pytest.raises(ConfigError) as caught:
        decode(Train, {"steps": 0, "mod": 1}, path="silo.train")
    assert [line.split(":")[0] for line in caught.value.problems] == ["silo.train.mod", "silo.train.steps"]


# Encoding.

LARGEST = float(np.finfo(np.float32).max)

numbers = st.floats(-LARGEST, LARGEST)
texts = st.text(st.characters(exclude_categories=["Cs"]))
splits = st.recursive(
    st.just(Iid()) | st.builds(Dirichlet, numbers.filter(lambda x: x > 0)), lambda inner: st.builds(Nested, inner)
)
configs = st.builds(
    Config,
    rounds=st.integers(min_value=1),
    train=st.builds(
        Train,
        learning_rate=numbers.filter(lambda x: x > 0),
        steps=st.integers(1, 1000),
        momentum=st.floats(0, 1, exclude_max=True),
        nesterov=st.booleans(),
        widths=st.lists(st.integers(min_value=1)).map(tuple),
        rates=st.lists(numbers).map(tuple),
        tags=st.lists(texts).map(tuple),
        mode=st.sampled_from(["fast", "exact"]),
        device=st.sampled_from(["cpu", "cuda"]),
        note=texts,
        limit=st.none() | st.integers(min_value=1),
    ),
    split=splits,
    other=st.none() | splits,
    bounds=st.none() | st.builds(Bounds, low=st.floats(-5, 0), high=st.floats(1, 5)),
)


@given(configs)
def test_decode_inverts_encode(config: Config) -> None:
    assert decode(Config, encode(config)) == config


@given(configs)
@example(Config(rounds=1, train=Train(note="a\x85b")))
@example(Config(rounds=1, train=Train(note="off", tags=("no", "1e5", "12:30", "null", "~", "=", "<<", ""))))
def test_an_encoded_config_survives_a_file(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(yaml_of(encode(config)), encoding="utf-8")
    assert decode(Config, read_yaml(path)) == config


def test_a_variants_name_comes_first() -> None:
    assert list(encode(Config(rounds=1, split=Dirichlet(0.5)))["split"].items()) == [
        ("name", "dirichlet"),
        ("alpha", 0.5),
    ]


def test_an_unregistered_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="Bounds is not registered; choose from dirichlet, iid, nested"):
        encode(Config(rounds=1, split=Bounds(0.0, 1.0)))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(sorted(SPLITS)), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.sampled_from([field.name for cls in (Config, Train) for field in dataclasses.fields(cls)])
sections = st.dictionaries(names | texts, values | st.dictionaries(names, values), max_size=5)


@given(sections)
def test_whatever_the_mapping_there_is_a_config_or_a_line_for_each_problem(mapping: dict[str, Any]) -> None:
    config, lines = attempt(lambda: decode(Config, mapping))
    assert (config is None) == (len(lines) > 0)
    assert all(line.isprintable() for line in lines)
    assert config is None or decode(Config, encode(config)) == config


def test_a_misspelt_override_is_reported_when_decoding() -> None:
    assert problem(override({"rounds": 1}, "trian.steps=2")) == "trian: unknown key, did you mean 'train'?"
    assert problem(override({"rounds": 1}, "rounds.x=2")) == "rounds: expected an integer, found a section of keys"
