from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ["privacy", "strategies", "client", "server", "simulations"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in requirements}


def test_every_folder_of_code_is_in_the_wheel() -> None:
    folders = {path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_direct_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    wanted = [*PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    assert names(wanted) - names(pins) == {"confide"}  # `dev` holds the extra `hf` by naming confide itself.


@pytest.mark.parametrize("room", [*ROOMS, "tests", "deploy"])
def test_every_room_says_what_it_is_for(room: str) -> None:
    assert (ROOT / room / "README.md").read_text().startswith(f"# {room}\n")


def test_no_module_is_named_like_one_of_python_or_a_dependency() -> None:
    modules = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    taken = names(PROJECT["project"]["dependencies"]) | {"yaml", "sklearn", "flwr", "opacus"}
    assert modules & (taken | sys.stdlib_module_names) == set()
