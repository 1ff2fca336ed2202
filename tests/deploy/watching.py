"""A Prometheus of a test's own, and questions to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
CONFIDE = (sys.executable, "-m", "simulations")
PATIENCE_S = 90
Start = Callable[..., "subprocess.Popen[str]"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def watch(start: Start, folder: Path, targets: Mapping[str, int], rules: Path = ALERTS) -> int:
    """Starts a Prometheus with the shipped configuration, made fast and pointed at ports by job; returns its own."""
    config, port = yaml.safe_load(ALERTS.with_name("prometheus.yml").read_text()), free_port()
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    [shipped] = config["scrape_configs"]
    config["scrape_configs"] = [
        shipped | {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{at}"]}]} for job, at in targets.items()
    ]
    config["rule_files"] = [str(rules)]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    start(
        "prometheus", "--config.file", folder / "prometheus.yml", "--storage.tsdb.path", folder / "tsdb",
        "--web.listen-address", f"127.0.0.1:{port}",
    )  # fmt: skip
    return port


def ask(port: int, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)["data"]


def value(port: int, expression: str) -> dict[str, float]:
    """What an expression is now, by run."""
    return {
        each["metric"].get("run", ""): float(each["value"][1])
        for each in ask(port, "/api/v1/query", query=expression)["result"]
    }


def wait(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not _holds(condition):
        assert time.monotonic() < end, what()
        time.sleep(0.3)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except (OSError, KeyError):  # Prometheus is not up yet, or knows no such series.
        return False
