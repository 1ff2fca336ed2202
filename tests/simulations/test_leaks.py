"""Names of silos, places on a disk and cells of tables: planted so that nobody can mistake them, and looked for.

Looked for in all that is meant to be shown to others: what the exporter says, live and after the run, report.html,
rounds.jsonl, monitor.jsonl, the server's log, and every byte that a silo sends. Where such a thing belongs, the rule is
in SECURITY.md and is tested as one: what is shown to its owner alone has it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from client.policy import Policy
from server.loop import RoundResult
from simulations.deploying.connecting import connect
from simulations.metrics.exporter import Exporter
from simulations.metrics.silo import SiloExporter
from simulations.running import ActiveRun, train
from strategies.loading import parse
from tests.server.posts import FakePost, Time
from tests.simulations.silos import office, policy

NAMES = ("Wolkenkuckucksheim", "Zwiebelturmklinik", "Quastenflosserhof", "Xanthippenstift")
PLACE = "Verborgenerordner"
CELLS = ("271828.25", "314159.75", "161803.5")
TORN = "Unlesbareszeug"
PLANTED = (*NAMES, PLACE, *CELLS, TORN)
FILES = ("report.html", "rounds.jsonl", "monitor.jsonl")
SILO = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-2}
HEADER = "age,weight,clinic,ill\n"


def table(rows: int, *clinics: str) -> str:
    """People, each with a planted cell, of clinics in turn."""
    numbers = np.random.default_rng(0).integers(1, 90, rows)
    return HEADER + "".join(
        f"{age},{CELLS[at % 3]},{clinics[at % len(clinics)]},{'yes' if (at + int(age)) % 2 else 'no'}\n"
        for at, age in enumerate(numbers)
    )


def told(collector: Collector) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry).decode()


def leaks(texts: Mapping[str, str | bytes]) -> list[tuple[str, str]]:
    """Where something planted is found."""
    plain = {where: text.decode(errors="replace") if isinstance(text, bytes) else text for where, text in texts.items()}
    return [(where, word) for where, text in plain.items() for word in PLANTED if word in text]


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    (tmp_path / PLACE / "runs").mkdir(parents=True)
    return tmp_path / PLACE


@pytest.mark.parametrize("privacy", ["strict", "research"])
def test_a_simulation_shows_no_silos_name_no_place_and_no_cell(hidden: Path, privacy: str) -> None:
    (hidden / "people.csv").write_text(table(200, *NAMES))
    data = {"path": str(hidden / "people.csv"), "target": "ill", "silo": "clinic", "test": 0.2}
    config = {"rounds": 2, "task": "logistic", "data": data, "strategy": "mr_mtl", "privacy": {"silo": SILO}}
    live: list[str] = []

    def look(result: RoundResult) -> None:
        live.append(told(Exporter(hidden / "runs")))

    with ActiveRun(parse(config | {"metrics": {"privacy": privacy}}), hidden / "runs" / "one") as active:
        train(active, look)
        result = active.finish().result
    folder = hidden / "runs" / "one"
    shown: dict[str, str | bytes] = {name: (folder / name).read_bytes() for name in FILES}
    shown |= {f"live {at}": text for at, text in enumerate(live)} | {"after": told(Exporter(hidden / "runs"))}
    assert leaks(shown) == []
    assert all('confide_round{run="one"}' in text for text in live)  # What was looked at was there.
    assert (result["metrics"]["per_silo"] is None) == (privacy == "strict")
    # The owner's: which file was read.
    assert leaks({"experiment": (folder / "experiment.yaml").read_bytes()}) == [("experiment", PLACE)]


class Mouth:
    """An office, and all that it sent."""

    def __init__(self, handle: Callable[[bytes], bytes]) -> None:
        self.handle, self.sent = handle, list[bytes]()

    def __call__(self, data: bytes) -> bytes:
        answer = self.handle(data)
        self.sent.append(answer)
        return answer


def apart(
    hidden: Path, privacy: Mapping[str, Any], rules: Mapping[int, Policy], opened: ExitStack
) -> tuple[Mapping[str, Any], dict[str, str | bytes]]:
    """A run of silos that have files of their own, the last with a cell that cannot be read: all that it shows."""
    rows = table(60, "a", "b").replace("clinic", "ward")
    (hidden / "public.csv").write_text(rows)
    time, mouths = Time(), dict[int, Mouth]()
    post = FakePost(time)
    for number, rule in rules.items():
        place = hidden / NAMES[number]
        place.mkdir()
        (place / "rows.csv").write_text(rows.replace("yes", TORN, 1) if number == 3 else rows)
        silo = opened.enter_context(closing(office(place / "own", rule, number=number, data=str(place / "rows.csv"))))
        post.silos[number] = mouths[number] = Mouth(silo.handle)
    data = {"path": str(hidden / "public.csv"), "target": "ill", "silos": 4, "test": 0.2}
    config = {"rounds": 2, "task": "logistic", "data": data, "engine": {"kind": "flower", "deadline_s": 5.0}}
    folder = hidden / "runs" / "one"
    with ActiveRun(parse(config | dict(privacy)), folder, connect=connect(post, clock=time.clock)) as active:
        train(active)
        result = active.finish().result
    shown: dict[str, str | bytes] = {name: (folder / name).read_bytes() for name in FILES}
    shown |= {f"wire {number} {at}": sent for number, each in mouths.items() for at, sent in enumerate(each.sent)}
    shown |= {
        f"exporter of silo {at}": told(SiloExporter(hidden / NAMES[at] / "own", rule)) for at, rule in rules.items()
    }
    return result, shown | {"exporter": told(Exporter(hidden / "runs"))}


def test_silos_apart_show_no_name_no_place_and_no_cell(hidden: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    guarded = policy(silo={"epsilon": 100.0, "delta": 1e-2}, unprotected=False, simulated_noise=True)
    with ExitStack() as opened:
        privacy = {"privacy": {"silo": SILO, "noise": "simulated"}}
        result, shown = apart(hidden, privacy, dict.fromkeys(range(4), guarded), opened)
    assert leaks(shown | {"log": caplog.text}) == []
    assert "a node does not take part: data: the silo's rows cannot be read" in caplog.text
    assert result["updates"] == {"arrived": 6, "failed": 2, "reasons": {"silo is not connected": 2}}
    # The owner's: the silo's own log says which cell, and nobody else is told.
    log = {at: (hidden / NAMES[at] / "own" / "audit.jsonl").read_text() for at in range(4)}
    assert [TORN in text for text in log.values()] == [False, False, False, True]
    # Whole messages each way: hellos, tasks and a last word down; longer than the vectors in them.
    exported = text_of(shown["exporter"])
    for way in ("up", "down"):
        assert value(exported, f'wire_bytes_total{{direction="{way}",run="one"}}') > value(
            exported, f'payload_bytes_total{{direction="{way}",run="one"}}'
        )


def test_private_numbers_of_a_silo_leave_only_where_its_own_policy_names_them(hidden: Path) -> None:
    """`research` asks everybody for everything; silo 0 gives all, silo 1 what it measures, silo 2 nothing."""
    names = {0: ("train_loss", "loss", "score"), 1: ("loss", "score"), 2: ()}
    rules = {at: policy(metrics=list(found)) for at, found in names.items()}
    with ExitStack() as opened:
        result, shown = apart(hidden, {"metrics": {"privacy": "research"}}, rules, opened)
    assert leaks(shown) == []
    assert result["updates"]["reasons"] == {"refused: policy": 4, "silo is not connected": 2}
    assert result["updates"]["arrived"] == 2
    answered = [value(text_of(shown[f"exporter of silo {at}"]), "silo_rounds_total") for at in range(3)]
    assert answered == [2, 0, 0]
    refused = [
        value(text_of(shown[f"exporter of silo {at}"]), 'silo_requests_total{outcome="policy"}') for at in range(3)
    ]
    assert refused[0] == 0 < refused[1] < refused[2]  # Also asked for its score, silo 1 answers.
    assert result["metrics"]["per_silo"] is not None


def text_of(found: str | bytes) -> str:
    assert isinstance(found, str)
    return found


def value(text: str, series: str) -> float:
    [line] = [line for line in text.splitlines() if line.startswith(f"confide_{series} ")]
    return float(line.rpartition(" ")[2])
