"""A run that serves its own metrics: the exporter's names over its own folder, and never at the cost of the run."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.loop import RoundResult
from simulations.cli import main
from simulations.metrics.serving import serve
from simulations.running import ActiveRun, run, train
from tests.simulations.test_metrics import PRIVATE, Exporter, experiment, shown

INLINE = {"every": 2, "inline": True, "port": 0}


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def names(text: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    families = text_string_to_metric_families(text)
    return {(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples}


def test_it_moves_with_the_run_shows_what_the_exporter_shows_and_ends_with_the_run(tmp_path: Path) -> None:
    with ActiveRun(experiment(privacy=PRIVATE, metrics=INLINE), tmp_path / "run") as active:
        port, rounds = active.inline.port, []
        assert port is not None

        def look(result: RoundResult) -> None:
            rounds.append([line for line in scraped(port).splitlines() if line.startswith("confide_round{")])

        train(active, look)
        active.finish()
        assert rounds == [[f'confide_round{{run="run"}} {at}.0'] for at in (1, 2, 3, 4)]
        last = scraped(port)
        assert names(last) == {(name, labels) for name, labels in shown(tmp_path)}
        assert "python_info" not in last
        with socket.socket() as other, pytest.raises(OSError, match="refused"):  # On this interface alone.
            other.connect((socket.gethostbyname("127.0.0.2"), port))
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        scraped(port)


def test_a_port_that_is_taken_is_one_line_and_the_model_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run(experiment(), out=tmp_path / "plain").result["model"]["sha256"]
    port, stop = serve(Exporter(tmp_path), address="127.0.0.1", port=0)
    try:
        taken = run(experiment(metrics=INLINE | {"port": port}), out=tmp_path / "taken").result["model"]["sha256"]
        overrides = ["--set", "metrics.inline=true", "--set", f"metrics.port={port}", "--set", "rounds=1", "--quiet"]
        assert main(["run", "quickstart", "--out", str(tmp_path / "said"), *overrides]) == 0
    finally:
        stop()
    assert taken == plain == run(experiment(metrics=INLINE), out=tmp_path / "on").result["model"]["sha256"]
    assert capsys.readouterr().err.splitlines() == [
        f"confide: metrics.inline: 127.0.0.1:{port}: cannot listen (Address already in use); choose another "
        "port; the run goes on without it"
    ]


def test_what_a_scrape_cannot_read_does_not_stop_the_run(tmp_path: Path) -> None:
    with ActiveRun(experiment(metrics=INLINE), tmp_path / "run") as active:
        port, seen = active.inline.port, []
        assert port is not None
        active.store.experiment.write_text("!!python/object:os.system {}")

        def look(result: RoundResult) -> None:
            seen.append("confide_exporter_unreadable_runs 1.0" in scraped(port))

        train(active, look)
    assert seen == [True] * 4


def test_the_command_says_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["--set", "metrics.inline=true", "--set", "metrics.port=0", "--set", "rounds=1"]
    assert main(["run", "quickstart", "--out", str(tmp_path / "run"), *overrides]) == 0
    assert "confide: metrics: http://127.0.0.1:" in capsys.readouterr().err
