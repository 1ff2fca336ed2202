"""What goes wrong around a run with silos apart: a full disk, a clock that jumps, a silo without memory, keys in sight.

Silos are offices in this process, reached by bytes; see `test_apart` for processes that are killed.
"""

from __future__ import annotations

import ast
import itertools
import json
import logging
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from client.engagement import Engagement
from client.host import SiloHost
from privacy.chain import LedgerError
from privacy.ledger import Ledger
from privacy.ledger import read as read_ledger
from server.exchange import Clock
from server.remote import Unreachable
from server.store import StoreError
from simulations.deploying.certificates import Folder, add_node, make
from simulations.deploying.connecting import SIGNING
from simulations.deploying.flower import Address, Node, Server, environment
from simulations.deploying.serving import serve
from strategies.codec import encode
from strategies.experiment import Experiment
from strategies.yaml_text import yaml_of
from tests.server.posts import FakePost, Time
from tests.simulations.silos import apart, experiment, office, policy

torch.set_num_threads(1)

ROOT, SILOS, ROUNDS = Path(__file__).resolve().parents[2], 4, 3
ROOMS = ("privacy", "strategies", "client", "server", "simulations")
SEEDED = {"silo": {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-2}, "noise": "simulated"}
GUARDED = policy(silo={"epsilon": 100.0, "delta": 1e-2}, unprotected=False, simulated_noise=True)


def run(**changes: Any) -> Experiment:
    return experiment(privacy=SEEDED, cohort={"sampling": "all"}, **changes)


def post(folder: Path, opened: ExitStack) -> FakePost:
    found = FakePost(Time())
    for number in range(SILOS):
        silo = opened.enter_context(closing(office(folder / f"silo{number}", GUARDED, number=number)))
        found.silos[number] = silo.handle
    return found


def settings(folder: Path, **changes: Any) -> dict[str, str]:
    return {"experiment": yaml_of(encode(run(**changes))), "out": str(folder / "run")}


def result(folder: Path) -> Any:
    return json.loads((folder / "run" / "result.json").read_text())


def paid(ledger: Path) -> list[int]:
    """Rounds that a ledger holds a charge of the whole silo for."""
    return [line["round"] for line in read_ledger(ledger) if line["kind"] == "reserve" and line["unit"] == "silo"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model of a run that nothing happens to."""
    with ExitStack() as opened, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(tmp_path_factory.mktemp("home")))
        found, _ = apart(run(), tmp_path_factory.mktemp("whole"), GUARDED, opened)
        return str(found["model"]["sha256"])


# The disk.


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Within, no file of this process grows beyond a size: the system itself refuses, in the middle of a line."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def cramped(patch: pytest.MonkeyPatch, at: Path, call: int) -> None:
    """The disk is full in the middle of the `call`-th reserve of the ledgers below a folder."""
    original, calls = Ledger.reserve, itertools.count(1)

    def reserve(self: Ledger, *given: Any, **facts: Any) -> Any:
        if at not in self.path.parents or next(calls) != call:
            return original(self, *given, **facts)
        with room_for(self.path.stat().st_size + 20):
            return original(self, *given, **facts)

    patch.setattr(Ledger, "reserve", reserve)


def test_a_server_without_room_for_its_reserve_asks_nobody_and_goes_on_later(tmp_path: Path, whole: str) -> None:
    with ExitStack() as opened:
        silos = post(tmp_path, opened)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(LedgerError, match="write failed"):
            cramped(patch, tmp_path / "run", 2)
            serve(silos, settings(tmp_path))
        assert {task.round for _, task in silos.asked("train")} == {1}
        serve(silos, {"resume": str(tmp_path / "run")})
    assert result(tmp_path)["model"]["sha256"] == whole
    rounds = paid(tmp_path / "run" / "ledger.jsonl")
    assert set(rounds) == {1, 2, 3}
    assert len(rounds) == result(tmp_path)["privacy"]["silo"]["charged_rounds"]


def test_a_server_without_room_for_the_attempt_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: str
) -> None:
    """The attempt is what keeps a round from being answered from memory: it must be on the disk first."""
    from server import book

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with ExitStack() as opened:
        silos = post(tmp_path, opened)
        monkeypatch.setattr(book, "atomic_write", full)
        with pytest.raises(OSError, match="No space left"):
            serve(silos, settings(tmp_path))
        assert silos.asked("train") == []
        monkeypatch.undo()
        serve(silos, {"resume": str(tmp_path / "run")})
    assert result(tmp_path)["model"]["sha256"] == whole


def test_a_silo_without_room_for_its_reserve_trains_nothing_and_is_one_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first round takes three lines; the fourth is of round 2. What was torn is a charge once it is there again."""
    begun: list[int] = []
    original = Engagement._trained

    def noted(self: Engagement, task: Any) -> Any:
        begun.extend([task.round] if self.number == 1 else [])
        return original(self, task)

    monkeypatch.setattr(Engagement, "_trained", noted)
    with ExitStack() as opened, pytest.MonkeyPatch.context() as patch:
        cramped(patch, tmp_path / "silo1", 4)
        serve(post(tmp_path, opened), settings(tmp_path))
    assert 2 not in begun
    found = result(tmp_path)["updates"]
    assert found["arrived"] + found["failed"] == ROUNDS * SILOS
    assert set(found["reasons"]) == {"refused: ledger"}
    assert result(tmp_path)["privacy"]["silo"]["charged_rounds"] == ROUNDS  # What a round costs does not ask who came.
    with closing(office(tmp_path / "silo1", GUARDED, number=1)):
        [ledger] = (tmp_path / "silo1" / "ledgers").glob("*.jsonl")
        assert len(paid(ledger)) >= len(begun)


# The clock.


def test_a_time_of_day_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: str) -> None:
    """A year on, two years back, and so on, at every look: deadlines are monotonic, and ledgers go by their order."""
    year, looks, now = 365.0 * 86400, itertools.count(1), time.time()
    monkeypatch.setattr(time, "time", lambda: now + next(looks) * (year if next(looks) % 4 else -year))
    with ExitStack() as opened:
        found, _ = apart(run(), tmp_path, GUARDED, opened)
    assert found["model"]["sha256"] == whole
    assert found["updates"]["arrived"] == ROUNDS * SILOS
    times = [line["time"] for line in read_ledger(tmp_path / "run" / "ledger.jsonl")]
    assert times != sorted(times)  # It did jump.
    assert Clock().now is time.monotonic


# A silo's machine.


def test_a_silo_that_runs_out_of_memory_is_one_failure_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silo 2 in round 2, as torch says it of a GPU; in round 3 it takes part again."""
    original = SiloHost.trained

    def trained(self: SiloHost, instruction: Any, silos: Any, **facts: Any) -> Any:
        if list(silos) == [2] and instruction.round == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 271828 bytes")
        return original(self, instruction, silos, **facts)

    monkeypatch.setattr(SiloHost, "trained", trained)
    with ExitStack() as opened:
        found, _ = apart(run(), tmp_path, GUARDED, opened)
    reasons = {"refused: training_failed": 1}
    assert found["updates"] == {"arrived": ROUNDS * SILOS - 1, "failed": 1, "reasons": reasons}
    log = (tmp_path / "silo2" / "audit.jsonl").read_text()
    assert "271828" in log  # For the data holder; the server is told the class alone.
    [ledger] = (tmp_path / "silo2" / "ledgers").glob("*.jsonl")
    assert paid(ledger) == [1, 2, 3]  # Something may have been computed: it is paid.


def test_nobody_there_is_a_code_and_a_line_for_whoever_started_the_run(tmp_path: Path) -> None:
    status, silos = tmp_path / "status.json", FakePost(Time())
    quick = settings(tmp_path, engine={"deadline_s": 0.3})
    with pytest.raises(Unreachable):
        serve(silos, {**quick, "status": str(status)})
    told = json.loads(status.read_text())
    assert told["code"] != 0
    assert told["lines"] == ["no silo takes part after 0.3 s: no node is connected"]


def test_two_servers_cannot_have_one_store(tmp_path: Path) -> None:
    """The second one starts while the first is at work, and asks nobody."""
    with ExitStack() as opened:
        silos, other = post(tmp_path, opened), FakePost(Time())
        first, seen = silos.silos[0], []

        def starts(data: bytes) -> bytes | None:
            if not seen:
                seen.append(True)
                with pytest.raises(StoreError, match="another process runs here"):
                    serve(other, {"resume": str(tmp_path / "run")})
            return first(data)

        silos.silos[0] = starts
        serve(silos, settings(tmp_path))
    assert seen == [True]
    assert other.sent == []
    assert result(tmp_path)["updates"]["arrived"] == ROUNDS * SILOS


def test_other_noise_clip_or_data_cannot_go_on_with_silos_apart(tmp_path: Path) -> None:
    with ExitStack() as opened:
        silos = post(tmp_path, opened)
        first = silos.silos[0]

        def breaks(data: bytes) -> bytes | None:
            if len(silos.asked("train")) > SILOS:
                raise KeyboardInterrupt
            return first(data)

        silos.silos[0] = breaks
        with pytest.raises(KeyboardInterrupt):
            serve(silos, settings(tmp_path))
        silos.silos[0], asked = first, len(silos.sent)
        file = tmp_path / "run" / "experiment.yaml"
        text = file.read_text()
        for old, new in (
            ("noise_multiplier: 2.0", "noise_multiplier: 1.0"),
            ("clip_norm: 0.5", "clip_norm: 0.7"),
            ("limit: 400", "limit: 300"),
            ("silos: 4", "silos: 3"),
        ):
            assert text.count(old) == 1, old
            file.write_text(text.replace(old, new))
            with pytest.raises((StoreError, LedgerError, ValueError)) as caught:
                serve(silos, {"resume": str(tmp_path / "run")})
            assert "\n" not in str(caught.value)
        assert len(silos.sent) == asked  # Nobody heard of it.


# Keys, and code from outside.


def test_no_key_is_in_an_argument_a_log_or_a_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    files = Folder(tmp_path / "certs")
    make(files, hosts=["127.0.0.1"], nodes=[])
    add_node(files, "one")
    secrets = [
        line
        for path in files.path.rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
        for line in path.read_text().splitlines()
        if line and not line.startswith("-")
    ]
    assert len(secrets) >= 4
    server = Server("x", tmp_path / "home", Address("127.0.0.1", 9092), 9093, files)
    monkeypatch.setenv(SIGNING, str(files.signing_key))
    caplog.set_level(logging.DEBUG)
    with ExitStack() as opened:
        serve(SilentPost.of(post(tmp_path, opened)), settings(tmp_path))
    said = capsys.readouterr()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    kept += b"".join(path.read_bytes() for path in tmp_path.glob("silo*/audit.jsonl"))
    shown = [*server._command(), *environment(tmp_path).values(), said.out, said.err, caplog.text]
    node = Node(tmp_path / "node", Address("127.0.0.1", 9092), 9094, "s", files.authority, files.nodes / "one")
    shown.append(repr(node))
    for secret in secrets:
        assert all(secret not in text for text in shown)
        assert secret.encode() not in kept


class SilentPost(FakePost):
    """A fake post that does not read what is under a signature."""

    @classmethod
    def of(cls, other: FakePost) -> SilentPost:
        return cls(other.time, other.silos)

    def note(self, node: int, data: bytes) -> None:
        super().note(node, data[4 + 32 + 64 :])


BANNED = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__"}
CHECKED = {"simulations/data/carriers.py"}  # Frames in a wheel whose sum is checked, in a process of their own.


def offences(tree: ast.AST) -> Iterator[str]:
    """What in a file could run what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [each.name for each in node.names] + [getattr(node, "module", None) or ""]
            yield from (name for name in names if name.split(".")[0] in BANNED)
        if not isinstance(node, ast.Call):
            continue
        name, keys = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
        unsafe = {
            "yaml.load": True,
            "torch.load": keys.get("weights_only") != "True",
            "np.load": keys.get("allow_pickle") != "False",
        }
        if name in CALLS or "pickle" in name or unsafe.get(name, False):
            yield name


def test_nothing_in_the_source_runs_what_it_reads() -> None:
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            if "proto" not in path.parts and (names := list(offences(ast.parse(path.read_text())))):
                found[str(path.relative_to(ROOT))] = names
    assert found.keys() <= CHECKED, found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "yaml.load(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "pd.read_pickle(x)",
    ],
)
def test_each_way_would_be_found(line: str) -> None:
    assert list(offences(ast.parse(line)))
