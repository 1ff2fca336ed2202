"""How Flower's programs are started, without starting them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.cli import parser
from simulations.deploying.certificates import Folder
from simulations.deploying.flower import Address, Server, environment, quoted
from strategies.schema import ConfigError


@pytest.mark.parametrize("text", ["127.0.0.1:9092", "localhost:1", "[::1]:65535", "host.example:80"])
def test_addresses(text: str) -> None:
    assert str(Address.of(text)) == text


@pytest.mark.parametrize(
    "text", ["", "9092", "host", ":1", "host:0", "host:65536", "host:-1", "host:x", "::1:80", "h:１"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError):
        Address.of(text)


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.1", False)]
)
def test_without_tls_only_this_machine_is_served(tmp_path: Path, host: str, loopback: bool) -> None:
    if loopback:
        Server("x", tmp_path, Address(host, 9092), 9093, None)
        return
    with pytest.raises(ConfigError, match="needs TLS"):
        Server("x", tmp_path, Address(host, 9092), 9093, None)
    Server("x", tmp_path, Address(host, 9092), 9093, Folder(tmp_path))


@pytest.mark.parametrize("files", [None, "certs"])
def test_the_connection_of_a_server_is_toml_that_names_it(tmp_path: Path, files: str | None) -> None:
    """Also under the name that `confide serve` has by itself; under `default` no file could say it."""
    name = parser().parse_args(["serve", "--insecure"]).name
    assert name == parser().parse_args(["run", "quickstart"]).federation
    server = Server(name, tmp_path, Address("127.0.0.1", 9092), 9093, None if files is None else Folder(Path(files)))
    server._write_connection()
    told = tomllib.loads((tmp_path / "config.toml").read_text())["superlink"]
    assert told["default"] == name
    assert told[name]["address"] == "127.0.0.1:9093"
    with pytest.raises(ConfigError, match="choose another name"):
        Server("default", tmp_path, Address("127.0.0.1", 9092), 9093, None)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_strings_are_toml(text: str) -> None:
    assert tomllib.loads(f"a = {quoted(text)}") == {"a": text}


def test_nobody_is_called_and_nothing_is_installed(tmp_path: Path) -> None:
    told = environment(tmp_path)
    assert told["FLWR_TELEMETRY_ENABLED"] == "0"
    assert told["FLWR_DISABLE_UPDATE_CHECK"] == told["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
