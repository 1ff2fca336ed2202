"""Whole runs that bound the losses of groups: on a CSV of one's own, with privacy of rows or silos, and reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.examples import Examples
from privacy.accountant import epsilon
from privacy.events import Composed, Gaussian, Poisson, Repeated, Sampled
from simulations.commands import summary
from simulations.group_metrics import groups
from simulations.preparing import prepare
from simulations.running import ActiveRun, run
from strategies.experiment import Engine, Experiment
from strategies.layout import Layout
from strategies.loading import parse
from strategies.schema import ConfigError
from strategies.tasks import Shape, initial
from strategies.tasks.dense import Linear, Logistic

torch.set_num_threads(1)

SILO = {
    "clip_norm": 1.0,
    "noise_multiplier": 1.0,
    "delta": 1e-2,
    "channels": [{"name": "groups", "clip_norm": 60.0, "share": 0.3}],
}
EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": 1.5, "delta": 1e-3, "rows": 50, "batch": 10}
STEP = Sampled(Poisson(0.2), Gaussian(1.5))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """400 people of two sexes, of whom the rarer follows a rule of its own."""
    rng = np.random.default_rng(0)
    features, rare = rng.normal(size=(400, 3)), rng.uniform(size=400) < 0.25
    score = np.where(rare, 2 * features[:, 1] - 1, 2 * features[:, 0])
    paid = rng.uniform(size=400) < 1 / (1 + np.exp(-score))
    lines = ["a,b,c,sex,paid"]
    for row, sex, label in zip(features, rare, paid):
        lines.append(",".join([*(f"{x:.4f}" for x in row), "f" if sex else "m", "yes" if label else "no"]))
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "people.csv"


def experiment(data: Path, strategy: Any, /, **changes: Any) -> Experiment:
    base: dict[str, Any] = {
        "rounds": 40,
        "task": "logistic",
        "strategy": strategy,
        "data": {
            "path": str(data),
            "target": "paid",
            "group": "sex",
            "silos": 5,
            "partition": {"name": "dirichlet", "alpha": 0.5, "by": "group"},
            "public_test": 0.3,
            "test": 0.1,
        },
        "cohort": {"sampling": "all"},
        "train": {"steps": 5, "learning_rate": 0.5},
    }
    return parse(base | changes)


BOUNDED: dict[str, Any] = {"name": "bounded_group_loss", "zeta": 0.55, "dual_rate": 1.0, "bound": 10.0}
ROWS = {"weighting": "examples"}


def test_the_worst_group_of_a_file_of_ones_own_is_served_better(data: Path, tmp_path: Path) -> None:
    fedavg = experiment(data, {"name": "fedavg", "weighting": "examples"})
    free = run(fedavg, out=tmp_path / "free").result["metrics"]["groups"]["public_test"]
    strategy = BOUNDED | {"groups": ROWS}
    outcome = run(experiment(data, strategy), out=tmp_path / "bounded")
    found = outcome.result["metrics"]["groups"]
    assert (free["worst"], found["public_test"]["worst"]) == ("f", "f")
    assert found["public_test"]["groups"]["f"]["loss"] < free["groups"]["f"]["loss"] - 0.03
    assert found["public_test"]["groups"]["m"]["loss"] > free["groups"]["m"]["loss"]
    assert sum(each["rows"] for each in found["public_test"]["groups"].values()) == 120
    assert set(found["variants"]) == {"average"}
    assert found["silos"]["groups"].keys() == {"f", "m"}
    told = outcome.result["strategy_report"]
    assert told["lam"][0] > 0.5  # Of f, the first word.
    assert told["zeta"] == [0.55]
    assert 0 <= told["certificate"] < 0.5  # Local steps stop short of the saddle point.
    assert outcome.result == json.loads((tmp_path / "bounded" / "result.json").read_text())
    page = (tmp_path / "bounded" / "report.html").read_text()
    words = summary.describe(outcome.result, outcome.folder, public=True)
    for shown in (page, words):
        assert f"{found['public_test']['groups']['f']['loss']:.4f}" in shown
        assert "emographic parity difference" in shown
        assert "lam average" in shown


def test_the_certificate_knows_a_saddle_point_from_steps_that_are_too_long(data: Path, tmp_path: Path) -> None:
    found = []
    for zeta, bound, rate in ((0.6, 3.0, 0.3), (0.55, 10.0, 0.5)):  # Weights of up to 1 + 10 * 4, at a rate of .5.
        strategy = BOUNDED | {"zeta": zeta, "bound": bound}
        train = {"steps": 1, "learning_rate": rate, "weight_decay": 0.01}
        fair = experiment(data, strategy, rounds=400, train=train, metrics={"every": 400})
        found.append(run(fair, out=tmp_path / f"{rate}").result["strategy_report"])
    assert sum(found[0]["lam"]) > 0.1
    assert 0 <= found[0]["certificate"] <= 1e-2
    assert found[0]["infeasible"] is False
    assert found[1]["certificate"] > 1.0


def test_workers_give_the_same_bits(data: Path, tmp_path: Path) -> None:
    strategy = BOUNDED | {"groups": {"labels": 2, "weighting": "examples"}}
    alone = experiment(data, strategy, rounds=4)
    pooled = replace(alone, engine=Engine(kind="pool", workers=1))
    found = [run(each, out=tmp_path / name).result for each, name in ((alone, "alone"), (pooled, "pooled"))]
    assert found[0]["model"]["sha256"] == found[1]["model"]["sha256"]
    assert found[0]["strategy_report"] == found[1]["strategy_report"]
    assert len(found[0]["strategy_report"]["lam"]) == 4


def test_rows_pay_for_the_sums_of_losses_beside_their_steps(data: Path, tmp_path: Path) -> None:
    strategy = BOUNDED | {"groups": {"noise_multiplier": 8.0}}
    private = experiment(data, strategy, rounds=6, privacy={"example": EXAMPLE}, data=section(data, test=0))
    result = run(private, out=tmp_path / "run").result
    once = Composed((Repeated(STEP, 5), Gaussian(8.0)))
    truth = epsilon(Repeated(once, 6), 1e-3, neighbours="add_remove")
    assert result["privacy"]["example"]["epsilon_upper"] == pytest.approx(truth.upper, rel=1e-3)
    assert "silos" not in result["metrics"]["groups"]


def section(data: Path, **changes: Any) -> dict[str, Any]:
    base = {"path": str(data), "target": "paid", "group": "sex", "silos": 5, "public_test": 0.3, "test": 0.1}
    return base | changes


def test_silos_pay_for_updates_and_sums_as_one_gaussian(data: Path, tmp_path: Path) -> None:
    private = experiment(data, BOUNDED, rounds=6, privacy={"silo": SILO})
    result = run(private, out=tmp_path / "run").result
    truth = epsilon(Repeated(Gaussian(1.0), 6), 1e-2, neighbours="add_remove")
    assert result["privacy"]["silo"]["epsilon_upper"] == pytest.approx(truth.upper, rel=1e-3)
    described = result["privacy"]["silo"]["channels"]["groups"]
    assert described["noise_multiplier"] == pytest.approx(0.3**-0.5)
    assert "certificate" not in result["strategy_report"]
    assert "silos" not in result["metrics"]["groups"]  # Numbers of private rows stay where they are.
    assert result["metrics"]["groups"]["public_test"]["groups"]["f"]["loss"] > 0


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (BOUNDED, {"data": {"group": None, "partition": "iid"}}, "data.group: missing"),
    (BOUNDED | {"groups": {"number": 3}}, {}, "strategy.groups.number: the data has 2 groups, got 3; write 2"),
    (BOUNDED | {"zeta": [0.5, 0.5, 0.5]}, {}, "strategy.zeta: found 3 numbers for 2 groups"),
    (BOUNDED | {"groups": {"counts": [5.0]}}, {}, "strategy.groups.counts: found 1 numbers for 2 groups"),
    (BOUNDED, {"cohort": {"rate": 0.5}}, "strategy.groups.counts: missing, and round 1 asks only some of the silos"),
    (BOUNDED, {"privacy": {"silo": SILO | {"channels": []}}}, "privacy.silo.channels: give 'groups' a clip_norm"),
    (BOUNDED | {"groups": ROWS}, {"privacy": {"silo": SILO}}, "strategy.groups.weighting: 'examples' counts rows"),
    (BOUNDED, {"privacy": {"local": {"clip_norm": 1, "epsilon": 8, "delta": 0.01}}}, "privacy.local: has one clip"),
    ("q_fedavg", {"privacy": {"silo": {k: v for k, v in SILO.items() if k != "channels"}}}, "q_fedavg divides by a"),
    ({"name": "term", "groups": {"number": 3}}, {}, "strategy.groups.number: the data has 2 groups, got 3"),
    ({"name": "afl", "groups": {"number": 3}}, {}, "strategy.groups.number: the data has 2 groups, got 3"),
    ({"name": "silo_group_loss", "groups": {"number": 3}}, {}, "strategy.groups.number: the data has 2 groups"),
]


@pytest.mark.parametrize(("strategy", "changes", "message"), BAD)
def test_what_cannot_be_is_said_in_one_line(data: Path, strategy: Any, changes: dict[str, Any], message: str) -> None:
    changes = dict(changes)
    if "data" in changes:
        changes["data"] = section(data) | changes["data"]
    with pytest.raises(ConfigError) as error:
        prepare(experiment(data, strategy, **changes))
    assert any(line.startswith(message) or message in line for line in error.value.problems)
    assert all("\n" not in line for line in error.value.problems)


def test_rows_are_dealt_by_group(data: Path) -> None:
    skewed = prepare(experiment(data, "fedavg")).federation
    even = prepare(experiment(data, "fedavg", data=section(data))).federation

    def parts(found: Any) -> Tensor:
        return torch.stack([found.train.silo(k).groups.float().mean() for k in range(5)])

    assert float(parts(skewed).std()) > 2 * float(parts(even).std())
    with pytest.raises(ValueError, match=r"data\.partition dirichlet: by: group needs data\.group"):
        prepare(experiment(data, "fedavg", data=section(data, group=None, partition=skew())))


def skew() -> dict[str, Any]:
    return {"name": "dirichlet", "alpha": 0.5, "by": "group"}


def test_numbers_of_groups_are_those_of_a_table_done_by_hand() -> None:
    # A model that predicts class 1 where the one feature is positive, with margin 2 |x|.
    module = initial(Logistic(), Shape((1,), 2), seed=1)[0]
    model = torch.tensor([-1.0, 1.0, 0.0, 0.0])
    features = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0]).unsqueeze(1)
    targets = torch.tensor([1, 0, 0, 0, 1, 1])
    rows = Examples(features, targets, torch.tensor([0, 0, 0, 0, 1, 1]))
    found = groups(Logistic(), module, Layout.of(module), model, rows, ("a", "b", "c"))
    right, wrong = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))
    assert found["groups"]["a"] == {"rows": 4, "loss": pytest.approx((3 * right + wrong) / 4), "accuracy": 0.75}
    assert found["groups"]["b"] == {"rows": 2, "loss": pytest.approx((right + wrong) / 2), "accuracy": 0.5}
    assert found["groups"]["c"] == {"rows": 0, "loss": None, "accuracy": None}
    assert found["worst"] == "b"
    assert found["demographic_parity_difference"] == pytest.approx(0.0)  # Half of each is predicted 1.
    # Of class 1: a 1 of 1, b 1 of 2; of class 0 there is one group alone, so nothing to compare.
    assert found["equalized_odds_difference"] == pytest.approx(0.5)


def test_numbers_have_groups_too() -> None:
    module = initial(Linear(), Shape((1,), 1), seed=1)[0]
    rows = Examples(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1]))
    found = groups(Linear(), module, Layout.of(module), torch.tensor([1.0, 0.0]), rows, ("a", "b"))
    assert found == {
        "groups": {"a": {"rows": 2, "loss": 1.0, "mse": 2.0}, "b": {"rows": 1, "loss": 2.0, "mse": 4.0}},
        "worst": "b",
    }


def test_cohorts_of_single_silos_tell_on_average_what_all_silos_would(data: Path, tmp_path: Path) -> None:
    # 5 silos in turns, and steps too short to learn: the mean of five rounds is the loss of all rows.
    counts = prepare(experiment(data, "fedavg")).federation.train.rows.groups
    assert counts is not None
    known = [float(each) for each in torch.bincount(counts, minlength=2)]
    strategy = BOUNDED | {"groups": {"counts": known}}
    still = {"steps": 1, "learning_rate": 1e-9}
    seen = {}
    for name, cohort in (("turns", {"sampling": "cyclic", "separation": 5}), ("all", {"sampling": "all"})):
        fair = experiment(data, strategy, rounds=5, cohort=cohort, train=still)
        with ActiveRun(fair, tmp_path / name) as active:
            seen[name] = torch.stack([result.state["losses"] for result in active]).mean(0)
    torch.testing.assert_close(seen["turns"], seen["all"], rtol=1e-4, atol=0)


def test_infeasible_bounds_are_said(data: Path, tmp_path: Path) -> None:
    strategy = BOUNDED | {"zeta": 0.05, "bound": 2.0, "groups": ROWS}
    outcome = run(experiment(data, strategy), out=tmp_path / "run")
    told = outcome.result["strategy_report"]
    assert told["infeasible"] is True
    assert told["smallest_zeta_found"][0] > 0.05
    words = summary.describe(outcome.result, outcome.folder, public=True)
    assert "no model met the bounds" in words
