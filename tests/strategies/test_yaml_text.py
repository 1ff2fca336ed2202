from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from strategies.schema import ConfigError
from strategies.yaml_text import override, read_yaml


def attempt(call: Callable[[], Any]) -> tuple[Any, tuple[str, ...]]:
    try:
        return call(), ()
    except ConfigError as error:
        return None, error.problems


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
    ("true: a\n", ":1: a key must be text, put it in quotes"),
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


BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
WORDS = [case(word) for word in ("on", "off", "yes", "no", "y", "n") for case in (str.lower, str.title, str.upper)]


@pytest.mark.parametrize("word", [*BOOLEANS, *WORDS, "tRUE", "truely"])
def test_only_true_and_false_are_booleans(tmp_path: Path, word: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"a: {word}\nb: [{word}]\n")
    expected = BOOLEANS.get(word, word)
    assert read_yaml(path) == {"a": expected, "b": [expected]}
    assert override({}, f"a={word}") == {"a": expected}


def test_a_word_that_yaml_1_1_takes_for_a_boolean_may_be_a_key(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("on: off\n")
    assert read_yaml(tmp_path / "x.yaml") == {"on": "off"}


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
        ("a=off", {"a": "off"}),
        ("a=[on, Yes, NO, y, False]", {"a": ["on", "Yes", "NO", "y", False]}),
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


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_override_is_a_mapping_or_one_line(path: str, text: str) -> None:
    mapping, lines = attempt(lambda: override({"a": "b"}, f"{path}={text}"))
    assert isinstance(mapping, dict) or len(lines) == 1
    assert all(line.isprintable() for line in lines)
