"""What holds for every test: no time limits, and no skips where nothing may be missing."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A loaded machine is slow, not wrong.
settings.register_profile("confide", settings.default, deadline=None)
settings.load_profile("confide")

COMPLETE = os.environ.get("CONFIDE_INTEGRATION") == "1"
CANNOT = "this machine cannot"
"""How the reason of a skip begins that no package mends, as the kernel or its owner forbids what is tested. It stays a
skip also where none is allowed otherwise, and is printed with its reason."""


@pytest.fixture(autouse=True, scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's folder for what fixtures of a module or of the session run before a test has one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(tmp_path_factory.mktemp("homes")))
        yield


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder for every test, so that no budget of one is spent by another, nor by whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("CONFIDE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True, scope="module")
def registries() -> Iterator[None]:
    """What the plug-ins of one file of tests register is gone in the next one."""
    from strategies.backbones import BACKBONES
    from strategies.registry import STRATEGIES
    from strategies.tasks import TASKS

    kept: list[tuple[dict[str, Any], dict[str, Any]]] = [(each, dict(each)) for each in (STRATEGIES, TASKS, BACKBONES)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests with the faults that they hold, by the table of faults/README.md."""
    root = Path(__file__).parent
    if not (root / "faults").is_dir():  # A copy of this file alone, which its own tests make.
        return
    from tests.faults.claims import marks

    table = marks()
    for item in items:
        if item.path.is_relative_to(root):
            file, name = str(item.path.relative_to(root)), getattr(item, "originalname", item.name)
            for fault in sorted(table.get((file, ""), set()) | table.get((file, name), set())):
                item.add_marker(pytest.mark.fault(fault))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return unskipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return unskipped((yield))


def unskipped(report: Any) -> Any:
    """With CONFIDE_INTEGRATION=1 a skip is a failure: a tool or data is missing, so something went untested."""
    if COMPLETE and report.skipped and not hasattr(report, "wasxfail"):
        where, line, reason = report.longrepr
        if reason.startswith(f"Skipped: {CANNOT}: "):
            return report
        report.outcome = "failed"
        report.longrepr = f"{where}:{line}: {reason} (CONFIDE_INTEGRATION=1 allows no skips)"
    return report
