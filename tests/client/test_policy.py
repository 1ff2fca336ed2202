"""The policy file: what it must say, and that every mistake in it is a line before anything listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.policy import read_policy
from strategies.schema import ConfigError

GOOD = "silo: {epsilon: 8.0, delta: 1.0e-5}\nstrategies: [fedavg]\ntasks: [mlp]\n"


def read(folder: Path, text: str) -> list[str]:
    (folder / "policy.yaml").write_text(text)
    try:
        read_policy(folder / "policy.yaml")
    except ConfigError as error:
        return list(error.problems)
    return []


def test_what_is_not_said_is_not_allowed(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == []
    policy = read_policy(tmp_path / "policy.yaml")
    assert not policy.unprotected
    assert not policy.simulated_noise
    assert policy.metrics == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("strategies: [fedavg]\ntasks: [mlp]\n", "protects nothing"),
        (GOOD + "unprotected: true\n", "contradicts the section silo"),
        (GOOD.replace("epsilon: 8.0", "epsilon: .nan"), "must be finite"),
        (GOOD.replace("epsilon: 8.0", "epsilon: .inf"), "must be finite"),
        (GOOD.replace("epsilon: 8.0", "epsilon: 0.0"), "must be > 0"),
        (GOOD.replace("1.0e-5", "1.0"), "must be > 0 and < 1"),
        (GOOD + "metrics: [rows]\n", "must be one of"),
        (GOOD + "server_keys: [abc]\n", "64 hexadecimal digits"),
        (GOOD + "least_exampels: 3\n", "did you mean 'least_examples'?"),
        (GOOD + "least_examples: 0\n", "must be >= 1"),
        (GOOD.replace("tasks: [mlp]\n", ""), "tasks: missing"),
        (GOOD + "dry_run: &a true\n", "anchors"),
    ],
)
def test_a_mistake_is_a_line_that_names_the_file(text: str, reason: str, tmp_path: Path) -> None:
    [line] = read(tmp_path, text)
    assert line.startswith(str(tmp_path / "policy.yaml"))
    assert reason in line


def test_the_policy_to_copy_is_one() -> None:
    policy = read_policy(Path(__file__).resolve().parents[2] / "deploy" / "policy.yaml")
    assert policy.example is not None
    assert not policy.dry_run
