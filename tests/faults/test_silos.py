"""What goes wrong in one silo, and is that silo's affair: an update that is too long, a graphics card that is gone.

No graphics card is needed: what torch raises of one is raised where a batch is moved to it, in the middle of the steps.
"""

from __future__ import annotations

import itertools
import json
import math
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from client import single
from simulations.deploying.serving import serve
from strategies.codec import encode
from strategies.yaml_text import yaml_of
from tests.faults.test_surroundings import paid
from tests.server.posts import FakePost, Time
from tests.simulations.silos import apart, experiment, office, policy

torch.set_num_threads(1)

SILOS, ROUNDS, STEPS, CLIP = 4, 3, 2, 0.5
SEEDED = {"silo": {"clip_norm": CLIP, "noise_multiplier": 2.0, "delta": 1e-2}, "noise": "simulated"}
RULES = {"silo": {"epsilon": 100.0, "delta": 1e-2}, "unprotected": False, "simulated_noise": True}
SMALL = {"name": "cnn", "channels": [2]}  # Trained by itself, not in a stack: on the card, where there is one.


def audit(folder: Path, silo: int, what: str) -> list[dict[str, Any]]:
    """What a silo's own log says of the rounds that it was asked to train."""
    rows = [json.loads(line) for line in (folder / f"silo{silo}" / "audit.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("kind") == "train" and row["what"] == what]


# An update that is too long.


def norm(update: Any) -> float:
    return float(torch.linalg.vector_norm(update.channels["delta"]))


@pytest.mark.parametrize(("rate", "longer"), [(50.0, True), (1e-3, False)])
def test_an_update_that_will_be_clipped_is_in_the_silos_own_log_and_counted_at_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, longer: bool
) -> None:
    """By how much is for the data holder alone: the server's row has the part of updates that were, where asked."""
    from client import engagement

    norms: list[float] = []
    original = engagement.answer

    def noted(*given: Any, **facts: Any) -> Any:
        found = original(*given, **facts)
        norms.extend([norm(found)] if given[2] == 1 else [])
        return found

    monkeypatch.setattr(engagement, "answer", noted)
    run = experiment(
        privacy=SEEDED,
        cohort={"sampling": "all"},
        metrics={"privacy": "research"},
        train={"steps": STEPS, "learning_rate": rate},
    )
    with ExitStack() as opened:
        apart(run, tmp_path, policy(**RULES, metrics=["train_loss"]), opened)
    told = [row.get("clipped") for row in audit(tmp_path, 1, "answered")]
    assert [each > CLIP for each in norms] == [longer] * ROUNDS
    assert told == ([{"delta": round(each / CLIP, 3)} for each in norms] if longer else [None] * ROUNDS)
    rows = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [row["clip_fraction"] for row in rows] == [float(longer)] * ROUNDS


# A graphics card.


class Card:
    """A batch of one silo that a card is to take; from the `first` move on, or only then, the card does not."""

    def __init__(self, features: Tensor, error: Exception | None) -> None:
        self.features, self.error = features, error

    def to(self, device: torch.device) -> Tensor:
        if self.error is not None:
            raise self.error
        return self.features.to(device)


OUT = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 271828 bytes")
LOST = torch.AcceleratorError("CUDA error: unspecified launch failure, on a card with 271828 bytes")


@pytest.mark.parametrize(("error", "for_ever"), [(OUT, False), (LOST, True)], ids=["out of memory", "lost"])
def test_a_silo_whose_card_fails_in_the_middle_of_its_steps_fails_with_a_reason_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, for_ever: bool
) -> None:
    """Silo 2, in the second step of round 2. A card that is lost stays lost to its process, also in round 3."""
    who: list[int] = []
    moves = itertools.count(1)
    original = single.layout_of_images

    def moved(features: Tensor) -> Any:
        move = next(moves) if who == [2] else 0
        failed = move >= STEPS + 2 if for_ever else move == STEPS + 2
        return Card(original(features), error if failed else None)

    monkeypatch.setattr(single, "layout_of_images", moved)
    post = FakePost(Time())
    run = experiment(task=SMALL, privacy=SEEDED, cohort={"sampling": "all"})
    rules = policy(**RULES, tasks=["cnn"])
    with ExitStack() as opened:
        for number in range(SILOS):
            silo = opened.enter_context(closing(office(tmp_path / f"silo{number}", rules, number=number)))

            def handle(data: bytes, number: int = number, silo: Any = silo) -> bytes:
                who[:] = [number]
                try:
                    return bytes(silo.handle(data))
                finally:
                    who.clear()

            post.silos[number] = handle
        serve(post, {"experiment": yaml_of(encode(run)), "out": str(tmp_path / "run")})
    failed = 2 if for_ever else 1
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["rounds"] == ROUNDS
    reasons = {"refused: training_failed": failed}
    assert found["updates"] == {"arrived": ROUNDS * SILOS - failed, "failed": failed, "reasons": reasons}
    assert math.isfinite(found["metrics"]["accuracy"])
    rows = audit(tmp_path, 2, "refused")
    assert [row["round"] for row in rows] == [2, 3][:failed]
    for row in rows:  # Its text is for the data holder; the server is told the class alone.
        assert row["reason"] == f"training failed with {type(error).__name__}; the silo's audit log says more"
        assert "271828" in row["private"]
    [ledger] = (tmp_path / "silo2" / "ledgers").glob("*.jsonl")
    assert paid(ledger) == [1, 2, 3]  # Something may have been computed: it is paid.
