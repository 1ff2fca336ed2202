"""Processes that end with the test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.deploy.watching import Start, environment


@pytest.fixture
def started() -> Iterator[Start]:
    """Starts processes that end with the test."""
    found: list[subprocess.Popen[str]] = []

    def start(*command: object) -> subprocess.Popen[str]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(list(map(str, command)), env=environment(), text=True, **quiet)
        found.append(process)
        return process

    yield start
    for process in found:
        process.terminate()
    for process in found:
        process.wait(timeout=30)
