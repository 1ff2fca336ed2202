"""What every strategy keeps, tried on each by its registration: a new one is tested by being there."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

from client.examples import Examples, Shards
from client.host import SiloHost, Trained
from client.personal import PersonalStore
from client.session import Session
from privacy import streams
from privacy.contributions import Partial
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from privacy.noise import SimulatedNoise
from privacy.release import Collector
from server.checkpoint import Checkpoint, read, write
from server.link import by_tier
from strategies.base import Instruction, State, Strategy, Update
from strategies.experiment import Train
from strategies.groups import Groups
from strategies.layout import Layout
from strategies.optimizers import OPTIMIZERS, Optimizer
from strategies.registry import STRATEGIES
from strategies.tasks import Shape, initial
from strategies.tasks.dense import MLP
from strategies.traffic import message, require_kept

torch.set_num_threads(1)

SHAPE, TASK, SIZES = Shape((5,), 3), MLP((6,), "tanh"), [7, 3, 12, 1, 8]
EMPTY = [7, 0, 12, 0]
STARTS_ELSEWHERE: frozenset[str] = frozenset({"flasc"})  # Serves the model as it is sent.
"""Strategies whose served model is not the initial one before round 1, by design."""
GROUPED: dict[str, Any] = {"weighting": "examples", "labels": 2, "counts": (14.0, 17.0), "smooth": 0.5}
"""The groups' settings that are tried, each alone."""
ALONE: frozenset[str] = frozenset({"local"})
"""Strategies whose silos send nothing, so that the server learns nothing."""


def _other(value: float) -> float:
    if isinstance(value, int):
        return value + 1
    return 0.3 if value == 0 else value / 2


def settings(cls: type[Strategy]) -> Iterator[Strategy]:
    """The strategy as it is by default; with all of its numbers changed; and with one other setting at a time."""
    default = cls()
    yield default
    hints = get_type_hints(cls)
    numbers = {field.name: getattr(default, field.name) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    numbers = {name: _other(value) for name, value in numbers.items() if type(value) in (int, float)}
    if numbers:
        yield dataclasses.replace(default, **numbers)  # type: ignore[type-var]
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        now, kind = getattr(default, field.name), hints[field.name]
        others: list[object] = []
        if get_origin(kind) is Literal:
            others = [value for value in get_args(kind) if value != now]
        elif isinstance(now, bool):
            others = [not now]
        elif get_args(kind) == (float, type(None)):
            others = [0.5]
        elif get_args(kind) == (int, type(None)):
            others = [2]
        elif get_origin(kind) is UnionType:  # Numbers, or a word for them.
            words = [value for each in get_args(kind) if get_origin(each) is Literal for value in get_args(each)]
            others = [(0.0,), *words]
        elif isinstance(now, Groups):
            others = [dataclasses.replace(now, **{name: value}) for name, value in GROUPED.items()]
        elif isinstance(now, Optimizer):
            every = [build() for build in OPTIMIZERS.values() if build is not type(now)]
            others = every if cls.name == "fedavg" else every[-1:]  # All step alike; one with slots of its own will do.
        yield from (dataclasses.replace(default, **{field.name: value}) for value in others)  # type: ignore[type-var]


CASES = [strategy for cls in STRATEGIES.values() for strategy in settings(cls) if not strategy.problems(private=False)]
each = pytest.mark.parametrize("strategy", CASES, ids=str)
each_way = pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "one by one"])


def layout() -> Layout:
    return Layout.of(initial(TASK, SHAPE, seed=1)[0])


def model() -> Tensor:
    return initial(TASK, SHAPE, seed=1)[1]


def planned(strategy: Strategy) -> bool:
    return getattr(strategy, "lam", None) == "auto"


def federation(sizes: list[int]) -> Shards:
    rng = torch.Generator().manual_seed(4)
    features, targets = torch.randn(sum(sizes), 5, generator=rng), torch.randint(3, (sum(sizes),), generator=rng)
    groups = targets % 2
    return Shards(Examples(features, targets, groups), torch.tensor([0, *sizes]).cumsum(0))


@dataclass
class World:
    """A federation small enough to read: a host, its personal store, and rounds without the loop's durability."""

    strategy: Strategy
    stacked: bool
    folder: Path
    sizes: list[int] = dataclasses.field(default_factory=lambda: list(SIZES))

    def __post_init__(self) -> None:
        kept = self.strategy.personal(model().numel())
        self.personal = PersonalStore(self.folder, silos=len(self.sizes), sizes=kept) if kept else None
        self.host = SiloHost(
            strategy=self.strategy,
            task=TASK,
            module=initial(TASK, SHAPE, seed=1)[0],
            shape=SHAPE,
            # What goes by the noise of steps needs to know how many there are; so it runs with a number of steps.
            train=Train(steps=3 if planned(self.strategy) else None, batch_size=4, learning_rate=0.05),
            shards=federation(self.sizes),
            held_out=federation(self.sizes),
            seed=3,
            stacked=self.stacked,
            personal=self.personal,
        )

    def start(self) -> State:
        return self.strategy.init(model(), streams.generator(3, "init"), layout())

    def mechanisms(self, *, private: bool = False) -> dict[str, Mechanism]:
        bound: Mechanism = GaussianSum(0.1, 1.0) if private else ExactSum()
        return dict.fromkeys(self.strategy.channels(model().numel()), bound)

    def ask(self, instruction: Instruction, silos: list[int] | None = None, *, private: bool = False) -> Partial:
        asked = list(range(len(self.sizes))) if silos is None else silos
        return self.host.contribute(instruction, asked, self.mechanisms(private=private), chunk=0)

    def round(self, state: State, number: int, silos: list[int] | None = None, *, private: bool = False) -> State:
        mechanisms = self.mechanisms(private=private)
        sizes = self.strategy.channels(model().numel())
        collector = Collector(
            mechanisms,
            sizes,
            expected=len(self.sizes),
            population=len(self.sizes),
            reveals=self.strategy.reveals,
        )
        asked = list(range(len(self.sizes))) if silos is None else silos
        for chunk, request in enumerate(by_tier(self.strategy, state, number, asked)):
            partial = self.ask(request.instruction, list(request.silos), private=private)
            collector.add(dataclasses.replace(partial, chunk=chunk))
        release = collector.release(SimulatedNoise(3), stream=("noise", number))
        after = self.strategy.aggregate(state, release, streams.generator(3, "aggregate", number))
        if self.personal is not None:
            self.personal.commit(number)
        return after

    def rounds(self, count: int, *, private: bool = False) -> State:
        state = self.start()
        for number in range(1, count + 1):
            state = self.round(state, number, private=private)
        return state


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def copy_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Bit for bit, with names, shapes and types."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def test_a_strategy_is_registered_under_its_name_as_frozen_values() -> None:
    assert STRATEGIES
    for name, cls in STRATEGIES.items():
        assert cls.name == name
        assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert cls() == cls()
        assert hash(cls()) == hash(cls())


@each
@each_way
def test_the_same_rounds_give_the_same_bits(strategy: Strategy, stacked: bool, folder: Path) -> None:
    first, second = (World(strategy, stacked, folder / name).rounds(3) for name in ("first", "second"))
    assert same(first, second)
    assert torch.equal(strategy.predictor(first), model()) == (strategy.name in ALONE)  # Else something was learned.


@each
@each_way
def test_what_is_sent_is_what_was_declared(strategy: Strategy, stacked: bool, folder: Path) -> None:
    world, size = World(strategy, stacked, folder), model().numel()
    declared = strategy.channels(size)
    instruction = strategy.instruct(world.start(), 1)
    together = world.host.stack is not None
    group = [0, 2, 3] if together else [2]
    update = strategy.local(Session(world.host, group, 1, record=False), instruction)
    assert update.channels.keys() == declared.keys()
    for name, length in declared.items():
        assert tuple(update.channels[name].shape) == ((3, length) if together else (length,))
        assert update.channels[name].is_floating_point()
        assert not update.channels[name].requires_grad
    weights = torch.as_tensor(update.weight)
    assert weights.numel() in (1, len(group))
    assert bool((weights >= 0).all())
    assert instruction.round == 1
    for tier in {strategy.tier(silo) for silo in range(len(SIZES))}:
        sent = strategy.instruct(world.start(), 1, tier)
        assert sent.tier == tier
        require_kept(sent, sent.kept)


@each
def test_the_size_of_a_message_is_the_same_whatever_silos_hold(strategy: Strategy, folder: Path) -> None:
    """It is counted and shown under privacy, so rows must not move it; the host refuses an update that is longer."""
    world, other = World(strategy, True, folder / "one"), World(strategy, True, folder / "other", [2, 9, 0, 4, 30])
    state = world.start()
    for request in by_tier(strategy, state, 1, range(len(SIZES))):
        one, two = (each.ask(request.instruction, list(request.silos)) for each in (world, other))
        assert (one.payload, one.bytes) == (two.payload, two.bytes)
        kept = strategy.kept(layout(), 1, request.instruction.tier)
        expected = message(strategy.channels(model().numel()), kept)
        assert (one.payload, one.bytes) == (len(request.silos) * expected.numbers, len(request.silos) * expected.bytes)
        assert all(0 < count <= strategy.channels(model().numel())[name] for name, count in kept.items())


@each
def test_variants_are_models(strategy: Strategy, folder: Path) -> None:
    for name, vector in strategy.variants(World(strategy, True, folder).rounds(1), 1).items():
        assert name.isidentifier()
        assert vector.shape == model().shape
        assert bool(torch.isfinite(vector).all())


@each
@each_way
def test_stacked_is_one_by_one(strategy: Strategy, stacked: bool, folder: Path) -> None:
    first, other = World(strategy, True, folder / "stacked"), World(strategy, False, folder / "single")
    reached = first.rounds(1), other.rounds(1)
    asked = strategy.instruct(reached[0 if stacked else 1], 2)
    together, alone = first.ask(asked), other.ask(asked)
    for name in strategy.channels(model().numel()):
        distance = float((together.sums[name] - alone.sums[name]).norm())
        assert distance <= 1e-5 * float(alone.sums[name].norm())
    assert (together.arrived, together.payload) == (alone.arrived, alone.payload)


@each
def test_the_state_survives_a_checkpoint_bit_for_bit_and_training_goes_on_from_it(
    strategy: Strategy, folder: Path
) -> None:
    world = World(strategy, True, folder / "personal")
    state = world.start()
    for number in range(3):
        assert all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
        write(folder / "checkpoint", Checkpoint(number, state, {}))
        again = read(folder / "checkpoint").state
        assert same(again, state)
        assert torch.equal(strategy.predictor(again), strategy.predictor(state))
        assert same(strategy.instruct(again, number + 1), strategy.instruct(state, number + 1))
        other = World(strategy, True, folder / f"other{number}")
        if world.personal is not None and other.personal is not None:
            for name in world.personal.sizes:
                other.personal.current[name][:] = world.personal.current[name]
                other.personal.present[name][:] = world.personal.present[name]
        state = world.round(state, number + 1)
        assert same(other.round(again, number + 1), state)


@each
@each_way
def test_an_empty_silo_arrives_and_changes_nothing(strategy: Strategy, stacked: bool, folder: Path) -> None:
    world = World(strategy, stacked, folder, EMPTY)
    asked = strategy.instruct(world.start(), 1)
    alone = world.ask(asked, [1, 3])
    assert (alone.arrived, alone.failures) == (2, ())
    assert all(bool(torch.isfinite(total).all()) for total in alone.sums.values())
    assert "delta" not in alone.sums or not alone.sums["delta"].any()
    with_them, without = world.ask(asked), world.ask(asked, [0, 2])
    assert (with_them.arrived, with_them.failures) == (4, ())
    for name, total in without.sums.items():
        added = total + alone.sums[name]
        torch.testing.assert_close(with_them.sums[name], added, rtol=1e-5, atol=1e-6)


@each
def test_before_round_1_the_initial_model_is_served(strategy: Strategy) -> None:
    served = strategy.predictor(strategy.init(model(), streams.generator(3, "init"), layout()))
    assert served.shape == model().shape
    if strategy.name not in STARTS_ELSEWHERE:
        assert torch.equal(served, model())


@each
@each_way
def test_the_silo_half_cannot_change_the_servers_state(strategy: Strategy, stacked: bool, folder: Path) -> None:
    world = World(strategy, stacked, folder)
    state = world.rounds(1)
    before, asked = copy_of(state), strategy.instruct(state, 2)
    sent = copy_of(asked)
    for group in ([0, 1, 2, 3, 4], [2]):
        world.ask(asked, group)
        assert same(asked, sent)  # A second silo in this process is asked the same.
    for vector in asked.values():
        vector.fill_(7)
    assert same(state, before)


@each
def test_the_server_half_makes_a_new_state_and_leaves_the_old_one(strategy: Strategy, folder: Path) -> None:
    world = World(strategy, True, folder)
    for state in (world.start(), world.rounds(1)):
        before = copy_of(state)
        after = world.round(state, 2)
        assert same(state, before)
        copy = copy_of(after)
        for vector in state.values():
            vector.fill_(7)
        assert same(after, copy)


@each
@pytest.mark.parametrize("private", [True, False], ids=["private", "exact"])
def test_a_round_that_nobody_joined_leaves_a_usable_state(strategy: Strategy, private: bool, folder: Path) -> None:
    if private and strategy.problems(private=True):
        pytest.skip("refused under silo-level privacy")
    world = World(strategy, True, folder)
    state = world.rounds(1)
    after = world.round(state, 2, [], private=private)
    assert after.keys() == state.keys()
    assert all(bool(torch.isfinite(value).all()) for value in after.values() if value.is_floating_point())
    assert same(world.strategy.instruct(after, 3), world.strategy.instruct(copy_of(after), 3))


@each
@each_way
def test_without_privacy_no_honest_silo_is_refused(strategy: Strategy, stacked: bool, folder: Path) -> None:
    """Weights by rows, for instance, must be those that the strategy allows."""
    world = World(strategy, stacked, folder)
    state = world.rounds(1)
    for request in by_tier(strategy, state, 2, range(len(SIZES))):
        assert world.ask(request.instruction, list(request.silos)).failures == ()


@each
@each_way
def test_under_privacy_no_honest_silo_is_refused(strategy: Strategy, stacked: bool, folder: Path) -> None:
    if strategy.problems(private=True):
        pytest.skip("refused under silo-level privacy")
    if strategy.heaviest > 1:
        pytest.skip("weighs by rows, which is refused under silo-level privacy by the rules of the whole experiment")
    world = World(strategy, stacked, folder)
    state = world.start()
    for number in (1, 2):
        partial = world.ask(strategy.instruct(state, number), private=True)
        assert partial.failures == ()  # Above all, no weight above 1.
        state = world.round(state, number, private=True)
    assert bool(torch.isfinite(strategy.predictor(state)).all())


@each
def test_every_silo_can_be_evaluated_before_and_after_a_round(strategy: Strategy, folder: Path) -> None:
    world = World(strategy, True, folder)
    for state, number in ((world.start(), 1), (world.rounds(1), 2)):
        result = world.host.evaluate(strategy.instruct(state, number), list(range(len(SIZES))))
        assert result.silos == tuple(range(len(SIZES)))
        assert result.rows == tuple(SIZES)
        assert all(loss > 0 for loss in result.loss)
        assert all(0 <= score <= 1 for score in result.score)


# Hostile updates. They meet the silo half's end and the server half's start, whose settings are other tests'.

ONES = [cls() for cls in STRATEGIES.values() if not cls().problems(private=False)]
ONES += [strategy for strategy in CASES if strategy.heaviest != 1.0]
once = pytest.mark.parametrize("strategy", ONES, ids=str)
HOSTILE, OLD = 2, 1  # The silo; the round whose update it sends again.


def _filled(value: float) -> Callable[[Trained], Trained]:
    def spoil(trained: Trained) -> Trained:
        channels = {name: torch.full_like(vector, value) for name, vector in trained.update.channels.items()}
        return dataclasses.replace(trained, update=dataclasses.replace(trained.update, channels=channels))

    return spoil


def _longer(trained: Trained) -> Trained:
    channels = {name: torch.cat([vector, vector], -1) for name, vector in trained.update.channels.items()}
    return dataclasses.replace(trained, update=dataclasses.replace(trained.update, channels=channels))


def _heavy(weight: Any) -> Callable[[Trained], Trained]:
    return lambda trained: dataclasses.replace(trained, update=dataclasses.replace(trained.update, weight=weight))


SPOILT: dict[str, tuple[Callable[[Trained], Trained], str]] = {
    "NaN": (_filled(float("nan")), "update is not finite"),
    "infinity": (_filled(float("inf")), "update is not finite"),
    "longer": (_longer, "has shape"),
    "no channels": (
        lambda trained: dataclasses.replace(trained, update=Update({"no such channel": torch.zeros(3)})),
        "channels ['no such channel'] where",
    ),
    "weight 1e12": (_heavy(1e12), "weight is not in [0, 1"),
    "weight -1": (_heavy(-1.0), "weight is not in [0, 1"),
    "weight NaN": (_heavy(float("nan")), "weight is not in [0, 1"),
    "weight of text": (_heavy("1e12"), "weight is str, not a number"),
    "an old round's": (lambda trained: dataclasses.replace(trained, round=OLD), "update of round 1 came in round 2"),
}


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [(one, kind) for one in ONES for kind in SPOILT if one.channels(1) or kind not in ("NaN", "infinity", "longer")],
    ids=str,
)
def test_a_hostile_update_is_left_out_with_a_reason_and_the_round_goes_on(
    strategy: Strategy, kind: str, folder: Path
) -> None:
    spoil, reason = SPOILT[kind]
    world = World(strategy, False, folder)
    state = world.rounds(1)
    for request in by_tier(strategy, state, 2, range(len(SIZES))):
        instruction, silos = request.instruction, list(request.silos)
        if HOSTILE not in silos:
            continue
        trained = list(world.host.trained(instruction, silos))
        place = silos.index(HOSTILE)
        dirty = [*trained[:place], spoil(trained[place]), *trained[place + 1 :]]
        clean = [*trained[:place], *trained[place + 1 :]]
        with_it, without = (
            world.host.collect(instruction, some, world.mechanisms(), chunk=0) for some in (dirty, clean)
        )
        [failure] = with_it.failures
        assert failure.silo == HOSTILE
        assert failure.reason.count(reason) == 1
        assert (with_it.arrived, with_it.weight, with_it.bytes) == (without.arrived, without.weight, without.bytes)
        assert same(with_it.sums, without.sums)
        assert (with_it.revealed is None) == (not strategy.reveals)
        if with_it.revealed is not None:
            assert HOSTILE not in with_it.revealed.silos
        if world.personal is not None:  # What it would have kept of the round is forgotten.
            world.personal.commit(2)
            assert all(not marks[HOSTILE] for marks in world.personal.marks.values())


@pytest.mark.parametrize("strategy", [one for one in ONES if one.name == "flasc"], ids=str)
@each_way
def test_an_update_of_more_numbers_than_travel_is_left_out(strategy: Strategy, stacked: bool, folder: Path) -> None:
    world = World(strategy, stacked, folder)
    instruction = strategy.instruct(world.start(), 1)
    assert strategy.kept(layout(), 1, 0)["delta"] < strategy.channels(layout().size)["delta"]
    trained = list(world.host.trained(instruction, [0, 2, 3]))
    delta = torch.cat([part.update.channels["delta"].reshape(len(part.silos), -1) for part in trained])
    delta[1] = 1.0  # Silo 2's, with no number left out.
    parts = torch.split(delta, [len(part.silos) for part in trained])
    dirty = [
        dataclasses.replace(one, update=Update({"delta": part.reshape(one.update.channels["delta"].shape)}))
        for one, part in zip(trained, parts)
    ]
    found = world.host.collect(instruction, dirty, world.mechanisms(), chunk=0)
    assert [(failure.silo, failure.reason) for failure in found.failures] == [
        (2, "channel 'delta' holds more numbers than travel")
    ]
    torch.testing.assert_close(found.sums["delta"], delta[[0, 2]].double().sum(0))


@once
def test_a_silo_counts_once_in_a_round_however_often_it_answers(strategy: Strategy, folder: Path) -> None:
    world = World(strategy, False, folder)
    [request, *_] = by_tier(strategy, world.start(), 1, range(len(SIZES)))
    trained = list(world.host.trained(request.instruction, list(request.silos)))
    single, twice = (
        world.host.collect(request.instruction, some, world.mechanisms(), chunk=0) for some in (trained, trained * 2)
    )
    assert same(single.sums, twice.sums)
    assert (twice.arrived, twice.weight) == (single.arrived, single.weight)
    assert {failure.reason for failure in twice.failures} == {"silo answered before in this round"}
    assert len(twice.failures) == len(request.silos)


@once
def test_a_round_of_hostile_updates_alone_leaves_a_usable_state(strategy: Strategy, folder: Path) -> None:
    world = World(strategy, False, folder)
    state = world.rounds(1)
    mechanisms, sizes = world.mechanisms(), strategy.channels(model().numel())
    collector = Collector(mechanisms, sizes, expected=5.0, population=5, reveals=strategy.reveals)
    for chunk, request in enumerate(by_tier(strategy, state, 2, range(len(SIZES)))):
        trained = world.host.trained(request.instruction, list(request.silos))
        spoilt = [_heavy(1e12)(each) for each in trained]
        collector.add(world.host.collect(request.instruction, spoilt, mechanisms, chunk=chunk))
    assert (collector.tally.arrived, len(collector.tally.failures)) == (0, len(SIZES))
    release = collector.release(SimulatedNoise(3), stream=("noise", 2))
    after = strategy.aggregate(state, release, streams.generator(3, "aggregate", 2))
    assert after.keys() == state.keys()
    assert bool(torch.isfinite(strategy.predictor(after)).all())
