"""What a silo shows of itself: its own log and ledgers added up, also after a restart, and nothing of rows or runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from client.office import Office
from privacy import account
from privacy.accountant import upper_epsilon
from privacy.chain import Entry
from privacy.events import Gaussian, Repeated
from privacy.terms import Neighbours
from simulations.cli import main
from simulations.commands.silo_metrics import endpoint, metrics_arguments, place
from simulations.metrics.names import PREFIX
from simulations.metrics.silo import SiloExporter
from strategies.messages import Code
from strategies.schema import ConfigError
from tests.simulations.silos import SILO, asked, experiment, hello, office, policy, said

RULES: Any = {"silo": {"epsilon": 50.0, "delta": 1e-2}, "unprotected": False, "simulated_noise": True}


def shown(folder: Path, exporter: SiloExporter | None = None) -> dict[tuple[str, str], float]:
    """Value by name and the one label's value."""
    registry, found = CollectorRegistry(auto_describe=False), {}
    registry.register(SiloExporter(folder, policy(**RULES)) if exporter is None else exporter)
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                found[sample.name.removeprefix(f"{PREFIX}silo_"), "".join(sample.labels.values())] = sample.value
    return found


@pytest.fixture
def silo(tmp_path: Path) -> Iterator[Office]:
    with closing(office(tmp_path / "own", policy(**RULES))) as found:
        yield found


def trained(silo: Office) -> list[bytes]:
    """Two rounds, one of them asked for twice, and three refusals."""
    run = experiment(privacy={"silo": SILO, "noise": "system"}, cohort={"sampling": "all"})
    other = experiment(privacy={"silo": SILO, "noise": "system"}, strategy="median")
    letters = [
        hello(run),
        asked(run),
        asked(run),
        asked(run, round_=2),
        asked(run, round_=1),
        hello(other, id_="f" * 32),
        b"junk",
    ]
    return [silo.handle(letter) for letter in letters]


def test_it_is_what_log_and_ledger_add_up_to_and_survives_a_restart(silo: Office, tmp_path: Path) -> None:
    exporter = SiloExporter(tmp_path / "own", policy(**RULES))
    assert shown(tmp_path / "own", exporter)["requests_total", "answered"] == 0
    replies = trained(silo)
    assert [said(replies[at]).code for at in (4, 5, 6)] == ["stale", "policy", "malformed"]
    found = shown(tmp_path / "own", exporter)
    refused = {outcome: value for (name, outcome), value in found.items() if name == "requests_total" and value}
    assert refused == {"answered": 4, "stale": 1, "policy": 1, "malformed": 1}
    assert found["rounds_total", ""] == found["training_seconds_count", ""] == 2  # The answer given twice is one.
    assert found["bytes_total", "out"] == sum(map(len, replies))
    spent = upper_epsilon(Repeated(Gaussian(2.0), 2), 1e-2)
    assert found["epsilon_spent", "silo"] == pytest.approx(spent)
    assert found["epsilon_remaining", "silo"] == pytest.approx(50.0 - spent)
    assert found["charges_total", "silo"] == 2
    assert found["charges_total", "example"] == found["charges_total", "server"] == 1  # Once a run: not protected.
    lines = [path.read_text().count("\n") for path in (tmp_path / "own" / "ledgers").glob("*.jsonl")]
    assert [found["ledger_writes_total", "ok"]] == lines
    assert found["ledger_fsync_seconds_count", ""] == 4  # Three units in round 1, one in round 2.
    assert shown(tmp_path / "own") == found  # One that begins now knows the same.


def test_another_policy_has_its_budgets_shown_and_is_no_request(silo: Office, tmp_path: Path) -> None:
    exporter = SiloExporter(tmp_path / "own", policy(**RULES))
    trained(silo)
    before = shown(tmp_path / "own", exporter)
    tighter = policy(**RULES | {"silo": {"epsilon": 20.0, "delta": 1e-2}})
    assert silo.govern(tighter, silo._open_run)
    silo.keep_policy("no file")
    exporter.govern(tighter)
    found = shown(tmp_path / "own", exporter)
    assert (before["epsilon_budget", "silo"], found["epsilon_budget", "silo"]) == (50.0, 20.0)
    assert found["epsilon_remaining", "silo"] == pytest.approx(20.0 - found["epsilon_spent", "silo"])
    requests = [{key: value for key, value in each.items() if key[0] == "requests_total"} for each in (before, found)]
    assert requests[0] == requests[1]


def test_charges_for_another_relation_have_no_price_beside_the_first() -> None:
    both: list[Neighbours] = ["add_remove", "zero_out"]
    entries = [Entry(at, "reserve", 1, "silo", relation, Gaussian(2.0), None) for at, relation in enumerate(both)]
    found = [account.total(part, unit="silo", delta=1e-2, budget=9.0) for part in (entries[:1], entries)]
    assert found[0].epsilon_upper == pytest.approx(upper_epsilon(Gaussian(2.0), 1e-2))
    assert found[1].epsilon_upper == float("inf")


def test_a_ledger_that_cannot_be_read_is_counted(silo: Office, tmp_path: Path) -> None:
    trained(silo)
    [ledger] = (tmp_path / "own" / "ledgers").glob("*.jsonl")
    ledger.with_name("other.jsonl").write_text('{"seq": 1}\n')
    found = shown(tmp_path / "own")
    assert (found["ledgers", "readable"], found["ledgers", "unreadable"]) == (1, 1)
    assert 0 < found["epsilon_spent", "silo"] < 50


def test_what_a_log_says_wrongly_is_no_label(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_text(
        "".join(json.dumps({"what": "refused", "code": f"/srv/{at}", "trained": "x"}) + "\n" for at in range(600))
        + json.dumps({"what": "refused", "code": ["ledger"]}) + "\n[1]\n{"
    )  # fmt: skip
    found = shown(tmp_path)
    assert len(found) < 100
    assert {outcome for name, outcome in found if name == "requests_total"} == {"answered", "other", *get_args(Code)}
    assert found["requests_total", "other"] == 601


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    metrics_arguments(parser)
    return parser.parse_args(argv)


def test_an_address_is_one() -> None:
    assert place(parsed()) is None
    assert place(parsed("--metrics", "[::1]:9465")) == ("::1", 9465)
    for found in ("9465", "127.0.0.1:", ":9465", "127.0.0.1:x", "127.0.0.1:70000"):
        with pytest.raises(ConfigError, match="--metrics: write HOST:PORT such as"):
            place(parsed("--metrics", found))
    with pytest.raises(ConfigError, match="--metrics-ca: is for --metrics"):
        place(parsed("--metrics-ca", "ca.pem"))


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--metrics", "0.0.0.0:0"], "--metrics: 0.0.0.0 can be reached by others; give --metrics-cert, --metrics-key"),
        (["--metrics", "host:0"], "--metrics: found 'host'; give an IP address"),
        (["--metrics", "0.0.0.0:0", "--metrics-key", "k"], "--metrics-cert: missing; TLS needs"),
    ],
)
def test_beyond_loopback_it_is_refused_before_anybody_asks(
    argv: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.yaml").write_text("unprotected: true\nstrategies: [fedavg]\ntasks: [logistic]\n")
    rest = ["--policy", str(tmp_path / "policy.yaml"), "--socket", str(tmp_path / "s"), "--folder", str(tmp_path / "o")]
    assert main(["silo", "--data", "digits", *rest, *argv]) == 2
    assert capsys.readouterr().err.startswith(f"confide: {line}")
    assert not (tmp_path / "s").exists()


def test_a_port_that_is_taken_is_one_line_and_the_silo_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with endpoint(parsed("--metrics", "127.0.0.1:0"), tmp_path, policy()):
        port = capsys.readouterr().err.rpartition(":")[2].partition("/")[0]
        with endpoint(parsed("--metrics", f"127.0.0.1:{port}"), tmp_path, policy()):
            pass
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"confide: --metrics: 127.0.0.1:{port}: cannot listen (Address already in use); choose another port; "
        "the silo goes on without it"
    )
