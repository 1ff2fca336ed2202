"""The notebooks run from their first cell to their last, and show what a reader finds in them."""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any

import pytest

from simulations.notebooks.execute import FOLDER, execute, names

NOTEBOOKS = ["personalization", "privacy_and_audit", "quickstart"]
PICTURE = "image/svg+xml"


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text(value: Any) -> str:
    return value if isinstance(value, str) else "".join(value)


def kept(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def said(cell: Any) -> list[str]:
    """What a cell prints and gives, in words: numbers may differ from machine to machine."""
    shown = [text(out.get("text", out.get("data", {}).get("text/plain", ""))) for out in cell["outputs"]]
    return [re.sub(r"[\d.,e+-]+", "#", words) for words in shown]


def pictures(cell: Any) -> list[str]:
    return [text(out["data"][PICTURE]) for out in cell["outputs"] if PICTURE in out.get("data", {})]


def curves(svg: str) -> list[int]:
    """How many different points each curve of a picture has; bars are of their own."""
    paths = re.findall(r'class="curve[^"]*"[^>]* d="M([^"]+)"', svg)
    return [len(set(path.split("L"))) for path in paths]


def test_the_notebooks_are_these() -> None:
    assert names() == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_kept_for_who_only_reads(name: str) -> None:
    notebook = kept(name)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert [cell["execution_count"] for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    assert all(min(curves(svg)) >= 2 for cell in cells(notebook) for svg in pictures(cell))
    assert len(list(chain.from_iterable(map(pictures, cells(notebook))))) == 2
    whole = json.dumps(notebook)
    assert not re.search(r"/(tmp|root|home|work)/|stderr|\"output_type\": \"error\"", whole)
    assert len(whole) < 40_000


@pytest.mark.integration
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_shows_what_is_kept(name: str) -> None:
    today, before = execute(name), kept(name)
    assert len(cells(today)) == len(cells(before))
    for now, then in zip(cells(today), cells(before)):
        assert said(now) == said(then)
        assert list(map(curves, pictures(now))) == list(map(curves, pictures(then)))
