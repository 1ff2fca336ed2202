"""Pages in a real browser: on a desk, on a telephone, in the dark and on paper."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from simulations.cli import main
from simulations.report.page import write_report
from tests.simulations.pages import PAPER, chromium, look, on_paper
from tests.simulations.test_report import Case, row

pytestmark = pytest.mark.integration
DARK = "--blink-settings=preferredColorScheme=0"
WIDTHS = {"narrow": 320, "telephone": 390, "desk": 1200}
FIGURES = {"run": 10, "attacked": 6, "groups": 5, "comparison": 8}  # At least so many.


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Reports of real runs: with private numbers shown and failures, attacked, with groups; and a comparison."""
    base = tmp_path_factory.mktemp("pages")
    return {
        "run": _made_up(base / "made-up"),
        "attacked": _run(base / "attacked", "digits_attacked", "rounds=6"),
        "groups": _groups(base),
        "comparison": _comparison(base),
    }


def _made_up(folder: Path) -> str:
    """Failures for two reasons, a long word, and histograms: what quick runs have not."""
    folder.mkdir()
    case = Case(folder)
    case.experiment["metrics"]["privacy"] = "research"
    spread = {"p10": 0.72, "p50": 0.9, "p90": 1.0}
    histogram = {"edges": [0.0, 0.5, 1.0], "silos": [3, 397], "beyond": 0}
    test = {"accuracy": 0.9, "loss": 0.3, "per_silo": spread, "histograms": {"accuracy": histogram, "loss": histogram}}
    case.result["metrics"] |= {"per_silo": spread, "test": test}
    case.result["notes"].append("left out: " + "x" * 300)
    shown: dict[str, Any] = {
        "train_loss": 1.5,
        "clip_fraction": 0.75,
        "train_loss_silos": {"p10": 1, "p50": 1.4, "p90": 2},
    }
    reasons = {"deadline": 1, "a reason that is told at some length, as an exception would": 1}
    case.rows = [row(number, arrived=98, failures=2, failure_reasons=reasons, **shown) for number in range(1, 50)]
    return case.page()


def _run(folder: Path, config: str, *assignments: str) -> str:
    sets = [part for each in assignments for part in ("--set", each)]
    assert main(["run", config, *sets, "--quiet", "--out", str(folder)]) == 0
    return (folder / "report.html").read_text()


def _groups(base: Path) -> str:
    """Two groups of a small table, held to a bound."""
    table = base / "people.csv"
    lines = [f"{index % 7},{index % 2},{'young' if index % 3 else 'old'}" for index in range(240)]
    table.write_text("x,y,age\n" + "\n".join(lines) + "\n")
    data = f"{{path: '{table}', target: y, group: age, silos: 6, public_test: 0.2}}"
    config = base / "groups.yaml"
    config.write_text(
        f"name: groups\nrounds: 5\ntask: logistic\ndata: {data}\ncohort: {{sampling: all}}\n"
        "train: {steps: 2, learning_rate: 0.1}\n"
        "strategy: {name: bounded_group_loss, zeta: 0.6, bound: 2.0, groups: {number: 2, weighting: examples}}\n"
    )
    return _run(base / "groups", str(config))


def _comparison(base: Path) -> str:
    """Three experiments of two seeds, one of them without privacy."""
    folders = []
    changes = ([], ["privacy.silo.noise_multiplier=1"], ["privacy.silo=null", "privacy.audit.canaries=0"])
    for number, assignments in enumerate(changes):
        folders.append(str(base / f"experiment-{number}"))
        sets = [part for each in ("rounds=4", *assignments) for part in ("--set", each)]
        assert main(["run", "quickstart", *sets, "--seeds", "0,1", "--quiet", "--out", folders[-1]]) == 0
    assert main(["report", *folders]) == 0
    return (base / "comparison.html").read_text()


def test_every_page_fits_every_width_and_its_words_can_be_read(pages: dict[str, str], tmp_path: Path) -> None:
    asked = {f"{name}-{wide}": (page, width) for name, page in pages.items() for wide, width in WIDTHS.items()}
    found = look(asked, tmp_path)
    assert len(found) == len(asked)
    for name, measured in found.items():
        _sound(name, measured)
        assert measured["paper"] == "rgb(253, 253, 252)"
        assert len(measured["figures"]) >= FIGURES[name.partition("-")[0]], name
        assert all(width > 200 and height > 60 for width, height in measured["figures"]), name


def test_pages_are_dark_where_that_is_asked_for_and_can_be_read(pages: dict[str, str], tmp_path: Path) -> None:
    for name, measured in look({name: (page, 1200) for name, page in pages.items()}, tmp_path, DARK).items():
        _sound(name, measured)
        assert measured["paper"] == "rgb(22, 24, 27)"


def test_nothing_is_cut_off_on_paper(pages: dict[str, str], tmp_path: Path) -> None:
    """On paper nothing scrolls, so what is wider than the page is lost: tables included."""
    for name, measured in look({name: (on_paper(page), PAPER) for name, page in pages.items()}, tmp_path).items():
        _sound(name, measured)
        assert measured["paper"] == "rgb(255, 255, 255)"


def _sound(name: str, measured: dict[str, Any]) -> None:
    assert measured["texts"] > 100, name
    assert measured["beyond"] == [], name
    assert measured["sideways"] == 0, name
    assert measured["faint"] == [], name
    assert measured["untold"] == 0, name
    assert measured["asked"] == [], name


def test_paper_is_a4_and_white_for_who_reads_in_the_dark(pages: dict[str, str], tmp_path: Path) -> None:
    page, printed = tmp_path / "page.html", tmp_path / "page.pdf"
    page.write_text(pages["comparison"])
    chromium(page, tmp_path / "profile", DARK, f"--print-to-pdf={printed}", "--no-pdf-header-footer")
    data = printed.read_bytes()
    boxes = {tuple(map(round, map(float, box.split()))) for box in re.findall(rb"/MediaBox\s*\[([^\]]*)\]", data)}
    assert boxes == {(0, 0, 595, 842)}  # Points of 210 x 297 mm.
    colours = _colours(data)
    assert (0, 104, 168) in colours  # Blue for white paper: figures are there, in colour.
    assert not colours & {(22, 24, 27), (98, 182, 234)}  # Dark paper, and the blue for it.


def _colours(pdf: bytes) -> set[tuple[int, ...]]:
    """Every colour that a PDF fills or strokes with, as a page spells it."""
    found = set()
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.S):
        try:
            text = zlib.decompress(stream)
        except zlib.error:
            continue
        for parts in re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) (?:rg|RG)\b", text):
            found.add(tuple(round(255 * float(part)) for part in parts))
    return found


def test_a_browser_opens_it_without_a_complaint(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.save()
    found = chromium(write_report(case.folder), tmp_path / "profile")
    assert "CONSOLE" not in found.stderr
    assert "93.3%" in found.stdout
    assert found.stdout.count("<figure") == 6


def test_a_browser_keeps_it_from_running_a_script(tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.html"
    case = Case(tmp_path)
    spoilt.write_text(case.page().replace("</body>", "<script>document.title = 'taken'</script></body>"))
    found = chromium(spoilt, tmp_path / "profile")
    assert "CONSOLE" in found.stderr
    assert "<title>taken" not in found.stdout
