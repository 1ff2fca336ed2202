"""Example-level privacy of personalised runs: what each silo is charged, and that no silo tells of another's rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.descent import Descent
from client.examples import Examples, Shards
from client.host import SiloHost
from client.personal import PersonalStore
from client.session import Session
from privacy import verify
from privacy.accountant import epsilon
from privacy.events import Composed, Event, Gaussian, Poisson, Repeated, Sampled, from_json
from privacy.mechanism import ExactSum
from privacy.steps import NoisySteps
from simulations import ledgers
from simulations.commands import plan as plan_command
from simulations.example_privacy import plan
from simulations.preparing import prepare
from simulations.running import ActiveRun, run
from strategies.base import Strategy
from strategies.experiment import Engine, Experiment, Train
from strategies.ifca import IFCA
from strategies.layout import Layout
from strategies.loading import parse
from strategies.mr_mtl import MRMTL
from strategies.schema import ConfigError
from strategies.tasks import Shape, initial
from strategies.tasks.dense import Logistic

torch.set_num_threads(1)

DELTA, SILOS, ROUNDS, STEPS = 1e-3, 6, 4, 3
EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": 1.5, "delta": DELTA, "rows": 40, "batch": 10}
STEP = Sampled(Poisson(0.25), Gaussian(1.5))
ONCE, TWICE = Repeated(STEP, STEPS), Repeated(STEP, 2 * STEPS)
CASES: dict[str, tuple[Any, Event, int]] = {
    # Name: strategy, what a round costs, fits of a round.
    "mr_mtl": ({"name": "mr_mtl", "lam": 0.5}, ONCE, 1),
    "inside": ({"name": "mr_mtl", "lam": 0.5, "proximal": "inside"}, ONCE, 1),
    "own": ({"name": "mr_mtl", "lam": [0.0, 0.1, 0.2, 0.4, 1.0, 2.0]}, ONCE, 1),
    "inf": ({"name": "mr_mtl", "lam": "inf"}, ONCE, 1),
    "auto": ({"name": "mr_mtl", "lam": "auto", "warmup": 2}, ONCE, 1),
    "local": ("local", ONCE, 1),
    "finetune": ({"name": "finetune", "shared": 2}, ONCE, 1),
    "ditto": ("ditto", TWICE, 2),
    "ifca": ("ifca", Composed((ONCE, Gaussian(20.0))), 1),  # 2 / choice_epsilon.
    "ifca, mr_mtl": ({"name": "ifca", "lam": 0.5, "choice_epsilon": 0.4}, Composed((ONCE, Gaussian(5.0))), 1),
    "mocha": ({"name": "mocha", "silos": SILOS}, ONCE, 1),
}
every = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 4))
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(int))
    return tmp_path / "data.npz"


def experiment(data: Path, strategy: Any, example: Mapping[str, Any] | None = EXAMPLE, /, **changes: Any) -> Experiment:
    base: dict[str, Any] = {
        "rounds": ROUNDS,
        "task": "logistic",
        "strategy": strategy,
        "data": {"path": str(data), "silos": SILOS, "public_test": 0, "test": 0.1},
        "cohort": {"sampling": "all"},
        "train": {"steps": STEPS, "learning_rate": 0.5},
        "privacy": {} if example is None else {"example": dict(example)},
        "metrics": {"privacy": "research"},
    }
    return parse(base | changes)


def reserves(folder: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (folder / "silos-ledger.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "reserve"]


@every
def test_every_silo_is_charged_for_what_it_did_before_it_did_it(
    case: str, data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    strategy, event, fits = CASES[case]
    taken: list[int] = []
    original = Descent.step

    def counted(self: Descent, gradient: Tensor) -> None:
        taken.append(len(gradient))  # All silos in one stack.
        assert len(reserves(tmp_path / "run")) * STEPS * fits * SILOS >= sum(taken)  # A line a round, of all silos.
        original(self, gradient)

    monkeypatch.setattr(Descent, "step", counted)
    result = run(experiment(data, strategy), out=tmp_path / "run").result
    lines = reserves(tmp_path / "run")
    assert [(from_json(line["event"]), line["silos"]) for line in lines] == [(event, list(range(SILOS)))] * ROUNDS
    claimed = result["privacy"]["example"]
    assert claimed["steps"] * SILOS == sum(taken) == ROUNDS * STEPS * fits * SILOS
    assert claimed["epsilon_upper"] == epsilon(Repeated(event, ROUNDS), DELTA).upper
    place = next(place for place in ledgers.find(tmp_path / "run") if place.ledger.name == "silos-ledger.jsonl")
    assert ledgers.verify(place).problems == ()
    capsys.readouterr()  # And the verifier that knows nothing of confide reads it.
    monkeypatch.setattr(sys, "argv", ["verify.py", str(place.ledger), "--delta", repr(DELTA), "--unit", "example"])
    verify.main()
    assert json.loads(capsys.readouterr().out)["epsilon"] >= 0.999 * claimed["epsilon_upper"]


@every
def test_each_silos_epsilon_is_within_half_a_percent_below_its_target_and_its_own_affair(case: str, data: Path) -> None:
    strategy, event, _ = CASES[case]
    example = {name: value for name, value in EXAMPLE.items() if name != "noise_multiplier"}
    targets = [2.0, 4.0, 8.0, 4.0, 2.0, 8.0]
    found = plan(experiment(data, strategy, example | {"epsilon": targets}), SILOS)
    assert found is not None
    for target, own in zip(targets, found.events):
        assert 0.995 * target <= epsilon(Repeated(own, ROUNDS), DELTA).upper <= target
        assert isinstance(own, Composed) == isinstance(event, Composed)
    other = plan(experiment(data, strategy, example | {"epsilon": [*targets[:5], 6.0]}), SILOS)
    assert other is not None
    assert other.noise[:5] == found.noise[:5]
    assert other.noise[5] > found.noise[5]


def test_two_models_cost_noise_and_a_choice_does_too(data: Path) -> None:
    example = {name: value for name, value in EXAMPLE.items() if name != "noise_multiplier"} | {"epsilon": 2.0}
    noise = {}
    for case in ("local", "mr_mtl", "finetune", "mocha", "ditto", "ifca"):
        found = plan(experiment(data, CASES[case][0], example), SILOS)
        assert found is not None
        noise[case] = found.noise[0]
    assert noise["local"] == noise["mr_mtl"] == noise["finetune"] == noise["mocha"]
    assert noise["ditto"] > 1.1 * noise["local"]
    assert noise["ifca"] > noise["local"]


def test_queries_that_take_all_of_an_epsilon_are_refused(data: Path) -> None:
    example = {name: value for name, value in EXAMPLE.items() if name != "noise_multiplier"} | {"epsilon": 1.0}
    with pytest.raises(ConfigError, match=r"epsilon: 1 is less than the [\d.]+ that the strategy's queries cost alone"):
        plan(experiment(data, {"name": "ifca", "choice_epsilon": 2.0}, example), SILOS)


def test_a_plan_says_what_is_asked_beside_steps(data: Path) -> None:
    for case, words in (("ifca", "; 1 noised answer about all rows"), ("ditto", "6 noisy steps a round, 10 rows")):
        config = experiment(data, CASES[case][0])
        found = plan_command.examples(config, prepare(config))["example"]
        assert found.get("queries_per_round") == (1 if case == "ifca" else None)
        assert words in " ".join(plan_command.describe_examples(found).split())  # However wide the terminal is.


def kept(folder: Path, name: str = "model") -> bytes:
    return (folder / "personal" / f"{name}.current").read_bytes()


@pytest.mark.parametrize("example", [EXAMPLE, None], ids=["private", "exact"])
def test_no_pull_is_local_training_to_the_bit(data: Path, tmp_path: Path, example: Any) -> None:
    alone = run(experiment(data, "local", example), out=tmp_path / "local").result
    free = run(experiment(data, {"name": "mr_mtl", "lam": 0}, example), out=tmp_path / "free").result
    none = run(experiment(data, {"name": "mocha", "lam": 0, "silos": SILOS}, example), out=tmp_path / "none").result
    assert kept(tmp_path / "local") == kept(tmp_path / "free") == kept(tmp_path / "none")
    assert alone["metrics"]["test"] == free["metrics"]["test"] == none["metrics"]["test"]
    assert alone["communication"]["bytes_up"] == 0
    assert alone["metrics"]["new_silo"] != free["metrics"]["new_silo"]  # The mean knows something.


@pytest.mark.parametrize("case", ["auto", "ifca, mr_mtl"])
def test_engines_agree_to_the_bit(case: str, data: Path, tmp_path: Path) -> None:
    config = replace(experiment(data, CASES[case][0]), engine=Engine(chunk=2))
    pool = replace(config, engine=Engine(kind="pool", workers=1, chunk=2))
    results = [run(each, out=tmp_path / name).result for name, each in (("local", config), ("pool", pool))]
    assert kept(tmp_path / "local") == kept(tmp_path / "pool")
    for part in ("privacy", "metrics"):
        assert results[0][part] == results[1][part]


def test_auto_pulls_after_its_warm_up_by_what_was_seen_in_it(data: Path, tmp_path: Path) -> None:
    with ActiveRun(experiment(data, CASES["auto"][0]), tmp_path / "run") as active:
        states = [result.state for result in active]
    seen = [state["seen"] for state in states]
    assert not seen[0].any()
    assert bool((seen[1] > 0).all())
    assert torch.equal(seen[1], seen[3])
    assert float(seen[1][2]) == pytest.approx((1.5 / 10) ** 2)  # v: (noise multiplier x clip / batch)^2.
    run(experiment(data, "local"), out=tmp_path / "local")
    assert kept(tmp_path / "run") != kept(tmp_path / "local")


def test_both_units_charge_every_channel(data: Path, tmp_path: Path) -> None:
    silo = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": DELTA}
    config = experiment(data, CASES["auto"][0], privacy={"silo": silo, "example": EXAMPLE})
    result = run(config, out=tmp_path / "run").result
    assert set(result["privacy"]["silo"]["channels"]) == {"delta", "spread"}
    spent = epsilon(Repeated(Gaussian(2.0), ROUNDS), DELTA).upper  # Two channels at 2 sqrt(2) each.
    assert result["privacy"]["silo"]["epsilon_upper"] == pytest.approx(spent, rel=1e-9)
    assert result["privacy"]["example"]["epsilon_upper"] == epsilon(Repeated(ONCE, ROUNDS), DELTA).upper


@pytest.mark.parametrize(
    ("strategy", "changes", "line"),
    [
        ({"name": "mr_mtl", "lam": [1.0, 2.0]}, {}, "strategy.lam: found 2 numbers for 6 silos"),
        ({"name": "mr_mtl", "lam": 4.0}, {}, r"strategy.lam: must be < 2 \(1 \+ momentum\) / train.learning_rate = 4"),
        (
            {"name": "mr_mtl", "lam": "auto", "warmup": 2},
            {"privacy": {}},
            "strategy.lam: auto goes by the noise of privacy.example",
        ),
        ({"name": "mr_mtl", "lam": "auto", "warmup": 4}, {}, "strategy.warmup: must be even and < rounds = 4"),
        ({"name": "mr_mtl", "lam": "auto", "warmup": 3}, {}, "strategy.warmup: must be even and < rounds = 4"),
        (
            {"name": "mr_mtl", "lam": "auto", "warmup": 2},
            {"cohort": {"sampling": "poisson", "rate": 0.5}},
            "use cohort.sampling: all",
        ),
        (
            {"name": "mr_mtl", "lam": "auto", "warmup": 2},
            {"train": {"steps": 3, "momentum": 0.9}},
            "SGD without momentum",
        ),
        ({"name": "mr_mtl", "lam": "much"}, {}, "strategy.lam: expected a list of numbers >= 0.0 or auto or inf"),
        ({"name": "mr_mtl", "lam": -1.0}, {}, "strategy.lam: must be >= 0"),
        ({"name": "finetune", "shared": 4}, {}, "strategy.shared: must be < rounds = 4"),
        ({"name": "mocha", "silos": 5}, {}, "strategy.silos: the data has 6 silos, got 5; write 6"),
        ({"name": "mocha", "silos": 6, "lam": 5.0}, {}, "strategy.lam: lam / ridge must be <"),
        (
            "local",
            {"privacy": {"silo": {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": DELTA}}},
            "privacy.silo: strategy local sends nothing",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    strategy: Any, changes: dict[str, Any], line: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=line) as raised:
        run(experiment(data, strategy, **changes), out=tmp_path / "run")
    assert len(raised.value.problems) == 1
    assert not (tmp_path / "run").exists()


# One round of silos on rows that are written down here, one of them without its last row.

SHAPE, SIZES = Shape((4,), 3), [12, 9, 15]


def hosted(strategy: Strategy, folder: Path, *, without: bool = False, private: bool = True) -> SiloHost:
    rng = torch.Generator().manual_seed(1)
    features, targets = torch.randn(36, 4, generator=rng), torch.randint(3, (36,), generator=rng)
    sizes, kept = list(SIZES), torch.ones(36, dtype=torch.bool)
    if without:
        sizes[0], kept[11] = 11, False
    module, start = initial(Logistic(), SHAPE, seed=1)
    personal = strategy.personal(start.numel())
    return SiloHost(
        strategy=strategy,
        task=Logistic(),
        module=module,
        shape=SHAPE,
        train=Train(steps=4, learning_rate=0.3),
        shards=Shards(Examples(features[kept], targets[kept]), torch.tensor([0, *sizes]).cumsum(0)),
        held_out=None,
        seed=7,
        stacked=True,
        personal=PersonalStore(folder, silos=3, sizes=personal) if personal else None,
        examples=[NoisySteps(0.5, 2.0, 12.0, 12)] * 3 if private else None,
    )


def updates(strategy: Strategy, folder: Path, *, without: bool) -> list[dict[str, Tensor]]:
    """What each silo sends in round 1, by itself."""
    host = hosted(strategy, folder, without=without)
    module, start = initial(Logistic(), SHAPE, seed=1)
    asked = strategy.instruct(strategy.init(start, torch.Generator().manual_seed(3), Layout.of(module)), 1)
    bounds = dict.fromkeys(strategy.channels(start.numel()), ExactSum())
    return [dict(host.contribute(asked, [silo], bounds, chunk=0).sums) for silo in range(3)]


@pytest.mark.parametrize("strategy", [MRMTL((0.5,)), MRMTL((0.5,), proximal="inside"), IFCA(lam=0.5)], ids=str)
def test_a_row_less_in_one_silo_changes_no_bit_of_what_others_send(strategy: Strategy, tmp_path: Path) -> None:
    whole = updates(strategy, tmp_path / "whole", without=False)
    less = updates(strategy, tmp_path / "less", without=True)
    assert not torch.equal(whole[0]["delta"], less[0]["delta"])
    for silo in (1, 2):
        assert all(torch.equal(whole[silo][name], less[silo][name]) for name in whole[silo])


@pytest.mark.parametrize("private", [True, False], ids=["private", "exact"])
def test_a_query_is_asked_as_often_as_declared(private: bool, tmp_path: Path) -> None:
    host = hosted(IFCA(), tmp_path, private=private)
    session = Session(host, [0, 1], 1, record=False, training=True)
    models = torch.zeros(2, 15)
    assert session.query("choice", models, rows=lambda losses, _: losses).shape == (2, 2)
    with pytest.raises(ValueError, match="asked in this round already"):
        session.query("choice", models, rows=lambda losses, _: losses)
    with pytest.raises(ValueError, match="was not declared"):
        session.query("other", models, rows=lambda losses, _: losses)


def test_nobody_pays_for_a_query_outside_of_a_round(tmp_path: Path) -> None:
    session = Session(hosted(IFCA(), tmp_path), [0], 1, record=False, stacked=False)
    with pytest.raises(ValueError, match="nobody pays"):
        session.query("choice", torch.zeros(2, 15), rows=lambda losses, _: losses)


def test_a_silo_knows_its_number_and_its_public_noise(tmp_path: Path) -> None:
    for private, noise in ((True, 1 / 12), (False, 0.0)):  # 2.0 x 0.5 / 12.
        host = hosted(IFCA(), tmp_path / str(private), private=private)
        stack, one = Session(host, [2, 0], 1, record=False), Session(host, [2], 1, record=False, stacked=False)
        assert (stack.index.tolist(), one.index.item()) == ([2, 0], 2)
        assert stack.step_noise.tolist() == pytest.approx([noise, noise])
        assert one.step_noise.shape == one.index.shape == ()
        assert one.train == host.train
