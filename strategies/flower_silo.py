"""A silo that is a user's own training function: what the silo half of a strategy may ask of it, and what it may not.

The server tries a strategy on such a silo before anybody is asked, and a client runs it on one: so what a plain Flower
project cannot do is refused in the same words, and before a round is paid.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from privacy import streams
from strategies.flower_records import Terms, read_task, task
from strategies.layout import Layout
from strategies.traffic import require_kept

if TYPE_CHECKING:
    from strategies.base import Strategy
    from strategies.experiment import Train

ROUNDS = (1, 2, 100, 1_000_000)  # A strategy may ask for more in later rounds.
SMALL = Layout(("weight", "bias"), ((4, 2), (4,)))


class Unfit(ValueError):
    """A strategy asks for what a plain Flower project has not; one line."""


class OwnLoop:
    """What `strategies.base.Silo` promises, as far as a training function can keep it.

    Args:
        layout: of the model.
        train: takes the vector to start from, `(N,)`, and returns the trained one.
        rows: training rows, or None where the user does not say.
    """

    def __init__(self, layout: Layout, train: Callable[[Tensor], Tensor], *, rows: int | None = None) -> None:
        self._layout, self._train, self._rows = layout, train, rows

    @property
    def layout(self) -> Layout:
        """Which stretch of a vector is which parameter."""
        return self._layout

    @property
    def examples(self) -> Tensor:
        """Training rows, `()` float32."""
        if self._rows is None:
            raise Unfit("weighs by training rows, which the client did not tell: reply(..., rows=len(data))")
        return torch.tensor(float(self._rows))

    @property
    def step_noise(self) -> Tensor:
        """None: the user's loop is no DP-SGD of ours."""
        return torch.zeros(())

    @property
    def state(self) -> MutableMapping[str, Tensor]:
        """Refused."""
        raise Unfit("keeps personal vectors between rounds")

    @state.setter
    def state(self, value: MutableMapping[str, Tensor]) -> None:
        raise Unfit("keeps personal vectors between rounds")

    @property
    def index(self) -> Tensor:
        """Refused: Flower's nodes have no numbers."""
        raise Unfit("goes by silos' numbers")

    @property
    def train(self) -> Train:
        """Refused: the settings of training are the user's own."""
        raise Unfit("reads the settings of training")

    def fit(self, start: Tensor, *, correct: Any = None, penalty: Any = None, reweight: Any = None) -> Tensor:
        """Trains by the user's function, into whose steps nobody reaches."""
        if correct is not None or penalty is not None or reweight is not None:
            raise Unfit("changes the gradients of single steps")
        return self._train(start)

    def query(self, name: str, models: Tensor, *, rows: Any) -> NoReturn:
        """Refused."""
        raise Unfit("asks for sums over rows")

    def represent(self, name: str, models: Tensor, *, rows: Any) -> NoReturn:
        """Refused."""
        raise Unfit("asks for sums over rows")

    def evaluate(self, model: Tensor, guard: Any = None) -> NoReturn:
        """Refused: evaluation is the user's own."""
        raise Unfit("evaluates models on held-out rows while it trains")


def misfit(strategy: Strategy, layout: Layout = SMALL) -> str | None:
    """Why a strategy cannot run in a plain Flower project, or None; tried on a silo that learns nothing.

    A strategy whose server half does not take so small a model is tried again on the real one.
    """
    try:
        _try(strategy, layout)
    except Unfit as error:
        return f"strategy {strategy.name!r} {error}, which a plain Flower project cannot; run it with confide run"
    return None


def _try(strategy: Strategy, layout: Layout) -> None:
    if strategy.personal(layout.size):
        raise Unfit("keeps personal vectors between rounds")
    if strategy.queries:
        raise Unfit("asks for sums over rows")
    if any(strategy.tier(silo) for silo in range(1000)):
        raise Unfit("goes by silos' numbers (tiers)")
    model = torch.linspace(-1, 1, layout.size)
    try:
        state = strategy.init(model, streams.generator(0, "init"), layout)
    except ValueError:
        if layout is SMALL:
            return
        raise
    silo = OwnLoop(layout, lambda start: start.clone(), rows=1)
    for round_ in ROUNDS:
        instruction = strategy.instruct(state, round_)
        try:
            records = task(strategy, instruction, layout, run="")
        except ValueError as error:
            raise Unfit(f"sends what does not travel ({error})") from error
        terms, received = read_task(records)
        update = terms.strategy.local(silo, received)
        require_kept(update.channels, strategy.kept(layout, round_, 0))


def refuse_other(terms: Terms, layout: Layout) -> None:
    """Refuses a model other than the server's.

    Raises:
        ValueError: one line, with the first array that differs.
    """
    theirs, ours = (list(zip(each.names, each.shapes)) for each in (terms.layout, layout))
    if theirs == ours:
        return
    server, client = next((one, other) for one, other in zip_longest(theirs, ours) if one != other)
    raise ValueError(
        f"model: the server's arrays and the module's trained parameters differ, first {server} and {client}; give the "
        "server strategies.flower_records.trainable(model) of the same model"
    )
