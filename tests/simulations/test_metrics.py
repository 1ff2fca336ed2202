"""The exporter: what it shows is what a run's folder adds up to, however often it, or the run, begins again."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from privacy.local import LOCAL
from simulations.cli import main
from simulations.metrics.exporter import Exporter
from simulations.metrics.names import METRICS, PREFIX, WITHHELD
from simulations.metrics.replay import LEDGER_UNITS
from simulations.metrics.serving import Certificates, serve
from simulations.running import run
from strategies.loading import parse
from strategies.schema import ConfigError

PRIVATE = {"silo": {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}}
KEY = tuple[str, frozenset[tuple[str, str]]]


def experiment(**changes: Any) -> Any:
    config = {
        "name": "watched",
        "rounds": 4,
        "task": "logistic",
        "data": {"name": "digits", "silos": 6, "limit": 300, "test": 0.2},
        "metrics": {"every": 2},
    }
    return parse(config | changes)


def shown(store: Path | Exporter) -> dict[KEY, float]:
    """Every sample, as Prometheus would read it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(store if isinstance(store, Exporter) else Exporter(store))
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def one(found: Mapping[KEY, float], name: str, **labels: str) -> float:
    (value,) = (v for (n, have), v in found.items() if n == PREFIX + name and have >= set(labels.items()))
    return value


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    run(experiment(), out=folder / "open")
    run(experiment(privacy=PRIVATE, budget={"epsilon": 100.0, "delta": 1e-3}), out=folder / "private")
    run(experiment(privacy=PRIVATE, metrics={"privacy": "research"}), out=folder / "research")
    return folder


def test_what_silos_are_charged_for_their_own_noise_is_a_unit_of_its_own(tmp_path: Path) -> None:
    local = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-3}
    run(experiment(privacy={"local": local}), out=tmp_path / "local")
    assert LEDGER_UNITS[LOCAL] == "local"
    charged = {key: value for key, value in shown(tmp_path).items() if key[0] == "confide_privacy_charges_total"}
    assert {dict(labels)["unit"]: value for (_, labels), value in charged.items()} == {"local": 4.0}


def test_what_is_shown_is_what_the_lines_of_a_run_add_up_to(store: Path) -> None:
    found = shown(store)
    for name in ("open", "private", "research"):
        lines = rows(store / name)
        assert one(found, "round", run=name) == one(found, "rounds_planned", run=name) == 4
        assert one(found, "rounds_total", run=name, outcome="used") == 4
        for way in ("up", "down"):
            assert one(found, "payload_bytes_total", run=name, direction=way) == sum(r[f"bytes_{way}"] for r in lines)
            assert one(found, "update_density_ratio", run=name, direction=way) == 1.0
        seconds = sum(row["seconds"]["train"] for row in lines)
        assert one(found, "round_duration_seconds_sum", run=name, phase="train") == pytest.approx(seconds)
        assert one(found, "round_duration_seconds_count", run=name, phase="train") == 4
        assert one(found, "model_accuracy_ratio", run=name) == lines[-1]["accuracy"]
        assert one(found, "privacy_charges_total", run=name, unit="silo") == 4
        assert one(found, "ledger_writes_total", run=name, result="ok") == 8  # A reserve and a commit each.
        assert one(found, "ledger_writes_total", run=name, result="failed") == 0
        assert one(found, "ledger_fsync_seconds_count", run=name) == 4  # A commit waits for nobody.
        assert one(found, "run_state", run=name, state="finished") == 1
        assert one(found, "silos", run=name, state="population") == 6
    spent = rows(store / "private")[-1]["epsilon"]
    assert one(found, "privacy_epsilon_spent", run="private", unit="silo") == spent
    assert one(found, "privacy_epsilon_remaining", run="private", unit="silo") == 100.0 - spent
    assert one(found, "privacy_epsilon_reserved", run="private", unit="silo") == spent
    assert one(found, "privacy_epsilon_reserved", run="open", unit="silo") == float("inf")
    assert one(found, "privacy_epsilon_spent", run="open", unit="silo") == float("inf")
    assert one(found, "noise_stddev", run="private", channel="delta") == 0.5
    assert one(found, "exporter_runs") == 3


def test_what_privacy_withholds_is_not_there_and_is_named(store: Path) -> None:
    found = shown(store)
    for name in ("train_loss", "clipped_ratio", "silo_score"):
        having = {dict(labels)["run"] for (sample, labels) in found if sample == PREFIX + name}
        assert having == ({"research"} if name == "clipped_ratio" else {"open", "research"})
    withheld = {dict(labels)["metric"] for (n, labels) in found if n == PREFIX + "metrics_withheld"}
    assert withheld == set(WITHHELD)
    timed = {dict(labels)["run"] for (n, labels) in found if n == PREFIX + "silo_train_duration_seconds_count"}
    assert timed == {"open", "research"}
    assert one(found, "silo_train_duration_seconds_count", run="open") == 24  # Six silos in four rounds.
    assert "trained" not in (store / "private" / "monitor.jsonl").read_text()
    assert {dict(labels)["run"]: dict(labels)["privacy"] for (n, labels) in found if n == PREFIX + "run_info"} == {
        "open": "none", "private": "strict", "research": "research"
    }  # fmt: skip
    assert {dict(labels)["run"] for (n, labels) in found if n == PREFIX + "metrics_withheld"} == {"private"}


def test_a_strict_run_shows_no_private_number_even_where_its_lines_hold_one(store: Path, tmp_path: Path) -> None:
    copied(store / "research", tmp_path / "live", 4)
    (tmp_path / "live" / "monitor.jsonl").write_bytes((store / "research" / "monitor.jsonl").read_bytes())
    private = {PREFIX + "train_loss", PREFIX + "clipped_ratio", PREFIX + "silo_train_duration_seconds_count"}
    assert {name for name, _ in shown(tmp_path)} >= private
    (tmp_path / "live" / "experiment.yaml").write_bytes((store / "private" / "experiment.yaml").read_bytes())
    names = {name for name, _ in shown(tmp_path)}
    assert not names & private


def test_every_family_is_declared_and_no_label_is_a_path(store: Path) -> None:
    families = {f"{PREFIX}{metric.name}" for metric in METRICS}
    families |= {PREFIX + "exporter_runs", PREFIX + "exporter_unreadable_runs"}
    for name, labels in shown(store):
        base = name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        assert base in families or name in families
        assert not any("/" in value or str(store) in value for _, value in labels)


def copied(source: Path, folder: Path, lines: int, *, tail: str = "") -> None:
    """The folder as it was after some rounds, while the run was live."""
    folder.mkdir(exist_ok=True)
    (folder / "experiment.yaml").write_bytes((source / "experiment.yaml").read_bytes())
    kept = (source / "rounds.jsonl").read_text().splitlines(keepends=True)[:lines]
    (folder / "rounds.jsonl").write_text("".join(kept) + tail)
    charged = (source / "ledger.jsonl").read_text().splitlines(keepends=True)[: 2 * lines]
    (folder / "ledger.jsonl").write_text("".join(charged))


def test_counters_grow_with_a_live_run_and_survive_a_restart_of_the_exporter(store: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    copied(store / "private", live, 1)
    exporter, before = Exporter(tmp_path), {}
    for lines in (1, 2, 4):
        with open(live / "rounds.jsonl", "a") as file:  # As the run does: appended.
            file.writelines(
                (store / "private" / "rounds.jsonl").read_text().splitlines(keepends=True)[len(rows(live)) : lines]
            )
        found = shown(exporter)
        assert found == shown(tmp_path)  # One that begins now knows the same.
        assert one(found, "round") == lines
        assert one(found, "run_state", state="open") == 1
        grown = {key: value for key, value in found.items() if key[0].endswith(("_total", "_bucket", "_count"))}
        assert all(value >= before.get(key, 0.0) for key, value in grown.items())
        before = grown


def test_a_torn_line_counts_when_it_is_whole_and_a_replaced_file_from_its_start(store: Path, tmp_path: Path) -> None:
    live, third = tmp_path / "live", (store / "open" / "rounds.jsonl").read_text().splitlines(keepends=True)[2]
    copied(store / "open", live, 2, tail=third[:-20])
    exporter = Exporter(tmp_path)
    assert one(shown(exporter), "rounds_total", outcome="used") == 2
    with open(live / "rounds.jsonl", "a") as file:
        file.write(third[-20:])
    assert one(shown(exporter), "rounds_total", outcome="used") == 3
    (live / "rounds.jsonl").rename(tmp_path / "old")  # What a resumed run does: it writes the lines that stand.
    copied(store / "open", live, 2)
    found = shown(exporter)
    assert one(found, "rounds_total", outcome="used") == one(found, "round") == 2
    assert one(found, "payload_bytes_total", direction="up") == sum(row["bytes_up"] for row in rows(live))


def test_a_run_has_less_than_500_series_whatever_its_silos_say(store: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    copied(store / "private", live, 0)
    row = rows(store / "private")[-1] | {"cohort": 1000, "arrived": 0, "failures": 1000}
    row |= {"clip_norms": {f"channel{at}": 1.0 for at in range(300)}}
    row |= {f"attack_success.{at}": 0.5 for at in range(300)}
    with open(live / "rounds.jsonl", "w") as file:
        for at in range(50):
            reasons = {f"reason {at} {each} of silo {each}": 1 for each in range(20)}
            file.write(json.dumps(row | {"round": at + 1, "failure_reasons": reasons}) + "\n")
    found = shown(tmp_path)
    assert len(found) < 500
    failures = [value for (name, _), value in found.items() if name == PREFIX + "silo_failures_total"]
    assert sum(failures) == 1000  # None is lost, the later ones are one.
    assert one(found, "rounds_total", outcome="refused") == 50


def test_a_folder_that_cannot_be_read_is_counted_and_the_newest_runs_are_shown(store: Path, tmp_path: Path) -> None:
    for name, lines in (("old", 1), ("sweep/seed-0", 2), ("broken", 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copied(store / "open", tmp_path / name, lines)
    (tmp_path / "broken" / "experiment.yaml").write_text("!!python/object:os.system {}")
    found = shown(tmp_path)
    assert (one(found, "exporter_runs"), one(found, "exporter_unreadable_runs")) == (2, 1)
    assert one(found, "round", run="sweep:seed-0") == 2
    assert one(shown(Exporter(tmp_path / "sweep", max_runs=1)), "round", run="seed-0") == 2
    with open(tmp_path / "old" / "rounds.jsonl", "a") as file:
        file.write("\n")  # Touched last, and one is shown: it is a blank line, and no round.
    os.utime(tmp_path / "old" / "rounds.jsonl", (2e9, 2e9))
    assert one(shown(Exporter(tmp_path, max_runs=1)), "round") == 1


@pytest.fixture
def served(store: Path) -> Iterator[int]:
    port, stop = serve(Exporter(store), address="127.0.0.1", port=0)
    yield port
    stop()


def test_it_answers_over_http_and_a_taken_port_is_one_line(served: int, store: Path) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{served}/metrics") as answer:
        text = answer.read().decode()
    assert 'confide_round{run="open"} 4.0' in text
    assert "python_info" not in text  # Nothing of the process.
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:\d+: cannot listen \(Address already in use\); choose"):
        serve(Exporter(store), address="127.0.0.1", port=served)


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::"])
def test_beyond_loopback_certificates_are_asked_for(address: str, store: Path) -> None:
    with pytest.raises(ConfigError, match=r"--addr: .* can be reached by others; give --tls-cert"):
        serve(Exporter(store), address=address, port=0)


def certificates(folder: Path) -> Certificates:
    """An authority, and a certificate of it for this machine that serves as the server's and a client's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now, keys = datetime.datetime.now(datetime.UTC), [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "localhost")]
    found = []
    for name, key, ca in ((names[0], keys[0], True), (names[1], keys[1], False)):
        built = x509.CertificateBuilder().subject_name(name).issuer_name(names[0]).public_key(key.public_key())
        built = built.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        built = built.not_valid_after(now + datetime.timedelta(hours=1))
        built = built.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key())
        built = built.add_extension(issuer, critical=False)
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        built = built.add_extension(alternative, critical=False)
        found.append(built.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths = [folder / name for name in ("ca.pem", "cert.pem", "key.pem")]
    secret = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, data in zip(paths, (*found, secret)):
        path.write_bytes(data)
    return Certificates(paths[1], paths[2], paths[0])


def test_with_certificates_only_clients_of_the_authority_are_let_in(store: Path, tmp_path: Path) -> None:
    files = certificates(tmp_path)
    port, stop = serve(Exporter(store), address="127.0.0.1", port=0, certificates=files)
    try:
        known = ssl.create_default_context(cafile=str(files.clients))
        stranger = ssl.create_default_context(cafile=str(files.clients))
        known.load_cert_chain(files.certificate, files.key)
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", context=known) as answer:
            assert b"confide_round" in answer.read()
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", context=stranger).read()
    finally:
        stop()


def test_a_key_that_others_can_read_is_refused(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = certificates(tmp_path)
    files.key.chmod(0o640)
    pem = ["--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--client-ca", str(files.clients)]
    assert main(["metrics", "serve", "--store", str(store), "--port", "0", *pem]) == 2
    assert f"{files.key}: can be read by others (mode 640); use: chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--store", "no-such-folder"], "--store: no-such-folder is no folder; give one that holds runs, such as runs"),
        (["--port", "70000"], "--port: must be 0 to 65535, found 70000"),
        (["--max-runs", "0"], "--max-runs: must be 1 or more, found 0"),
        (["--addr", "nowhere"], "--addr: found 'nowhere'; give an IP address, such as 127.0.0.1"),
        (["--tls-cert", "a.pem"], "--tls-key: missing; TLS needs --tls-cert, --tls-key, --client-ca"),
        (["--tls-cert", "a", "--tls-key", "b", "--client-ca", "c"], "--tls-cert: a: no such file"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], line: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [] if "--store" in arguments else ["--store", str(store)]
    assert main(["metrics", "serve", *first, *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"confide: {line}"
