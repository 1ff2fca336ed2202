"""Runs whose silos noise their own updates: two views from one ledger, engines, budgets, and what is said of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privacy.accountant import epsilon
from privacy.chain import load
from privacy.contributions import Contributions
from privacy.events import Gaussian, Poisson, Repeated, Sampled
from privacy.local import CANARY, LOCAL, SILO, LocalNoise
from privacy.mechanism import GaussianSum
from privacy.noise import SimulatedNoise
from server.checkpoint import read as read_checkpoint
from server.store import StoreError
from simulations import ledgers
from simulations.cli import main
from simulations.local_privacy import local_plan
from simulations.planning import plan
from simulations.running import ActiveRun, Outcome, train
from strategies.experiment import Experiment
from strategies.loading import parse
from strategies.schema import ConfigError

torch.set_num_threads(1)

SILOS, RATE, DELTA, NOISE = 12, 0.5, 1e-3, 3.0
LOCAL_KEYS = {"clip_norm": 0.5, "noise_multiplier": NOISE, "delta": DELTA}
SILO_KEYS = {"clip_norm": 0.4, "noise_multiplier": 2.0, "delta": 1e-4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.normal(size=(120, 4)), y=rng.integers(0, 3, size=120))
    return folder


def mapping(place: Path, local: dict[str, Any] | None = None, /, **changes: Any) -> dict[str, Any]:
    return {
        "rounds": 6,
        "task": "logistic",
        "data": {"path": str(place / "data.npz"), "silos": SILOS},
        "cohort": {"sampling": "poisson", "rate": RATE},
        "train": {"epochs": 1, "learning_rate": 0.3},
        "privacy": {"local": LOCAL_KEYS | (local or {})},
        "engine": {"chunk": 3},
    } | changes


def both(place: Path, local: dict[str, Any] | None = None, /, **changes: Any) -> dict[str, Any]:
    content = mapping(place, local, **changes)
    content["privacy"]["silo"] = dict(SILO_KEYS)
    return content


def go(config: Experiment, folder: Path, *, resume: bool = False) -> Outcome:
    with ActiveRun(config, folder, resume=resume) as active:
        train(active)
        return active.finish()


def asked(folder: Path) -> list[int]:
    """How often each silo was asked, by the lines of the ledger alone."""
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    named = [silo for line in lines if line["kind"] == "reserve" and line["unit"] == LOCAL for silo in line["silos"]]
    return [named.count(silo) for silo in range(SILOS)]


def unsampled(times: int, *, neighbours: Any = "replace", delta: float = DELTA) -> float:
    return epsilon(Repeated(Gaussian(NOISE), times), delta, neighbours=neighbours).upper


# The price


def test_the_server_sees_unsampled_gaussians_of_the_silo_that_was_asked_most(place: Path, tmp_path: Path) -> None:
    config = parse(mapping(place))
    found = go(config, tmp_path / "run").result["privacy"]
    times = asked(tmp_path / "run")
    drawn = [plan(config, SILOS).sampler.draw(config.seed, round_) for round_ in range(1, 7)]
    assert times == [sum(silo in cohort for cohort in drawn) for silo in range(SILOS)]
    local = found["local"]
    assert local["epsilon_upper"] == pytest.approx(unsampled(max(times)), rel=1e-9)
    assert local["most_charges"] == max(times)
    assert local["charges"] == {str(count): times.count(count) for count in sorted(set(times))}
    # Nothing is claimed for outsiders beyond it: no line, and no number of their own.
    assert found["silo"] is None
    assert {entry.unit for entry in load(tmp_path / "run" / "ledger.jsonl").chain.counted()} == {LOCAL}


@pytest.mark.parametrize("neighbours", ["replace", "zero_out"])
def test_the_price_is_the_closed_form_for_either_relation(place: Path, neighbours: str) -> None:
    """Replacing moves an update by two clip norms: as much as half the noise."""
    planned = plan(parse(mapping(place, {"neighbours": neighbours})), SILOS).local
    assert planned is not None
    half = 0.5 if neighbours == "replace" else 1.0
    closed = epsilon(Gaussian(half * NOISE / math.sqrt(6)), DELTA).upper
    assert planned.cost.upper == pytest.approx(closed, rel=1e-9)


def test_noise_for_a_target_keeps_it_for_a_silo_that_is_always_asked(place: Path, tmp_path: Path) -> None:
    content = mapping(place, {"epsilon": 4.0, "noise_multiplier": None}, cohort={"sampling": "all"})
    planned = plan(parse(content), SILOS).local
    assert planned is not None
    assert 4.0 * 0.995 <= planned.cost.upper <= 4.0
    found = go(parse(content), tmp_path / "run").result["privacy"]["local"]
    assert found["epsilon_upper"] == pytest.approx(planned.cost.upper, rel=1e-9)
    assert found["most_charges"] == 6


def test_two_views_are_charged_side_by_side_and_never_added(place: Path, tmp_path: Path) -> None:
    found = go(parse(both(place)), tmp_path / "run").result["privacy"]
    alone = go(parse(both(place) | {"privacy": {"silo": SILO_KEYS}}), tmp_path / "alone").result["privacy"]
    assert found["silo"]["epsilon_upper"] == alone["silo"]["epsilon_upper"]
    assert alone["local"] is None
    assert found["local"]["epsilon_upper"] == pytest.approx(unsampled(max(asked(tmp_path / "run"))), rel=1e-9)
    events = {entry.unit: entry.event for entry in load(tmp_path / "run" / "ledger.jsonl").chain.counted()}
    assert events == {"silo": Sampled(Poisson(RATE), Gaussian(2.0)), LOCAL: Gaussian(NOISE)}


def test_the_ledger_is_on_the_disk_before_a_silo_is_asked(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = LocalNoise.protect

    def noted(self: LocalNoise, channels: Any, weight: Any, silos: Any, *, round_: int, **rest: Any) -> Any:
        last = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()][-1]
        assert (last["kind"], last["unit"], last["round"]) == ("reserve", LOCAL, round_)
        assert set(silos) <= set(last["silos"])
        seen.append(round_)
        return original(self, channels, weight, silos, round_=round_, **rest)

    monkeypatch.setattr(LocalNoise, "protect", noted)
    go(parse(both(place)), tmp_path / "run")
    assert set(seen) == {1, 2, 3, 4, 5, 6}


def test_both_views_are_verified_from_the_file(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = go(parse(both(place)), tmp_path / "run").result["privacy"]
    verdict = ledgers.verify(*ledgers.find(tmp_path / "run"))
    assert verdict.problems == ()
    assert verdict.epsilon == pytest.approx(
        {
            "silo/add_remove": found["silo"]["epsilon_upper"],
            f"{LOCAL}/replace": found["local"]["epsilon_upper"],
        },
        rel=1e-9,
    )
    path = Path(ledgers.__file__).parent.parent / "privacy" / "verify.py"
    command = [sys.executable, str(path), str(tmp_path / "run" / "ledger.jsonl"), "--delta", str(DELTA)]
    said = json.loads(subprocess.run([*command, "--unit", LOCAL], capture_output=True, text=True, check=True).stdout)
    assert said["charges"] == found["local"]["most_charges"]
    assert said["epsilon"] == pytest.approx(found["local"]["epsilon_upper"], rel=0.01)
    assert main(["ledger", "show", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert ", in the silo that spent most" in shown
    assert f"{found['local']['epsilon_upper']:.4g}"[:4] in shown


def test_a_result_that_says_less_than_the_ledger_is_found_out(place: Path, tmp_path: Path) -> None:
    go(parse(mapping(place)), tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    result = json.loads(path.read_text())
    for name, value in (("epsilon_upper", 0.1), ("most_charges", 1)):
        changed = {**result, "privacy": {**result["privacy"], "local": {**result["privacy"]["local"], name: value}}}
        path.write_text(json.dumps(changed))
        [problem] = ledgers.verify(*ledgers.find(tmp_path / "run")).problems
        assert "result.json says" in problem


# Budgets and restarts


def test_no_silo_passes_its_budget_and_the_run_ends_before_one_would(place: Path, tmp_path: Path) -> None:
    """A budget for three updates: the run ends before the round that would ask some silo for its fourth."""
    budget = unsampled(3) * 1.001
    outcome = go(parse(mapping(place, {"budget": budget})), tmp_path / "run")
    times = asked(tmp_path / "run")
    assert max(times) == 3
    assert outcome.result["privacy"]["local"]["epsilon_upper"] <= budget
    sampler = plan(parse(mapping(place)), SILOS).sampler
    following = sampler.draw(0, outcome.result["rounds"] + 1)
    assert max(times[silo] for silo in following) == 3
    assert str(outcome.result["stopped"]).startswith("budget: round")
    assert "would ask a silo for the 4th time" in outcome.result["stopped"]


def test_a_round_that_was_broken_off_is_charged_again_to_those_it_asked(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, original = parse(mapping(place, cohort={"sampling": "all"})), LocalNoise.protect

    def failing(self: LocalNoise, *args: Any, round_: int, **rest: Any) -> Any:
        if round_ == 3:
            raise KeyboardInterrupt
        return original(self, *args, round_=round_, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(LocalNoise, "protect", failing)
        with pytest.raises(KeyboardInterrupt):
            go(config, tmp_path / "cut")
    whole, cut = go(config, tmp_path / "whole"), go(config, tmp_path / "cut", resume=True)
    assert cut.result["model"]["sha256"] == whole.result["model"]["sha256"]
    assert (whole.result["privacy"]["local"]["most_charges"], cut.result["privacy"]["local"]["most_charges"]) == (6, 7)


def test_a_run_does_not_go_on_under_another_price(place: Path, tmp_path: Path) -> None:
    config = parse(mapping(place))
    go(config, tmp_path / "run")
    with ActiveRun(config, tmp_path / "run", resume=True) as active:
        assert active.training.local is not None
        active.training = replace(active.training, local=replace(active.training.local, event=Gaussian(9.0)))
        with pytest.raises(StoreError, match="price of an update changed"):
            train(active)


# Who computes, and what leaves


def test_the_pool_sends_the_same_bits_as_this_process(place: Path, tmp_path: Path) -> None:
    config = parse(mapping(place))
    local = go(config, tmp_path / "local").result
    pool = go(replace(config, engine=replace(config.engine, kind="pool", workers=2)), tmp_path / "pool").result
    single = go(replace(config, engine=replace(config.engine, stacked="off")), tmp_path / "single").result
    assert local["model"]["sha256"] == pool["model"]["sha256"]
    assert local["privacy"] == pool["privacy"] == single["privacy"]


def test_only_protected_updates_reach_the_sum(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row that is summed is one that `protect` gave, canaries included; and there are as many."""
    from privacy.contributions import Contributions

    given: list[torch.Tensor] = []
    summed: list[torch.Tensor] = []
    purposes = Counter[str]()
    protect, add = LocalNoise.protect, Contributions.add

    def protected(self: LocalNoise, *args: Any, **rest: Any) -> Any:
        channels, broken = protect(self, *args, **rest)
        purposes[rest.get("purpose", "silos")] += len(channels["delta"])
        given.append(channels["delta"])
        return channels, broken

    def added(self: Contributions, channels: Any, *others: Any, **named: Any) -> None:
        summed.append(channels["delta"])
        add(self, channels, *others, **named)

    monkeypatch.setattr(LocalNoise, "protect", protected)
    monkeypatch.setattr(Contributions, "add", added)
    content = both(place)
    content["privacy"]["audit"] = {"canaries": 5}
    result = go(parse(content), tmp_path / "run").result
    assert len(given) == len(summed)
    assert all(one is other for one, other in zip(given, summed, strict=True))
    assert purposes["silos"] == result["updates"]["arrived"] > 0
    assert purposes[CANARY] == purposes.total() - purposes["silos"] > 0  # Streams of their own.


def test_system_noise_runs_and_does_not_repeat(place: Path, tmp_path: Path) -> None:
    content = mapping(place)
    content["privacy"]["noise"] = "system"
    models = {go(parse(content), tmp_path / name).result["model"]["sha256"] for name in ("one", "two")}
    assert len(models) == 2


def test_private_numbers_are_not_recorded_unless_for_research(place: Path, tmp_path: Path) -> None:
    for kind, none in (("strict", True), ("research", False)):
        go(parse(mapping(place, metrics={"privacy": kind})), tmp_path / kind)
        rows = [json.loads(line) for line in (tmp_path / kind / "rounds.jsonl").read_text().splitlines()]
        assert all((row["train_loss"] is None) == none for row in rows if row["arrived"])


def test_an_update_that_is_not_finite_shows_as_no_failure(place: Path, tmp_path: Path) -> None:
    content = mapping(place, train={"steps": 3, "learning_rate": 1e38}, cohort={"sampling": "all"})
    result = go(parse(content), tmp_path / "run").result
    assert result["updates"] == {"arrived": 6 * SILOS, "failed": 0, "reasons": {}}
    assert bool(torch.isfinite(read_checkpoint(tmp_path / "run" / "checkpoint.safetensors").state["model"]).all())


# What is refused, and what is said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"neighbours": "add_remove"},
            "privacy.local.neighbours: the server sees who answers, so add_remove has no price",
        ),
        ({"epsilon": 1.0}, "privacy.local: give one of noise_multiplier and epsilon, found both"),
        ({"noise_multiplier": None}, "privacy.local: give one of noise_multiplier and epsilon, found neither"),
        ({"delta": 0.5}, "privacy.local.delta: must be < 1 / silos = 0.08333, got 0.5; lower it"),
    ],
)
def test_what_has_no_price_is_refused(place: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(mapping(place, change))
    [problem] = caught.value.problems
    assert problem.startswith(message)


def test_what_would_go_past_the_noise_is_refused(place: Path) -> None:
    moments = {"name": "private", "low": [-4.0], "high": [4.0], "noise_multiplier": 1.0}
    content = both(place)
    content["data"] |= {"standardize": moments}
    with pytest.raises(ConfigError, match="private shows each silo's moments to the server before noise"):
        parse(content)
    with pytest.raises(ConfigError, match="'examples' counts private rows"):
        parse(mapping(place, strategy={"name": "fedavg", "weighting": "examples"}))
    with pytest.raises(ConfigError, match=r"privacy\.local\.budget: ends the run by who was asked"):
        parse(both(place, {"budget": 1.0}))
    fixed = {"sampling": "fixed", "size": 6}
    content = both(place, {"budget": 1.0}, cohort=fixed)
    content["privacy"]["silo"] |= {"neighbours": "replace"}  # A sample of fixed size amplifies too.
    with pytest.raises(ConfigError, match=r"privacy\.local\.budget: ends the run by who was asked"):
        parse(content)
    content = both(place)
    content["privacy"]["silo"] |= {"neighbours": "zero_out"}
    with pytest.raises(ConfigError, match="a silo that has zeros sends noise; use add_remove or replace"):
        parse(content)
    turns = {"sampling": "cyclic", "separation": 3}  # Who is asked when is known to all.
    assert parse(both(place, {"budget": 1.0}, cohort=turns)).privacy.local is not None
    assert parse(both(place, {"budget": 1.0}, cohort={"sampling": "all"})).privacy.local is not None


def test_zeros_that_were_noised_by_their_silo_move_the_sum_by_up_to_two_clip_norms() -> None:
    """Why zero_out has no price of one clip norm there: noise that points against an update is cut to a clip norm, too.

    An update of norm 4 against noise of norm 1: their sum and the noise alone are clipped to 1, in opposite directions.
    """
    noise = SimulatedNoise(0)
    drawn = noise.normals(1, SILO, 1, 0, "delta") * 1.0
    local = LocalNoise({"delta": GaussianSum(100.0, 0.01)}, noise)  # Noise of std 1.
    sums = []
    for update in (-4.0 * drawn, 0.0 * drawn):
        sent, _ = local.protect({"delta": update.float()}, 1.0, [0], round_=1)
        server = Contributions({"delta": GaussianSum(0.1, 1.0)}, {"delta": 1})
        server.add(sent, 1.0, [0])
        sums.append(float(server.sums["delta"]))
    assert abs(float(drawn)) > 0.1
    assert abs(sums[0] - sums[1]) == pytest.approx(2 * 0.1)


def test_delta_is_looked_at_for_silos_that_only_the_data_names(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.local\.delta: must be < 1 / silos = 0\.001"):
        local_plan(parse(mapping(place)), population=1000)


def test_plan_summary_statement_and_report_say_which_epsilon_is_which(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("alone", mapping(place)), ("both", both(place))):
        config = tmp_path / f"{name}.yaml"
        config.write_text(json.dumps(content))
        assert main(["plan", str(config)]) == 0
        planned = " ".join(capsys.readouterr().out.split())
        assert "silos' own noise 3 times the clip norm of 0.5, on every single update" in planned
        assert main(["run", str(config), "--out", str(tmp_path / name)]) == 0
        summary = " ".join(capsys.readouterr().out.split())
        assert "Against the server, by the silos' own noise" in summary
        assert ("epsilon claimed" in summary) == (name == "both")
        assert ("epsilon outside" in summary) == (name == "alone")
        assert main(["explain", str(tmp_path / name)]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "The server: sees each update clipped and noised by its silo, and who answers; ε at most" in said
        assert ("which are not to be added" in said) == (name == "both")
        assert ("nothing better is claimed, as nothing better is proved" in said) == (name == "alone")
        report = (tmp_path / name / "report.html").read_text()
        assert "Every silo shortens its own update to norm 0.5 and adds noise of 3 times that" in report
        assert "no privacy" not in report


def test_a_sweep_over_local_noise_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(both(place)))
    command = [
        "sweep",
        str(config),
        "--over",
        "train.learning_rate=0.1,0.2",
        "--runs",
        "2",
        "--out",
        str(tmp_path / "s"),
    ]
    assert main(command) == 2
    assert "privacy.local: the choice of a sweep has no price here" in capsys.readouterr().err
