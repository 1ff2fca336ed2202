from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.skip(reason="no chromium")
def test_marked():
    pass

def test_called():
    pytest.skip("no carrier")

def test_forbidden():
    pytest.skip("this machine cannot: namespaces")

@pytest.fixture
def tool():
    pytest.skip("no tool")

def test_fixture(tool):
    pass

@pytest.mark.xfail(reason="known")
def test_known():
    assert False

def test_passes():
    pass
"""
MODULE = "import pytest\npytest.importorskip('no_such_module')\n"


def closing_line(folder: Path, complete: str | None, *files: str) -> tuple[str, str]:
    shutil.copy(Path(__file__).parent / "conftest.py", folder)
    environment = {name: value for name, value in os.environ.items() if name != "CONFIDE_INTEGRATION"}
    if complete is not None:
        environment["CONFIDE_INTEGRATION"] = complete
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        str(folder),
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run([*command, *files], cwd=folder, env=environment, capture_output=True, text=True)
    return re.sub(r" in [\d.]+s.*", "", done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.parametrize(
    ("complete", "expected"),
    [
        (None, "1 passed, 4 skipped, 1 xfailed"),
        ("1", "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors"),  # What fails before the call is an error.
    ],
)
def test_a_skip_fails_only_where_nothing_may_be_missing(tmp_path: Path, complete: str | None, expected: str) -> None:
    (tmp_path / "test_skips.py").write_text(TESTS)
    assert closing_line(tmp_path, complete, "test_skips.py")[0] == expected


def test_a_skipped_module_fails_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "test_module.py").write_text(MODULE)
    assert closing_line(tmp_path, None, "test_module.py")[0] == "1 skipped"
    line, output = closing_line(tmp_path, "1", "test_module.py")
    assert line == "1 error"
    assert "could not import 'no_such_module'" in output
