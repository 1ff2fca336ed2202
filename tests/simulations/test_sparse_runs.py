"""Runs whose messages are sparse: what is counted, in every engine alike, under every kind of privacy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from privacy.contributions import Contributions
from simulations.engines.local import LocalLink
from simulations.running import run
from strategies import wire
from strategies.loading import parse
from strategies.schema import ConfigError

torch.set_num_threads(1)

SIZE = 650  # Softmax regression on 8 x 8 digits.


def config(strategy: dict[str, Any], **sections: Any) -> Any:
    return parse(
        {
            "name": "sparse",
            "rounds": 3,
            "task": "logistic",
            "data": {"name": "digits", "silos": 12, "limit": 400},
            "cohort": {"sampling": "fixed", "size": 6},
            "train": {"steps": 2, "learning_rate": 0.5},
            "strategy": strategy,
        }
        | sections
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_numbers_that_travel_are_counted_each_way(tmp_path: Path) -> None:
    strategy = {"name": "flasc", "density_down": 0.25, "density_up": 0.1}
    sent = run(config(strategy), out=tmp_path / "run").result["communication"]
    assert sent["parameters_up"] == 3 * 6 * 65
    assert sent["parameters_down"] == 3 * 6 * 162
    assert sent["ratio"] == pytest.approx((65 + 162) / (2 * SIZE))
    assert sent["bytes_up"] < 3 * 6 * 4 * SIZE / 5
    assert sent["bytes_down"] < 3 * 6 * 4 * SIZE / 2


@pytest.mark.parametrize("values", ["float32", "float16"])
@pytest.mark.parametrize("strategy", [{"name": "flasc", "density_up": 0.1, "density_down": 0.6}, {"name": "fedavg"}])
def test_the_bytes_of_a_run_are_those_of_its_messages(
    strategy: dict[str, Any], values: wire.Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every update and every instruction is really encoded, decoded and measured on its way."""
    crossed = {"up": 0, "down": 0}

    def through(vector: Tensor, kept: int, way: str) -> Tensor:
        data = wire.encode(vector, kept=kept, values=values)
        crossed[way] += len(data)
        return wire.decode(data, size=len(vector), kept=kept, values=values)

    class Carried(Contributions):
        def add(self, channels: Any, weight: Any, silos: Any, message: Any = None, **named: Any) -> None:
            size = channels["delta"].shape[-1]
            kept = size if strategy["name"] == "fedavg" else size // 10
            rows = torch.stack([through(row, kept, "up") for row in channels["delta"].reshape(-1, size)])
            assert torch.equal(rows.reshape(channels["delta"].shape), channels["delta"])
            super().add({"delta": rows.reshape(channels["delta"].shape)}, weight, silos, message, **named)

    asked = LocalLink.ask

    def ask(self: LocalLink, requests: Any, *rest: Any, **named: Any) -> Any:
        for request in requests:
            for _ in request.silos:
                model = request.instruction["model"]
                back = through(model, request.instruction.kept.get("model", len(model)), "down")
                assert torch.equal(back, wire.rounded(model, values))
        return asked(self, requests, *rest, **named)

    monkeypatch.setattr("client.host.Contributions", Carried)
    monkeypatch.setattr(LocalLink, "ask", ask)
    experiment = config(strategy, wire={"values": values}, task={"name": "mlp", "hidden": [4]})
    result = run(experiment, out=tmp_path / "run").result["communication"]
    assert crossed == {"up": result["bytes_up"], "down": result["bytes_down"]}


def test_tiers_are_asked_each_its_own_and_pool_and_local_agree(tmp_path: Path) -> None:
    tiers = [{"down": 1 / 16, "up": 1 / 16}, {"down": 0.25, "up": 0.25}, {"down": 1.0, "up": 1.0}]
    strategy, cohort = {"name": "flasc", "tiers": tiers}, {"sampling": "all"}
    found = {}
    for engine in ({"kind": "local"}, {"kind": "local", "stacked": "off"}, {"kind": "pool", "workers": 2}):
        out = tmp_path / "-".join(map(str, engine.values()))
        result = run(config(strategy, cohort=cohort, engine={"chunk": 2, **engine}), out=out).result
        found[out.name] = (
            [
                {name: row[name] for name in ("arrived", "parameters_up", "parameters_down", "bytes_up", "bytes_down")}
                for row in rows(out)
            ],
            result["metrics"]["loss"],
        )
    (local, loss), (single, other), (pool, same) = found.values()
    assert local == single == pool
    assert loss == same == pytest.approx(other, rel=1e-5)
    assert local[0]["parameters_up"] == local[0]["parameters_down"] == 4 * (40 + 162 + 650)


def test_what_travels_is_served_and_all_that_the_server_holds_is_measured_beside_it(tmp_path: Path) -> None:
    result = run(config({"name": "flasc", "density_down": 0.02}), out=tmp_path / "run").result
    model = load_file(tmp_path / "run" / "model.safetensors")
    assert sum(int((value != 0).sum()) for value in model.values()) == SIZE * 2 // 100
    dense = result["metrics"]["variants"]["dense"]
    assert dense["loss"] != result["metrics"]["loss"]
    assert rows(tmp_path / "run")[-1]["variants"]["dense"] == dense
    both = run(config({"name": "flasc", "density_down": 1.0}), out=tmp_path / "all").result
    assert both["metrics"]["variants"] == {}


def test_canaries_are_looked_for_in_all_that_the_server_holds(tmp_path: Path) -> None:
    """Of 8 canaries with a small noise, all are found, though one number in fifty travels."""
    silo = {"clip_norm": 0.5, "noise_multiplier": 0.1, "delta": 1e-3, "neighbours": "replace"}
    found = []
    for down in (0.02, 1.0):
        sections = {"privacy": {"silo": silo, "audit": {"canaries": 8}}}
        experiment = config({"name": "flasc", "density_down": down, "density_up": 1.0}, **sections)
        found.append(run(experiment, out=tmp_path / str(down)).result["privacy"]["measured"]["epsilon"])
    assert found[0] > 0.5 * found[1] > 1


def test_a_silo_that_noises_its_own_update_sends_all_of_it(tmp_path: Path) -> None:
    local = {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}
    sections = {"privacy": {"local": local}, "cohort": {"sampling": "all"}}
    sent = run(config({"name": "flasc", "density_up": 0.1}, **sections), out=tmp_path / "run").result["communication"]
    assert sent["parameters_up"] == 3 * 12 * SIZE


@pytest.mark.parametrize("name", ["flasc", "fixed_mask", "pruning"])
@pytest.mark.parametrize(
    "privacy",
    [
        {"silo": {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3, "neighbours": "replace"}},
        {"example": {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3, "rows": 40, "batch": 10}},
    ],
    ids=["silo", "example"],
)
def test_they_run_under_privacy_and_claim_what_plain_averaging_claims(
    name: str, privacy: dict[str, Any], tmp_path: Path
) -> None:
    """The mask down is of released numbers, and noise lies on every number up: sparsity costs no epsilon."""
    found = [
        run(config({"name": each}, privacy=privacy), out=tmp_path / each).result["privacy"] for each in (name, "fedavg")
    ]
    assert found[0]["silo"] == found[1]["silo"]
    assert found[0]["example"] == found[1]["example"]


def test_rank_tiers_without_adapters_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs LoRA adapters"):
        run(config({"name": "rank_tiers"}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
