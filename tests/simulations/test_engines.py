"""The engines give the same bits, whoever computes them; and a pool of workers fails clearly and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from privacy.mechanism import ExactSum, GaussianSum
from server.link import Request
from simulations.data.federation import Federation, build
from simulations.engines import setup
from simulations.engines.exchange import SumSlots, read_instruction, write_instruction
from simulations.engines.local import LocalLink
from simulations.engines.pool import PoolLink, WorkerError
from simulations.engines.wire import mechanisms_from_json, mechanisms_to_json
from simulations.running import ActiveRun, Outcome, train
from strategies.base import Instruction
from strategies.experiment import Engine, Experiment
from strategies.loading import load, parse
from strategies.plugins import load_plugins
from strategies.registry import STRATEGIES
from strategies.schema import ConfigError

torch.set_num_threads(1)

SILOS = 9
SILO = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-3}

PLUGIN = '''
"""Strategies for tests of the engines: one with personal state, one that fails, one that ends its process."""

import os
import signal
import time
from dataclasses import dataclass

from strategies.base import Strategy, Update
from strategies.registry import strategy


@strategy("pool_keepsake")
@dataclass(frozen=True)
class Keepsake(Strategy):
    """Each silo trains a model of its own, pulled to the mean."""

    def personal(self, size):
        return {"own": size}

    def local(self, silo, instruction):
        mean = instruction["model"]
        after = silo.fit(silo.state.get("own", mean), correct=lambda w, g: g + 0.5 * (w - mean))
        silo.state["own"] = after
        return Update({"delta": after - mean})

    def aggregate(self, state, release, rng):
        return {"model": state["model"] + release.mean("delta")}


@strategy("pool_median")
@dataclass(frozen=True)
class Median(Strategy):
    """Sees single updates, and moves by their median."""

    reveals = True

    def local(self, silo, instruction):
        return Update({"delta": silo.fit(instruction["model"]) - instruction["model"]})

    def aggregate(self, state, release, rng):
        seen = release.reveal()
        if not seen.silos:
            return state
        return {"model": state["model"] + seen.channels["delta"].median(0).values}


@strategy("pool_raises")
@dataclass(frozen=True)
class Raises(Strategy):
    """Fails in the second round."""

    def local(self, silo, instruction):
        if instruction.round == 2:
            raise ArithmeticError("the second round is cursed")
        return Update({"delta": silo.fit(instruction["model"]) - instruction["model"]})

    def aggregate(self, state, release, rng):
        return {"model": state["model"] + release.mean("delta")}


@strategy("pool_dies")
@dataclass(frozen=True)
class Dies(Raises):
    """Its process is killed in the second round."""

    def local(self, silo, instruction):
        if instruction.round == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().local(silo, instruction)


@strategy("pool_sleeps")
@dataclass(frozen=True)
class Sleeps(Raises):
    """Its second round never ends by itself, the first time that it is asked."""

    def local(self, silo, instruction):
        mark = os.environ.get("SLEEPS_UNTIL")
        while instruction.round == 2 and mark and not os.path.exists(mark):
            time.sleep(0.05)
        return Update({"delta": silo.fit(instruction["model"]) - instruction["model"]})
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows for silos of uneven sizes, and with the plugin, which is loaded."""
    folder = tmp_path_factory.mktemp("engines")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4))
    np.savez(folder / "data.npz", x=x, y=rng.integers(0, 3, size=100))
    (folder / "engine_plugin.py").write_text(PLUGIN)
    return folder


@pytest.fixture
def plugins(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.syspath_prepend(str(place))
    load_plugins(["engine_plugin"])
    return ["engine_plugin"]


def experiment(place: Path, /, **changes: Any) -> Experiment:
    base: dict[str, Any] = {
        "rounds": 4,
        "task": "logistic",
        "data": {"path": str(place / "data.npz"), "silos": SILOS},
        "cohort": {"sampling": "poisson", "rate": 0.7},
        "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.3},
        "privacy": {"silo": SILO},
        "engine": {"chunk": 2},
    }
    return parse(base | changes)


def on(config: Experiment, **engine: Any) -> Experiment:
    return replace(config, engine=replace(config.engine, **engine))


def go(config: Experiment, folder: Path, *, plugins: list[str] | None = None) -> Outcome:
    with ActiveRun(config, folder, plugins=plugins or []) as active:
        train(active)
        return active.finish()


def model(folder: Path) -> Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(folder / "model.safetensors").items())])


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


# The numbers


def reference(
    federation: Federation, net: nn.Module, *, rounds: int, steps: int, rate: float, by_examples: bool
) -> Tensor:
    """Federated averaging in plain torch (McMahan et al. 2017, algorithm 1), every silo in every round."""
    model = parameters_to_vector(net.parameters()).detach().clone()
    for _ in range(rounds):
        total, weights = torch.zeros(len(model), dtype=torch.float64), 0.0
        for silo in map(federation.train.silo, range(len(federation.train))):
            vector_to_parameters(model.clone(), net.parameters())
            optimizer = torch.optim.SGD(net.parameters(), lr=rate)
            for _ in range(steps):
                optimizer.zero_grad()
                functional.cross_entropy(net(silo.features), silo.targets, reduction="none").mean().backward()
                optimizer.step()
            weight = float(len(silo)) if by_examples else 1.0
            delta = parameters_to_vector(net.parameters()).detach() - model
            total, weights = total + weight * delta.double(), weights + weight
        model = model + (total / weights).float()
    return model


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("task", ["logistic", {"name": "mlp", "hidden": [5]}])
def test_fedavg_is_a_plain_loop_bit_for_bit(place: Path, tmp_path: Path, task: Any, weighting: str) -> None:
    config = experiment(
        place,
        rounds=5,
        task=task,
        data={"path": str(place / "data.npz"), "silos": SILOS, "public_test": 0.0},
        cohort={"sampling": "all"},
        train={"steps": 3, "learning_rate": 0.3},
        strategy={"name": "fedavg", "weighting": weighting},
        privacy={},
        engine={"stacked": "off", "chunk": SILOS},
    )
    federation = build(config.data, seed=config.seed)
    assert len(set(federation.train.sizes.tolist())) > 1
    net = setup.model(config, federation).module
    plain = reference(federation, net, rounds=5, steps=3, rate=0.3, by_examples=weighting == "examples")
    with ActiveRun(config, tmp_path / "run") as active:
        *_, last = active
    assert last.round == 5
    assert torch.equal(last.state["model"], plain)


def compare(config: Experiment, tmp_path: Path, *, relative: float) -> None:
    """Stacked or one by one: the same model but for rounding, the same rows and exactly the same epsilon."""
    stacked = go(on(config, stacked="auto"), tmp_path / "auto").result
    single = go(on(config, stacked="off", chunk=4), tmp_path / "off").result
    difference = torch.linalg.vector_norm(model(tmp_path / "auto") - model(tmp_path / "off"))
    assert 0 < difference <= relative * torch.linalg.vector_norm(model(tmp_path / "off"))  # 0: both ran the same code.
    assert stacked["privacy"]["silo"] == single["privacy"]["silo"]
    exact = ("round", "cohort", "arrived", "failures", "bytes_up", "bytes_down", "epsilon")
    for left, right in zip(rows(tmp_path / "auto"), rows(tmp_path / "off"), strict=True):
        assert {name: left[name] for name in exact} == {name: right[name] for name in exact}


def test_stacking_silos_changes_only_rounding(tmp_path: Path) -> None:
    compare(load("simulations/configs/quickstart.yaml", ["rounds=4"]), tmp_path, relative=1e-5)


@pytest.mark.integration
def test_stacking_silos_changes_only_rounding_in_a_whole_run(tmp_path: Path) -> None:
    compare(load("simulations/configs/quickstart.yaml"), tmp_path, relative=1e-5)


def same_with_workers(place: Path, tmp_path: Path, config: Experiment, workers: int, plugins: list[str]) -> None:
    local = go(config, tmp_path / "local", plugins=plugins).result
    pool = go(on(config, kind="pool", workers=workers), tmp_path / "pool", plugins=plugins).result
    for name in ("model", "metrics", "privacy", "communication", "rounds"):
        assert pool[name] == local[name], name
    assert rows(tmp_path / "pool") == rows(tmp_path / "local")


def test_two_workers_give_the_bits_of_this_process(place: Path, tmp_path: Path, plugins: list[str]) -> None:
    config = experiment(
        place,
        strategy="pool_keepsake",
        data={"path": str(place / "data.npz"), "silos": SILOS, "test": 0.3},
        metrics={"privacy": "research"},
        privacy={"silo": SILO, "audit": {"canaries": 5}},
    )
    same_with_workers(place, tmp_path, config, 2, plugins)


def test_single_updates_are_seen_alike_from_two_workers_and_have_no_silo_level_price(
    place: Path, tmp_path: Path, plugins: list[str]
) -> None:
    config = experiment(place, strategy="pool_median")
    same_with_workers(place, tmp_path, config, 2, plugins)
    claimed = go(config, tmp_path / "again", plugins=plugins).result["privacy"]["silo"]
    assert claimed["epsilon_upper"] is None  # Infinite, which JSON cannot say.
    with pytest.raises(ConfigError, match="pool_median sees single updates"):
        go(experiment(place, strategy="pool_median", privacy={"silo": SILO, "audit": {"canaries": 5}}), tmp_path / "no")


@pytest.mark.integration
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("stacked", ["auto", "off"])
@pytest.mark.parametrize("strategy", ["fedavg", "pool_keepsake"])
def test_any_number_of_workers_gives_the_bits_of_this_process(
    place: Path, tmp_path: Path, plugins: list[str], workers: int, stacked: str, strategy: str
) -> None:
    config = experiment(place, strategy=strategy, engine={"chunk": 2, "stacked": stacked})
    same_with_workers(place, tmp_path, config, workers, plugins)


def test_a_run_can_change_its_engine_while_it_is_stopped(place: Path, tmp_path: Path, plugins: list[str]) -> None:
    config = experiment(place, strategy="pool_keepsake")
    whole = go(config, tmp_path / "whole").result
    with ActiveRun(config, tmp_path / "run") as first:
        train(first, stop=lambda: (tmp_path / "run" / "rounds.jsonl").exists())
    with ActiveRun(on(config, kind="pool", workers=1), tmp_path / "run", resume=True, plugins=plugins) as second:
        train(second)
        assert second.finish().result["model"] == whole["model"]


def test_what_rounding_left_outlives_a_stop_and_another_engine(place: Path, tmp_path: Path) -> None:
    config = experiment(place, wire={"values": "float16", "feedback": True})
    whole = go(config, tmp_path / "whole").result
    with ActiveRun(config, tmp_path / "run") as first:
        train(first, stop=lambda: (tmp_path / "run" / "rounds.jsonl").exists())
    with ActiveRun(on(config, kind="pool", workers=1), tmp_path / "run", resume=True) as second:
        train(second)
        assert second.finish().result["model"] == whole["model"]
    for number, wire in enumerate(({"values": "float16"}, {})):
        other = go(experiment(place, wire=wire), tmp_path / str(number)).result
        assert other["model"]["sha256"] != whole["model"]["sha256"]
        assert other["privacy"]["silo"] == whole["privacy"]["silo"]  # Clipped after it, so it costs nothing.


def test_chunks_are_of_the_experiment_and_never_of_the_workers(place: Path) -> None:
    config = experiment(place)
    built = setup.model(config, build(config.data, seed=0))
    chunks = {
        setup.chunk(replace(config, engine=Engine(kind="pool", workers=workers)), built) for workers in (1, 2, 3, 64)
    }
    assert chunks == {setup.chunk(replace(config, engine=Engine()), built)}
    assert setup.chunk(config, built) == 2


# Failures of workers


def workers_of(link: Any) -> list[int]:
    assert isinstance(link, PoolLink)
    return [worker.process.pid for worker in link._workers]


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("pool_raises", r"failed:\nTraceback .*\n(.*\n)*ArithmeticError: the second round is cursed"),
        ("pool_dies", r"worker \d+ died \(killed by signal 9\)"),
    ],
)
def test_a_worker_that_fails_ends_the_run_and_says_why(
    place: Path, tmp_path: Path, plugins: list[str], strategy: str, said: str
) -> None:
    config = on(experiment(place, strategy=strategy), kind="pool", workers=1)
    with pytest.raises(WorkerError, match=said), ActiveRun(config, tmp_path / "run", plugins=plugins) as active:
        pids, shared = workers_of(active.link), Path(active.link._shared.name)  # type: ignore[attr-defined]
        assert len(pids) == 1
        train(active)
    assert not any(alive(pid) for pid in pids)
    assert not shared.exists()
    assert [row["round"] for row in rows(tmp_path / "run")] == [1]


def test_a_worker_killed_between_rounds_is_missed_at_the_next(place: Path, tmp_path: Path) -> None:
    config = on(experiment(place), kind="pool", workers=2)
    with ActiveRun(config, tmp_path / "run") as active:
        pids = workers_of(active.link)
        steps = iter(active)
        assert next(steps).round == 1
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: not alive(pids[0]))
        with pytest.raises(WorkerError, match=rf"worker {pids[0]} died \(killed by signal 9\)"):
            list(steps)
    assert not any(alive(pid) for pid in pids)


def test_a_worker_that_cannot_start_brings_its_traceback(place: Path, tmp_path: Path) -> None:
    config = on(experiment(place), kind="pool", workers=1)
    with pytest.raises(WorkerError, match="PluginError: --plugin no_such_module"):
        ActiveRun(config, tmp_path / "run", plugins=["no_such_module"])


PARENT = """
import os, sys
from pathlib import Path
from simulations.running import ActiveRun
from strategies.loading import load
from strategies.plugins import load_plugins

load_plugins(["engine_plugin"])
with ActiveRun(load(sys.argv[1]), Path(sys.argv[2]), plugins=["engine_plugin"]) as active:
    print(*(worker.process.pid for worker in active.link._workers), active.link._shared.name, flush=True)
    for result in active:
        print(result.round, flush=True)
"""


@pytest.mark.integration
@pytest.mark.parametrize("frozen", [False, True])
def test_workers_go_when_their_parent_is_killed_and_hold_nothing(
    place: Path, tmp_path: Path, plugins: list[str], frozen: bool
) -> None:
    """Killed while workers are in the middle of a chunk; the run can go on at once, even while they hang on."""
    config = experiment(place, strategy="pool_sleeps", engine={"chunk": 2, "kind": "pool", "workers": 2})
    whole = go(on(config, kind="local", workers=None), tmp_path / "whole").result
    (tmp_path / "run.yaml").write_text(
        json.dumps(
            {
                "rounds": 4,
                "task": "logistic",
                "strategy": "pool_sleeps",
                "data": {"path": str(place / "data.npz"), "silos": SILOS},
                "cohort": {"sampling": "poisson", "rate": 0.7},
                "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.3},
                "privacy": {"silo": SILO},
                "engine": {"chunk": 2, "kind": "pool", "workers": 2},
            }
        )
    )
    paths = os.pathsep.join([os.getcwd(), str(place)])
    environment = os.environ | {"PYTHONPATH": paths, "SLEEPS_UNTIL": str(tmp_path / "wake")}
    command = [sys.executable, "-c", PARENT, str(tmp_path / "run.yaml"), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        *pids, shared = parent.stdout.readline().split()
        assert parent.stdout.readline() == "1\n"
        ledger = tmp_path / "run" / "ledger.jsonl"
        wait_until(lambda: ledger.read_bytes().count(b'"kind": "reserve"') == 2)  # Asked, and the workers sleep.
        if frozen:
            for pid in pids:
                os.kill(int(pid), signal.SIGSTOP)
        parent.kill()
        parent.wait()
    try:
        with ActiveRun(config, tmp_path / "run", resume=True, plugins=plugins) as active:  # Nobody holds its lock.
            train(active)
            resumed = active.finish().result
    finally:
        for pid in pids if frozen else []:
            os.kill(int(pid), signal.SIGCONT)
    wait_until(lambda: not any(alive(int(pid)) for pid in pids))
    wait_until(lambda: not Path(shared).exists())
    assert resumed["model"] == whole["model"]
    assert resumed["privacy"]["silo"]["charged_rounds"] == 5


# What goes between processes


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 4), max_size=3), st.sampled_from([torch.float32, torch.float64, torch.int64])
        ),
        max_size=4,
    ),
    st.integers(1, 10**9),
)
def test_an_instruction_comes_out_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[list[int], torch.dtype]], round_: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "instruction"  # Used over and over, as in a run: it grows, never shrinks.
    rng = torch.Generator().manual_seed(round_)
    vectors = {
        f"v{number}": (100 * torch.randn(shape, generator=rng)).to(dtype)
        for number, (shape, dtype) in enumerate(tensors)
    }
    header = json.loads(json.dumps(write_instruction(path, Instruction(round_, vectors))))
    back = read_instruction(path, header)
    assert (back.round, list(back)) == (round_, list(vectors))
    for name, vector in vectors.items():
        assert back[name].dtype == vector.dtype
        assert torch.equal(back[name], vector)


def test_what_a_silo_does_to_an_instruction_stays_with_it(tmp_path: Path) -> None:
    header = write_instruction(tmp_path / "i", Instruction(1, {"model": torch.ones(3)}))
    read_instruction(tmp_path / "i", header)["model"].zero_()
    assert torch.equal(read_instruction(tmp_path / "i", header)["model"], torch.ones(3))


def test_sums_keep_their_slot_and_their_last_bit(tmp_path: Path) -> None:
    sizes = {"delta": 3, "control": 2}
    ours, theirs = (SumSlots(tmp_path / "sums", slots=3, sizes=sizes) for _ in range(2))
    rng = torch.Generator().manual_seed(0)
    put: list[Mapping[str, Tensor]] = [
        {name: torch.randn(size, generator=rng, dtype=torch.float64) for name, size in sizes.items()} for _ in range(3)
    ]
    for slot in (2, 0, 1):
        theirs.put(slot, put[slot])
    taken = [ours.take(slot) for slot in range(3)]
    theirs.put(0, put[1])  # A slot that is written again does not change what was taken.
    for was, got in zip(put, taken, strict=True):
        assert all(torch.equal(was[name], got[name]) for name in sizes)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_mechanisms_survive_json_to_the_last_bit(clip: float, noise: float) -> None:
    mechanisms = {"delta": GaussianSum(clip, noise), "control": ExactSum()}
    assert mechanisms_from_json(json.loads(json.dumps(mechanisms_to_json(mechanisms)))) == mechanisms


def test_a_mechanism_without_json_form_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd:
        private = True

    with pytest.raises(TypeError, match="no JSON form"):
        mechanisms_to_json({"delta": Odd()})  # type: ignore[dict-item]


def test_the_local_engine_cuts_the_cohort_into_chunks(place: Path, tmp_path: Path) -> None:
    config = experiment(place)
    federation = build(config.data, seed=0)
    link = LocalLink(setup.host(config, federation, personal=tmp_path), chunk=2)
    instruction = config.strategy.instruct({"model": setup.model(config, federation).start}, 1)
    mechanisms = {"delta": GaussianSum(0.5, 2.0)}
    partials = list(link.ask([Request(instruction, [0, 3, 4, 7, 8])], mechanisms, record=False))
    assert [(partial.chunk, partial.arrived) for partial in partials] == [(0, 2), (1, 2), (2, 1)]
    assert list(link.ask([Request(instruction, [])], mechanisms, record=False)) == []


def teardown_module() -> None:
    """The strategies of the plugin are of these tests alone."""
    for name in [name for name in STRATEGIES if name.startswith("pool_")]:
        del STRATEGIES[name]
    sys.modules.pop("engine_plugin", None)
