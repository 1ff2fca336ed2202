"""Simulated silos without Ray: what they answer follows from the disk alone, and is what one process computes."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

from privacy.chain import load as load_ledger
from privacy.events import Gaussian
from server.flower import GridPost
from simulations import run
from simulations.deploying import virtual
from simulations.deploying.serving import order, serve
from simulations.deploying.simulating import MISSING, simulate
from strategies.envelope import Reply, Task, decode_reply, encode
from strategies.schema import ConfigError
from tests.server.flower_grid import FakeGrid, identity
from tests.server.posts import FakePost, Time

ROOT = Path(__file__).resolve().parents[3]
SILOS = 4
SMALL = f"data.silos={SILOS}\ncohort.rate=1\nrounds=3\nengine.deadline_s=20"
BARE = f"{SMALL}\nprivacy.audit.canaries=0\nprivacy.silo=null"
SEEDED = f"{SMALL}\nprivacy.audit.canaries=8\nprivacy.noise=simulated"
PERSONAL = f"{BARE}\nstrategy=mr_mtl\ndata.test=0.2\nmetrics.privacy=research"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(virtual, "STEADY_S", 0.0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Simulation(GridPost):
    """Flower's simulation with `count` nodes; every message finds an actor that knows nothing."""

    def __init__(self, count: int) -> None:
        super().__init__(FakeGrid({}))
        self.post, self.count = FakePost(Time(), {node: self._actor(node) for node in range(count)}), count

    @property
    def simulated(self) -> bool:
        return True

    def _actor(self, node: int):  # type: ignore[no-untyped-def]
        def ask(data: bytes) -> bytes:
            virtual._prepared.cache_clear()
            assert self.folder is not None
            return virtual.answer(data, number=node, silos=self.count, folder=self.folder)

        return ask

    def nodes(self) -> Sequence[int]:
        return self.post.nodes()

    def send(self, letters, *, ttl_s):  # type: ignore[no-untyped-def]
        return self.post.send(letters, ttl_s=ttl_s)

    def fetch(self, letters):  # type: ignore[no-untyped-def]
        return self.post.fetch(letters)


def difference(one: Path, other: Path) -> float:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return max(float((first[name] - second[name]).abs().max()) for name in first.keys() | second.keys())


@pytest.mark.parametrize("overrides", [BARE, SEEDED, PERSONAL], ids=["bare", "noised", "personal"])
def test_simulated_silos_make_the_model_of_one_process(tmp_path: Path, overrides: str) -> None:
    serve(Simulation(SILOS), {"config": "quickstart", "set": overrides, "out": str(tmp_path / "run")})
    local = run("quickstart", out=tmp_path / "local", overrides=overrides.splitlines())
    assert difference(tmp_path / "run", local.folder) == 0
    kept = sorted(path.name for path in (tmp_path / "run" / virtual.SILOS).iterdir())
    assert kept == [str(number) for number in range(SILOS)]
    for number in range(SILOS):
        [ledger] = (tmp_path / "run" / virtual.SILOS / str(number) / "ledgers").glob("*.jsonl")
        spent = load_ledger(ledger).chain.spent("silo")
        assert spent == [Gaussian(2.0)] * 3 if overrides is SEEDED else len(spent) == 1  # Once: it protects nothing.


def test_a_run_goes_on_with_other_nodes(tmp_path: Path) -> None:
    settings = {"config": "quickstart", "set": PERSONAL, "out": str(tmp_path / "run")}
    first = Simulation(SILOS)
    answers = first.post.silos[0]

    def stops(data: bytes) -> bytes | None:
        if len(first.post.asked("train")) > SILOS:
            (tmp_path / "run" / "stop").touch()
        return answers(data)

    first.post.silos[0] = stops
    serve(first, settings)
    serve(Simulation(SILOS), {"resume": str(tmp_path / "run")})
    local = run("quickstart", out=tmp_path / "local", overrides=PERSONAL.splitlines())
    assert difference(tmp_path / "run", local.folder) == 0


@pytest.mark.parametrize(
    ("nodes", "overrides", "line"),
    [
        (
            2,
            BARE,
            r"num-supernodes: the simulation has 2 nodes, the experiment 4 silos; use --federation-config 'num-s",
        ),
        (0, BARE, r"num-supernodes: the simulation has 0 nodes"),
        (4, f"{BARE}\ndata={{path: rows.csv, target: y, silos: 4}}", "data.path: Flower's simulation deals data sets"),
    ],
)
def test_what_does_not_fit_a_simulation_is_one_line_and_no_folder(
    tmp_path: Path, nodes: int, overrides: str, line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        serve(Simulation(nodes), {"config": "quickstart", "set": overrides, "out": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


def test_a_silo_of_a_simulation_of_another_size_refuses(tmp_path: Path) -> None:
    from simulations.deploying.connecting import public, schema
    from simulations.preparing import prepare
    from strategies.codec import encode as plain
    from strategies.experiment import digest
    from strategies.yaml_text import yaml_of

    asked = order({"config": "quickstart", "set": BARE}).experiment
    hello = encode(
        Task(
            kind="hello",
            run="ab" * 16,
            digest=digest(asked),
            experiment=yaml_of(plain(public(asked))),
            schema=schema(prepare(asked).federation),
        )
    )
    reply: Reply = decode_reply(virtual.answer(hello, number=0, silos=5, folder=tmp_path))
    assert (reply.status, reply.code) == ("refused", "unsupported")
    assert "the simulation has 5 nodes, the experiment 4 silos" in reply.reason


def test_one_process_at_a_time_speaks_for_a_silo(tmp_path: Path) -> None:
    task, answers = encode(Task(kind="close", run="ab" * 16, digest="cd" * 32)), []
    other = Thread(target=lambda: answers.append(virtual.answer(task, number=0, silos=4, folder=tmp_path)))
    (tmp_path / "0").mkdir()
    with open(tmp_path / "0" / virtual.LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other.start()
        other.join(0.5)
        assert answers == []
    other.join()
    assert decode_reply(answers[0]).status == "ok"


def test_simulated_silos_are_told_their_folder_and_real_ones_are_not() -> None:
    from server.flower import letter, opened

    assert opened(letter(b"abc")) == b"abc"
    assert "place" not in letter(b"abc")
    with identity():
        grid = FakeGrid({1: lambda message: message})
        post = GridPost(grid)
        assert not post.simulated
        post.send({1: b"abc"}, ttl_s=1.0)
        post.folder = Path("/runs/a/silos")
        post.send({1: b"abc"}, ttl_s=1.0)
    assert [list(message.content) for message in grid.pushed] == [["envelope"], ["envelope", "place"]]
    assert grid.pushed[1].content.config_records["place"]["folder"] == "/runs/a/silos"


def test_flowers_own_grid_of_a_simulation_is_known() -> None:
    """By its class: where this fails, a new flwr has it elsewhere."""
    from flwr.superlink.grid import InMemoryGrid

    assert GridPost(object.__new__(InMemoryGrid)).simulated


@pytest.mark.parametrize(
    ("config", "ray", "expected"),
    [
        ({"partition-id": "0", "num-partitions": "4"}, True, True),
        ({"partition-id": "0", "num-partitions": "4"}, False, False),  # A real node, set up as Flower's examples are.
        ({"partition-id": "0", "socket": "/run/silo.sock"}, True, False),
        ({"partition-id": "0", "address": "h:1"}, True, False),
        ({}, True, False),
    ],
)
def test_only_a_node_in_an_actor_of_ray_is_simulated(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, str], ray: bool, expected: bool
) -> None:
    from client.app import simulated

    class Ray:
        @staticmethod
        def is_initialized() -> bool:
            return ray

    monkeypatch.setitem(sys.modules, "ray", Ray)  # type: ignore[arg-type]
    assert simulated(config) is expected
    monkeypatch.delitem(sys.modules, "ray")
    assert not simulated(config)


def test_a_letter_reaches_a_simulated_silo_through_the_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import client.app
    from server.flower import letter

    monkeypatch.setattr(client.app, "simulated", lambda config: True)
    config = {"partition-id": "3", "num-partitions": "4"}
    task = encode(Task(kind="close", run="ab" * 16, digest="cd" * 32))
    reply = decode_reply(client.app._answered(letter(task, tmp_path), config))
    assert (reply.status, reply.silo, reply.run) == ("ok", 3, "ab" * 16)
    lost = decode_reply(client.app._answered(letter(task), config))
    assert "no folder" in lost.reason


def test_without_ray_the_remedy_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'confide\[ray\]'"):
        simulate(order({"config": "quickstart"}).experiment, tmp_path / "run")
    assert "ray is not installed" in MISSING


def test_a_relay_of_a_real_silo_loads_nothing_of_simulations() -> None:
    code = (
        "import sys\nimport client.app as app\nfrom server.flower import letter\n"
        "app._answered(letter(b'x'), {'partition-id': '0', 'num-partitions': '2'})\n"
        "found = {'torch', 'simulations'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
