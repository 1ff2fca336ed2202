"""Standardisation by released moments: bounded, noised, charged once, and right without much noise."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.examples import Examples, Shards
from privacy.accountant import epsilon
from privacy.events import Composed, Gaussian, Poisson, Repeated, Sampled
from privacy.ledger import Ledger
from privacy.noise import SimulatedNoise
from server.store import StoreError
from simulations.data.federation import build
from simulations.running import ActiveRun, run, train
from simulations.standardization import moments, standardized
from strategies.loading import parse
from strategies.schema import ConfigError
from strategies.standardize import Private


def shards(silos: int, rows: int, features: int, seed: int = 0) -> Shards:
    rng = torch.Generator().manual_seed(seed)
    values = torch.rand(silos * rows, features, generator=rng)
    parts = list(torch.arange(silos * rows).split(rows))
    return Shards.gather(Examples(values, torch.zeros(silos * rows)), parts)


def experiment(**changes: object) -> dict[str, object]:
    standardize = {"name": "private", "low": 0, "high": 1, "noise_multiplier": 5}
    config: dict[str, object] = {
        "rounds": 4,
        "task": "logistic",
        "data": {"name": "digits", "silos": 200, "standardize": standardize},
        "cohort": {"rate": 0.25},
        "privacy": {"silo": {"clip_norm": 0.5, "noise_multiplier": 2, "delta": 1e-4}},
    }
    return config | changes


def test_with_hardly_any_noise_the_moments_are_those_of_the_rows() -> None:
    held = shards(50, 20, 3)
    found = moments(held, Private(low=(0.0,), high=(1.0,), noise_multiplier=1e-6), noise=SimulatedNoise(0))
    features = held.rows.features.double()
    torch.testing.assert_close(torch.tensor(found.mean), features.mean(0).float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(found.std), features.std(0, correction=0).float(), rtol=0, atol=1e-5)


@given(st.integers(0, 2**20))
def test_one_silo_moves_the_mean_by_at_most_its_share(seed: int) -> None:
    """Whatever a silo holds within the bounds, the sum moves by at most twice the clip norm when it is replaced."""
    silos, features = 5, 2
    held = shards(silos, 4, features, seed)
    other = held.rows.features.clone()
    other[:4] = torch.randint(0, 2, (4, features), generator=torch.Generator().manual_seed(seed)).float()
    quiet = Private(low=(0.0,), high=(1.0,), noise_multiplier=1e-6)
    one, two = (moments(Shards(Examples(rows, held.rows.targets), held.offsets), quiet, noise=SimulatedNoise(0))
                for rows in (held.rows.features, other))  # fmt: skip
    squares = [[s * s + m * m for m, s in zip(found.mean, found.std)] for found in (one, two)]
    moved = [a - b for a, b in zip([*one.mean, *squares[0]], [*two.mean, *squares[1]])]
    clip_norm = math.sqrt(2 * features) / 2
    assert silos * math.hypot(*moved) <= 2 * clip_norm * (1 + 1e-5)


def test_the_release_is_charged_before_round_1_and_is_part_of_epsilon(tmp_path: Path) -> None:
    outcome = run(parse(experiment()), out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert lines[0]["round"] == 0
    assert lines[0]["event"] == {"kind": "gaussian", "noise_multiplier": 5.0}
    claimed = outcome.result["privacy"]["silo"]
    whole = Composed((Gaussian(5.0), Repeated(Sampled(Poisson(0.25), Gaussian(2.0)), 4)))
    assert claimed["epsilon_upper"] == epsilon(whole, 1e-4).upper
    rows = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert rows[-1]["epsilon"] == claimed["epsilon_upper"]
    assert rows[0]["epsilon"] > epsilon(Gaussian(5.0), 1e-4).upper


def test_resuming_releases_and_charges_the_moments_no_second_time(tmp_path: Path) -> None:
    straight = run(parse(experiment()), out=tmp_path / "straight")
    with ActiveRun(parse(experiment()), tmp_path / "parts") as active:
        train(active, stop=lambda: (tmp_path / "parts" / "rounds.jsonl").exists() and bool(active.store.rows()))
    with ActiveRun(parse(experiment()), tmp_path / "parts", resume=True) as active:
        train(active)
        resumed = active.finish()
    assert resumed.result["model"]["sha256"] == straight.result["model"]["sha256"]
    assert resumed.result["privacy"]["silo"]["charged_rounds"] == 5
    assert resumed.result["standardize"] == straight.result["standardize"]


def secret() -> dict[str, object]:
    privacy = {"silo": {"clip_norm": 0.5, "noise_multiplier": 2, "delta": 1e-4}, "noise": "system"}
    return experiment(privacy=privacy)


def stopped_after_a_round(folder: Path) -> dict[str, object]:
    with ActiveRun(parse(secret()), folder) as active:
        train(active, stop=lambda: bool(active.store.rows()))
        return asdict(active.released)


def test_moments_with_system_noise_are_released_and_charged_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    released = stopped_after_a_round(folder)
    with ActiveRun(parse(secret()), folder, resume=True) as active:
        train(active)
        resumed = active.finish()
    assert resumed.result["standardize"] == released
    assert resumed.result["privacy"]["silo"]["charged_rounds"] == 5
    assert stopped_after_a_round(tmp_path / "other") != released


@pytest.mark.parametrize("damage", ["lost", "torn", "foreign"])
def test_moments_with_system_noise_that_are_lost_are_not_released_again(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "run"
    stopped_after_a_round(folder)
    kept, ledger = folder / "moments.json", (folder / "ledger.jsonl").read_bytes()
    if damage == "lost":
        kept.unlink()
    else:
        kept.write_bytes(kept.read_bytes()[:20] if damage == "torn" else b'{"mean": [0.5], "std": [NaN]}')
    with pytest.raises(StoreError, match=r"moments\.json: the released moments cannot be read .*start a new run"):
        ActiveRun(parse(secret()), folder, resume=True)
    assert (folder / "ledger.jsonl").read_bytes() == ledger


def test_without_privacy_there_is_nothing_to_pay_with() -> None:
    with pytest.raises(ConfigError, match=r"data\.standardize: private spends privacy\.silo, which is missing"):
        parse(experiment(privacy={}))


def test_a_budget_that_cannot_pay_the_moments_is_refused_before_they_are_released(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"budget\.epsilon: 0\.1 is less than the .* that data\.standardize costs"):
        run(parse(experiment(budget={"epsilon": 0.1, "delta": 1e-4})), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"seed": 1}, {"data": {"name": "digits", "silos": 100, "standardize": "keep"}}])
def test_moments_of_a_changed_experiment_are_never_computed_under_an_old_charge(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    """Stopped before round 1 there is no checkpoint, but the moments are out: another seed or deal is another release.

    Under the same noise, the difference of the two would even be without any.
    """
    with ActiveRun(parse(experiment()), tmp_path / "run") as active:
        train(active, stop=lambda: True)
        first = active.finish().result
    assert first["privacy"]["silo"]["charged_rounds"] == 1
    base = experiment()["data"]
    assert isinstance(base, dict)
    data = changes.get("data")
    changed = changes | ({"data": data | {"standardize": base["standardize"]}} if isinstance(data, dict) else {})
    kept = (tmp_path / "run" / "result.json").read_bytes()
    with pytest.raises(StoreError, match="cannot go on, since its experiment or data changed"):
        ActiveRun(parse(experiment(**changed)), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "result.json").read_bytes() == kept
    with ActiveRun(parse(experiment()), tmp_path / "run", resume=True) as active:  # Unchanged, it goes on.
        train(active)
        assert active.finish().result["standardize"] == first["standardize"]


def test_a_charge_for_something_else_does_not_pay_for_the_moments(tmp_path: Path) -> None:
    config = parse(experiment())
    ledger = Ledger(tmp_path / "ledger.jsonl", run="r", dataset="d")
    ledger.reserve(1, Gaussian(2.0), unit="silo", neighbours="add_remove")
    standardize, federation = config.data.standardize, build(config.data, seed=0)
    assert isinstance(standardize, Private)
    for _ in range(2):  # Once paid, it is paid.
        source = SimulatedNoise(0)
        standardized(
            federation, standardize, ledger, noise=source, folder=tmp_path, unit="silo", neighbours="add_remove"
        )
        assert ledger.spent("silo") == [Gaussian(2.0), Gaussian(5.0)]
    ledger.close()
