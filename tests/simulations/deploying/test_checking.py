"""`confide doctor --deploy`: each thing that can be wrong is found, and named as what it is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.daemon import Daemon
from client.sockets import Place
from simulations.cli import main
from simulations.deploying import checking_files
from simulations.deploying.certificates import Folder, make, public_hex
from simulations.deploying.checking import Check, daemon, listeners, ports, server
from simulations.deploying.flower import Address
from simulations.deploying.processes import free_ports
from simulations.version import version
from tests.client.test_daemon import Echo, office
from tests.simulations.deploying import test_certificates as greeting

TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: {}:2385 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
"""  # 0x2385 = 9093, the control port.


@pytest.fixture
def files(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "certs")
    make(made, hosts=["fl.example.org", "10.0.0.7"], nodes=["ward"], days=100)
    return made


def levels(found: Iterable[Check]) -> dict[str, str]:
    return {each.what: each.level for each in found}


def certificates(files: Folder, host: str | None = None, *, days: float = 0.0) -> dict[str, str]:
    address = None if host is None else Address(host, 9092)
    return levels(checking_files.certificates(files, address, datetime.now(UTC) + timedelta(days=days)))


def test_what_was_just_made_is_fit_but_for_keys_that_should_be_elsewhere(files: Folder) -> None:
    found = certificates(files, "fl.example.org")
    assert found.pop("node keys") == "warning"
    assert set(found.values()) == {"ok"}
    files.node_key("ward").unlink()
    assert "node keys" not in certificates(files)


@pytest.mark.parametrize(
    ("days", "level"), [(-1.0, "problem"), (0.0, "ok"), (69.0, "ok"), (71.0, "warning"), (101.0, "problem")]
)
def test_certificates_hold_between_two_dates(files: Folder, days: float, level: str) -> None:
    found = certificates(files, days=days)
    assert (found["authority"], found["certificate"]) == (level, level)


@pytest.mark.parametrize(
    ("host", "level"),
    [
        ("fl.example.org", "ok"),
        ("FL.example.org", "ok"),
        ("10.0.0.7", "ok"),
        ("::1", "ok"),
        ("10.0.0.8", "problem"),
        ("other.example.org", "problem"),
        ("example.org", "problem"),
    ],
)
def test_a_certificate_is_for_the_hosts_that_it_names(files: Folder, host: str, level: str) -> None:
    assert certificates(files, host)["host name"] == level


def test_an_authority_that_has_not_signed_and_a_key_of_another_pair(files: Folder, tmp_path: Path) -> None:
    other = Folder(tmp_path / "other")
    make(other, hosts=[], nodes=[])
    files.authority.write_bytes(other.authority.read_bytes())
    assert certificates(files)["chain"] == "problem"
    assert certificates(files)["server key"] == "ok"
    files.server_key.write_bytes(other.server_key.read_bytes())
    assert certificates(files)["server key"] == "problem"


def test_a_file_that_is_no_certificate(files: Folder) -> None:
    files.server.write_text("no")
    assert certificates(files)["certificate"] == "problem"
    files.authority.unlink()
    assert certificates(files)["authority"] == "problem"


@pytest.mark.parametrize("name", ["server.key", "tasks.key", "ca.key", "nodes/ward.key"])
def test_a_key_that_others_can_read(files: Folder, name: str) -> None:
    assert certificates(files)["keys"] == "ok"
    (files.path / name).chmod(0o640)
    assert certificates(files)["key"] == "problem"


@pytest.mark.parametrize(
    ("table", "words", "level"),
    [
        ("tcp", "0100007F", "ok"),
        ("tcp", "00000000", "problem"),
        ("tcp", "0700000A", "problem"),
        ("tcp6", "00000000000000000000000001000000", "ok"),
        ("tcp6", "00000000000000000000000000000000", "problem"),
    ],
)
def test_the_port_that_starts_runs_is_on_loopback_alone(tmp_path: Path, table: str, words: str, level: str) -> None:
    assert levels(ports(tmp_path)) == {"fleet port 9092": "ok", "control port 9093": "ok"}
    (tmp_path / table).write_text(TABLE.format(words, "0A"))
    assert levels(ports(tmp_path))["control port 9093"] == level
    (tmp_path / table).write_text(TABLE.format(words, "01"))  # A connection, not a listener.
    assert list(listeners(tmp_path)) == []


def test_listeners_of_this_machine_are_found() -> None:
    with greeting.server(None) as address:
        assert ("127.0.0.1", address.port) in set(listeners(Path("/proc/net")))


def test_a_server_that_is_trusted_one_that_is_not_and_none(files: Folder, tmp_path: Path) -> None:
    other = Folder(tmp_path / "other")
    make(other, hosts=[], nodes=[])
    with greeting.server(files) as address:
        assert set(levels(server(address, files.authority)).values()) == {"ok"}
        assert set(levels(server(address, other.authority)).values()) == {"problem"}
    nobody = Address("127.0.0.1", free_ports(1)[0])
    assert set(levels(server(nobody, files.authority)).values()) == {"problem"}


def policy(path: Path, files: Folder | None, *lines: str) -> dict[str, str]:
    given = "silo: {epsilon: 8, delta: 0.0001}\nstrategies: [fedavg]\ntasks: [logistic]\n"
    path.write_text(given + "\n".join(lines))
    return levels(checking_files.policy(path, files))


def test_a_policy_that_names_the_server_and_is_for_real_rows(files: Folder, tmp_path: Path) -> None:
    path, mine = tmp_path / "policy.yaml", f"server_keys: ['{public_hex(files.signing_key)}']"
    assert policy(path, files, mine) == {"policy": "ok", "server_keys": "ok"}
    assert policy(path, files, f"server_keys: ['{'0' * 64}']")["server_keys"] == "problem"
    assert policy(path, files)["server_keys"] == "warning"
    assert policy(path, files, mine, "simulated_noise: true")["simulated_noise"] == "warning"
    assert policy(path, files, mine, "dry_run: true")["dry_run"] == "warning"
    assert policy(path, files, "no_such_key: 1") == {"policy": "problem"}
    path.chmod(0o664)
    assert policy(path, files, mine)["policy"] == "problem"


def test_a_silo_that_answers_whom_it_should() -> None:
    with tempfile.TemporaryDirectory(prefix="cf", dir="/tmp") as folder:
        path = f"{folder}/s"
        with Daemon(office(Echo()), Place(path=path), version=version()):
            assert levels(daemon(path, version())) == {f"silo at {path}": "ok", "socket": "ok"}
            assert levels(daemon(path, "another"))[f"silo at {path}"] == "problem"
            Path(path).chmod(0o666)
            assert levels(daemon(path, version()))["socket"] == "problem"
        with Daemon(office(Dry()), Place(path=path), version=version()):
            assert levels(daemon(path, version()))[f"silo at {path}"] == "warning"


class Dry(Echo):
    policy = replace(Echo.policy, dry_run=True)


def test_a_silo_that_is_not_there(tmp_path: Path) -> None:
    assert set(levels(daemon(str(tmp_path / "none.sock"), version())).values()) == {"problem"}


def test_the_command_ends_with_2_where_there_is_a_problem(
    files: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = [
        "flwr>=1.39,<1.40",
        "grpcio>=1",
        "grpcio-health-checking>=1",
        "protobuf>=6,<7",
        "cryptography>=46",
        "torch>=2",
    ]
    monkeypatch.setattr("simulations.commands.doctor.requires", lambda _: pins)
    monkeypatch.setattr("simulations.deploying.checking.listeners", lambda _: iter(()))
    command = ["doctor", "--deploy", "--certs", str(files.path), "--format", "json"]
    assert main(command) == 0
    found = {each["what"]: each["level"] for each in json.loads(capsys.readouterr().out)}
    assert {"flwr", "protobuf", "clock", "gpu", "disk", "program flower-superlink", "chain"} <= found.keys()
    assert "torch" not in found
    files.server_key.chmod(0o644)
    assert main(command) == 2
    capsys.readouterr()
    files.server_key.chmod(0o600)
    pins[0] = "flwr>=1.40"
    assert main(command) == 2
    del pins[0]  # An installed confide that does not say which it needs is an old one.
    assert main(command) == 2


@pytest.mark.parametrize("option", ["--certs", "--server", "--policy", "--socket"])
def test_options_without_deploy_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", option, "x"]) == 2
    assert capsys.readouterr().err == f"confide: {option}: goes with --deploy; add it\n"
