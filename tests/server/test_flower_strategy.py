"""Our strategies in Flower's own loop: the same models, the same price, and a round that no reply can spoil."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import Result
from torch import Tensor, nn

from client.examples import Examples, Shards
from client.flower_client import reply
from client.host import SiloHost
from privacy import streams
from privacy.accountant import upper_epsilon
from privacy.chain import load
from privacy.events import Capped, FixedSize, Gaussian, Poisson, Repeated, Sampled
from privacy.ledger import LedgerError
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from privacy.noise import SimulatedNoise
from privacy.release import Collector
from server.flower_strategy import FlowerStrategy
from server.loop import Diverged
from server.sampler import PoissonCohort
from strategies.base import Strategy
from strategies.ditto import Ditto
from strategies.experiment import Train
from strategies.fedavg import FedAvg
from strategies.flasc import FLASC, Tier
from strategies.flower_records import TERMS, UPDATE, arrays_of, trainable, vector_of
from strategies.flower_silo import misfit
from strategies.layout import Layout
from strategies.pruning import Pruning
from strategies.registry import STRATEGIES
from strategies.robust import Krum
from strategies.schema import ConfigError
from strategies.tasks import Shape, initial
from strategies.tasks.dense import MLP
from tests.server.flower_grid import FakeGrid, Reply, identity

torch.set_num_threads(1)

SILOS, STEPS, RATE = 4, 3, 0.2
SHAPE, TASK = Shape((5,), 3), MLP((6,), "tanh")
NODES = [1009 - 7 * silo for silo in range(SILOS)]  # Falling: places go by the order of ids, not of arrival.


MADE: list[FlowerStrategy] = []


@pytest.fixture(autouse=True)
def run() -> Iterator[None]:
    with identity():
        yield
    while MADE:
        MADE.pop().close()


def rows() -> Shards:
    rng = torch.Generator().manual_seed(4)
    sizes = [7, 3, 12, 8]
    examples = Examples(torch.randn(sum(sizes), 5, generator=rng), torch.randint(3, (sum(sizes),), generator=rng))
    return Shards(examples, torch.tensor([0, *sizes]).cumsum(0))


def module() -> nn.Module:
    return initial(TASK, SHAPE, seed=1)[0]


def fit(silo: int) -> Callable[[nn.Module], None]:
    """A user's own loop: full batches, so that the order of rows does not matter."""
    held = rows().silo(silo)

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(held.features), held.targets).backward()
            optimizer.step()

    return train


def client(silo: int, *, count: int | None = None) -> ClientApp:
    """What a user writes; it answers Flower's own strategies, too."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if TERMS in message.content.config_records:
            return reply(message, module(), fit(silo), rows=count)
        model = module()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        fit(silo)(model)
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": trainable(model), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        norm = float(vector_of(message.content.array_records["arrays"]).norm())
        metrics = MetricRecord({"num-examples": silo + 1, "norm": norm, "silo": float(silo)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def silos(**others: Reply) -> dict[int, ClientApp | Reply]:
    """Node to ClientApp, or another behaviour by `silo_K`; silo k sits on place k."""
    nodes = sorted(NODES)
    return {nodes[silo]: others.get(f"silo_{silo}", client(silo)) for silo in range(SILOS)}


def strategy(tmp_path: Path, inner: Strategy = FedAvg(), **settings: Any) -> FlowerStrategy:  # noqa: B008  # Frozen.
    MADE.append(FlowerStrategy(inner, **{"silos": SILOS, "ledger": tmp_path / "ledger.jsonl", **settings}))
    return MADE[-1]


def play(chosen: FlowerStrategy | FlowerFedAvg, grid: FakeGrid, rounds: int = 3) -> Result:
    result = chosen.start(grid, trainable(module()), num_rounds=rounds)
    if isinstance(chosen, FlowerStrategy):
        chosen.close()
    return result


def charged(tmp_path: Path) -> list[Any]:
    return load(tmp_path / "ledger.jsonl").chain.spent("silo")


def engine(inner: Strategy, mechanism: Mechanism, *, rounds: int, rate: float = 1.0) -> Tensor:
    """The model after some rounds of the local engine, without Flower."""
    built, model = initial(TASK, SHAPE, seed=1)
    train = Train(steps=STEPS, batch_size=None, learning_rate=RATE)
    host = SiloHost(
        strategy=inner,
        task=TASK,
        module=built,
        shape=SHAPE,
        train=train,
        shards=rows(),
        held_out=None,
        seed=0,
        stacked=False,
        personal=None,
    )
    layout = Layout.of(module())
    state = inner.init(model, streams.generator(0, "init"), layout)
    sampler, mechanisms = PoissonCohort(rate, SILOS), {"delta": mechanism}
    for round_ in range(1, rounds + 1):
        cohort = sampler.draw(0, round_)
        collector = Collector(
            mechanisms,
            {"delta": layout.size},
            expected=sampler.expected,
            population=SILOS,
            reveals=inner.reveals,
            rate=rate,
        )
        collector.add(host.contribute(inner.instruct(state, round_), cohort, mechanisms, chunk=0))
        release = collector.release(SimulatedNoise(0), stream=("noise", round_))
        state = inner.aggregate(state, release, streams.generator(0, "aggregate", round_))
    return inner.predictor(state)


def test_fedavg_with_everybody_is_flowers_own_with_equal_weights(tmp_path: Path) -> None:
    ours = play(strategy(tmp_path), FakeGrid(silos()))
    theirs = play(FlowerFedAvg(fraction_evaluate=0.0), FakeGrid(silos()))
    assert list(ours.arrays) == list(theirs.arrays) == list(trainable(module()))
    distance = (vector_of(ours.arrays) - vector_of(theirs.arrays)).abs().max()
    moved = (vector_of(ours.arrays) - vector_of(trainable(module()))).abs().max()
    assert float(distance) <= 1e-6 < 1e-2 < float(moved)


def fitting() -> list[Strategy]:
    """Every registered strategy that fits; of 4 silos Krum bears no hostile one."""
    found = [cls() for cls in STRATEGIES.values() if misfit(cls()) is None]
    return [replace(each, malicious=0.0) if isinstance(each, Krum) else each for each in found]


@pytest.mark.parametrize("inner", [FLASC(density_down=0.5, density_up=0.2), *fitting()], ids=lambda inner: inner.name)
def test_a_strategy_through_flower_is_that_of_the_local_engine(inner: Strategy, tmp_path: Path) -> None:
    found = vector_of(play(strategy(tmp_path, inner), FakeGrid(silos())).arrays)
    torch.testing.assert_close(found, engine(inner, ExactSum(), rounds=3), rtol=0, atol=1e-6)


def test_clips_and_seeded_noise_and_cohorts_are_those_of_the_local_engine(tmp_path: Path) -> None:
    """The clip norm is below every update's, so that a missing clip would show."""
    private = {"clip_norm": 0.05, "noise_multiplier": 0.3, "delta": 0.01, "noise": "simulated", "rate": 0.5}
    grid = FakeGrid(silos())
    result = play(strategy(tmp_path, FLASC(density_up=0.2), **private), grid)
    expected = engine(FLASC(density_up=0.2), GaussianSum(0.05, 0.3), rounds=3, rate=0.5)
    torch.testing.assert_close(vector_of(result.arrays), expected, rtol=0, atol=1e-6)
    places = sorted(NODES)
    asked = [[places[silo] for silo in PoissonCohort(0.5, SILOS).draw(0, round_)] for round_ in (1, 2, 3)]
    assert [message.metadata.dst_node_id for message in grid.pushed] == [node for cohort in asked for node in cohort]


def test_messages_of_flasc_are_as_short_as_the_wire_says(tmp_path: Path) -> None:
    from strategies import wire

    grid, size = FakeGrid(silos()), Layout.of(module()).size
    play(strategy(tmp_path, FLASC(density_down=0.1, density_up=0.1)), grid, rounds=1)
    (array,) = grid.pushed[0].content.array_records["confide.vectors"].values()
    assert len(array.data) == wire.size(size, size // 10) < size


def test_epsilon_is_that_of_the_ledger(tmp_path: Path) -> None:
    """3 rounds of Gaussian noise 2 over all silos are one of 2 / sqrt(3), which has a closed form."""
    private = {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3, "noise": "simulated"}
    result = play(strategy(tmp_path, **private), FakeGrid(silos()))
    told = [result.train_metrics_clientapp[round_]["epsilon"] for round_ in (1, 2, 3)]
    events = charged(tmp_path)
    assert events == [Gaussian(2.0)] * 3
    assert told == [upper_epsilon(Repeated(events[0], times), 1e-3) for times in (1, 2, 3)]
    assert told[-1] == pytest.approx(upper_epsilon(Gaussian(2 / math.sqrt(3)), 1e-3), rel=1e-9)


def test_a_cohort_by_chance_is_priced_as_one_and_secret_with_noise_that_nobody_can_draw_again(tmp_path: Path) -> None:
    """Of 40 secret cohorts of 4 silos at rate 1/2, all are those of the seed with probability 2^-160."""
    private = {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3, "rate": 0.5}
    grid, chosen = FakeGrid(silos()), strategy(tmp_path, **private)
    arrays, cohorts = trainable(module()), []
    for round_ in range(1, 41):
        sent = list(chosen.configure_train(round_, arrays, ConfigRecord(), grid))
        cohorts.append([sorted(NODES).index(message.metadata.dst_node_id) for message in sent])
        arrays, _ = chosen.aggregate_train(round_, [])  # type: ignore[assignment]
    chosen.close()
    assert set(charged(tmp_path)) == {Sampled(Poisson(0.5), Gaussian(2.0))}
    assert cohorts != [PoissonCohort(0.5, SILOS).draw(0, round_) for round_ in range(1, 41)]


def test_cohorts_of_a_fixed_size_and_with_a_cap_are_priced_as_such(tmp_path: Path) -> None:
    private = {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3}
    fixed = strategy(tmp_path / "fixed", size=2, neighbours="replace", **private)
    assert fixed.rounds.event == Sampled(FixedSize(2, SILOS), Gaussian(2.0))
    capped = strategy(tmp_path / "capped", rate=0.5, cap=2, **private)
    assert capped.rounds.event == Sampled(Capped(0.5, 2, SILOS), Gaussian(2.0))
    grid = FakeGrid(silos())
    play(fixed, grid)
    assert len(grid.pushed) == 2 * 3


def test_a_round_is_in_the_ledger_before_a_message_is_pushed(tmp_path: Path) -> None:
    seen: list[int] = []
    grid = FakeGrid(silos(), before=lambda: seen.append(len(charged(tmp_path))))
    play(strategy(tmp_path, clip_norm=1.0, noise_multiplier=2.0, delta=1e-3), grid)
    assert seen == [1, 1, 2, 2, 3, 3]  # A push to train, and one of nothing to evaluate.
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert kinds == ["reserve", "commit"] * 3


def test_an_empty_cohort_is_charged_and_noised(tmp_path: Path) -> None:
    private = {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3, "rate": 1e-9, "noise": "simulated"}
    result = play(strategy(tmp_path, **private), FakeGrid(silos()), rounds=1)
    assert result.train_metrics_clientapp[1]["arrived"] == 0
    assert len(charged(tmp_path)) == 1
    assert float((vector_of(result.arrays) - vector_of(trainable(module()))).abs().min()) > 0


def test_a_budget_ends_training_and_keeps_the_model(tmp_path: Path) -> None:
    private = {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3}
    two = upper_epsilon(Repeated(Gaussian(2.0), 2), 1e-3)
    grid = FakeGrid(silos())
    result = play(strategy(tmp_path, budget=two, **private), grid, rounds=4)
    assert len(charged(tmp_path)) == 2
    assert len(grid.pushed) == 2 * SILOS
    assert [metrics["epsilon"] for metrics in result.train_metrics_clientapp.values()][1:] == [two] * 3
    assert len(result.arrays) > 0


def test_a_later_run_adds_to_the_ledger_and_other_prices_are_refused(tmp_path: Path) -> None:
    private = {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3}
    play(strategy(tmp_path, **private), FakeGrid(silos()), rounds=2)
    result = play(strategy(tmp_path, **private), FakeGrid(silos()), rounds=1)
    assert result.train_metrics_clientapp[1]["epsilon"] == upper_epsilon(Repeated(Gaussian(2.0), 3), 1e-3)
    for other in ({"noise_multiplier": 3.0}, {"rate": 0.5}, {"neighbours": "replace"}, {"noise": "simulated"}):
        with pytest.raises(LedgerError, match="give a new ledger"):
            strategy(tmp_path, **{**private, **other})


def spoilt(silo: int, change: Callable[[RecordDict], RecordDict]) -> Reply:
    """A client that answers as it should, but for a change of what it sends."""

    def node(message: Message) -> Message:
        if message.metadata.message_type != "train":
            return client(silo)(message, Context(7, 0, {}, RecordDict(), {}))
        good = reply(message, module(), fit(silo))
        return Message(change(good.content), reply_to=message)

    return node


def numbers(values: Tensor) -> Callable[[RecordDict], RecordDict]:
    from strategies import wire

    array = Array("float32", tuple(values.shape), "confide.wire", wire.encode(values, kept=values.numel()))
    return lambda content: RecordDict({**content, UPDATE: ArrayRecord({"delta": array})})


def about(**changes: Any) -> Callable[[RecordDict], RecordDict]:
    return lambda content: RecordDict({**content, TERMS: ConfigRecord({**content.config_records[TERMS], **changes})})


def renamed(content: RecordDict) -> RecordDict:
    return RecordDict({**content, UPDATE: ArrayRecord({"gamma": content.array_records[UPDATE]["delta"]})})


def plain_array(content: RecordDict) -> RecordDict:
    return RecordDict({**content, UPDATE: ArrayRecord({"delta": Array(np.zeros(Layout.of(module()).size, "float32"))})})


def cut(content: RecordDict) -> RecordDict:
    array = content.array_records[UPDATE]["delta"]
    short = Array(array.dtype, array.shape, array.stype, array.data[:-1])
    return RecordDict({**content, UPDATE: ArrayRecord({"delta": short})})


SIZE = Layout.of(module()).size
HOSTILE: Mapping[str, tuple[Callable[[RecordDict], RecordDict], str]] = {
    "NaN": (numbers(torch.full((SIZE,), math.nan)), "update is not finite"),
    "infinite": (numbers(torch.full((SIZE,), math.inf)), "update is not finite"),
    "wrong key": (renamed, "reply has other channels than were asked"),
    "wrong length": (numbers(torch.zeros(SIZE + 1)), "a vector is not as it was asked"),
    "cut": (cut, "a vector is not as it was asked"),
    "no wire": (plain_array, "a vector is not as it was asked"),
    "old round": (about(round=1), "reply is of another round or run"),
    "a round that is true": (about(round=True), "reply is of another round or run"),
    "another run": (about(run="00"), "reply is of another round or run"),
    "heavy": (about(weight=1e12), "weight is not in [0, 1]"),
    "negative": (about(weight=-1.0), "weight is not in [0, 1]"),
    "no weight": (about(weight="1"), "weight is not a number"),
    "weight NaN": (about(weight=math.nan), "weight is not in [0, 1]"),
    "more": (lambda content: RecordDict({**content, "x": MetricRecord()}), "reply has not the records of an update"),
    "nothing": (lambda content: RecordDict(), "reply has not the records of an update"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("private", [False, True])
def test_a_hostile_reply_is_refused_and_counted_and_the_round_goes_on(name: str, private: bool, tmp_path: Path) -> None:
    """The others' mean is as if the hostile silo had not been asked, over 3 silos or the constant 4."""
    change, reason = HOSTILE[name]
    noise = {"clip_norm": 1e3, "noise_multiplier": 1e-6, "delta": 0.01, "noise": "simulated"} if private else {}

    def late(content: RecordDict) -> RecordDict:  # In round 1 all is well, so that it can be replayed.
        return change(content) if content.config_records[TERMS]["round"] == 2 else content

    chosen = strategy(tmp_path, **noise)
    result = play(chosen, FakeGrid(silos(silo_1=spoilt(1, late))), rounds=2)
    assert result.train_metrics_clientapp[1]["refused"] == 0
    assert (result.train_metrics_clientapp[2]["arrived"], result.train_metrics_clientapp[2]["refused"]) == (3, 1)
    assert chosen.reasons == {reason: 1}
    assert bool(torch.isfinite(vector_of(result.arrays)).all())


def test_who_answers_twice_counts_once(tmp_path: Path) -> None:
    def twice(message: Message) -> list[Message]:
        if message.metadata.message_type != "train":
            return [client(1)(message, Context(7, 0, {}, RecordDict(), {}))]
        return [reply(message, module(), fit(1)) for _ in range(2)]

    chosen = strategy(tmp_path)
    result = play(chosen, FakeGrid(silos(silo_1=twice)))
    assert chosen.reasons == {"silo answered before in this round": 3}
    expected = play(strategy(tmp_path / "other"), FakeGrid(silos()))
    assert torch.equal(vector_of(result.arrays), vector_of(expected.arrays))


def test_a_reply_to_nothing_that_was_asked_is_nobodys(tmp_path: Path) -> None:
    kept: list[Message] = []

    def replayed(message: Message) -> list[Message]:
        kept.append(reply(message, module(), fit(2)))
        return kept[:1]  # Always the first round's.

    chosen = strategy(tmp_path, metrics="strict")
    chosen.evaluates = False
    result = play(chosen, FakeGrid(silos(silo_2=replayed)), rounds=2)
    assert chosen.reasons == {"reply answers no message of this round": 1}
    assert result.train_metrics_clientapp[2]["arrived"] == 3


def test_a_reply_from_another_node_is_refused(tmp_path: Path) -> None:
    def forged(message: Message) -> Message:
        answer = reply(message, module(), fit(2))
        answer.metadata.__dict__["_src_node_id"] = sorted(NODES)[0]
        return answer

    chosen = strategy(tmp_path)
    chosen.evaluates = False
    play(chosen, FakeGrid(silos(silo_2=forged)), rounds=1)
    assert chosen.reasons == {"reply is not from the node that was asked": 1}


def test_a_client_that_fails_costs_its_own_update_alone(tmp_path: Path) -> None:
    def broken(message: Message) -> Message:
        raise RuntimeError("out of memory")

    chosen = strategy(tmp_path)
    result = play(chosen, FakeGrid(silos(silo_0=broken)), rounds=1)
    assert chosen.reasons["node answered with an error"] == 2  # Training, and evaluation.
    assert result.train_metrics_clientapp[1]["arrived"] == 3


def test_a_node_that_left_is_not_asked_and_a_newcomer_takes_its_place(tmp_path: Path) -> None:
    grid, chosen = FakeGrid(silos()), strategy(tmp_path)
    arrays: ArrayRecord = trainable(module())
    asked = []
    for round_ in (1, 2, 3):
        if round_ == 2:
            del grid.nodes[sorted(NODES)[1]]
        if round_ == 3:
            grid.nodes[5] = client(1)
        sent = list(chosen.configure_train(round_, arrays, ConfigRecord(), grid))
        asked.append([message.metadata.dst_node_id for message in sent])
        found, _ = chosen.aggregate_train(round_, grid.send_and_receive(sent))
        arrays = found or arrays
    places = sorted(NODES)
    assert asked == [places, [places[0], *places[2:]], [places[0], 5, *places[2:]]]


def test_the_first_round_waits_for_all_silos(tmp_path: Path) -> None:
    chosen = strategy(tmp_path, wait_s=0.0)
    nodes = silos()
    nodes.popitem()
    with pytest.raises(TimeoutError, match=r"silos: 3 of 4 nodes came in 0 s; start more, or lower silos"):
        chosen.configure_train(1, trainable(module()), ConfigRecord(), FakeGrid(nodes))
    assert charged(tmp_path) == []


def test_evaluation_is_the_mean_by_examples_of_replies_that_can_be_used(tmp_path: Path) -> None:
    """Silo k has k + 1 examples and says k: (0 + 2 + 6 + 12) / 10 = 2, and without silo 3's NaN 8 / 6."""
    result = play(strategy(tmp_path), FakeGrid(silos()), rounds=1)
    assert result.evaluate_metrics_clientapp[1]["silo"] == pytest.approx(2.0)

    def lies(message: Message) -> Message:
        answer = client(3)(message, Context(7, 0, {}, RecordDict(), {}))
        if message.metadata.message_type == "evaluate":
            answer.content.metric_records["metrics"]["silo"] = math.nan
        return answer

    chosen = strategy(tmp_path / "other")
    result = play(chosen, FakeGrid(silos(silo_3=lies)), rounds=1)
    assert result.evaluate_metrics_clientapp[1]["silo"] == pytest.approx(8 / 6)
    assert chosen.reasons == {"a metric is not finite": 1}


def test_under_privacy_nobody_evaluates_unless_that_is_asked_for(tmp_path: Path) -> None:
    private = {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-3}
    grid = FakeGrid(silos())
    result = play(strategy(tmp_path, **private), grid, rounds=1)
    assert {message.metadata.message_type for message in grid.pushed} == {"train"}
    assert result.evaluate_metrics_clientapp == {}
    result = play(strategy(tmp_path / "other", metrics="research", **private), FakeGrid(silos()), rounds=1)
    assert result.evaluate_metrics_clientapp[1]["silo"] == pytest.approx(2.0)


def test_weights_by_rows_are_what_clients_say(tmp_path: Path) -> None:
    """Silo 0 with 9 rows and three with 1: 9/12 and 1/12 each; equal weights would give another model."""
    nodes = dict(zip(sorted(NODES), [client(silo, count=9 if silo == 0 else 1) for silo in range(SILOS)]))
    result = play(strategy(tmp_path, FedAvg(weighting="examples")), FakeGrid(nodes), rounds=1)
    start, layout = vector_of(trainable(module())), Layout.of(module())
    deltas = []
    for silo in range(SILOS):
        model = module()
        fit(silo)(model)
        deltas.append(layout.flatten(model) - start)
    expected = start + (9 * deltas[0] + deltas[1] + deltas[2] + deltas[3]) / 12
    torch.testing.assert_close(vector_of(result.arrays), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("inner", "settings", "reason"),
    [
        (Ditto(), {}, "strategy 'ditto' keeps personal vectors between rounds, which a plain Flower project cannot"),
        (FLASC(tiers=(Tier(down=0.1, up=0.1), Tier(down=1.0, up=1.0))), {}, "goes by silos' numbers"),
        (FedAvg(proximal=0.1), {}, "changes the gradients of single steps"),
        (Pruning(), {}, "changes the gradients of single steps"),
        (Krum(malicious=0.0), {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}, "sees single updates"),
        (FedAvg(weighting="examples"), {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}, "private rows"),
        (FedAvg(), {"clip_norm": 1.0}, "delta: missing"),
        (FedAvg(), {"clip_norm": 1.0, "delta": 1e-3}, "noise_multiplier"),
        (FedAvg(), {"noise_multiplier": 1.0, "delta": 1e-3}, "clip_norm: missing"),
        (FedAvg(), {"clip_norm": math.nan, "noise_multiplier": 1.0, "delta": 1e-3}, "clip_norm: must be finite"),
        (FedAvg(), {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 0.25}, "delta: must be < 1 / silos"),
        (FedAvg(), {"rate": 0.0}, "rate: must be > 0"),
        (FedAvg(), {"size": 5}, "size"),
        (FedAvg(), {"size": 2, "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}, "no add_remove price"),
        (FedAvg(), {"budget": 3.0}, "budget: "),
        (FedAvg(), {"metrics": "loose"}, "metrics: must be strict or research"),
        (FedAvg(), {"noise": "none"}, "noise: must be one of"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_at_construction_in_one_line(
    inner: Strategy, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        strategy(tmp_path, inner, **settings)
    (line,) = caught.value.problems
    assert reason in line
    assert "\n" not in line
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_model_that_is_no_longer_finite_stops_the_run(tmp_path: Path) -> None:
    from strategies.optimizers import SGD

    chosen = strategy(tmp_path, FedAvg(server=SGD(learning_rate=3e38)))
    with pytest.raises(Diverged, match="round 1: the model is no longer finite"):
        play(chosen, FakeGrid({node: spoilt(0, numbers(torch.full((SIZE,), 3e38))) for node in NODES}), rounds=1)


def test_a_round_is_asked_once_and_its_model_is_the_last_one(tmp_path: Path) -> None:
    chosen, grid, arrays = strategy(tmp_path), FakeGrid(silos()), trainable(module())
    chosen.configure_train(1, arrays, ConfigRecord(), grid)
    with pytest.raises(ValueError, match="round 1: was asked before"):
        chosen.configure_train(1, arrays, ConfigRecord(), grid)
    other = arrays_of(Layout.of(module()), vector_of(arrays) + 1)
    with pytest.raises(ValueError, match="round 2: its model is not what the round before gave"):
        chosen.configure_train(2, other, ConfigRecord(), grid)
    assert len(charged(tmp_path)) == 1
    assert math.isinf(upper_epsilon(charged(tmp_path)[0], 1e-3))  # Without noise nothing is claimed.


def test_arrays_that_are_not_trained_are_refused_by_name(tmp_path: Path) -> None:
    chosen, model = strategy(tmp_path), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"initial_arrays: '1.num_batches_tracked' is int64 .*trainable\(model\)"):
        chosen.configure_train(1, ArrayRecord(model.state_dict()), ConfigRecord(), FakeGrid(silos()))
