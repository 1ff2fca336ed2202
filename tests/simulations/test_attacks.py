"""Runs with malicious silos: the same in every engine, honest silos untouched, and what is measured of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from privacy.mechanism import ExactSum, Mechanism
from privacy.release import Release
from server.link import by_tier
from simulations.attacks.link import lengthened
from simulations.attacks.measuring import Watch, summary
from simulations.attacks.roles import Roles
from simulations.running import INTERRUPTED, ActiveRun, Outcome, run, train
from strategies.attacks import PixelPatch, SignFlip
from strategies.base import Silo, State, Strategy, Update
from strategies.experiment import Train
from strategies.loading import parse
from strategies.registry import strategy
from strategies.schema import ConfigError

torch.set_num_threads(1)

PATCH = {"name": "pixel_patch", "fraction": 0.25, "target": 1, "size": 2, "poisoned": 0.3, "longer": 3}
SCALED = {"name": "model_replacement", "fraction": 0.25, "scale": 3.0}
ENGINES = {"local": {"kind": "local"}, "one by one": {"kind": "local", "stacked": "off"}}
ENGINES["pool"] = {"kind": "pool", "workers": 2}
CHANNELS: dict[str, Mechanism] = {"delta": ExactSum()}


@pytest.fixture(autouse=True, scope="module")
def _seeing() -> None:
    @strategy("seeing")
    @dataclass(frozen=True)
    class Seeing(Strategy):
        """Sees single updates, and flags silos 0 to 4 in every second round."""

        reveals: ClassVar[bool] = True

        def init(self, model: Tensor, rng: object, layout: object) -> State:
            return {"model": model, "round": torch.tensor(0)}

        def local(self, silo: Silo, instruction: Mapping[str, Tensor]) -> Update:
            return Update({"delta": silo.fit(instruction["model"]) - instruction["model"]})

        def aggregate(self, state: State, release: Release, rng: object) -> State:
            return {"model": state["model"] + release.mean("delta"), "round": state["round"] + 1}

        def flagged(self, state: State) -> Tensor | None:
            return torch.arange(5) if int(state["round"]) % 2 else None


def experiment(*attacks: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "rounds": 4,
        "task": "logistic",
        "data": {"name": "digits", "silos": 16, "limit": 800},
        "cohort": {"sampling": "fixed", "size": 12},
        "train": {"epochs": 2, "batch_size": 10, "learning_rate": 0.3},
        "attacks": list(attacks),
    } | changes


def asked(folder: Path, *attacks: Mapping[str, Any], **changes: Any) -> dict[int, Tensor]:
    """The updates of the first round, by silo."""
    with ActiveRun(parse(experiment(*attacks, strategy="seeing", **changes)), folder) as active:
        requests = by_tier(active.experiment.strategy, active.training.first(), 1, active.training.cohort(1))
        found: dict[int, Tensor] = {}
        for partial in active.link.ask(requests, CHANNELS, record=False):
            assert partial.revealed is not None
            found |= dict(zip(partial.revealed.silos, partial.revealed.channels["delta"]))
    return found


@pytest.mark.parametrize("engine", ["local", "one by one"])
def test_honest_silos_send_the_same_bits_as_without_an_attack(engine: str, tmp_path: Path) -> None:
    clean = asked(tmp_path / "clean", engine=ENGINES[engine])
    dirty = asked(tmp_path / "dirty", PATCH, SCALED, engine=ENGINES[engine])
    crew = Roles((PixelPatch(fraction=0.25, target=1),), seed=0, silos=16, rounds=4).acting(1, list(clean))
    assert dirty.keys() == clean.keys()
    assert {silo for silo in clean if not torch.equal(clean[silo], dirty[silo])} == set(crew)
    assert 0 < len(crew) <= 4


def test_an_update_attack_is_made_of_what_the_crew_trained(tmp_path: Path) -> None:
    poisoned, scaled = asked(tmp_path / "one", PATCH), asked(tmp_path / "two", PATCH, SCALED)
    clean = asked(tmp_path / "clean")
    for silo, update in poisoned.items():
        expected = update if torch.equal(update, clean[silo]) else 3.0 * update
        torch.testing.assert_close(scaled[silo], expected)


def done(folder: Path, *attacks: Mapping[str, Any], **changes: Any) -> Outcome:
    return run(parse(experiment(*attacks, **changes)), out=folder)


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (outcome.folder / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("draw", ["exact", "binomial"])
def test_engines_agree_to_the_bit(draw: str, tmp_path: Path) -> None:
    attacks = [each | {"draw": draw} for each in (PATCH, SCALED, {"name": "min_max", "fraction": 0.2, "crew": 1})]
    local, pool = (done(tmp_path / name, *attacks, engine=ENGINES[name]) for name in ("local", "pool"))
    assert local.result["model"]["sha256"] == pool.result["model"]["sha256"]
    assert local.result["attacks"] == pool.result["attacks"]
    alone = done(tmp_path / "alone", *attacks, engine=ENGINES["one by one"])
    assert alone.result["attacks"]["asked"] == local.result["attacks"]["asked"]
    assert alone.result["metrics"]["loss"] == pytest.approx(local.result["metrics"]["loss"], rel=1e-3)


def test_a_run_that_was_stopped_goes_on_with_the_same_silos(tmp_path: Path) -> None:
    attacks, changes = [PATCH | {"until": 0.5, "start": 2}, SCALED], {"strategy": "mr_mtl"}
    whole = done(tmp_path / "whole", *attacks, **changes)
    again = parse(experiment(*attacks, **changes))
    with ActiveRun(again, tmp_path / "part") as active:
        train(active, stop=lambda: active.store.rows() != [])
        assert active.stopped == INTERRUPTED
    with ActiveRun(again, tmp_path / "part", resume=True) as active:
        train(active)
        assert active.finish().result["model"]["sha256"] == whole.result["model"]["sha256"]


def test_success_is_measured_in_every_round_and_at_the_end(tmp_path: Path) -> None:
    outcome, clean = done(tmp_path / "run", PATCH, rounds=6), done(tmp_path / "clean", rounds=6)
    found = outcome.result["attacks"]
    lines = rows(outcome)
    assert found["success"]["pixel_patch"] == lines[-1]["attack_success.pixel_patch"]
    assert len([line for line in lines if "attack_success.pixel_patch" in line]) == 6
    assert found["accuracy"] == outcome.result["metrics"]["accuracy"] > 0.8
    assert found["success"]["pixel_patch"] > 0.5  # By chance about a tenth: the patch alone turns most images.
    assert found["asked"]["malicious"] == sum(line["attackers"]["asked"]["malicious"] for line in lines)
    assert found["asked"]["malicious"] + found["asked"]["benign"] == 6 * 12
    assert found["detection"] is None
    assert any("malicious on purpose" in note for note in outcome.result["notes"])
    assert clean.result["attacks"] is None
    assert "attackers" not in rows(clean)[0]


def test_flags_are_counted_against_who_was_malicious(tmp_path: Path) -> None:
    outcome = done(tmp_path / "run", SCALED, strategy="seeing", rounds=4)
    roles = Roles((SignFlip(fraction=0.25),), seed=0, silos=16, rounds=4)
    malicious = set(roles.pool(roles.attacks[0]))
    with ActiveRun(parse(experiment(SCALED, strategy="seeing")), tmp_path / "again") as active:
        cohorts = [set(active.training.cohort(round_)) for round_ in (1, 3)]  # It judges nobody in rounds 2 and 4.
    asked = sum(len(cohort & malicious) for cohort in cohorts)
    caught = sum(len(cohort & malicious & set(range(5))) for cohort in cohorts)
    wrong = sum(len(cohort - malicious & set(range(5)) - malicious) for cohort in cohorts)
    found = outcome.result["attacks"]["detection"]
    assert found["rounds"] == 2
    assert found["recall"] == caught / asked
    assert found["false_flag_rate"] < 1
    assert wrong > 0


def test_a_watch_counts_each_part_of_a_cohort() -> None:
    roles = Roles((SignFlip(fraction=0.25),), seed=0, silos=16, rounds=4)
    malicious = roles.pool(roles.attacks[0])
    benign = [silo for silo in range(16) if silo not in malicious]

    class Flags(Strategy):
        def flagged(self, state: State) -> Tensor | None:
            return torch.tensor([malicious[0], benign[0], benign[1], benign[5]])

    watch = Watch(roles, Flags(), frozenset({benign[1], benign[2], malicious[1]}))
    cohort = [*malicious[:2], *benign[:4]]
    told = watch(1, cohort, {})["attackers"]
    assert told["asked"] == {"malicious": 2, "benign": 4, "minority": 2}
    assert told["flagged"] == {"malicious": 1, "benign": 2, "minority": 1}  # benign[5] was not asked.
    found = summary([{"attackers": told}, {"attackers": {"asked": told["asked"]}}], {}, roles.attacks, 2)
    assert found["detection"] == {
        "rounds": 1,
        "recall": 0.5,
        "false_flag_rate": 0.5,
        "minority_false_flag_rate": 0.5,
    }


def test_under_privacy_minority_silos_are_not_counted(tmp_path: Path) -> None:
    silo = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-2, "neighbours": "replace"}
    found = done(tmp_path / "run", PATCH, privacy={"silo": silo}, rounds=2).result["attacks"]
    assert (found["minority_silos"], found["asked"]["minority"]) == (None, 0)


@pytest.mark.parametrize("privacy", ["silo", "local", "example"])
def test_every_kind_of_privacy_can_be_attacked(privacy: str, tmp_path: Path) -> None:
    section: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-2}
    section |= {"rows": 40, "batch": 10} if privacy == "example" else {"neighbours": "replace"}
    attacks = [PATCH | {"longer": 1}, SCALED]
    changes = {"train": {"steps": 3, "learning_rate": 0.3}, "privacy": {privacy: section}, "rounds": 2}
    local, pool = (done(tmp_path / name, *attacks, engine=ENGINES[name], **changes) for name in ("local", "pool"))
    assert local.result["model"]["sha256"] == pool.result["model"]["sha256"]
    assert local.result["updates"]["failed"] == 0


def test_a_strategy_that_sends_few_numbers_is_attacked_with_as_many(tmp_path: Path) -> None:
    outcome = done(tmp_path / "run", {"name": "min_max", "fraction": 0.25}, strategy="flasc", rounds=2)
    assert outcome.result["updates"] == {"arrived": 24, "failed": 0, "reasons": {}}


def test_training_longer_is_more_of_what_was_said() -> None:
    assert lengthened(Train(steps=3), 4) == Train(steps=12)
    assert lengthened(Train(epochs=2), 4) == Train(epochs=8)


REFUSED = [
    ({"name": "sign_flip", "fraction": 0.02}, "attacks[0].fraction: 0.02 of 16 silos is none; raise it"),
    (PATCH | {"target": 10}, "attacks[0].target: must be < 10, the classes of digits, got 10"),
    (PATCH | {"source": 12}, "attacks[0].source: must be < 10, the classes of digits, got 12"),
    (PATCH | {"row": 7}, "attacks[0].size: the patch ends beyond the image of 8 x 8 pixels; lower size, row or column"),
]


@pytest.mark.parametrize(("attack", "line"), REFUSED, ids=[line for _, line in REFUSED])
def test_what_does_not_fit_the_data_is_refused_before_anything_runs(
    attack: Mapping[str, Any], line: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        done(tmp_path / "run", attack)
    assert caught.value.problems == (line,)
    assert not (tmp_path / "run").exists()
