from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from strategies.schema import ConfigError, Row, decode, decode_parts, describe, encode, key, override, read_yaml


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


KEYS = "device, learning_rate, limit, mode, momentum, nesterov, note, rates, steps, widths"

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
    (train(nesterov="yes"), "train.nesterov: expected true or false, found the text 'yes'"),
    (train(note=False), "train.note: expected text, found false, put it in quotes"),
    (train(note=12), "train.note: expected text, found 12, put it in quotes"),
    (train(note=None), "train.note: expected text, found null"),
    (train(mode="fats"), "train.mode: must be one of fast, exact, found the text 'fats', did you mean 'fast'?"),
    (train(device="tpu"), "train.device: must be one of cpu, cuda, found the text 'tpu', did you mean 'cpu'?"),
    (train(mode=["fast"]), "train.mode: must be one of fast, exact, found a list"),
    (train(widths=8), "train.widths: expected a list of integers >= 1, found 8, write [8]"),
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

numbers = st.floats(allow_nan=False, allow_infinity=False)
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
def test_an_encoded_config_survives_a_file(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(yaml.safe_dump(encode(config), allow_unicode=True), encoding="utf-8")
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


# The table.


def test_describe_has_a_row_for_every_key() -> None:
    rows = {row.path: row for row in describe(Config)}
    assert rows["rounds"] == Row("rounds", "integer", "required", ">= 1", "rounds")
    assert rows["train.momentum"] == Row("train.momentum", "number", "0.0", ">= 0 and < 1", "momentum")
    assert rows["train.widths"] == Row("train.widths", "list of integers", "[8]", ">= 1", "layers")
    assert rows["train.mode"] == Row("train.mode", "choice", "fast", "fast, exact", "how")
    assert rows["train.device"] == Row("train.device", "choice", "cpu", "cpu, cuda", "where")
    assert rows["train.nesterov"] == Row("train.nesterov", "true or false", "false", "", "look ahead")
    assert rows["train.limit"] == Row("train.limit", "integer or null", "null", ">= 1", "at most")
    assert rows["split"] == Row("split", "variant", "iid", "dirichlet, iid, nested", "split")
    assert rows["split[dirichlet].alpha"] == Row("split[dirichlet].alpha", "number", "required", "> 0", "skew")
    assert rows["split[nested].inner"].default == "iid"
    assert rows["other"].default == "null"
    assert rows["bounds"] == Row("bounds", "section of keys or null", "null", "", "range")
    assert {f"train.{field.name}" for field in dataclasses.fields(Train)} <= set(rows)


def test_describe_leaves_registries_alone_when_asked() -> None:
    def explode() -> dict[str, type[Any]]:
        raise AssertionError("loaded")

    slow = dataclasses.make_dataclass("Slow", [("x", Any, key("a", variants=explode, help="slow"))])
    assert describe(slow, open_variants=False) == [Row("x", "variant", "a", "", "slow")]


# Files.


def refusal(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    (line,) = caught.value.problems
    assert line.startswith(str(path))
    return line.removeprefix(str(path))


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"

BAD_FILES = [
    (BOMB, ":1: anchors and aliases are not read, write the value out"),
    ("a: *b\n", ":1: anchors and aliases are not read, write the value out"),
    ("x: 1\na: !!python/object/apply:os.system [id]\n", ":2: tags (!...) are not read, write a plain value"),
    ("a: !!str 1\n", ":1: tags (!...) are not read, write a plain value"),
    ("a: ! 1\n", ":1: tags (!...) are not read, write a plain value"),
    ("a: 1\nb: 2\na: 3\n", ":3: a: this key is here twice, remove one"),
    ("t:\n  a: 1\n  'a': 2\n", ":3: a: this key is here twice, remove one"),
    ("<<: {a: 1}\n", ":1: a key must be text, put it in quotes"),
    ("1: a\n", ":1: a key must be text, put it in quotes"),
    ("on: a\n", ":1: a key must be text, put it in quotes"),
    ("? [a]\n: b\n", ":1: a key must be text, put it in quotes"),
    ("- a\n", ": expected keys and values (key: value), found a list"),
    ("just text\n", ": expected keys and values (key: value), found the text 'just text'"),
    ("", ": expected keys and values (key: value), found null"),
    ("a: " + "[" * 33 + "]" * 33, ":1: more than 32 levels deep, flatten it"),
    ("a: " + "[" * 900_000, ":1: more than 32 levels deep, flatten it"),
    ("#" * 1_000_001, ": larger than 1000000 bytes, an experiment is a page"),
    (b"a: \xff\n", ": not a UTF-8 text file, save it as UTF-8 YAML"),
    ("a: [1,\nb: 2\n", ":3: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
    ("a: 1\n---\nb: 2\n", ":2: expected a single document in the stream, but found another document"),
]


@pytest.mark.parametrize(("text", "line"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_file_is_refused_in_one_line(tmp_path: Path, text: str | bytes, line: str) -> None:
    assert refusal(tmp_path / "x.yaml", text) == line


@pytest.mark.parametrize("text", ["a: 2020-13-45\n", f"a: {'9' * 5000}\n", "a: \x00\n", "a: \x1b\n"])
def test_values_that_yaml_itself_cannot_read_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path / "x.yaml", text).startswith(": not valid YAML: ")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            read_yaml(path)
        assert str(caught.value).startswith(f"{path}: cannot be read: ")


@given(st.binary(max_size=200))
@example(b"a: \xf0\x9f\x98\x80")
@example(b"a: <<")
@example(b"a: =")
def test_any_bytes_are_a_mapping_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    mapping, lines = attempt(lambda: read_yaml(path))
    assert isinstance(mapping, dict) or len(lines) == 1
    assert all(line.isprintable() for line in lines)


# --set.


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("a=1", {"a": 1}),
        ("a.b=1e-5", {"a": {"b": 1e-5}}),
        ("a=-1E5", {"a": -1e5}),
        ("a='1e-5'", {"a": "1e-5"}),
        ("a=[1, 1e-3]", {"a": [1, 1e-3]}),
        ("a=null", {"a": None}),
        ("a=", {"a": None}),
        ("a=true", {"a": True}),
        ("a={name: iid}", {"a": {"name": "iid"}}),
        ("a=schools:exam", {"a": "schools:exam"}),
        ("a=x=y", {"a": "x=y"}),
        ("a=1e-5x", {"a": "1e-5x"}),
    ],
)
def test_a_value_after_set_is_yaml_where_1e_5_is_a_number(assignment: str, expected: dict[str, Any]) -> None:
    assert override({}, assignment) == expected


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("a", "--set a: write KEY=VALUE, for example train.learning_rate=0.1"),
        ("=1", "--set =1: write KEY=VALUE, for example train.learning_rate=0.1"),
        ("a..b=1", "--set a..b=1: write KEY=VALUE, for example train.learning_rate=0.1"),
        ("a=!!str 1", "--set a: tags (!...) are not read, write a plain value"),
        ("a=&x 1", "--set a: anchors and aliases are not read, write the value out"),
        ("a={b: 1, b: 2}", "--set a: b: this key is here twice, remove one"),
    ],
)
def test_a_bad_override_is_one_line(assignment: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override({}, assignment)
    assert str(caught.value) == line


def test_an_override_changes_one_key_and_not_its_argument() -> None:
    before = {"rounds": 1, "train": {"steps": 1, "mode": "fast"}}
    assert override(before, "train.steps=2") == {"rounds": 1, "train": {"steps": 2, "mode": "fast"}}
    assert before == {"rounds": 1, "train": {"steps": 1, "mode": "fast"}}


def test_a_misspelt_override_is_reported_when_decoding() -> None:
    assert problem(override({"rounds": 1}, "trian.steps=2")) == "trian: unknown key, did you mean 'train'?"
    assert problem(override({"rounds": 1}, "rounds.x=2")) == "rounds: expected an integer, found a section of keys"


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_override_is_a_mapping_or_one_line(path: str, text: str) -> None:
    mapping, lines = attempt(lambda: override({"a": "b"}, f"{path}={text}"))
    assert isinstance(mapping, dict) or len(lines) == 1
    assert all(line.isprintable() for line in lines)
