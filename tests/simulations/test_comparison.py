"""`confide report RUN RUN`: one page of several runs, where it goes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from simulations.cli import main
from tests.simulations.pages import read, words

SMALL = ["rounds=3", "data.silos=40", "privacy.silo.delta=1e-3"]
CHANGES = {
    "loud": ["privacy.silo.noise_multiplier=4"],
    "open": ["privacy.silo=null", "privacy.audit.canaries=0"],
    "small": ["data.public_test=0.3"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` and `loud` of seeds 0 and 1, `open` without privacy, `small` with other test rows, each below the path."""
    path = tmp_path_factory.mktemp("runs")
    for name, changes in ({"base": []} | CHANGES).items():
        keys = [key for key in SMALL if not (name == "open" and key.startswith("privacy"))]
        sets = [part for each in (*keys, *changes) for part in ("--set", each)]
        seeds = ["--seeds", "0,1"] if name in ("base", "loud") else []
        assert main(["run", "quickstart", *sets, *seeds, "--quiet", "--out", str(path / name)]) == 0
    return path


@pytest.fixture
def asked(runs: Path) -> list[str]:
    return [str(runs / name) for name in ("base", "loud", "open", "small")]


def page(argv: list[str], out: Path) -> str:
    assert main(["report", *argv, "--out", str(out)]) == 0
    return out.read_text()


def accuracy(folder: Path) -> float:
    return float(json.loads((folder / "result.json").read_text())["metrics"]["accuracy"])


@pytest.mark.parametrize(
    "fact",
    [
        "4 experiments in 6 runs on digits, with seeds 0, 1.",
        "B noise_multiplier 4 2",  # In the table: its letter, its label, its runs.
        "privacy.silo.noise_multiplier 2.0 4.0 – 2.0",
        "D is not paired with A: data.public_test differs, so a seed stands for other rows or other silos.",
        "Against A, seed by seed",
        "B − A: ",
        "Claimed ε are at δ = 10⁻³, for adding or removing one whole silo.",
        "A silo that took part in several of these runs paid for each of them",
        "confide sweep",
        "confide run quickstart --set rounds=3 --set data.silos=40 --set privacy.silo.delta=0.001 --seeds 0,1",
        "Simulated noise: drawn from the seed",
    ],
)
def test_the_page_says(asked: list[str], tmp_path: Path, fact: str) -> None:
    assert fact in words(page(asked, tmp_path / "page.html"))


def test_keys_that_are_the_same_are_left_out(asked: list[str], tmp_path: Path) -> None:
    found = words(page(asked, tmp_path / "page.html"))
    assert "train.learning_rate" not in found
    assert "seed 0 1" not in found


def test_the_numbers_are_those_of_the_results(asked: list[str], runs: Path, tmp_path: Path) -> None:
    found = words(page(asked, tmp_path / "page.html"))
    scores = [
        json.loads((runs / f"base/seed-{seed}/result.json").read_text())["metrics"]["accuracy"] for seed in (0, 1)
    ]
    assert f"{50 * sum(scores):.1f} ± " in found
    loud = [json.loads((runs / f"loud/seed-{seed}/result.json").read_text())["metrics"]["accuracy"] for seed in (0, 1)]
    difference = 50 * (sum(loud) - sum(scores))
    assert f"{abs(difference):.3g}" in found.partition("Against A")[2]


def test_it_asks_nobody_for_anything_and_is_well_formed(asked: list[str], tmp_path: Path) -> None:
    reader = read(page(asked, tmp_path / "page.html"))
    assert reader.links == ["data:,"]
    assert not reader.tags & {"script", "iframe", "img", "object", "embed", "form"}
    assert reader.handlers == []
    assert len(set(reader.ids)) == len(reader.ids) > 10


def test_the_same_runs_make_the_same_page(asked: list[str], tmp_path: Path) -> None:
    assert page(asked, tmp_path / "page.html") == page(asked, tmp_path / "page.html")


def test_words_of_a_user_stay_words(runs: Path, tmp_path: Path) -> None:
    attack = "</style></title></pre><script>alert('1')</script><img src=x onerror=\"alert(2)\"> &"
    copies = [tmp_path / "one", tmp_path / "two"]
    for copy, seed in zip(copies, (0, 1)):
        shutil.copytree(runs / f"base/seed-{seed}", copy)
        result = json.loads((copy / "result.json").read_text())
        result |= {"name": attack, "data": attack, "notes": [attack], "stopped": attack, "command": [attack]}
        result["versions"] = {attack: f"{attack}{seed}"}
        (copy / "result.json").write_text(json.dumps(result))
        experiment = yaml.safe_load((copy / "experiment.yaml").read_text())
        experiment["strategy"] = {"name": f"{attack}{seed}", attack: attack}
        (copy / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    plain = read(page([str(runs / "base"), str(runs / "loud")], tmp_path / "plain.html"))
    found = read(page(list(map(str, copies)), tmp_path / "page.html"))
    assert found.tags <= plain.tags
    assert found.links == ["data:,"]
    assert found.handlers == []


def test_the_claim_of_several_runs_is_the_largest(runs: Path, tmp_path: Path) -> None:
    for seed, epsilon in ((0, 1.2341), (1, 3.4561)):
        copy = tmp_path / f"seed-{seed}"
        shutil.copytree(runs / f"base/seed-{seed}", copy)
        result = json.loads((copy / "result.json").read_text())
        result["privacy"]["silo"]["epsilon_upper"] = epsilon
        (copy / "result.json").write_text(json.dumps(result))
    folders = [str(tmp_path / f"seed-{seed}") for seed in (0, 1)]
    found = words(page(folders, tmp_path / "page.html"))
    table = found.partition("In numbers")[2].partition("What differs")[0]
    assert " 3.457 " in table  # Rounded up, as it is a bound.
    result["privacy"]["silo"]["epsilon_upper"] = None
    (tmp_path / "seed-1" / "result.json").write_text(json.dumps(result))
    table = words(page(folders, tmp_path / "page.html")).partition("In numbers")[2].partition("What differs")[0]
    assert " ∞ " in table


def test_an_error_stands_in_no_column_of_accuracies(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs / "base/seed-0", copy)
    result = json.loads((copy / "result.json").read_text())
    result["metrics"] = {"mse": 0.4321, "loss": 0.21, "per_silo": None}
    (copy / "result.json").write_text(json.dumps(result))
    text = (copy / "experiment.yaml").read_text()
    (copy / "experiment.yaml").write_text(text.replace("name: logistic", "name: linear"))
    found = words(page([str(runs / "base/seed-0"), str(copy)], tmp_path / "page.html"))
    assert "B linear 1 – – " in found.replace("task ", "")
    assert "0.432" not in found
    assert "A is scored by accuracy, B by mse" in found


def test_claims_at_different_deltas_share_no_axis(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    sets = [part for each in (*SMALL[:2], "privacy.silo.delta=1e-4") for part in ("--set", each)]
    assert main(["run", "quickstart", *sets, "--quiet", "--out", str(other)]) == 0
    text = page([str(runs / "base"), str(other)], tmp_path / "page.html")
    assert "they are not drawn: the claims are at different δ" in words(text)
    assert "frontier-silo" not in text
    assert "over-epsilon" not in text
    assert "frontier-bytes" in text


def test_seeds_of_one_experiment_are_a_page_in_their_own_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs / "base")]) == 0
    path = runs / "base" / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    found = words(path.read_text())
    assert "nothing differs but their seeds" in found
    assert "1 experiment in 2 runs" in found
    assert "Against A" not in found
    path.unlink()


def test_the_page_of_several_runs_goes_beside_the_first(
    asked: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *asked]) == 0
    assert capsys.readouterr().out == f"{runs / 'comparison.html'}\n"


def test_the_page_of_one_run_goes_where_it_is_told_to(runs: Path, tmp_path: Path) -> None:
    assert "Run it again" in page([str(runs / "open")], tmp_path / "page.html")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["{base}", "{base}"], "is given twice, and a run is no repetition of itself; name it once"),
        (["{open}", "--out", "{tmp}"], "is a folder; name a file in it, such as"),
        (["{open}", "--out", "{tmp}/no/page.html"], "is no folder; make it first"),
        (["{open}", "{tmp}"], "holds no run (result.json is missing); give the folder of a run"),
    ],
)
def test_what_cannot_be_is_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    names = {"base": runs / "base/seed-0", "open": runs / "open", "tmp": tmp_path}
    assert main(["report", *(part.format(**names) for part in argv)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_compare_prints_the_same_pairs(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *asked]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "above noise_multiplier 2, public_test 0.2, seed by seed, with 95% intervals" in text
    assert "data.public_test differs" in text
    assert main(["compare", *asked, "--format", "json"]) == 0
    pairs = json.loads(capsys.readouterr().out)["paired"]
    assert {(each["experiment"], each["number"], len(each["seeds"])) for each in pairs} >= {
        ("noise_multiplier 4", "accuracy", 2),
        ("no privacy.silo", "loss", 1),
    }
