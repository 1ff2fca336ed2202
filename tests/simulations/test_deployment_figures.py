"""Figures of deployment are read from logs: what is logged is what is looked for, and times add up."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import cast

import pytest

from client.daemon import Daemon
from client.office import Office
from client.sockets import Place
from simulations.benchmarks.deployment import table
from simulations.benchmarks.deployment_legs import Echo
from simulations.benchmarks.deployment_rounds import RELAY, SERVER, _server, experiment
from simulations.engines import setup
from simulations.preparing import prepare
from strategies.envelope import Task, encode
from tests.server.test_remote import ask, federation


def test_the_servers_line_says_how_long_it_waited_and_what_is_left_is_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a clock that only sleeping moves, asking is waiting: 3 s for a silo that takes 3 s, and a poll at most."""
    caplog.set_level(logging.INFO, logger="confide.server")
    link, post, _ = federation(tmp_path)
    post.delays[11] = 3.0
    ask(link)
    [(round_, whole, carried, waited)] = SERVER.findall(caplog.text)
    assert (round_, carried) == ("1", "0.000")
    assert float(whole) == float(waited) == pytest.approx(3.0, abs=0.11)
    row = {"store": 0.25, "train": 9.0, "evaluate": 0.5}
    assert _server(row, (8.0, 2.0, 5.5)) == pytest.approx(0.25 + 0.5 + 0.5)


def test_the_relays_line_says_how_much_came_back_and_when(capsys: pytest.CaptureFixture[str]) -> None:
    from client.app import _answered
    from server.flower import letter

    data = encode(Task(kind="close", run="ab" * 16, digest="cd" * 32))
    with tempfile.TemporaryDirectory(prefix="cf", dir="/tmp") as name:
        socket = f"{name}/s"
        with Daemon(cast(Office, Echo()), Place(path=socket)):
            assert _answered(letter(data), {"socket": socket}) == data
    [(back, seconds)] = RELAY.findall(capsys.readouterr().out)
    assert int(back) == len(data)
    assert 0 <= float(seconds) < 60


@pytest.mark.parametrize("size", [4_000, 10_000_000])
def test_a_model_is_as_long_as_was_asked_for(size: int) -> None:
    """To within half a hidden unit in both layers: of w units each, w^2 + 76 w + 10 numbers of 4 bytes."""
    layout = setup.layout(prepare(experiment(2, size, 2)).model)
    width, inputs = layout.shapes[0]
    assert layout.size == width**2 + (inputs + 12) * width + 10
    assert abs(4 * layout.size - size) <= 2 * (2 * width + 77)


def test_every_figure_has_a_line() -> None:
    row = dict.fromkeys(("silos", "model_bytes", "round_s", "flower_s", "server_s", "relay_and_daemon_s"), 1)
    row |= dict.fromkeys(("of_which_daemon_s", "server_app_peak_mb", "daemon_peak_mb"), 1)
    row |= dict.fromkeys(("superlink_peak_mb", "supernode_peak_mb"), 1)
    leg = dict.fromkeys(("bytes", "relay_ms", "relay_mb_s", "copy_mb_s", "slower_than_copies", "daemon_mb_more"), 1)
    found = {"legs": [leg], "starts": {"relay": 1.0}, "rounds": [row], "torch": [row]}
    lines = list(table(found | {"resume": {"first_round_s": 2.0}}))
    assert len(lines) == 5
    assert [line.endswith(", torch in the app") for line in lines] == [False, False, False, True, False]
