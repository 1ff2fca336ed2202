from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from strategies import plugins
from strategies.codec import encode
from strategies.experiment import Data
from strategies.loading import parse
from strategies.registry import STRATEGIES
from strategies.schema import ConfigError

MINE = {"rounds": 3, "task": "logistic", "data": {"name": "digits", "silos": 10}, "strategy": "mine"}


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(STRATEGIES)
    yield
    STRATEGIES.clear()
    STRATEGIES.update(before)


PLUGIN = """
from dataclasses import dataclass
from strategies.base import Strategy
from strategies.registry import strategy
from strategies.schema import key

@strategy("mine")
@dataclass(frozen=True)
class Mine(Strategy):
    pull: float = key(0.5, at_least=0, help="how hard")
"""


def test_a_plugin_adds_a_strategy_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: None) -> None:
    (tmp_path / "confide_test_mine.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^strategy.name: unknown 'mine'"):
        parse(MINE)
    plugins.load_plugins(["confide_test_mine"])
    assert encode(parse(MINE))["strategy"] == {"name": "mine", "pull": 0.5}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (
            "confide_none",
            "--plugin confide_none: ModuleNotFoundError: No module named 'confide_none'; "
            "install it, or put its folder on PYTHONPATH",
        ),
        ("confide_broken", "--plugin confide_broken: ZeroDivisionError: division by zero; fix the module"),
        ("a:b", "--plugin a:b: found 'a:b'; write package.module, as in an import"),
        ("../x", "--plugin ../x: found '../x'; write package.module, as in an import"),
        (".x", "--plugin .x: found '.x'; write package.module, as in an import"),
        ("", "--plugin : found ''; write package.module, as in an import"),
    ],
)
def test_a_plugin_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, line: str
) -> None:
    (tmp_path / "confide_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(plugins.PluginError) as caught:
        plugins.load_plugins([module])
    assert str(caught.value) == line


def test_import_path_finds_nested_attributes() -> None:
    assert plugins.import_path("strategies.experiment:Data.__name__") == Data.__name__


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("math", "import path: found 'math'; write package.module:attribute"),
        ("math:", "import path: found 'math:'; write package.module:attribute"),
        ("math:tau2", "import path: module math has no 'tau2'; check the name"),
        ("ma th:pi", "import path: found 'ma th'; write package.module, as in an import"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_one_line(path: str, line: str) -> None:
    with pytest.raises(plugins.PluginError) as caught:
        plugins.import_path(path)
    assert str(caught.value) == line


def offer(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    points = EntryPoints(EntryPoint(f"p{i}", value, "confide.strategies") for i, value in enumerate(values))
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: points.select(group=group))


def test_entry_points_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: None) -> None:
    for number, attribute in ((1, ""), (2, ":Mine")):
        (tmp_path / f"confide_test_point{number}.py").write_text(PLUGIN.replace('"mine"', f'"mine{number}"'))
        monkeypatch.syspath_prepend(tmp_path)
        offer(monkeypatch, f"confide_test_point{number}{attribute}")
        plugins.load_entry_points()
        assert f"mine{number}" in STRATEGIES


def test_an_entry_point_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "confide_none:Thing")
    with pytest.raises(plugins.PluginError, match=r"^entry point p0 of package unknown: ModuleNotFoundError: .*$"):
        plugins.load_entry_points()
