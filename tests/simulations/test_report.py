"""The report holds the run's numbers, and nothing that a run's words could add to a page."""

from __future__ import annotations

import copy
import html
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simulations.report.page import ReportError, write_report
from simulations.report.words import meaning, number
from strategies.schema import ConfigError
from tests.simulations.pages import read, words

HASH = "15341d27a38be423441ef0fc5fe13af5c3ff4d90be370c8ec5dda0739a3dba3d"

CLAIMED = {
    "epsilon_lower": 4.1918,
    "epsilon_upper": 4.2019,
    "delta": 1e-4,
    "neighbours": "add_remove",
    "method": "PLD",
    "note": "",
    "noise_multiplier": 2.0,
    "clip_norm": 0.5,
    "charged_rounds": 3,
}
MEASURED = {
    "epsilon": 1.936,
    "lower": 1.006,
    "upper": 2.948,
    "delta": 1e-4,
    "canaries": 64,
    "dimension": 650,
    "ks_pvalue": 0.59,
    "method": "final, shared",
    "interval": 0.95,
    "sound": True,
    "detectable": 2.82,
    "detectable_by_alarm": 1.48,
    "lower_bound": 0.0,
    "shared_bound": 0.0,
    "false_alarm": 1e-4,
    "claim": 4.2019,
    "compared_with": "the run's claim",
    "reference": "start",
    "alarm": False,
    "fitted": {"method": "fitted", "epsilon": 2.1, "lower": 1.2, "upper": 4.0, "quotable": False},
    "all_iterates": {"method": "fitted", "epsilon": 3.1, "lower": 1.4, "upper": 6.0, "quotable": False},
    "iterates_off": "",
}
RESULT: dict[str, Any] = {
    "name": "quickstart",
    "strategy": "fedavg",
    "data": "digits",
    "rounds": 3,
    "seed": 7,
    "engine": "local",
    "metrics": {"accuracy": 0.9331, "loss": 0.19878, "per_silo": None},
    "privacy": {"silo": CLAIMED, "example": None, "measured": MEASURED},
    "communication": {
        "bytes_up": 15_795_000,
        "bytes_down": 31_590_000,
        "parameters_up": 3_948_750,
        "parameters_down": 7_897_500,
        "ratio": 0.75,
    },
    "model": {"file": "model.safetensors", "sha256": HASH},
    "seconds": 75.2,
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "stopped": None,
    "silos": 400,
    "notes": ["simulated noise: drawn from the seed, so whoever knows the seed can take it off again"],
    "ledger": {"seq": 6, "hash": "5bfa084b"},
}
EXPERIMENT: dict[str, Any] = {
    "name": "quickstart",
    "seed": 7,
    "rounds": 3,
    "task": {"name": "logistic"},
    "data": {"name": "digits", "silos": 400, "partition": {"name": "iid"}, "public_test": 0.2, "test": 0.0},
    "cohort": {"sampling": "poisson", "rate": 0.25},
    "train": {"steps": 5, "learning_rate": 0.5},
    "strategy": {"name": "fedavg", "server": {"name": "sgd", "momentum": 0.9}},
    "privacy": {"silo": {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-4}, "audit": {"canaries": 64}},
    "budget": None,
    "metrics": {"privacy": "strict", "every": 1},
    "engine": {"kind": "local"},
}


def row(round_: int, **changes: Any) -> dict[str, Any]:
    found = {
        "round": round_,
        "cohort": 100,
        "arrived": 100,
        "failures": 0,
        "failure_reasons": {},
        "parameters_up": 65_000,
        "parameters_down": 130_000,
        "bytes_up": 260_000,
        "bytes_down": 520_000,
        "train_loss": None,
        "clip_fraction": None,
        "epsilon": 0.5 * round_**0.5,
        "accuracy": 1 - 0.5 / round_,
        "loss": 2.0 / round_,
        "seconds": {"reserve": 0.25, "train": 0.5, "store": 0.25},
    }
    return {key: value for key, value in (found | changes).items() if value is not ...}


class Case:
    """A run's folder that a test changes before the report is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result, self.experiment = copy.deepcopy(RESULT), copy.deepcopy(EXPERIMENT)
        self.rows: Sequence[dict[str, Any]] = [row(1), row(2), row(3)]

    def save(self) -> None:
        (self.folder / "result.json").write_text(json.dumps(self.result | {"rounds": len(self.rows)}))
        (self.folder / "experiment.yaml").write_text(yaml.safe_dump(self.experiment, sort_keys=False))
        (self.folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.rows))

    def page(self) -> str:
        self.save()
        return write_report(self.folder).read_text(encoding="utf-8")

    def text(self) -> str:
        """What a reader sees, white space made single."""
        return words(self.page())


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.mark.parametrize(
    "fact",
    [
        "fedavg on digits: 400 silos, 3 of 3 rounds in 1 min 15 s, seed 7, local engine.",
        "93.3%",
        "on the public test set, loss 0.199",
        "ε ≤ 4.202 at δ = 10⁻⁴, for adding or removing one whole silo",
        "ε lies between 4.191 and 4.202 (by privacy-loss distributions)",
        "ε ≈ 1.94 95% interval 1.01 to 2.95, from 64 canaries",
        "neither an upper nor a lower bound",
        "15.8 MB up, 31.6 MB down",
        "75.0% of what the dense model costs both ways",
        "dotted: expected 100",
        "No failures: every silo that was asked answered, in every round.",
        "Simulated noise: drawn from the seed",
        "confide run experiment.yaml",
        f"SHA-256 {HASH}",
        "python 3.11.7, torch 2.13.0",
        "train 1.50 s, 50%",
        "fedavg, server (sgd, momentum 0.9)",
        "Withheld: training loss and clip fraction are computed on private rows",
        "Withheld: how silos are served, each on its own rows",
    ],
)
def test_the_page_says(case: Case, fact: str) -> None:
    assert fact in case.text()


def test_the_page_asks_nobody_for_anything(case: Case) -> None:
    page = case.page()
    reader = read(page)
    assert reader.links == ["data:,"]
    assert not reader.tags & {"script", "iframe", "img", "object", "embed", "form"}
    assert reader.handlers == []
    assert "default-src 'none'" in html.unescape(page)
    assert "url(" not in page
    assert "@import" not in page


def test_every_id_is_given_once(case: Case) -> None:
    ids = read(case.page()).ids
    assert len(ids) > 10
    assert len(set(ids)) == len(ids)


def test_words_of_a_user_stay_words(case: Case) -> None:
    attack = "</style></title></pre><script>alert('1')</script><img src=x onerror=\"alert(2)\"> & \u2028"
    case.rows = [row(1, failures=1, failure_reasons={"deadline": 1})]
    plain = read(case.page()).tags
    case.result |= {"name": attack, "strategy": attack, "data": attack, "stopped": attack, "notes": [attack]}
    case.result["privacy"]["silo"]["note"] = case.result["privacy"]["silo"]["method"] = attack
    case.result["versions"] = {attack: attack}
    case.result["model"] = {"file": attack, "sha256": attack}
    case.experiment["strategy"] = {"name": attack, attack: [attack]}
    case.rows = [row(1, failures=1, failure_reasons={attack: 1}, seconds={attack: 1.0})]
    page = case.page()
    reader = read(page)
    assert reader.tags <= plain
    assert reader.links == ["data:,"]
    assert reader.handlers == []
    assert page.count("&lt;script&gt;alert(&#x27;1&#x27;)") >= 10


def test_a_run_without_privacy_says_that_epsilon_is_infinite(case: Case) -> None:
    case.result["privacy"] = {"silo": None, "example": None, "measured": None}
    case.rows = [row(number, epsilon=None, train_loss=1.5) for number in (1, 2)]
    text = case.text()
    assert "ε = ∞ no privacy: updates were neither clipped nor noised" in text
    assert "ε over rounds" not in text
    assert "test 1" in text
    assert "train 1.50" in text


def test_a_claim_without_a_bound_is_no_claim(case: Case) -> None:
    case.result["privacy"]["silo"] |= {"epsilon_lower": None, "epsilon_upper": None, "note": "strategy x sees updates"}
    case.rows = [row(1, epsilon=None)]
    text = case.text()
    assert "Claimed: nothing. Strategy x sees updates." in text
    assert "claimed: no bound" in text
    assert "No finite ε is proved" in text


def test_regression_is_measured_by_squared_error(case: Case) -> None:
    case.result["metrics"] = {"mse": 131.2345, "loss": 65.6, "per_silo": {"p10": 80.0, "p50": 126.0, "p90": 213.0}}
    case.experiment["metrics"]["privacy"] = "research"
    case.rows = [row(number, accuracy=..., mse=100.0 + number) for number in (1, 2)]
    text = case.text()
    assert "Mean squared error 131.2" in text
    assert "middle silo 126.0 (80.00 to 213.0)" in text
    assert "accuracy" not in text.lower()


def test_rounds_that_were_not_tested_leave_no_point(case: Case) -> None:
    case.experiment["metrics"]["every"] = 5
    case.rows = [row(number) if number % 5 == 0 else row(number, accuracy=..., loss=...) for number in range(1, 13)]
    page = case.page()
    assert "The model was tested every 5 rounds and after the last; dots are the rounds measured." in page
    curve = re.search(r'id="score-title".*?class="line a" d="([^"]*)"', page, re.S)
    assert curve is not None
    assert curve[1].count(" ") == 2  # Rounds 5 and 10.


def test_no_public_test_set_is_said(case: Case) -> None:
    case.experiment["data"]["public_test"] = 0.0
    case.result["metrics"] = {"accuracy": None, "loss": None, "per_silo": None}
    case.rows = [row(1, accuracy=..., loss=...)]
    text = case.text()
    assert "not tested: no public test set" in text
    assert "the data has no public test set (data.public_test: 0)" in text


def test_private_numbers_are_drawn_where_they_are_recorded(case: Case) -> None:
    case.experiment["metrics"]["privacy"] = "research"
    case.result["metrics"]["per_silo"] = {"p10": 0.72, "p50": 0.9, "p90": 1.0}
    case.rows = [row(1, train_loss=1.5, clip_fraction=0.75), row(2, train_loss=None, clip_fraction=None)]
    text = case.text()
    assert "middle silo 90.0% (72.0% to 100.0%)" in text
    assert "Clipped % of updates" in text
    assert "75.0%" in text
    assert "Withheld" not in text


def test_private_numbers_that_a_file_holds_stay_off_the_page_of_a_strict_run(case: Case) -> None:
    """Whatever wrote the file: the page follows the experiment."""
    spread = {"p10": 0.72, "p50": 0.9, "p90": 1.0}
    case.result["metrics"] |= {"per_silo": spread, "test": {"accuracy": 0.913, "loss": 0.1, "per_silo": spread}}
    text = case.text()
    assert "Withheld: how silos are served" in text
    assert "72.0%" not in text
    assert "91.3%" not in text


def test_silos_are_shown_as_a_histogram_and_in_numbers(case: Case) -> None:
    case.experiment["metrics"]["privacy"] = "research"
    spread = {"p10": 0.72, "p50": 0.9, "p90": 1.0}
    histograms = {"accuracy": {"edges": [0.0, 0.5, 1.0], "silos": [3, 397], "beyond": 2}}
    test = {"accuracy": 0.88, "loss": None, "per_silo": spread, "histograms": histograms}
    case.result["metrics"] |= {
        "per_silo": spread,
        "test": test,
        "personalization_gap": {"p10": -0.1, "p50": 0.2, "p90": 0.3},
    }
    text = case.text()
    assert "test rows 88.0% – 72.0% 90.0% 100.0%" in text
    assert "2 more are not finite; dotted: all rows 88.0" in text
    assert "above what a silo that was never asked gets: 20.0 points in the middle silo (−10.0 to 30.0)" in text
    assert "silos: 3 from 0 to 50, 397 from 50 to 100" in case.page()


def test_the_training_loss_has_a_band_of_its_silos(case: Case) -> None:
    case.experiment["metrics"]["privacy"] = "research"
    shown = {"train_loss": 1.5, "train_loss_silos": {"p10": 1.0, "p50": 1.4, "p90": 2.0}}
    case.rows = [row(1, **shown), row(2, **shown)]
    page = case.page()
    assert page.count('class="band b"') == 1  # Below the test loss, which is blue.
    assert "its band at the end 1 to 2" in page


def test_examples_and_the_server_s_view_have_pictures_of_their_own(case: Case) -> None:
    example = CLAIMED | {
        "steps": 5,
        "per_silo": {"p10": 1.0, "p50": 2.0, "p90": 3.0},
        "noise_multiplier": {},
        "batch": 9,
    }
    case.result["privacy"] = {"silo": None, "local": None, "example": example, "measured": None}
    page = case.page()
    assert "middle silo 2.00 (1.00 to 3.00)" in page
    local = CLAIMED | {"most_charges": 4, "charges": {"2": 3, "4": 1}, "charged_lines": 9}
    case.result["privacy"] = {"silo": CLAIMED, "local": local, "example": None, "measured": None}
    page = case.page()
    assert "against the server, at most 4.202" in page
    assert "silos: 3 from 1.5 to 2.5, 1 from 3.5 to 4.5" in page


def test_flags_are_drawn_as_shares_of_those_asked(case: Case) -> None:
    asked, flagged = {"malicious": 4, "benign": 10, "minority": 0}, {"malicious": 3, "benign": 1, "minority": 0}
    case.result["attacks"] = {
        "success": {"one": 0.5, "two": 0.25, "three": 0.125},
        "accuracy": 0.9,
        "asked": asked,
        "minority_silos": None,
        "detection": None,
    }
    shares = {f"attack_success.{name}": 0.5 for name in ("one", "two", "three")}
    case.rows = [row(1, attackers={"asked": asked, "flagged": flagged}, **shares)]
    page = case.page()
    assert "malicious 75.0%" in page
    assert "benign 10.0%" in page
    assert page.count("Attack success (") == 2  # Two curves a picture: there are two colours.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["confide", "run", "quickstart"], "In any folder, for the experiment is a shipped one: The first"),
        (["confide", "run", "quickstart", "--set", "rounds=3"], "confide run quickstart --set rounds=3 --out again"),
        (["confide", "run", "experiment.yaml", "--dataset", "MODULE:NAME"], "name it in place of MODULE:NAME"),
    ],
)
def test_the_command_is_that_of_the_result(case: Case, words: list[str], says: str) -> None:
    case.result["command"] = words
    text = case.text()
    assert says in text
    assert f"echo '{HASH} again/model.safetensors' | sha256sum --check" in text


def test_failures_are_counted_by_reason(case: Case) -> None:
    case.rows = [
        row(1, cohort=100, arrived=97, failures=3, failure_reasons={"deadline": 2, "no rows": 1}),
        row(2, cohort=90, arrived=80, failures=10, failure_reasons={"deadline": 10}),
    ]
    text = case.text()
    assert "deadline 12 2 of 2 1 2 no rows 1 1 of 2 1 1" in text  # Updates, in how many rounds, the first and the last.
    assert "below, blue: deadline; above, orange: no rows" in text
    assert "asked arrived" in text


def test_a_budget_stop_and_an_interruption_are_at_the_top(case: Case) -> None:
    case.result["stopped"] = (
        "budget: round 4 would bring epsilon to 4.5, above the budget of 4.2; stopped after round 3"
    )
    case.experiment |= {"rounds": 60, "budget": {"epsilon": 4.2, "delta": 1e-4}}
    text = case.text()
    assert "3 of 60 rounds" in text
    assert "Stopped by its budget: round 4 would bring epsilon to 4.5, above the budget of 4.2" in text
    assert "dotted: budget 4.2" in text
    case.result["stopped"] = "interrupted"
    assert "Stopped early (interrupted); to go on, in this folder: confide run --resume ." in case.text()


def test_no_round_at_all_is_a_page_too(case: Case) -> None:
    case.rows = []
    case.result["communication"] = dict.fromkeys(case.result["communication"], 0) | {"ratio": None}
    case.result["privacy"]["silo"] |= {"epsilon_lower": 0.0, "epsilon_upper": 0.0, "charged_rounds": 0}
    case.result["privacy"]["measured"] = None
    text = case.text()
    assert "0 of 3 rounds" in text
    assert "ε = 0" in text
    assert "nothing was released" in text
    assert "<svg" not in case.page()


def test_without_canaries_it_says_why_nothing_is_measured(case: Case) -> None:
    case.result["privacy"]["measured"] = None
    case.experiment["privacy"]["audit"]["canaries"] = 0
    assert "no canaries took part (privacy.audit.canaries: 0)" in case.text()


@pytest.mark.parametrize(
    ("changes", "warns"),
    [
        ({}, ()),
        ({"ks_pvalue": 0.003, "sound": False}, ("Do not rely on the measurement",)),
        ({"lower": 4.3, "epsilon": 6.0, "upper": 8.0}, ("The whole interval lies above the claim",)),
        ({"lower": 4.1, "epsilon": 6.0, "upper": 8.0}, ()),
        (
            {"ks_pvalue": 0.003, "sound": False, "lower": 5.0, "epsilon": 6.0, "upper": None},
            ("Do not rely", "lies above the claim"),
        ),
        (
            {"alarm": True, "lower_bound": 4.6, "lower": 5.0, "epsilon": 6.0, "upper": 7.0},
            ("ALARM: canaries show epsilon 4.6 or more where 4.202 is claimed",),
        ),
    ],
)
def test_a_measurement_that_is_unsound_or_above_the_claim_warns(
    case: Case, changes: dict[str, Any], warns: tuple[str, ...]
) -> None:
    case.result["privacy"]["measured"] |= changes
    page = case.page()
    assert page.count('class="warning"') == len(warns)
    assert all(warning in page for warning in warns)


def test_ten_thousand_rounds_and_long_words_stay_a_page_that_can_be_sent(case: Case) -> None:
    case.rows = [
        row(number, accuracy=0.5 + 0.4 * math.sin(number), cohort=80 + number % 41, arrived=79, failures=1)
        | {"failure_reasons": {f"silo {number} " + "x" * 500: 1}}
        for number in range(1, 10_001)
    ]
    case.result["notes"] = ["left out: " + "silo, " * 20_000] * 200
    case.experiment["data"]["path"] = "x" * 400_000
    page = case.page()
    assert len(page.encode()) < 500_000
    assert "10,000" in page
    assert "other reasons" in page


def test_the_same_folder_makes_the_same_page(case: Case) -> None:
    assert case.page() == case.page()


def test_rounds_after_the_result_are_left_out(case: Case) -> None:
    before = case.page()
    with open(case.folder / "rounds.jsonl", "a") as file:
        file.write(json.dumps(row(4)) + '\n{"round": 5, "coh')
    assert write_report(case.folder).read_text() == before


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("result.json", None, "result.json: missing"),
        ("result.json", "{", "result.json, line 1: not JSON"),
        ("result.json", "[]", "result.json, line 1: not what a run writes"),
        ("experiment.yaml", None, "experiment.yaml: missing"),
        ("rounds.jsonl", None, "rounds.jsonl: 0 lines for 3 rounds"),
        ("rounds.jsonl", '{"round": 1}\n{"round":\n{"round": 3}\n', "rounds.jsonl, line 2: not JSON"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(case: Case, name: str, text: str | None, says: str) -> None:
    case.save()
    path = case.folder / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ReportError, match=re.escape(says)) as refused:
        write_report(case.folder)
    assert "\n" not in str(refused.value)
    assert not (case.folder / "report.html").exists()


def test_an_experiment_that_is_no_yaml_is_refused(case: Case) -> None:
    case.save()
    (case.folder / "experiment.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"experiment\.yaml"):
        write_report(case.folder)


@given(st.floats(1e-4, 1e8), st.integers(2, 6))
def test_bounds_are_rounded_to_their_safe_side(value: float, digits: int) -> None:
    down, up = (float(number(value, digits, side).replace(",", "")) for side in ("down", "up"))
    assert down <= value <= up
    assert up - down <= 1.001 * max(10.0 ** (math.floor(math.log10(value)) + 1 - digits), 0)


def test_an_epsilon_of_zero_leaves_a_guesser_with_a_coin() -> None:
    said = meaning(CLAIMED | {"epsilon_upper": 0.0, "delta": 1e-12})
    assert "= 1.00 times as likely with the silo as without it" in said
    assert "wrong at least 49.9% of the time" in said


def test_an_epsilon_of_log_99_leaves_a_guesser_wrong_once_in_a_hundred() -> None:
    said = meaning(CLAIMED | {"epsilon_upper": math.log(99), "delta": 0.01})
    assert "wrong at least 0.990% of the time" in said  # (1 - 0.01) / (1 + 99) = 0.0099.


def test_moments_that_were_released_are_no_round(case: Case) -> None:
    assert "It covers 3 rounds" in case.text()
    case.result["standardize"] = {"mean": [0.3], "std": [1.0]}
    case.result["privacy"]["silo"] |= {"charged_rounds": 4}
    assert "It covers 3 rounds and one release of means and spreads" in case.text()


def test_a_measurement_beside_a_claim_for_replaced_data_says_how_far_it_reaches(case: Case) -> None:
    assert "half as far" not in case.text()
    case.result["privacy"]["silo"] |= {"neighbours": "replace"}
    assert "move the sum half as far as replaced data may: half the noise would not show" in case.text()
