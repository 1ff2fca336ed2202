"""Budgets of examples in whole runs: a stop before the round, over all runs on the data, silo by silo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.accountant import epsilon
from privacy.events import Event, Gaussian, Poisson, Repeated, Sampled
from privacy.ledger import load
from server.loop import UNIT as WHOLE
from server.sampler import FixedCohort, FullCohort, PoissonCohort
from simulations.accounts import home, ledger_of
from simulations.cli import main
from simulations.data.federation import build
from simulations.example_accounts import secret
from simulations.folders import reopen
from simulations.preparing import prepare
from simulations.running import ActiveRun, train
from strategies.experiment import Data, Experiment
from strategies.loading import parse

DELTA = 1e-3
SILOS = 6
# A batch of all rows: two steps a round cost like one Gaussian of noise 8 / sqrt(2), by a closed form.
EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": 8.0, "delta": DELTA, "rows": 40, "batch": 40}
ROUND = Repeated(Gaussian(8.0), 2)
SILO = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": DELTA}


def price(event: Event, times: int = 1) -> float:
    return epsilon(Repeated(event, times), DELTA).upper


def within(rounds: int, event: Event = ROUND) -> float:
    """A budget that lasts for just so many rounds."""
    return price(event, rounds) * (1 + 1e-9)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4))
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(int), silo=np.arange(120) % 3)
    return tmp_path / "data.npz"


def mapping(data: Path, budget: Any = None, /, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "rounds": 5,
        "task": "logistic",
        "data": {"path": str(data), "silos": SILOS, "public_test": 0.1} | changes.pop("data", {}),
        "cohort": {"sampling": "all"},
        "train": {"steps": 2, "learning_rate": 0.5},
        "privacy": {"example": EXAMPLE | changes.pop("example", {})} | changes.pop("privacy", {}),
        "budget": None if budget is None else {"example": {"epsilon": budget, "delta": DELTA}},
    }
    return base | changes


def experiment(data: Path, budget: Any = None, /, **changes: Any) -> Experiment:
    return parse(mapping(data, budget, **changes))


def go(config: Experiment, folder: Path, *, rounds: int | None = None) -> dict[str, Any]:
    done: list[int] = []
    with ActiveRun(config, folder, resume=(folder / "experiment.yaml").exists()) as active:
        train(active, lambda result: done.append(result.round), stop=lambda: done[-1:] == [rounds])
        return active.finish().result


def shared() -> Path:
    (path,) = (home() / "ledgers").iterdir()
    return path


def charged(path: Path, unit: str = "example") -> int:
    return load(path).chain.charges(unit)


@pytest.mark.parametrize("engine", [{"kind": "local"}, {"kind": "pool", "workers": 2, "chunk": 2}], ids=["one", "pool"])
def test_a_run_stops_before_the_round_that_would_pass_the_budget(
    data: Path, tmp_path: Path, engine: Mapping[str, Any]
) -> None:
    result = go(experiment(data, within(3), engine=dict(engine)), tmp_path / "run")
    assert result["rounds"] == 3
    assert result["stopped"].startswith(
        "budget: round 4 would bring epsilon of an example of silo 'silo-0' over all runs"
    )
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert result["privacy"]["example"]["epsilon_upper"] == price(ROUND, 3)
    total = {"epsilon_upper": price(ROUND, 3), "delta": DELTA, "runs": 1, "charges": 3, "all_silos": False}
    assert result["privacy"]["cumulative_example"].items() >= total.items()
    assert (result["privacy"]["cumulative"], result["privacy"]["silo"]) == (None, None)
    for path, unit in (("ledger.jsonl", WHOLE), ("silos-ledger.jsonl", "example")):
        assert charged(tmp_path / "run" / path, unit) == 3  # Nothing of round 4.
    assert (charged(shared()), charged(shared(), WHOLE)) == (3, 0)


def test_a_resumed_run_gets_no_round_more(data: Path, tmp_path: Path) -> None:
    config = experiment(data, within(3))
    go(config, tmp_path / "run", rounds=2)
    for _ in range(3):
        result = go(reopen(tmp_path / "run"), tmp_path / "run")
        assert (result["rounds"], charged(shared())) == (3, 3)
    assert result["privacy"]["cumulative_example"]["runs"] == 1
    assert result["model"]["sha256"] == go(experiment(data, rounds=3), tmp_path / "plain")["model"]["sha256"]


def test_a_run_that_goes_on_elsewhere_counts_there_in_full(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(experiment(data, within(3)), tmp_path / "run", rounds=2)
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "elsewhere"))
    result = go(reopen(tmp_path / "run"), tmp_path / "run")
    assert (result["rounds"], result["privacy"]["cumulative_example"]["charges"]) == (3, 3)
    assert shared().is_relative_to(tmp_path / "elsewhere")


def test_runs_without_such_a_budget_keep_no_account(data: Path, tmp_path: Path) -> None:
    assert go(experiment(data), tmp_path / "run")["privacy"]["cumulative_example"] is None
    assert not (home() / "ledgers").exists()


def test_two_runs_add_up_silo_by_silo(data: Path, tmp_path: Path) -> None:
    """Each run asks one silo a round; as silos are asked, their accounts grow, whoever asks."""
    config = {"cohort": {"sampling": "fixed", "size": 1}, "rounds": 3, "data": {"seed": 7}}
    asked: dict[int, int] = {}
    for seed in (0, 1, 2):
        result = go(experiment(data, 50.0, seed=seed, **config), tmp_path / f"{seed}")
        for line in (tmp_path / f"{seed}" / "silos-ledger.jsonl").read_text().splitlines():
            for silo in json.loads(line).get("silos", []):
                asked[silo] = asked.get(silo, 0) + 1
        total = result["privacy"]["cumulative_example"]
        assert (total["charges"], total["runs"]) == (max(asked.values()), seed + 1)
        assert total["epsilon_upper"] == price(ROUND, max(asked.values()))
    assert sum(asked.values()) == 9
    assert max(asked.values()) < 9  # Else silos would not be told apart.
    assert load(shared()).chain.spent_by("example", []) == {silo: {ROUND: n} for silo, n in asked.items()}


def test_each_silo_has_a_budget_of_its_own(data: Path, tmp_path: Path) -> None:
    budgets = [within(4), within(2), *[within(9)] * 4]
    result = go(experiment(data, budgets), tmp_path / "run")
    assert result["rounds"] == 2
    assert "of an example of silo 'silo-1' over all runs" in result["stopped"]
    loud = [8.0, 8.0, 4.0, 8.0, 8.0, 8.0]  # Half the noise: a round of silo 2 costs as four of the others.
    other = go(experiment(data, within(7), example={"noise_multiplier": loud}, data={"limit": 100}), tmp_path / "b")
    assert (other["rounds"], "'silo-2'" in other["stopped"]) == (1, True)  # Two elsewhere and four are 6; then 10.


def test_rows_that_are_dealt_anew_keep_what_they_paid(data: Path, tmp_path: Path) -> None:
    first = go(experiment(data, within(4), rounds=3), tmp_path / "first")
    second = go(experiment(data, within(4), data={"silos": 5}), tmp_path / "second")
    assert (first["rounds"], second["rounds"]) == (3, 1)
    total = {"epsilon_upper": price(ROUND, 4), "delta": DELTA, "runs": 2, "charges": 4, "all_silos": False}
    assert second["privacy"]["cumulative_example"].items() >= total.items()
    assert go(experiment(data, within(4), seed=3), tmp_path / "third")["rounds"] == 0


def test_silos_that_the_data_names_are_the_same_in_every_run(data: Path, tmp_path: Path) -> None:
    """The public rows differ by the seed, and so do the silos' rows; but none changes its silo."""
    named = {"path": str(data), "partition": "column", "public_test": 0.2}
    configs = [parse(mapping(data, within(4), rounds=3, seed=seed) | {"data": named}) for seed in (0, 1)]
    assert len({prepare(config).federation.deal for config in configs}) == 1
    first, second = (prepare(config).federation.train.rows.features for config in configs)
    assert first.tolist() != second.tolist()
    done = [go(config, tmp_path / f"{config.seed}")["rounds"] for config in configs]
    assert done == [3, 1]


def test_whose_each_row_is_decides_the_deal(data: Path) -> None:
    def deal(run: int = 0, path: Path = data, **changes: Any) -> str:
        return build(Data(**{"path": str(path), "silos": 6} | changes), seed=run).deal

    base = deal()
    assert base == deal(validation=0.2) == deal(1, seed=0)  # Held-out rows stay in their silo.
    for change in ({"silos": 5}, {"seed": 1}, {"limit": 100}, {"public_test": 0.3}):
        assert deal(**change) != base
    arrays, other = dict(np.load(data)), data.with_name("other.npz")
    np.savez(other, **arrays | {"silo": np.roll(arrays["silo"], 1)})
    by_name = parse(mapping(data) | {"data": {"path": str(data), "partition": "column"}}).data.partition
    named = {"silos": None, "partition": by_name}
    assert deal(**named) == deal(1, **named)
    assert deal(**named) != deal(path=other, **named)


BOTH = {"privacy": {"silo": SILO}, "rounds": 6}


def test_what_must_stay_secret_decides_who_counts_as_asked(data: Path) -> None:
    private = experiment(data, privacy={"silo": SILO})
    assert secret(private, PoissonCohort(0.5, 6))
    assert secret(private, FixedCohort(3, 6))
    assert not secret(private, PoissonCohort(1.0, 6))
    assert not secret(private, FullCohort(6))
    assert not secret(experiment(data), PoissonCohort(0.5, 6))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_cohorts_are_secret_a_stop_does_not_depend_on_them(data: Path, tmp_path: Path, seed: int) -> None:
    config = experiment(data, within(3), seed=seed, cohort={"sampling": "poisson", "rate": 0.3}, **BOTH)
    result = go(config, tmp_path / "run")
    assert result["rounds"] == 3
    assert "round 4 would bring epsilon of an example, every silo counted as asked, over all" in result["stopped"]
    assert "silo-" not in result["stopped"]
    total = {"epsilon_upper": price(ROUND, 3), "delta": DELTA, "runs": 1, "charges": 3, "all_silos": True}
    assert result["privacy"]["cumulative_example"].items() >= total.items()
    asked = [json.loads(line) for line in (tmp_path / "run" / "silos-ledger.jsonl").read_text().splitlines()]
    assert any(len(line.get("silos", [])) < SILOS for line in asked if line["kind"] == "reserve")
    assert all("silos" not in json.loads(line) for line in shared().read_text().splitlines())


def test_secret_cohorts_are_counted_in_full_elsewhere_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment(data, within(3), cohort={"sampling": "poisson", "rate": 0.3}, **BOTH)
    go(config, tmp_path / "run", rounds=2)
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "elsewhere"))
    result = go(reopen(tmp_path / "run"), tmp_path / "run")
    assert (result["rounds"], result["privacy"]["cumulative_example"]["charges"]) == (3, 3)
    assert all("silos" not in json.loads(line) for line in shared().read_text().splitlines())


def test_open_cohorts_spend_what_they_ask(data: Path, tmp_path: Path) -> None:
    config = experiment(data, within(3), rounds=12, cohort={"sampling": "poisson", "rate": 0.3})
    result = go(config, tmp_path / "run")
    assert result["rounds"] > 3  # Counted as asked in every round, silos would have ended it there.
    assert result["privacy"]["cumulative_example"]["charges"] == 3
    assert result["privacy"]["example"]["epsilon_upper"] == result["privacy"]["cumulative_example"]["epsilon_upper"]


@pytest.mark.parametrize(("of_silos", "of_rows", "rounds"), [(2, 4, 2), (4, 2, 2), (3, 3, 3)])
def test_of_two_budgets_the_first_to_end_stops_both_units(
    data: Path, tmp_path: Path, of_silos: int, of_rows: int, rounds: int
) -> None:
    budget = {
        "epsilon": within(of_silos, Gaussian(2.0)),
        "delta": DELTA,
        "example": {"epsilon": within(of_rows), "delta": DELTA},
    }
    config = parse(mapping(data, **BOTH) | {"budget": budget})
    result = go(config, tmp_path / "run")
    assert result["rounds"] == rounds
    assert ("an example" in result["stopped"]) == (of_rows < of_silos)
    assert (charged(shared(), WHOLE), charged(shared())) == (rounds, rounds)
    own = tmp_path / "run"
    assert charged(own / "ledger.jsonl", WHOLE) == charged(own / "silos-ledger.jsonl") == rounds
    # Another run on the data set: what stops it charges neither unit.
    go(parse(mapping(data, **BOTH, seed=1) | {"budget": budget}), tmp_path / "next")
    assert (charged(shared(), WHOLE), charged(shared())) == (rounds, rounds)


def test_the_command_says_why_and_ends_with_exit_code_3(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(mapping(data, within(2))))
    assert main(["run", str(config), "--out", str(tmp_path / "run"), "--quiet"]) == 3
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("confide: budget: round 3 would bring epsilon of an example of silo 'silo-0'")
    assert line.endswith("stopped after round 2; the model of the last round is kept")
    words = " ".join(said.out.split())
    assert "in the silo that spent most, by 1 run with a budget on this data" in words
    assert main(["explain", str(tmp_path / "run")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Over 1 run with a budget of examples on this data, ε of an example is at most" in told
    assert "A silo counts for the rounds that it was asked in." in told
    assert "Over 1 run with a budget of examples" in (tmp_path / "run" / "report.html").read_text()


def test_the_plan_says_how_long_the_budget_lasts(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    for budget, lasts in ((within(2), 2), (within(1) / 2, 0), (99.0, 5), ([within(4)] * 5 + [within(1)], 1)):
        config.write_text(json.dumps(mapping(data, budget)))
        assert main(["plan", str(config), "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["example"]["rounds_within_budget"] == lasts
    assert go(experiment(data, [within(4)] * 5 + [within(1)]), tmp_path / "run")["rounds"] == 1
    assert main(["plan", str(config)]) == 0
    assert "by silo, lasts for 1 of 5 rounds, if every silo is asked in all" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_list_of_budgets_must_fit_the_silos_that_the_data_names(data: Path) -> None:
    named = {"path": str(data), "partition": "column"}
    with pytest.raises(ValueError, match=r"budget\.example\.epsilon: found 2 numbers for 3 silos"):
        prepare(parse(mapping(data, [1.0, 2.0]) | {"data": named}))


def test_two_racing_runs_share_the_last_rounds(data: Path, tmp_path: Path) -> None:
    """Real processes: of a budget of four rounds four are trained, whichever run gets them."""
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(mapping(data, within(4), data={"seed": 0})))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "simulations", "run", str(config), "--quiet", "--set"]
    quiet: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    racers = [
        subprocess.Popen([*start, f"seed={seed}", "--out", str(tmp_path / f"{seed}")], **quiet) for seed in (1, 2)
    ]
    ended = [(racer.communicate(timeout=300)[1], racer.returncode) for racer in racers]
    assert [code for _, code in ended] == [3, 3], ended
    rounds = [json.loads((tmp_path / f"{seed}" / "result.json").read_text())["rounds"] for seed in (1, 2)]
    assert sum(rounds) == charged(shared()) == 4


def test_sampled_steps_have_their_sampled_price(data: Path, tmp_path: Path) -> None:
    event = Repeated(Sampled(Poisson(0.25), Gaussian(1.5)), 2)
    noise = {"noise_multiplier": 1.5, "batch": 10}
    result = go(experiment(data, within(3, event), example=noise), tmp_path / "run")
    assert (result["rounds"], result["privacy"]["cumulative_example"]["epsilon_upper"]) == (3, price(event, 3))
    with ActiveRun(experiment(data, 9.0), tmp_path / "next") as active:
        (line, *_) = load(ledger_of(active.federation.fingerprint)).chain.entries
        assert (line.deal, line.silos) == (active.federation.deal, None)
