"""A sweep draws once, shows one run, and charges for all that the choice rested on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from privacy import accountant, tuning
from privacy.events import Composed, Gaussian, Poisson, Repeated, Sampled
from privacy.ledger import read
from simulations.cli import main
from simulations.data.federation import build
from simulations.report.run import read_run
from simulations.report.words import number
from simulations.running import ActiveRun, train
from simulations.sweep import choice as sweep_choice
from simulations.sweep import memory as sweep_memory
from simulations.sweep import run as sweep_run
from simulations.sweep.plan import MOST_SETTINGS, Spec, draw, grid, settings
from simulations.sweep.run import Means
from simulations.sweep.score import silo_score
from simulations.sweep.sweep import Sweep, prepared
from simulations.words.statement import statement
from strategies.loading import parse
from strategies.schema import ConfigError

SPEC = Spec(
    over=("train.learning_rate=0.05,0.5", "rounds=1,2"),
    distribution="truncated_negative_binomial",
    mean=4.0,
    eta=1.0,
    select="accuracy",
    on="public",
    score_noise=None,
    release="best",
)
CONFIG: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "rounds": 2,
    "task": "logistic",
    "data": {"name": "digits", "silos": 30, "public_test": 0.2, "validation": 0.3, "limit": 400},
    "cohort": {"sampling": "poisson", "rate": 0.5},
    "train": {"steps": 2},
    "strategy": {"name": "fedavg", "server": {"name": "sgd"}},
    "privacy": {"silo": {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-3}},
}


def event(rounds: int) -> Repeated:
    return Repeated(Sampled(Poisson(0.5), Gaussian(2.0)), rounds)


def swept(folder: Path, spec: Spec = SPEC, config: dict[str, Any] = CONFIG) -> dict[str, Any]:
    sweep = prepared(spec, config)
    memory = sweep_memory.begin(sweep, folder)
    assert sweep_run.go_on(sweep, memory, folder, Means(lambda: False, lambda line: None))
    assert json.loads((folder / "sweep.json").read_text()) == memory
    return memory


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("best")
    return folder, swept(folder)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("all")
    return folder, swept(folder, dataclasses.replace(SPEC, release="all"))


def test_the_draw_follows_from_the_seed_alone() -> None:
    runs = draw(SPEC, seed=3, points=4)
    assert runs == draw(SPEC, seed=3, points=4)
    assert runs[:2] == draw(SPEC, seed=3, points=4)[:2]
    assert len({run.seed for run in runs} | {3}) == len(runs) + 1
    assert len({len(draw(SPEC, seed=seed, points=4)) for seed in range(20)}) > 1


def test_numbers_of_runs_and_settings_are_drawn_by_their_law() -> None:
    # 2,000 geometric numbers of mean 4, variance 12: the mean is within 5 standard errors (0.39) but once in 10^6.
    drawn = [draw(SPEC, seed=seed, points=3) for seed in range(2000)]
    assert sum(map(len, drawn)) / 2000 == pytest.approx(4, abs=0.39)
    picked = [run.point for runs in drawn for run in runs]  # About 8,000: a share has a standard error below 0.0055.
    for point in range(3):
        assert picked.count(point) / len(picked) == pytest.approx(1 / 3, abs=0.0275)  # Five of them: once in 10^6.


def test_every_run_is_about_the_same_silos_and_the_same_public_rows() -> None:
    sweep = prepared(SPEC, CONFIG)
    runs = [sweep.experiment(run) for run in sweep.drawn]
    assert len(runs) > 1
    first, *others = [build(run.data, seed=run.seed) for run in runs]
    base = parse(CONFIG)
    for other in [*others, build(base.data, seed=base.seed)]:
        assert torch.equal(first.train.rows.features, other.train.rows.features)
        assert torch.equal(first.train.offsets, other.train.offsets)
        assert first.public_test is not None
        assert other.public_test is not None
        assert torch.equal(first.public_test.features, other.public_test.features)


def test_what_was_drawn_is_on_the_disk_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_run(*args: object, **kwargs: object) -> None:
        memory = json.loads((tmp_path / "sweep.json").read_text())
        assert [run["state"] for run in memory["runs"]] == ["waiting"] * len(draw(SPEC, seed=3, points=4))
        raise RuntimeError("reached the first run")

    monkeypatch.setattr(sweep_run, "ActiveRun", no_run)
    with pytest.raises(RuntimeError, match="reached the first run"):
        swept(tmp_path)


def test_only_the_best_run_is_left_to_look_at(best: tuple[Path, dict[str, Any]]) -> None:
    folder, memory = best
    assert memory["complete"]
    chosen = memory["chosen"]["run"]
    assert (folder / chosen / "model.safetensors").exists()
    for run in memory["runs"]:
        if run["run"] != chosen:
            left = {path.name for path in (folder / run["run"]).iterdir()}
            assert left == {"experiment.yaml", "ledger.jsonl", "lock"}
            assert (run["state"], run["score"]) == ("withheld", None)


def test_the_run_chosen_is_the_best_of_all(
    best: tuple[Path, dict[str, Any]], everything: tuple[Path, dict[str, Any]]
) -> None:
    scores = {run["run"]: run["score"] for run in everything[1]["runs"]}
    assert len(scores) > 1
    assert best[1]["chosen"] == everything[1]["chosen"]
    assert best[1]["chosen"]["score"] == max(scores.values()) == scores[best[1]["chosen"]["run"]]
    assert all((everything[0] / run / "model.safetensors").exists() for run in scores)


def test_the_best_is_charged_by_the_law_of_its_number(best: tuple[Path, dict[str, Any]]) -> None:
    grid_events = [event(rounds) for rounds in (1, 2, 1, 2)]
    law = tuning.TruncatedNegativeBinomial.with_mean(4)
    price = best[1]["privacy"]
    assert price["epsilon_upper"] == pytest.approx(tuning.epsilon(grid_events, law, 1e-3), rel=1e-9)
    assert price["one_run"] == accountant.epsilon(event(2), 1e-3).upper < price["epsilon_upper"]


def test_where_all_are_released_they_compose(everything: tuple[Path, dict[str, Any]]) -> None:
    rounds = sum(run["settings"]["rounds"] for run in everything[1]["runs"])
    whole = accountant.epsilon(event(rounds), 1e-3)
    price = everything[1]["privacy"]
    assert (price["epsilon_lower"], price["epsilon_upper"]) == (whole.lower, whole.upper)


def test_a_released_run_says_what_its_choice_cost(
    best: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, memory = best
    run = folder / memory["chosen"]["run"]
    result = json.loads((run / "result.json").read_text())
    assert result["privacy"]["selection"]["epsilon_upper"] == memory["privacy"]["epsilon_upper"]
    assert "runs" not in result["privacy"]["selection"]  # How many there were is part of the secret.
    assert "the choice of this run included" in result["notes"][0]
    upper = number(memory["privacy"]["epsilon_upper"], 4, "up")
    assert statement(read_run(run))[0].sentences[0].startswith(f"ε (epsilon) is at most {upper} at δ (delta) = 10⁻³")
    page = (run / "report.html").read_text()
    assert f"<b>ε ≤ {upper}</b>at δ = 10⁻³, for adding or removing one whole silo, the sweep that it comes from" in page
    assert main(["compare", str(run), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["epsilon"] == memory["privacy"]["epsilon_upper"]


def test_a_sweep_that_was_stopped_goes_on_with_what_was_drawn(
    tmp_path: Path, best: tuple[Path, dict[str, Any]]
) -> None:
    sweep, started = prepared(SPEC, CONFIG), []
    memory = sweep_memory.begin(sweep, tmp_path)
    means = Means(lambda: len(started) > 1, started.append)
    assert not sweep_run.go_on(sweep, memory, tmp_path, means)
    held = json.loads((tmp_path / "sweep.json").read_text())
    assert [run["state"] for run in held["runs"]] == ["done"] + ["waiting"] * (len(held["runs"]) - 1)
    again, memory, _ = sweep_memory.reopen(tmp_path, lambda base: None)
    assert again.drawn == sweep.drawn
    assert sweep_run.go_on(again, memory, tmp_path, Means(lambda: False, lambda line: None))
    assert memory == best[1]


@pytest.mark.parametrize("change", ["fewer", "other seed", "other settings", "damaged"])
def test_runs_other_than_those_drawn_are_refused(tmp_path: Path, change: str) -> None:
    memory = sweep_memory.begin(prepared(SPEC, CONFIG), tmp_path)
    match change:
        case "fewer":
            memory["runs"].pop()
        case "other seed":
            memory["runs"][0]["seed"] += 1
        case "other settings":
            memory["runs"][0]["settings"]["train.learning_rate"] = 7
        case _:
            del memory["spec"]["mean"]
    sweep_memory.remember(tmp_path, memory)
    with pytest.raises(ValueError, match=r"never drawn again|damaged"):
        sweep_memory.reopen(tmp_path, lambda base: None)


def test_attempts_that_were_broken_off_are_charged() -> None:
    for release in ("best", "all"):
        sweep = prepared(dataclasses.replace(SPEC, release=release), CONFIG)
        planned = sweep.price()
        paid = sweep.price([{"charges": 9, "scores": 1}] * len(sweep.drawn))
        assert planned is not None
        assert paid is not None
        assert paid.epsilon_upper > planned.epsilon_upper
        same = sweep.price([{"charges": sweep.experiments[run.point].rounds} for run in sweep.drawn])
        assert same == planned


def test_a_choice_on_silos_pays_for_every_score(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, over=("train.learning_rate=0.05,0.5",), on="silos", score_noise=3.0)
    memory = swept(tmp_path, spec)
    one = Composed((event(2), Gaussian(3.0)))
    assert memory["privacy"]["one_run"] == accountant.epsilon(one, 1e-3).upper
    law = tuning.TruncatedNegativeBinomial.with_mean(4)
    assert memory["privacy"]["epsilon_upper"] == pytest.approx(tuning.epsilon([one, one], law, 1e-3), rel=1e-9)
    lines = list(read(tmp_path / "scores.jsonl"))
    reserves = [line["round"] for line in lines if line["kind"] == "reserve"]
    assert reserves == list(range(1, len(memory["runs"]) + 1))


def test_a_score_is_the_mean_over_silos_with_its_noise(tmp_path: Path) -> None:
    from privacy.ledger import Ledger

    experiment = parse(CONFIG)
    with ActiveRun(experiment, tmp_path / "run") as active:
        train(active)
        ledger = Ledger(tmp_path / "scores.jsonl", run="sweep", dataset="none")
        exact = silo_score(active, ledger, run=1, noise=1e-9)
        noised = silo_score(active, ledger, run=2, noise=3.0)
        ledger.close()
    assert 0 < exact < 1
    draws = torch.randn(1, generator=_score_stream(experiment.seed), dtype=torch.float64)
    assert noised - exact == pytest.approx(3.0 * float(draws) / 30, abs=1e-6)


def _score_stream(seed: int) -> torch.Generator:
    from privacy import streams

    return streams.generator(seed, "noise", "score")


@pytest.mark.parametrize(
    ("clip_norm", "state"),
    [(50.0, "diverged"), (0.5, "done")],  # A model beyond float32; one within it, but with a loss that is infinite.
)
def test_a_run_without_a_score_is_the_worst_and_ends_nothing(tmp_path: Path, clip_norm: float, state: str) -> None:
    spec = dataclasses.replace(SPEC, over=("strategy.server.learning_rate=1.0,3.0e+38",), release="all", select="loss")
    privacy = {"silo": CONFIG["privacy"]["silo"] | {"clip_norm": clip_norm}}
    memory = swept(tmp_path, spec, CONFIG | {"privacy": privacy})
    runs = {run["settings"]["strategy.server.learning_rate"]: run for run in memory["runs"]}
    assert {value: run["state"] for value, run in runs.items()} == {1.0: "done", 3e38: state}
    assert runs[3e38]["score"] is None
    assert memory["chosen"]["settings"] == {"strategy.server.learning_rate": 1.0}


def test_no_run_at_all_is_an_outcome_of_a_poisson_number(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, distribution="poisson", mean=1.5)
    seed = next(seed for seed in range(100) if not draw(spec, seed=seed, points=4))
    memory = swept(tmp_path, spec, CONFIG | {"seed": seed})
    assert memory["complete"]
    assert memory["chosen"] is None
    assert memory["privacy"]["epsilon_upper"] > memory["privacy"]["one_run"]


@pytest.mark.parametrize(("select", "place"), [("accuracy", 1), ("loss", 2), ("mse", 2)])
def test_the_best_is_the_largest_accuracy_or_the_smallest_loss(select: str, place: int) -> None:
    runs = [{"score": score} for score in (None, 0.9, 0.1, 0.9, 0.1)]
    assert sweep_choice.best(runs, select) == place
    assert sweep_choice.best([{"score": None}], select) is None


def test_a_grid_has_every_combination_and_keeps_lists_whole() -> None:
    assert grid(["a.b=1,2", "c=[1,2],[3]"]) == [(f"a.b={b}", f"c={c}") for b in (1, 2) for c in ("[1,2]", "[3]")]
    assert settings(("a.b=1e-2", "c=[1,2]")) == {"a.b": 0.01, "c": [1, 2]}


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        (["seed=1,2"], "must be the same in all runs"),
        (["data.silos=10,20"], "must be the same in all runs"),
        (["privacy.silo.delta=1e-5,1e-4"], "must be the same in all runs"),
        (["rounds=1,1"], "a value is there twice"),
        (["rounds=1", "rounds=2"], "is there twice"),
        (["rounds"], "write KEY=VALUE,VALUE"),
        (["rounds=1,"], "write KEY=VALUE,VALUE"),
        ([f"rounds={','.join(map(str, range(MOST_SETTINGS + 1)))}"], "more than 1000 settings"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(over: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        grid(over)


@pytest.mark.parametrize(
    ("changes", "config", "problem"),
    [
        ({"select": "mse"}, {}, "this data is classification; use accuracy"),
        ({}, {"data": CONFIG["data"] | {"public_test": 0.0}}, "there are no public rows"),
        ({"on": "silos"}, {}, "--score-noise: missing"),
        ({"score_noise": 1.0}, {}, "only for --on silos"),
        ({"on": "silos", "score_noise": 1.0, "select": "loss"}, {}, "only accuracy has a bound"),
        ({"on": "silos", "score_noise": 1.0}, {"data": CONFIG["data"] | {"validation": 0.0}}, "hold no rows to choose"),
        ({"on": "silos", "score_noise": 1.0}, {"privacy": {}}, "no privacy.silo"),
        ({}, {"budget": {"epsilon": 0.5, "delta": 1e-3}}, "that the sweep costs"),
        ({}, {"metrics": {"inline": True}}, "metrics.inline: is of a single run; leave it out"),
        ({"mean": 1.0}, {}, "--runs: mean must be > 1"),
        ({"eta": -2.0}, {}, "--eta: eta must be > -1"),
        ({"over": ("privacy.silo=null", "rounds=1,2")}, {}, None),
        ({"over": ('privacy.silo=null,{"clip_norm": 1, "noise_multiplier": 1, "delta": 1e-3}',)}, {}, "no price"),
    ],
)
def test_a_choice_that_has_no_price_is_refused(changes: dict[str, Any], config: Any, problem: str | None) -> None:
    spec = dataclasses.replace(SPEC, **changes)
    if problem is None:
        sweep: Sweep = prepared(spec, CONFIG)
        assert sweep.price() is None
        return
    with pytest.raises(ConfigError, match=problem):
        prepared(spec, CONFIG | config)


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        (
            "privacy.local=null,{clip_norm: 0.5, noise_multiplier: 5.0, delta: 0.001}",
            "privacy.local: the choice of a sweep has no price here against the server; leave it out",
        ),
        (
            "privacy.example=null,{clip_norm: 1.0, noise_multiplier: 5.0, delta: 0.001, rows: 9, batch: 3}",
            "privacy.example: the choice of a sweep has no price here for examples; leave it out",
        ),
        (
            "privacy.noise=simulated,system",
            "privacy.noise: a sweep draws its runs and scores from the seed; use simulated for it",
        ),
    ],
)
def test_no_point_of_the_grid_has_what_a_choice_has_no_price_for(over: str, problem: str) -> None:
    """Nine runs of an example-level experiment, and the best of them: its own epsilon says nothing of the choice."""
    with pytest.raises(ConfigError) as caught:
        prepared(dataclasses.replace(SPEC, over=(over,)), CONFIG)
    assert caught.value.problems == (problem,)


def test_a_sweep_of_runs_that_protect_examples_alone_is_refused() -> None:
    example = {"clip_norm": 1.0, "noise_multiplier": 5.0, "delta": 1e-3, "rows": 9, "batch": 3}
    with pytest.raises(ConfigError, match="no price here for examples"):
        prepared(SPEC, CONFIG | {"privacy": {"example": example}})
