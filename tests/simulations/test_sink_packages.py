"""Each sink against its real package: what the package's own reader finds is what the run's lines hold."""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.sinks.base import numbers

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
CONFIDE = [sys.executable, "-W", "error", "-m", "simulations"]
TIMEOUT_S = 150
ALL = ["tensorboard", "mlflow", "wandb"]
CONFIG = """
name: sunk
rounds: 20
task: logistic
data: {name: digits, silos: 6, limit: 200}
privacy: {silo: {clip_norm: 0.5, noise_multiplier: 1.0, delta: 1.0e-3}}
metrics: {every: 2, sinks: [tensorboard, {name: mlflow, store: here.db}, wandb]}
"""


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Theirs, about themselves.
        for name in ALL:
            pytest.importorskip(name, reason=f"{name} is not installed; use: pip install -e '.[sinks]'")


def start(folder: Path, *argv: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(folder), "WANDB_MODE": "online"}
    command = [*before, *CONFIDE, *map(str, argv)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


UNSHARED = ("unshare", "--map-root-user", "--net", "sh", "-c")
COUNTS = "cat /proc/net/snmp /proc/net/snmp6"
KNOCK = f"{sys.executable} -c \"import socket; socket.create_connection(('192.0.2.1', 9))\""
ALONE = f'ip link set lo up; "$@"; code=$?; echo ====; {COUNTS}; echo ====; {KNOCK} 2>/dev/null; {COUNTS}; exit $code'
"""Runs a command in a network of its own, with loopback alone; says what packets had no route, then knocks outside."""


@pytest.fixture(scope="module")
def alone() -> bool:
    return subprocess.run([*UNSHARED, "ip link set lo up"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, alone: bool) -> Path:
    """A run with all sinks, killed in its middle by a signal that cannot be handled, and resumed."""
    folder = tmp_path_factory.mktemp("resumed")
    (folder / "config.yaml").write_text(CONFIG)
    process = start(folder, "run", "config.yaml", "--out", "run")
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(("round  6/20", "round  7/20", "round  8/20")):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == -signal.SIGKILL, said
    run = folder / "run"
    (run / "id").write_text(json.loads((run / "sinks" / "wandb.json").read_text())["run"])
    before = (*UNSHARED, ALONE, "sh") if alone else ()
    process = start(folder, "run", "--resume", "run", "--quiet", "--format", "json", before=before)
    out, said = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, said) == (0, "")
    result, _, counts = out.partition("====")
    assert set(json.loads(result)["sinks"].values()) == {None}
    (run / "counts").write_text(counts)
    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def wanted(folder: Path, divider: str) -> dict[str, dict[int, float]]:
    """The numbers of the run's lines, by name and round."""
    found: dict[str, dict[int, float]] = {}
    for row in rows(folder):
        for name, value in numbers(row).items():
            found.setdefault(name.replace(".", divider), {})[row["round"]] = value
    return found


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_every_round_once(resumed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(resumed / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    expected = wanted(resumed, "/")
    assert set(reader.Tags()["scalars"]) == set(expected)
    for name, values in expected.items():
        events = reader.Scalars(name)
        assert [event.step for event in events] == sorted(values)
        for event in events:  # A float32 in the file.
            assert event.value == pytest.approx(values[event.step], rel=1e-6)
    assert len(list((resumed / "tensorboard").iterdir())) == 2  # One file for each process.


@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_every_round_once_and_the_result(resumed: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{resumed.parent / 'here.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "confide"]
    (found,) = client.search_runs([experiment.experiment_id])  # One, though two processes wrote it.
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert found.data.params["strategy/name"] == "fedavg"
    assert "seed" not in found.data.params
    expected = wanted(resumed, "/")
    assert {name for name in found.data.metrics if not name.startswith("final/")} == set(expected)
    for name, values in expected.items():
        history = client.get_metric_history(found.info.run_id, name)
        assert {metric.step: metric.value for metric in history} == values
        assert len(history) == len(values)
    result = json.loads((resumed / "result.json").read_text())
    assert found.data.metrics["final/metrics/accuracy"] == result["metrics"]["accuracy"]
    assert found.data.metrics["final/privacy/silo/epsilon_upper"] == result["privacy"]["silo"]["epsilon_upper"]


def records(path: Path) -> Iterator[Any]:
    """The records of an offline run's file, which is a LevelDB log behind seven bytes; its classes are wandb's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        internal = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # Of a block; the rest of it is empty.
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # Whole, or the last part.
            record = internal.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb_reads_every_round_once_under_the_id_of_the_run_that_was_killed(resumed: Path) -> None:
    (path,) = (resumed / "wandb").glob("offline-run-*/*.wandb")
    assert path.name == f"run-{json.loads((resumed / 'sinks' / 'wandb.json').read_text())['run']}.wandb"
    assert path.name == f"run-{(resumed / 'id').read_text()}.wandb"
    found: dict[int, dict[str, float]] = {}
    times: Counter[int] = Counter()
    config: dict[str, Any] = {}
    for record in records(path):
        assert record.WhichOneof("record_type") != "environment"
        if record.WhichOneof("record_type") == "run":
            assert record.run.host == "local"
            config |= {each.key: json.loads(each.value_json) for each in record.run.config.update}
        if record.WhichOneof("record_type") == "history":
            items = {(item.key or ".".join(item.nested_key)): item.value_json for item in record.history.item}
            step = int(items["_step"])
            times[step] += 1
            found[step] = {name: float(text) for name, text in items.items() if not name.startswith("_")}
    for row in rows(resumed):
        assert found[row["round"]] == numbers(row) | {"round": row["round"]}
    assert set(found) == set(range(1, 21))
    assert set(times.values()) == {1}
    assert config["strategy.name"] == "fedavg"
    assert "seed" not in config
    everything = path.read_bytes()
    for secret in (str(resumed.parent), sys.executable):
        assert secret.encode() not in everything


def test_no_sink_tries_to_reach_anybody(resumed: Path, alone: bool) -> None:
    if not alone:
        pytest.skip("this machine cannot: no network namespaces")
    before, after = (resumed / "counts").read_text().split("====")
    assert unroutable(before) == 0
    assert unroutable(after) > 0  # So an attempt would have been counted.


def unroutable(text: str) -> int:
    """Packets for which there was no route, of both kinds of addresses."""
    heads, values = [line.split() for line in text.splitlines() if line.startswith("Ip:")]
    sixth = sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Ip6OutNoRoutes"))
    return int(values[heads.index("OutNoRoutes")]) + sixth
