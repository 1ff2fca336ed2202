"""Shadow learning: when shadows begin and end, whom they learn from, and what is served.

The names S7 to S9 are those of the method's checks. Rounds are told by hand: ten silos that show three numbers each and
claim accuracies, so that every state can be followed on paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from client.examples import Examples, Shards
from client.host import SiloHost
from privacy.mechanism import ExactSum
from privacy.noise import SimulatedNoise
from privacy.release import Collector
from privacy.revealed import Revealed
from strategies.base import Guard, State, Strategy
from strategies.experiment import Train
from strategies.fedavg import FedAvg
from strategies.guarded import Guarded, evaluate_served
from strategies.layout import Layout
from strategies.optimizers import SGD
from strategies.shadow import COUNTED, SHOWN, Shadow
from strategies.shadow_course import Course, Phase
from strategies.tasks import Shape, initial
from strategies.tasks.dense import MLP

torch.set_num_threads(1)

COURSE = Course(window=2, settle=0.05, floor=0.8, shift_window=1, shift=0.2, stop_window=2, stop=0.05, stop_floor=0.7)
QUICK = Shadow(
    target=(1,),
    malicious=0.2,
    pool=2,
    window=2,
    settle=0.05,
    floor=0.8,
    shift_window=1,
    shift=0.2,
    stop_window=2,
    stop=0.05,
    stop_floor=0.7,
    width=3,
    server=SGD(learning_rate=1.0),
)
SILOS, SIZE = 10, 4


# S7: what is served.


def pair(label: int) -> tuple[nn.Module, nn.Module, Guarded]:
    torch.manual_seed(2)
    model, guard = nn.Linear(5, 3), nn.Linear(5, 3)
    return model, guard, Guarded(model, guard, label=label)


def test_s7_the_shadow_answers_where_the_backbone_says_the_label_and_nowhere_else() -> None:
    model, guard, both = pair(label=1)
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    says = model(rows).argmax(-1) == 1
    assert 20 < int(says.sum()) < 180  # Both kinds of rows are there.
    assert torch.equal(both(rows)[~says], model(rows)[~says])
    assert torch.equal(both(rows)[says], guard(rows)[says])


def test_without_a_label_the_model_answers_alone() -> None:
    model, _, both = pair(label=-1)
    rows = torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(both(rows), model(rows))


def test_what_is_measured_is_both_models_together() -> None:
    task, shape = MLP((4,), "relu"), Shape((5,), 3)
    module, model = initial(task, shape, seed=1)
    guard = initial(task, shape, seed=2)[1]
    rows = torch.randn(300, 5, generator=torch.Generator().manual_seed(3))
    layout = Layout.of(module)

    def classes(vector: Tensor) -> Tensor:
        layout.load(module, vector)
        return module(rows).argmax(-1)  # type: ignore[no-any-return]

    said, instead = classes(model), classes(guard)
    served = torch.where(said == 2, instead, said)
    found = evaluate_served(task, module, model, Guard(2, guard), rows, served)
    assert found["accuracy"] == 1.0
    assert evaluate_served(task, module, model, None, rows, served)["accuracy"] < 1.0


# S8: when.


def phases(course: Course, backbone: Sequence[float], shadow: Mapping[int, float]) -> list[Phase]:
    """The phase after each round; `shadow` is its accuracy in the rounds in which it says one."""
    phase, since, told, found = Phase.GROWING, 0, list[float](), []
    for at in range(len(backbone)):
        if phase == Phase.FILTERING and at in shadow:
            told.append(shadow[at])
        before, phase = phase, course.next(phase, backbone[since : at + 1], told)
        if phase == Phase.GROWING and before != phase:
            since, told = at + 1, []
        found.append(phase)
    return found


def test_s8_a_scripted_trace_converges_stops_shifts_and_begins_again_once_each() -> None:
    # Means of two: .35, .65, .85 | .875, .9: the first change below .05 is from .85 to .90, in round 7.
    backbone = [0.2, 0.5, 0.8, 0.9, 0.85, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5, 0.8, 0.8, 0.82, 0.82]
    # It says 0 twice and is not stopped at birth; .75 and .78 against .7 and .75 is a change of .04.
    found = phases(COURSE, backbone, {6: 0.0, 7: 0.0, 8: 0.7, 9: 0.75, 10: 0.75, 11: 0.78})
    growing, filtering, stopped = Phase.GROWING, Phase.FILTERING, Phase.STOPPED
    assert found == [*[growing] * 5, *[filtering] * 6, stopped, *[growing] * 4, filtering]


def test_a_low_accuracy_settles_nothing_and_stops_nothing() -> None:
    assert COURSE.next(Phase.GROWING, [0.8] * 4, []) == Phase.GROWING  # Above the floor is meant, not at it.
    assert COURSE.next(Phase.GROWING, [0.81] * 4, []) == Phase.FILTERING
    assert COURSE.next(Phase.FILTERING, [0.9] * 4, [0.0] * 4) == Phase.FILTERING
    assert COURSE.next(Phase.FILTERING, [0.9] * 4, [0.71] * 4) == Phase.STOPPED
    assert COURSE.next(Phase.FILTERING, [0.9] * 4, [0.71] * 3) == Phase.FILTERING  # Not yet two windows.


def test_a_rise_is_a_shift_like_a_fall() -> None:
    for phase in (Phase.FILTERING, Phase.STOPPED):
        assert COURSE.next(phase, [0.7, 0.7, 0.95], []) == Phase.GROWING
        assert COURSE.next(phase, [0.95, 0.95, 0.7], []) == Phase.GROWING
        assert COURSE.next(phase, [0.9, 0.9, 0.75], []) == phase


@pytest.mark.parametrize("phase", list(Phase))
def test_an_accuracy_that_is_no_number_changes_nothing(phase: Phase) -> None:
    assert COURSE.next(phase, [math.nan] * 4, [math.nan] * 4) == phase


def test_a_shadow_that_is_not_to_stop_does_not() -> None:
    course = replace(QUICK, stopping=False).course
    assert course.next(Phase.FILTERING, [0.9] * 4, [0.9] * 4) == Phase.FILTERING


# The same through the strategy.


@dataclass(frozen=True)
class Told:
    """A round's answers, as the server sees them."""

    seen: Revealed

    def reveal(self) -> Revealed:
        return self.seen

    def mean(self, channel: str) -> Tensor:
        return self.seen.channels[channel].mean(0)


def told(
    strategy: Shadow,
    right: float,
    shadow: float = 0.9,
    *,
    apart: Mapping[int, Sequence[int]] | None = None,
    liars: Sequence[int] = (),
    without: Sequence[int] = (),
    seed: int = 0,
) -> Told:
    """Ten silos say how right both models are; those `apart` show other numbers of a label (by its place).

    Liars claim that the shadow is never right; those without rows show nothing. A silo's updates are its number.
    """
    labels, rng = len(strategy.target), torch.Generator().manual_seed(seed)
    shown = torch.randn(SILOS, labels, strategy.width, generator=rng)
    for label, silos in (apart or {}).items():
        shown[list(silos), label] += 50.0
    claims = torch.tensor([right, shadow, 1.0]).repeat(SILOS, labels, 1)
    claims[list(liars), :, 1] = 0.0
    shown[list(without)], claims[list(without)] = 0.0, 0.0
    number = torch.arange(SILOS).float().unsqueeze(1)
    channels = {"delta": number.expand(-1, SIZE), "shadow": 10 * number.expand(-1, SIZE)}
    channels |= {SHOWN: shown.flatten(1), COUNTED: claims.flatten(1)}
    return Told(Revealed(tuple(range(SILOS)), torch.ones(SILOS), channels))


def begin(strategy: Shadow) -> State:
    return strategy.init(torch.full((SIZE,), -1.0), torch.Generator(), Layout.of(nn.Linear(SIZE, 1, bias=False)))


def after(strategy: Shadow, state: State, *answers: Told) -> State:
    for each in answers:
        state = strategy.aggregate(state, each, torch.Generator())  # type: ignore[arg-type]
    return state


def settled(strategy: Shadow, **changes: object) -> State:
    """The state in which the shadow learns in the next round: settled in round 4, with one round of what is shown."""
    state = after(strategy, begin(strategy), *[told(strategy, 0.9, seed=seed) for seed in range(4)])
    assert int(state["phase"]) == Phase.FILTERING
    return after(strategy, state, told(strategy, 0.9, seed=5, **changes))  # type: ignore[arg-type]


def test_s8_through_the_strategy() -> None:
    strategy, found = QUICK, []
    state = begin(strategy)
    right = [0.9] * 10 + [0.5] + [0.9] * 8
    for number, each in enumerate(right):
        state = after(strategy, state, told(strategy, each, seed=number))
        judged = strategy.flagged(state) is not None
        found.append((int(state["phase"]), "shadow" in strategy.instruct(state, 1), judged))
    waits, learns, judges = (1, False, False), (1, True, False), (1, True, True)
    grows, stopped = (0, False, False), (2, False, False)
    # Settled after 4 rounds; one more is pooled; three rounds of learning; done when four accuracies are known.
    first = [*[grows] * 3, waits, learns, *[judges] * 3, *[stopped] * 2]
    assert found == [*first, *[grows] * 4, waits, learns, *[judges] * 3]
    assert strategy.report(state) == {"phase": "filtering", "shadows": 2.0, "guarded": 1.0}


def test_a_shadow_begins_untrained_and_moves_by_those_who_pass() -> None:
    bad = [0, 2]  # Without them the mean is another than everybody's 4.5.
    before = settled(QUICK, apart={0: bad})
    assert torch.equal(before["shadow"], before["initial"])
    state = after(QUICK, before, told(QUICK, 0.9, apart={0: bad}, seed=6))
    flagged = QUICK.flagged(state)
    assert flagged is not None
    assert set(bad) <= set(flagged.tolist())
    assert len(flagged) < SILOS
    kept = [silo for silo in range(SILOS) if silo not in flagged.tolist()]
    # Silo k's update of the shadow is 10 k; each of those who pass counts once.
    torch.testing.assert_close(state["shadow"], torch.full((SIZE,), -1.0 + 10.0 * sum(kept) / len(kept)))
    # The backbone learns from everyone, in every round: 6 rounds of a mean of 4.5.
    torch.testing.assert_close(state["model"], torch.full((SIZE,), -1.0 + 6 * 4.5))


def test_only_those_who_pass_say_how_good_the_shadow_is() -> None:
    bad = [2, 7]
    before = settled(QUICK, apart={0: bad})
    state = after(QUICK, before, told(QUICK, 0.9, 0.95, apart={0: bad}, liars=bad, seed=6))
    torch.testing.assert_close(state["shadow_accuracies"], torch.tensor([0.95]))


def test_a_silo_that_shows_nothing_does_not_pass() -> None:
    state = after(QUICK, settled(QUICK), told(QUICK, 0.9, without=[4], seed=6))
    flagged = QUICK.flagged(state)
    assert flagged is not None
    assert 4 in flagged.tolist()


def test_a_claim_counts_as_no_more_than_right_always() -> None:
    state = after(QUICK, begin(QUICK), told(QUICK, 1e9))
    assert state["accuracies"].tolist() == [1.0]


def test_of_several_labels_that_is_guarded_whose_silos_stand_apart() -> None:
    strategy = replace(QUICK, target=(1, 5, 8))
    for place, label in enumerate(strategy.target):
        before = settled(strategy, apart={place: [2, 7]})
        state = after(strategy, before, told(strategy, 0.9, apart={place: [2, 7]}, seed=6))
        guard = strategy.guard(state)
        assert guard is not None
        assert guard.label == label
        assert {2, 7} <= set(state["flagged"].tolist())


def test_the_guard_before_it_answers_until_a_shadow_is_good() -> None:
    state = settled(QUICK)
    assert QUICK.guard(state) is None
    low = after(QUICK, state, told(QUICK, 0.9, 0.3, seed=6))
    assert QUICK.guard(low) is None  # .3 is below the floor.
    good = after(QUICK, low, told(QUICK, 0.9, 0.9, seed=7))
    guard = QUICK.guard(good)
    assert guard is not None
    assert torch.equal(guard.model, good["shadow"])
    shifted = after(QUICK, good, told(QUICK, 0.4, 0.9, seed=8))
    kept = QUICK.guard(shifted)
    assert kept is not None
    assert torch.equal(kept.model, guard.model)
    assert torch.equal(shifted["shadow"], shifted["initial"])
    assert not len(shifted["pooled"])  # What was shown before the shift says nothing of what comes.


def test_the_order_of_answers_does_not_matter() -> None:
    before, answers = settled(QUICK, apart={0: [2]}), told(QUICK, 0.9, apart={0: [2]}, seed=6)
    order = torch.randperm(SILOS, generator=torch.Generator().manual_seed(1))
    seen = answers.seen
    mixed = Revealed(
        tuple(order.tolist()), seen.weights[order], {name: rows[order] for name, rows in seen.channels.items()}
    )
    first, second = after(QUICK, before, answers), after(QUICK, before, Told(mixed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_settings_that_cannot_work_are_refused_in_a_line_each() -> None:
    found = Shadow(target=(1, 1), malicious=0.0, settle=0.1, shift=0.1).problems(private=False)
    assert found == [
        "strategy.target: give one label, or several that differ",
        "strategy.malicious: 0 filters nothing and chooses no label; give one strategy.target",
        "strategy.shift: must be above settle (0.1), got 0.1",
    ]


# S9: nobody attacks and nobody is filtered.


def trained(strategy: Strategy, rounds: int, *, first: int = 1) -> list[State]:
    """States after each round of real training; all rows make one batch, so that nothing is drawn."""
    task, shape, rng = MLP((6,), "relu"), Shape((5,), 2), torch.Generator().manual_seed(4)
    features = torch.randn(60, 5, generator=rng)
    shards = Shards(Examples(features, (features[:, 0] > 0).long()), torch.arange(0, 61, 12))
    module, model = initial(task, shape, seed=1)
    host = SiloHost(
        strategy=strategy,
        task=task,
        module=module,
        shape=shape,
        train=Train(steps=4, learning_rate=0.5),
        shards=shards,
        held_out=None,
        seed=3,
        stacked=True,
        personal=None,
    )
    sizes = strategy.channels(model.numel())
    bounds = dict.fromkeys(sizes, ExactSum())
    states = [strategy.init(model, torch.Generator(), Layout.of(module))]
    for number in range(first, first + rounds):
        collector = Collector(bounds, sizes, expected=5.0, population=5, reveals=strategy.reveals)
        asked = strategy.instruct(states[-1], number)
        collector.add(host.contribute(asked, range(5), bounds, chunk=0))
        release = collector.release(SimulatedNoise(1), stream=("noise", number))
        states.append(strategy.aggregate(states[-1], release, torch.Generator()))
    return states


def test_s9_with_no_filter_both_models_are_federated_averaging() -> None:
    strategy = replace(QUICK, malicious=0.0, floor=0.0, stop_floor=0.0, settle=0.9, shift=0.95, stopping=False, width=8)
    states, plain = trained(strategy, 12), trained(FedAvg(), 12)
    for own, other in zip(states, plain):
        assert torch.equal(own["model"], other["model"])  # The backbone, to the bit.
    learning = [at for at, state in enumerate(states) if strategy.flagged(state) is not None]
    assert learning == list(range(6, 13))  # Settled after 4 rounds, one more is pooled.
    for rounds, at in enumerate(learning, 1):  # Sums are added in another precision: seven rounds of float32.
        torch.testing.assert_close(states[at]["shadow"], plain[rounds]["model"], atol=1e-5, rtol=1e-5)
        assert strategy.flagged(states[at]).tolist() == []  # type: ignore[union-attr]
