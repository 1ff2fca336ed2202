"""`confide explain` says what a run's files say, in plain words, and adapts to the run."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from privacy.accountant import epsilon
from privacy.events import Gaussian
from privacy.ledger import Ledger
from server.store import RunStore
from simulations import ActiveRun, run, train
from simulations.accounts import ledger_of
from simulations.cli import main
from simulations.folders import reopen
from simulations.planning import plan
from simulations.report.run import read_run
from simulations.words import privacy as privacy_words
from simulations.words.statement import statement
from strategies.loading import load, parse

CONFIG: dict[str, Any] = {
    "name": "small",
    "rounds": 2,
    "task": "logistic",
    "strategy": "fedavg",
    "data": {"name": "digits", "silos": 30, "public_test": 0.2, "limit": 400},
    "cohort": {"sampling": "poisson", "rate": 0.5},
    "train": {"steps": 1},
    "privacy": {"silo": {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-3}, "audit": {"canaries": 8}},
}
FIXED = {"cohort": {"sampling": "fixed", "size": 10}}
REPLACE = {"silo": {"clip_norm": 0.5, "noise_multiplier": 8.0, "delta": 1e-3, "neighbours": "replace"}}
STANDARD = {"name": "private", "low": 0.0, "high": 1.0, "noise_multiplier": 4.0}


def ran(folder: Path, **changes: Any) -> Path:
    run(parse(CONFIG | changes), out=folder)
    return folder


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(tmp_path_factory.mktemp("runs") / "private")


def explained(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """What is printed, as one line."""
    capsys.readouterr()
    assert main(["explain", str(folder)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    return " ".join(out.split())


def test_a_private_run_says_unit_neighbours_adversaries_claim_and_gaps(
    private: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = explained(capsys, private)
    claimed = json.loads((private / "result.json").read_text())["privacy"]["silo"]
    for part in (
        f"ε (epsilon) is at most {privacy_words.number(claimed['epsilon_upper'], 4, 'up')} at δ (delta) = 10⁻³, for "
        "adding or removing one whole silo.",
        "The unit is a silo: a participating organisation or device with all of its data; there were 30.",
        "Outside: whoever gets the models of all rounds",
        "nobody learning which silos were in a round (each was with probability 0.5)",
        "Another silo, or several that join forces: as outside",
        "The server: not kept from anything.",
        "is wrong at least",
        "It covers 2 rounds, with noise of 2 times the clip norm of 0.5.",
        "8 canaries could not have told an ε below",
        "Loss and score on the public test rows",
        "none were recorded (metrics.privacy: strict)",
        "Cohort counts:",
        "Tuning: other runs on the same silos",
        "Simulated noise:",
        "Floating point:",
    ):
        assert part in words
    assert "Warning" not in words


def test_json_holds_the_same_sentences_and_the_numbers(private: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = explained(capsys, private)
    assert main(["explain", str(private), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    result = json.loads((private / "result.json").read_text())
    assert (found["claimed"], found["measured"]) == (result["privacy"]["silo"], result["privacy"]["measured"])
    assert found["warnings"] == []
    assert found["selection"] is None
    sentences = [line for topic in found["statement"] for line in topic["sentences"]]
    assert len(sentences) > 10
    assert all(" ".join(line.split()) in words for line in sentences)


def test_the_report_and_the_statement_share_their_sentences(private: Path) -> None:
    page = html.unescape((private / "report.html").read_text())
    found = read_run(private)
    for sentence in (privacy_words.claim(found), privacy_words.measurement(found)):
        assert sentence in page
        assert sentence in [line for topic in statement(found) for line in topic.sentences]


def test_without_privacy_it_says_so_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = explained(capsys, ran(tmp_path / "run", privacy={}))
    assert "ε is infinite for every silo" in words
    assert "The server: sees the update of every silo." in words
    assert "A privacy.silo section clips" in words
    assert "Covered by the claim" not in words


def test_where_rows_are_private_it_says_what_holds_for_them_and_for_silos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3, "rows": 12, "batch": 4}
    words = explained(capsys, ran(tmp_path / "run", privacy={"example": rows}, cohort={"sampling": "all"}))
    assert "A whole silo had no privacy in this run: its ε is infinite." in words
    assert "may learn anything about a silo that they hold. About one of its rows they learn no more" in words
    assert "The server: sees the update of every silo. The claim for rows holds against it, too." in words


def test_fixed_cohorts_and_replaced_silos_have_words_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = explained(capsys, ran(tmp_path / "run", privacy=REPLACE, **FIXED))
    assert "for replacing all data of one silo by other data" in words
    assert "nobody learning which 10 of the 30 silos were in a round" in words
    assert "up to two clip norms" in words
    assert "a general Renyi bound" in words
    assert "Not measured: no canaries took part" in words


def test_where_all_take_part_no_cohort_is_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = explained(capsys, ran(tmp_path / "run", cohort={"sampling": "all"}))
    assert "Every silo is in every round, so no cohort has to stay secret." in words
    assert "by a closed formula" in words


def test_research_metrics_are_named_as_unpriced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = explained(capsys, ran(tmp_path / "run", metrics={"privacy": "research"}))
    assert "metrics.privacy is research" in words
    assert "They have no price; do not publish them." in words


def test_a_budget_that_stopped_the_run_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = plan(parse(CONFIG | {"rounds": 1}), 30).cost
    assert one is not None
    words = explained(capsys, ran(tmp_path / "run", budget={"epsilon": 1.001 * one.upper, "delta": 1e-3}))
    assert "It covers 1 round, " in words
    assert "The run stopped before a round that would have passed its budget." in words


def test_private_standardisation_is_charged_and_covered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = explained(capsys, ran(tmp_path / "run", data=CONFIG["data"] | {"standardize": STANDARD}))
    assert "It covers 2 rounds and one release of means and spreads to standardise features with" in words
    assert "silos released them once, with noise, before round 1" in words


def test_attempts_that_were_broken_off_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with ActiveRun(parse(CONFIG), folder) as active:  # Paid, then killed before the round was stored.
        active.ledger.reserve(1, active.plan.event, unit="silo", neighbours="add_remove")
    with ActiveRun(load(folder / "experiment.yaml"), folder, resume=True) as active:
        train(active)
        active.finish()
    words = explained(capsys, folder)
    assert "It covers 2 rounds and 1 attempt that was broken off, which may have been seen and so are paid" in words


def test_a_ledger_that_went_on_or_is_another_one_is_warned_of(
    private: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(private, tmp_path / "copy")
    ledger = Ledger(folder / "ledger.jsonl", run="small", dataset="x")
    ledger.reserve(3, Gaussian(1.0), unit="silo", neighbours="add_remove")
    ledger.close()
    assert "Warning: The ledger charges 1 round more than this result knows of" in explained(capsys, folder)
    lines = (folder / "ledger.jsonl").read_bytes().split(b"\n")
    (folder / "ledger.jsonl").write_bytes(b"\n".join(lines[:-2]) + b"\nnot json\n")
    assert "is damaged after line" in explained(capsys, folder)
    (folder / "ledger.jsonl").write_bytes(b"\n".join(lines[1:]))
    assert "is not the ledger that this result was written with" in explained(capsys, folder)
    (folder / "ledger.jsonl").unlink()
    assert "nothing shows what was charged" in explained(capsys, folder)


def test_the_least_that_canaries_could_show_is_the_edge_of_their_interval() -> None:
    # A mean of 64 canaries is uncertain by 1.96 / 8, a Gaussian of noise 8 / 1.96.
    assert privacy_words.least_shown(64, 1e-4) == epsilon(Gaussian(8 / 1.96), 1e-4).upper
    shown = [privacy_words.least_shown(canaries, 1e-4) for canaries in (4, 64, 1000)]
    assert shown == sorted(shown, reverse=True)


def test_a_folder_without_a_result_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    store = RunStore(tmp_path / "begun", resume=False)
    store.begin("name: x\n")
    store.close()
    assert main(["explain", str(tmp_path / "begun")]) == 2
    assert "has no result yet" in capsys.readouterr().err


def test_rounds_that_are_missing_are_one_line(
    private: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(private, tmp_path / "copy")
    (folder / "rounds.jsonl").unlink()
    assert main(["explain", str(folder)]) == 2
    assert "0 lines for 2 rounds" in capsys.readouterr().err


def test_a_run_stopped_by_hand_says_what_ran_and_what_was_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full participation: n rounds of noise 8 cost one Gaussian of 8 / sqrt(n)."""
    silo = {"silo": {"clip_norm": 0.5, "noise_multiplier": 8.0, "delta": 1e-3}}
    config = parse(CONFIG | {"rounds": 16, "cohort": {"sampling": "all"}, "privacy": silo})
    with ActiveRun(config, tmp_path / "run") as active:
        train(active, stop=lambda: len(active.store.rows()) == 4)
        claimed = active.finish().result["privacy"]["silo"]
    ran, planned = epsilon(Gaussian(4.0), 1e-3).upper, epsilon(Gaussian(2.0), 1e-3).upper
    assert (claimed["epsilon_upper"], claimed["epsilon_planned"]) == pytest.approx((ran, planned))
    words = explained(capsys, tmp_path / "run")
    more, less = (privacy_words.number(value, 4, "up") for value in (planned, ran))
    assert f"one whole silo; at most {more} if it was stopped for what it had shown." in words
    assert f"ε is at most {less}, and that holds only if whoever stopped it" in words
    assert f"all planned rounds would have cost, ε at most {more}:" in words
    report = html.unescape((tmp_path / "run" / "report.html").read_text())
    assert f"all planned rounds would have cost, ε at most {more}:" in report
    with ActiveRun(reopen(tmp_path / "run"), tmp_path / "run", resume=True) as active:
        train(active)
        whole = active.finish().result["privacy"]["silo"]
    assert (whole["epsilon_upper"], whole["epsilon_planned"]) == (pytest.approx(planned), None)
    assert "stopped by hand" not in explained(capsys, tmp_path / "run")


def test_a_budget_bounds_what_a_stopped_run_had_planned(tmp_path: Path) -> None:
    silo = {"silo": {"clip_norm": 0.5, "noise_multiplier": 8.0, "delta": 1e-3}}
    budget = {"budget": {"epsilon": 1.0, "delta": 1e-3}}  # 16 rounds would cost 1.42.
    config = parse(CONFIG | budget | {"rounds": 16, "cohort": {"sampling": "all"}, "privacy": silo})
    with ActiveRun(config, tmp_path / "run") as active:
        train(active, stop=lambda: len(active.store.rows()) == 2)
        assert active.finish().result["privacy"]["silo"]["epsilon_planned"] == 1.0


def test_runs_of_other_noise_on_the_same_data_are_added_up_by_a_filter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = {"budget": {"epsilon": 9.0, "delta": 1e-3}}
    ran(tmp_path / "first", **budget)
    assert "The 2 runs" not in explained(capsys, tmp_path / "first")
    same = ran(tmp_path / "same", **budget, seed=1, data=CONFIG["data"] | {"seed": 0})
    assert "their releases all cost the same or are unsampled Gaussians" in explained(capsys, same)
    louder = {"silo": CONFIG["privacy"]["silo"] | {"noise_multiplier": 3.0}}
    third = ran(tmp_path / "third", **budget, privacy=louder)
    cumulative = json.loads((third / "result.json").read_text())["privacy"]["cumulative"]
    assert (cumulative["method"], cumulative["budget"]) == ("filter", 9.0)
    words = explained(capsys, third)
    runs = f"The {cumulative['runs']} runs with a budget on this data cost, together, ε at most"
    assert f"{runs} {privacy_words.number(cumulative['epsilon_upper'], 4, 'up')} at δ = 10⁻³" in words
    assert "by a Rényi filter at an order fixed beforehand" in words
    assert "What it promises is the budget of 9" in words
    capsys.readouterr()
    (ledger,) = ledger_of("x").parent.iterdir()
    assert main(["ledger", "show", str(ledger), "--delta", "1e-3"]) == 0
    assert "runs differ in noise or sampling" in " ".join(capsys.readouterr().out.split())
