"""Every strategy through envelopes and silos that each hold their own rows alone: the rounds of one process.

What silos are asked over the wire is what a strategy is asked in `test_strategies`, with the same rows and models.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.engagement import Opened
from client.examples import Examples, Shards
from client.host import SiloHost
from client.office import Office
from client.personal import PersonalStore
from client.policy import Policy, Terms
from privacy import streams
from privacy.mechanism import ExactSum, Mechanism
from privacy.noise import SimulatedNoise
from privacy.release import Collector
from server.book import Book
from server.link import Link, by_tier
from server.remote import RemoteLink
from server.terms import Terms as Told
from strategies.base import State, Strategy
from strategies.envelope import Schema, Task
from strategies.experiment import Train
from strategies.layout import Layout
from strategies.registry import STRATEGIES
from strategies.tasks import Shape, initial
from strategies.tasks.dense import MLP
from tests.server.posts import FakePost, Time

SHAPE, TASK, SIZES, ROUNDS = Shape((5,), 3), MLP((6,), "tanh"), (7, 3, 12, 1, 8), 2
CASES = [cls() for cls in STRATEGIES.values() if not cls().problems(private=False)]
each = pytest.mark.parametrize("strategy", CASES, ids=str)


def rows(sizes: tuple[int, ...], only: int | None = None) -> Shards:
    """The rows of all silos; with `only`, those of one, and all other silos are empty."""
    rng = torch.Generator().manual_seed(4)
    features, targets = torch.randn(sum(SIZES), 5, generator=rng), torch.randint(3, (sum(SIZES),), generator=rng)
    whole = Shards(Examples(features, targets, targets % 2), torch.tensor([0, *sizes]).cumsum(0))
    if only is None:
        return whole
    empty = torch.empty(0, dtype=torch.int64)
    parts = [torch.arange(*whole.offsets[n : n + 2]) if n == only else empty for n in range(len(sizes))]
    return Shards.gather(whole.rows, parts)


def host(strategy: Strategy, folder: Path, shards: Shards) -> SiloHost:
    module, start = initial(TASK, SHAPE, seed=1)
    kept = strategy.personal(start.numel())
    steps = 3 if getattr(strategy, "lam", None) == "auto" else None
    return SiloHost(
        strategy=strategy,
        task=TASK,
        module=module,
        shape=SHAPE,
        train=Train(steps=steps, batch_size=4, learning_rate=0.05),
        shards=shards,
        held_out=shards,
        seed=3,
        stacked=True,
        personal=PersonalStore(folder, silos=len(SIZES), sizes=kept) if kept else None,
    )


class InOne(Link):
    """All silos in this process, one chunk a tier."""

    def __init__(self, strategy: Strategy, folder: Path) -> None:
        self.host, self.population = host(strategy, folder, rows(SIZES)), len(SIZES)

    def ask(self, requests, mechanisms, *, record):  # type: ignore[no-untyped-def]
        for chunk, request in enumerate(requests):
            yield self.host.contribute(request.instruction, request.silos, mechanisms, chunk=chunk, record=record)

    def evaluate(self, instruction, silos, *, split="test", fresh=False):  # type: ignore[no-untyped-def]
        return self.host.evaluate(instruction, silos, split=split, fresh=fresh)

    def stage(self) -> None: ...

    def recover(self, round_: int) -> None: ...

    def close(self) -> None: ...

    def commit(self, round_: int) -> None:
        if self.host.personal is not None:
            self.host.personal.commit(round_)


def apart(strategy: Strategy, folder: Path, opened_here: ExitStack) -> RemoteLink:
    """Every silo in an office of its own, reached by bytes."""
    policy = Policy(
        unprotected=True, strategies=(strategy.name,), tasks=("any",), metrics=("loss", "score", "train_loss")
    )
    time = Time()
    post = FakePost(time)
    for number in range(len(SIZES)):

        def opened(hello: Task, number: int = number) -> Opened:
            terms = Terms(strategy.name, "any", False, (), SIZES[number], ROUNDS)
            exact: dict[str, Mechanism] = dict.fromkeys(strategy.channels(size()), ExactSum())
            return Opened(terms, "ab" * 32, exact, "float32", lambda at: host(strategy, at, rows(SIZES, number)))

        office = Office(number=number, policy=policy, folder=folder / f"silo{number}", open_run=opened)
        post.silos[10 + number] = opened_here.enter_context(closing(office)).handle
    told = Told(
        strategy=strategy,
        layout=Layout.of(initial(TASK, SHAPE, seed=1)[0]),
        digest="d" * 64,
        experiment="rounds: 1\n",
        schema=Schema(kind="classification", shape=(5,), classes=3),
        population=len(SIZES),
        chunk=len(SIZES),
    )
    return RemoteLink(post, Book(folder / "federation.json"), told, clock=time.clock)


def size() -> int:
    return initial(TASK, SHAPE, seed=1)[1].numel()


def rounds(strategy: Strategy, link: Link, state: State, mechanisms: dict[str, Mechanism]) -> State:
    sizes = strategy.channels(size())
    for number in range(1, ROUNDS + 1):
        collector = Collector(mechanisms, sizes, expected=5, population=5, reveals=strategy.reveals)
        # Silo 1 is not asked in round 2: what it keeps stays as it was.
        asked = [silo for silo in range(len(SIZES)) if (silo, number) != (1, 2)]
        for partial in link.ask(by_tier(strategy, state, number, asked), mechanisms, record=True):
            assert partial.failures == ()
            collector.add(partial)
        release = collector.release(SimulatedNoise(3), stream=("noise", number))
        state = strategy.aggregate(state, release, streams.generator(3, "aggregate", number))
        link.stage()
        link.commit(number)
    return state


def close(one: Tensor, other: Tensor) -> None:
    """Stacks of several silos and of one differ in the order of additions: rounding of float32, over a few steps."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@each
def test_rounds_with_silos_apart_are_those_of_one_process(strategy: Strategy, tmp_path: Path) -> None:
    module, start = initial(TASK, SHAPE, seed=1)
    state = strategy.init(start, streams.generator(3, "init"), Layout.of(module))
    exact: dict[str, Mechanism] = dict.fromkeys(strategy.channels(start.numel()), ExactSum())
    with ExitStack() as offices:
        links = (InOne(strategy, tmp_path / "one"), apart(strategy, tmp_path / "apart", offices))
        together, remote = (rounds(strategy, link, state, exact) for link in links)
        assert together.keys() == remote.keys()
        for name in together:
            close(together[name].double(), remote[name].double())
        for request in by_tier(strategy, remote, ROUNDS, range(len(SIZES))):
            here, there = (link.evaluate(request.instruction, request.silos) for link in links)
            assert (here.silos, here.rows) == (there.silos, there.rows)
            close(torch.tensor(here.loss), torch.tensor(there.loss))
