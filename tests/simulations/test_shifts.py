"""Data that change in the middle of a run: what is changed, from which round on, and for everybody who reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from privacy.mechanism import ExactSum, Mechanism
from server.link import by_tier
from simulations.data.federation import build
from simulations.data.shifts import exchanged, shifted, turned
from simulations.running import INTERRUPTED, ActiveRun, Outcome, run, train
from strategies.base import Instruction, Split
from strategies.experiment import digest
from strategies.loading import parse
from strategies.schema import ConfigError
from strategies.shifts import Shift
from strategies.tasks import evaluate

torch.set_num_threads(1)

TURN = {"round": 3, "rotate": 30}
PATCH = {"name": "pixel_patch", "fraction": 0.25, "target": 1, "size": 2, "poisoned": 0.3}
CHANNELS: dict[str, Mechanism] = {"delta": ExactSum()}


def experiment(shift: Mapping[str, Any] | None, **changes: Any) -> dict[str, Any]:
    data = {"name": "digits", "silos": 8, "limit": 600, "test": 0.2, "validation": 0.1, "shift": shift}
    return {
        "rounds": 4,
        "task": "logistic",
        "data": data,
        "train": {"epochs": 2, "batch_size": 10, "learning_rate": 0.3},
    } | changes


def done(folder: Path, shift: Mapping[str, Any] | None, **changes: Any) -> Outcome:
    return run(parse(experiment(shift, **changes)), out=folder)


def lines(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (outcome.folder / "rounds.jsonl").read_text().splitlines()]


# Images and labels.


def test_quarter_turns_move_pixels_as_they_are() -> None:
    images = torch.randn(3, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    for quarters in (1, 2, -1):
        found = turned(images, 90.0 * quarters)
        torch.testing.assert_close(found, torch.rot90(images, quarters, (2, 3)), atol=1e-5, rtol=0)
    assert turned(images, 0.0) is images


def test_a_small_turn_is_counter_clockwise_and_leaves_nothing_outside() -> None:
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 8] = 1.0  # At the right end of the middle row, four pixels from the middle.
    found = turned(image, 30.0)
    # (4 cos 30, 4 sin 30) is 3.46 to the right of the middle and 2 up: row 2, between columns 7 and 8.
    assert int(found[0, 0].sum(1).argmax()) == 2
    assert int(found[0, 0].sum(0).argmax()) == 7
    corner = turned(torch.ones(1, 1, 9, 9), 45.0)
    assert float(corner[0, 0, 0, 0]) == 0.0
    assert float(corner[0, 0, 4, 4]) == pytest.approx(1.0)


def test_two_labels_change_places_and_others_stay() -> None:
    targets = torch.tensor([0, 1, 2, 3, 1, 3])
    assert exchanged(targets, (1, 3)).tolist() == [0, 3, 2, 1, 3, 1]
    assert torch.equal(exchanged(exchanged(targets, (1, 3)), (1, 3)), targets)
    assert exchanged(targets, ()) is targets


def test_every_part_of_a_federation_changes_and_the_first_one_stays() -> None:
    first = build(parse(experiment(None)).data, seed=0)
    kept = first.train.rows.features.clone()
    later = shifted(first, Shift(round=2, rotate=90.0, swap=(1, 7)))
    for name in ("train", "validation", "test"):
        before, after = getattr(first, name), getattr(later, name)
        assert torch.equal(before.offsets, after.offsets)
        torch.testing.assert_close(after.rows.features, torch.rot90(before.rows.features, 1, (2, 3)), atol=1e-5, rtol=0)
        assert torch.equal(after.rows.targets, exchanged(before.rows.targets, (1, 7)))
    assert first.public_test is not None
    assert later.public_test is not None
    assert torch.equal(later.public_test.targets, exchanged(first.public_test.targets, (1, 7)))
    assert torch.equal(first.train.rows.features, kept)


# Runs.


def test_rounds_before_a_shift_are_those_without_and_later_ones_are_not(tmp_path: Path) -> None:
    plain, changed = lines(done(tmp_path / "a", None)), lines(done(tmp_path / "b", TURN))
    for before, after in zip(plain[:2], changed[:2]):
        assert (before["loss"], before["accuracy"]) == (after["loss"], after["accuracy"])
    assert plain[2]["loss"] != changed[2]["loss"]


@pytest.mark.parametrize("shift", [TURN, {"round": 3, "swap": [1, 7]}], ids=["rotate", "swap"])
def test_engines_agree_to_the_bit_and_on_held_out_rows(shift: dict[str, Any], tmp_path: Path) -> None:
    attacked = {"attacks": [PATCH], "metrics": {"privacy": "research"}}
    local, pool = (
        done(tmp_path / kind, shift, engine={"kind": kind} | ({"workers": 2} if kind == "pool" else {}), **attacked)
        for kind in ("local", "pool")
    )
    for name in ("model", "metrics", "attacks"):
        assert local.result[name] == pool.result[name], name
    plain = done(tmp_path / "plain", None, **attacked)
    assert local.result["metrics"]["test"]["loss"] != plain.result["metrics"]["test"]["loss"]


def test_silos_train_on_the_rows_of_the_round_and_malicious_ones_too(tmp_path: Path) -> None:
    """A run whose rows were changed from the start sends, in round 3, what a run with a shift in round 3 sends."""

    def sent(folder: Path, shift: Mapping[str, Any] | None, changed: bool) -> dict[int, Tensor]:
        config = parse(experiment(shift, strategy="median", attacks=[PATCH]))
        with ActiveRun(config, folder) as active:
            if changed:
                rows = shifted(active.federation, Shift(round=3, rotate=30.0))
                active.link.poisoner(1).shards = rows.train  # type: ignore[attr-defined]
                active.link.link.host.hold(rows.train)  # type: ignore[attr-defined]
            found: dict[int, Tensor] = {}
            for request in by_tier(config.strategy, active.training.first(), 3, range(8)):
                for partial in active.link.ask([request], CHANNELS, record=False):
                    assert partial.revealed is not None
                    found |= dict(zip(partial.revealed.silos, partial.revealed.channels["delta"]))
            return found

    here, there, plain = (
        sent(tmp_path / "a", TURN, False),
        sent(tmp_path / "b", None, True),
        sent(tmp_path / "c", None, False),
    )
    assert here.keys() == there.keys() == set(range(8))
    assert all(torch.equal(here[silo], there[silo]) for silo in here)
    assert not any(torch.equal(here[silo], plain[silo]) for silo in here)


def test_what_is_measured_after_a_round_is_on_the_rows_of_that_round(tmp_path: Path) -> None:
    config = parse(experiment(TURN))
    with ActiveRun(config, tmp_path / "run") as active:
        size = active.model.start.numel()
        model = torch.randn(size, generator=torch.Generator().manual_seed(0))
        first, later = (active.held(round_).public_test for round_ in (2, 3))
        assert first is active.federation.public_test
        assert first is not None
        assert later is not None
        assert torch.equal(later.features, turned(first.features, 30.0))
        early, late = (active.training.evaluation(round_) for round_ in (2, 3))
        assert early is not None
        assert late is not None
        assert early(model)["loss"] != late(model)["loss"]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_silos_are_served_on_held_out_rows_of_the_round_before(split: Split, tmp_path: Path) -> None:
    with ActiveRun(parse(experiment(TURN)), tmp_path / "run") as active:
        task, module, layout = active.experiment.task, active.model.module, active.training.layout
        model = torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
        for asked in (3, 4, 3):  # What is served is the model after the round before; rounds may come in any order.
            found = active.link.evaluate(Instruction(asked, {"model": model}), range(8), split=split)
            held = getattr(active.held(asked - 1), split)
            for silo, loss in zip(found.silos, found.loss):
                rows = held.silo(silo)
                expected = evaluate(task, module, layout, model, rows.features, rows.targets)["loss"]
                assert loss == pytest.approx(expected, rel=1e-5)


def test_a_run_that_was_stopped_before_a_shift_goes_on_into_it(tmp_path: Path) -> None:
    whole, again = done(tmp_path / "whole", TURN, attacks=[PATCH]), parse(experiment(TURN, attacks=[PATCH]))
    with ActiveRun(again, tmp_path / "part") as active:
        train(active, stop=lambda: len(active.store.rows()) == 2)
        assert active.stopped == INTERRUPTED
    with ActiveRun(again, tmp_path / "part", resume=True) as active:
        train(active)
        result = active.finish().result
    assert result["model"]["sha256"] == whole.result["model"]["sha256"]
    assert result["metrics"] == whole.result["metrics"]


# What cannot be.


def test_a_shift_decides_results_and_none_leaves_old_digests_alone() -> None:
    plain = parse(experiment(None))
    without = experiment(None)
    del without["data"]["shift"]
    assert digest(plain) == digest(parse(without))
    others = [digest(parse(experiment(each))) for each in (TURN, TURN | {"round": 4}, {"round": 3, "swap": [1, 2]})]
    assert len({digest(plain), *others}) == 4


REFUSED = [
    ({"round": 5, "rotate": 10}, "data.shift.round: must be <= rounds = 4, got 5; it would never come"),
    ({"round": 2}, "data.shift.rotate: 0 and no swap change nothing; give one of them, or remove the shift"),
    ({"round": 2, "swap": [1]}, "data.shift.swap: give two classes that differ, found [1]"),
    ({"round": 2, "swap": [3, 3]}, "data.shift.swap: give two classes that differ, found [3, 3]"),
]


@pytest.mark.parametrize(("shift", "line"), REFUSED, ids=[line for _, line in REFUSED])
def test_what_cannot_be_is_one_line(shift: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(experiment(shift))
    assert caught.value.problems == (line,)


def test_what_does_not_fit_the_data_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        done(tmp_path / "run", {"round": 2, "swap": [1, 10]})
    assert caught.value.problems == ("data.shift.swap: must be < 10, the classes of digits, found [1, 10]",)
    assert not (tmp_path / "run").exists()


def test_rows_of_numbers_are_neither_turned_nor_exchanged(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,y\n" + "\n".join(f"{n % 7},{n % 5},{n / 3}" for n in range(40)) + "\n")
    data = {"path": str(path), "target": "y", "silos": 4, "kind": "regression"}
    with pytest.raises(ConfigError) as caught:
        done(tmp_path / "run", None, task="linear", data=data | {"shift": TURN | {"swap": [0, 1]}})
    turn, swap = caught.value.problems
    assert turn == "data.shift.rotate: turns images, but rows of rows.csv have shape (2,); remove it"
    assert swap == "data.shift.swap: exchanges classes, but the targets of rows.csv are regression; remove it"
