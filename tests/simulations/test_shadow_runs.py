"""Runs of shadow learning: what engines, a restart, the ledger and a reader of the saved model make of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from client.examples import Examples
from server.loop import served
from simulations import group_metrics
from simulations.data.federation import build
from simulations.prediction import Predictor
from simulations.running import INTERRUPTED, ActiveRun, Outcome, run, train
from simulations.shipped import find
from strategies.base import Guard
from strategies.guarded import Guarded
from strategies.layout import Layout
from strategies.loading import load, parse
from strategies.tasks import Shape, initial

torch.set_num_threads(1)

PATCH = {"name": "pixel_patch", "fraction": 0.25, "target": 1, "size": 2, "poisoned": 0.3}
QUICK = {
    "name": "shadow",
    "target": [1, 7],
    "malicious": 0.25,
    "pool": 2,
    "window": 1,
    "settle": 0.9,
    "floor": 0.05,
    "shift": 0.95,
    "stop_window": 2,
    "stop": 0.9,
    "stop_floor": 0.05,
}


def experiment(**changes: Any) -> dict[str, Any]:
    return {
        "rounds": 10,
        "task": {"name": "mlp", "hidden": [16]},
        "data": {"name": "digits", "silos": 20, "limit": 1200, "test": 0.2},
        "cohort": {"sampling": "fixed", "size": 16},
        "train": {"epochs": 2, "batch_size": 10, "learning_rate": 0.3},
        "strategy": QUICK,
        "attacks": [PATCH],
    } | changes


def done(folder: Path, **changes: Any) -> Outcome:
    return run(parse(experiment(**changes)), out=folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return done(tmp_path_factory.mktemp("shadow") / "run")


def test_a_run_comes_to_its_end_and_says_how(whole: Outcome) -> None:
    assert whole.result["strategy_report"]["phase"] == "stopped"
    assert whole.result["strategy_report"]["shadows"] == 1.0
    assert whole.result["strategy_report"]["guarded"] == whole.result["model"]["guarded"]
    judged = [row["round"] for row in lines(whole.folder) if "flagged" in row["attackers"]]
    assert judged == [4, 5, 6]  # Settled after round 2, one more pooled; four accuracies end it in round 7.
    variants = whole.result["metrics"]["variants"]
    assert set(variants) == {"backbone", "shadow"}


def test_engines_agree_to_the_bit(whole: Outcome, tmp_path: Path) -> None:
    pool = done(tmp_path / "pool", engine={"kind": "pool", "workers": 2})
    for name in ("model", "metrics", "attacks", "strategy_report"):
        assert pool.result[name] == whole.result[name], name


@pytest.mark.parametrize("rounds", [3, 5, 8])
def test_a_run_that_was_stopped_goes_on_to_the_same_models(rounds: int, whole: Outcome, tmp_path: Path) -> None:
    again = parse(experiment())
    with ActiveRun(again, tmp_path / "part") as active:
        train(active, stop=lambda: len(active.store.rows()) == rounds)
        assert active.stopped == INTERRUPTED
    with ActiveRun(again, tmp_path / "part", resume=True) as active:
        train(active)
        result = active.finish().result
    for name in ("model", "metrics", "attacks", "strategy_report"):
        assert result[name] == whole.result[name], name


def test_the_backbone_is_what_no_defence_would_have_trained(whole: Outcome, tmp_path: Path) -> None:
    plain = done(tmp_path / "plain", strategy="fedavg")
    assert whole.result["metrics"]["variants"]["backbone"]["accuracy"] == plain.result["metrics"]["accuracy"]
    assert whole.result["metrics"]["variants"]["backbone"]["loss"] == plain.result["metrics"]["loss"]


def test_what_is_saved_is_served_as_one_model(whole: Outcome) -> None:
    predictor = Predictor.load(whole.folder, whole.result)
    with ActiveRun(parse(experiment()), whole.folder, resume=True) as active:
        checkpoint = active.store.load()
        assert checkpoint is not None
        model, guard = cast(Any, served(active.experiment.strategy, checkpoint.state))
        public = active.federation.public_test
        assert public is not None
        backbone, second = (initial(active.experiment.task, active.model.shape, seed=0)[0] for _ in range(2))
    for module, vector in ((backbone, model), (second, guard.model)):
        Layout.of(module).load(module, vector)
    with torch.no_grad():
        alone, other = backbone(public.features), second(public.features)
        says = alone.argmax(-1) == guard.label
        assert 0 < int(says.sum()) < len(says)
        expected = torch.where(says.unsqueeze(-1), other, alone)
    found = predictor.predict(public.features)
    assert [each["prediction"] for each in found] == expected.argmax(-1).tolist()
    sure = expected.softmax(-1).max(-1).values  # Where both say the same, they are not equally sure of it.
    torch.testing.assert_close(torch.tensor([each["probability"] for each in found]), sure)
    assert not torch.allclose(other[says], alone[says], atol=1e-3)
    right = float((expected.argmax(-1) == public.targets).double().mean())
    assert whole.result["metrics"]["accuracy"] == pytest.approx(right, abs=1e-6)


def test_silos_are_served_both_models_too(whole: Outcome) -> None:
    predictor = Predictor.load(whole.folder, whole.result)
    held = build(parse(experiment()).data, seed=0).test
    assert held is not None
    found = [each["prediction"] for each in predictor.predict(held.rows.features)]
    right = float((torch.tensor(found) == held.rows.targets).double().mean())
    assert whole.result["metrics"]["test"]["accuracy"] == pytest.approx(right, abs=1e-6)


def test_groups_are_measured_on_both_models() -> None:
    """A shadow that says 2 wherever the backbone says 1 is right on rows of 2, and the backbone on none of them."""
    config = parse(experiment())
    federation = build(config.data, seed=0)
    assert federation.public_test is not None
    shape = Shape(federation.shape, 10)
    module, _ = initial(config.task, shape, seed=0)
    layout = Layout.of(module)

    def says(label: int) -> torch.Tensor:
        vector = torch.zeros(layout.size)
        vector[-10 + label] = 1.0  # The last layer's biases.
        return vector

    twos = torch.full((30,), 2)
    rows = Examples(federation.public_test.features[:30], twos, torch.arange(30) % 2)
    told = replace(federation, public_test=rows, test=None, group_names=("even", "odd"))
    active = cast(ActiveRun, SimpleNamespace(experiment=config, model=SimpleNamespace(module=module), records=True))
    found = group_metrics.served(told, active, says(1), Guard(1, says(2)), {"backbone": says(1)})
    assert found is not None
    assert found["public_test"]["groups"]["even"]["accuracy"] == 1.0
    assert found["variants"]["backbone"]["groups"]["even"]["accuracy"] == 0.0
    alone = group_metrics.served(told, active, says(1), None, {})
    assert alone is not None
    assert alone["public_test"]["groups"]["odd"]["accuracy"] == 0.0


def test_silos_have_no_privacy_and_the_ledger_and_the_statement_say_why(tmp_path: Path) -> None:
    silo = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-2, "neighbours": "replace"}
    found = done(tmp_path / "run", rounds=2, privacy={"silo": silo})
    claimed = found.result["privacy"]["silo"]
    assert claimed["epsilon_upper"] is None  # Infinite: JSON has no word for it.
    entries = [json.loads(line) for line in (found.folder / "ledger.jsonl").read_text().splitlines()]
    reason = {"kind": "non_private", "reason": "strategy shadow sees single updates"}
    assert [each["event"] for each in entries if each["kind"] == "reserve"] == [reason] * 2
    assert "strategy shadow sees single updates" in (found.folder / "report.html").read_text()


def test_examples_have_a_price_all_the_same(tmp_path: Path) -> None:
    section = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3, "rows": 30, "batch": 10}
    found = done(
        tmp_path / "run",
        rounds=3,
        train={"steps": 3, "learning_rate": 0.3},
        privacy={"example": section},
        data={"name": "digits", "silos": 20, "limit": 1200},
    )
    epsilon = found.result["privacy"]["example"]["epsilon_upper"]
    assert 0 < epsilon < float("inf")
    assert found.result["privacy"]["silo"] is None
    assert found.result["updates"]["failed"] == 0


def test_the_shipped_experiment_is_read_and_says_the_fraction_once_to_both() -> None:
    config = load(find("shadow_fashion"))
    assert (config.rounds, config.data.silos, config.cohort.size) == (140, 500, 50)
    assert cast(Any, config.strategy).malicious == config.attacks[0].fraction == 0.3
    assert cast(Any, config.strategy).target == (cast(Any, config.attacks[0]).target,)


def test_a_saved_pair_is_loaded_under_its_own_names() -> None:
    module = initial(parse(experiment()).task, Shape((1, 8, 8), 10), seed=0)[0]
    names = set(Guarded(module, label=3).state_dict())
    assert {name.partition(".")[0] for name in names} == {"model", "guard", "label"}
