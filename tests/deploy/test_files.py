"""What deploy/ holds starts what exists: every command is one that confide takes, every file that is named is there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.policy import read_policy
from simulations.cli import parser

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SETTINGS = {"DATA": "rows.csv", "NUMBER": "0", "SERVER": "a.example:9092", "NAME": "five", "STORE": "runs"}
SETTINGS |= {"ADDRESS": "0.0.0.0:9092"}


def started(unit: Path) -> list[str]:
    [line] = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.M)
    return shlex.split(re.sub(r"\$\{(\w+)\}", lambda found: SETTINGS[found[1]], line))


def commands() -> Iterator[tuple[str, list[str]]]:
    for name, service in COMPOSE["services"].items():
        if service["image"] == "confide":
            yield f"compose {name}", service["command"]
    for unit in UNITS:
        yield unit.name, started(unit)[1:]
    for part in yaml.safe_load_all((DEPLOY / "kubernetes" / "silo.yaml").read_text()):
        for container in part["spec"].get("template", {"spec": {"containers": []}})["spec"]["containers"]:
            yield f"kubernetes {container['name']}", container["args"]
    for number, line in enumerate((DEPLOY / "README.md").read_text().splitlines(), 1):
        if line.startswith("    confide "):
            yield f"README line {number}", shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("argv", [argv for _, argv in commands()], ids=[name for name, _ in commands()])
def test_every_command_is_one_that_confide_takes(argv: list[str]) -> None:
    assert all(isinstance(word, str) for word in argv)  # YAML reads 0 as a number.
    assert callable(parser().parse_args(argv).execute)


def test_there_are_services_of_every_kind() -> None:
    kinds = {argv[0] for _, argv in commands()}
    assert kinds >= {"serve", "silo", "join", "metrics"}
    assert len(UNITS) == 4


def test_a_silos_data_has_no_network_and_nothing_listens_beyond_loopback() -> None:
    for name, service in COMPOSE["services"].items():
        if name.startswith("silo-"):
            assert service["network_mode"] == "none"
            assert not service.get("ports")
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
        if service["image"] == "confide":
            assert service["cap_drop"] == ["ALL"]
            assert service["read_only"] is True
    unit = (DEPLOY / "systemd" / "confide-silo.service").read_text()
    assert "RestrictAddressFamilies=AF_UNIX\n" in unit
    assert "IPAddressDeny=any" in unit


def test_files_that_are_mounted_or_copied_are_there() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith(".") and "certs" not in source:  # Those are made by confide certs.
                assert (DEPLOY / "docker" / source).exists(), source
            elif not source.startswith("."):
                assert source in COMPOSE["volumes"]
    for words in re.findall(r"^COPY (?!--from)(.*)$", (DEPLOY / "docker" / "Dockerfile").read_text(), re.M):
        for name in words.split()[:-1]:
            assert (DEPLOY.parent / name).exists(), name


def test_the_examples_policy_is_one() -> None:
    policy = read_policy(DEPLOY / "docker" / "policy.yaml")
    assert policy.silo is not None
    assert policy.simulated_noise is False


def test_no_file_holds_a_secret() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert "PRIVATE KEY" not in path.read_text()
            assert path.suffix not in (".pem", ".key")


@pytest.mark.integration
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_takes_the_units_and_finds_little_to_attack(unit: Path, tmp_path: Path) -> None:
    """Exposure as `systemd-analyze security` counts it: 10 is unprotected, below 4 well kept."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / unit.name  # The same, with a program that is on this machine.
    copy.write_text(unit.read_text().replace("/opt/confide/bin/confide", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "--man=no", "verify", copy], capture_output=True, text=True, timeout=60)
    own = [line for line in done.stderr.splitlines() if unit.name in line]
    assert own == [], own
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=40", copy],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
