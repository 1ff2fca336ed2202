"""What a strategy is: a server half and a silo half that meet in instructions and updates.

Vectors are flat. The silo half runs on one silo, with vectors `(N,)`, or on a stacked chunk of them, with vectors
`(silos, N)`; written on the last axis it is the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from privacy.queries import NoisyQuery
from privacy.release import Release
from strategies.layout import Layout

if TYPE_CHECKING:
    from strategies.experiment import Experiment, Train

State = Mapping[str, Tensor]
Correction = Callable[[Tensor, Tensor], Tensor]
Penalty = Callable[[Tensor], Tensor]
Rows = Callable[[Tensor, Tensor | None], Tensor]
Shown = Callable[[Tensor, Tensor, Tensor], Tensor]
Reweight = Callable[[Tensor, Tensor | None], Tensor]
Reported = float | bool | str | list[float]
Split = Literal["validation", "test"]
MOST_ROWS = 1e9  # The largest weight of an update, where silos weigh by their rows.

MOST_ROWS = 1e9
"""What a silo may say that it has, where it weighs by its rows."""


@dataclass(frozen=True)
class Instruction(Mapping[str, Tensor]):
    """What the server sends to the silos of one tier in one round.

    Attributes:
        round: from 1.
        vectors: named tensors, the same for every silo of the tier; copies of what was given, so that nothing a silo
            half does to them reaches the server's state.
        tier: of the silos asked.
        kept: how many numbers of a vector travel, where the others are zero; left out, all of them do.
    """

    round: int
    vectors: Mapping[str, Tensor]
    tier: int = 0
    kept: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", {name: vector.clone() for name, vector in self.vectors.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self.vectors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def sizes(self) -> dict[str, int]:
        """The length of every vector."""
        return {name: vector.numel() for name, vector in self.vectors.items()}


@dataclass(frozen=True)
class Update:
    """What a silo sends back.

    Attributes:
        channels: channel to `(N,)`, or `(silos, N)` from a stacked chunk.
        weight: how much it counts, one number or `(silos,)`; at most the strategy's `heaviest`, and at most 1 under
            silo-level privacy.
    """

    channels: Mapping[str, Tensor]
    weight: Tensor | float = 1.0


@dataclass(frozen=True)
class Evaluation:
    """How each of some silos is served on its held-out rows; private numbers.

    Attributes:
        silos: their indices; silos without held-out rows are left out.
        rows: held-out rows of each.
        loss: mean loss of each.
        score: accuracy or mean squared error of each.
    """

    silos: tuple[int, ...]
    rows: tuple[int, ...]
    loss: tuple[float, ...]
    score: tuple[float, ...]


@dataclass(frozen=True)
class Guard:
    """A second model, which answers in place of the predictor wherever that says one class.

    Attributes:
        label: the class.
        model: `(N,)`.
    """

    label: int
    model: Tensor


class Silo(Protocol):
    """All that the silo half of a strategy may touch.

    Attributes:
        state: personal vectors, `(N,)` or `(silos, N)`; what is written is staged and committed with the round.
        examples: training rows, `()` or `(silos,)` float32; private.
        index: which silo, from 0, `()` or `(silos,)` int64.
        step_noise: std of the noise on one number of the gradient that a step of `fit` goes along, `()` or `(silos,)`
            float32; public, and 0 without example-level privacy.
        train: the experiment's training section; public.
    """

    state: MutableMapping[str, Tensor]

    @property
    def examples(self) -> Tensor:
        """Training rows, `()` or `(silos,)` float32."""
        ...

    @property
    def layout(self) -> Layout:
        """Which stretch of a vector is which parameter; public."""
        ...

    @property
    def index(self) -> Tensor:
        """Which silo, `()` or `(silos,)` int64."""
        ...

    @property
    def step_noise(self) -> Tensor:
        """Std of the noise in one number of a step's gradient, `()` or `(silos,)` float32."""
        ...

    @property
    def train(self) -> Train:
        """The experiment's training section."""
        ...

    def fit(
        self,
        start: Tensor,
        *,
        correct: Correction | None = None,
        penalty: Penalty | None = None,
        reweight: Reweight | None = None,
    ) -> Tensor:
        """Trains from `start` (`(N,)`, broadcast over a stack) as the experiment's `train` section says.

        Args:
            start: where to begin.
            correct: turns (parameters, gradient) into the gradient to step with. It acts outside any privacy
                boundary of the gradient, so it must not read data.
            penalty: turns parameters into a vector that is added to the gradient of every example before it is
                clipped, where examples are private; else it adds to the gradient as `correct` can. It reads no data
                either.
            reweight: turns the losses of a batch's rows, and their groups where the data has some, each `(rows,)` or
                `(silos, rows)`, into what each row's loss is multiplied by: at least 0, before its gradient is
                clipped. Where examples are private, a row's weight must follow from its own loss and group alone.

        Returns:
            The trained vector, `(N,)` or `(silos, N)`.
        """
        ...

    def query(self, name: str, models: Tensor, *, rows: Rows) -> Tensor:
        """A sum over all the silo's training rows; clipped and noised under example-level privacy, else exact.

        Under silo-level privacy alone it stays in the silo, and only what is sent is priced.

        Args:
            name: of one of the strategy's `queries`; each may be asked once a round.
            models: `(models, N)`, the same for every silo, or `(silos, models, N)`.
            rows: turns the losses of rows under the models `(rows, models)`, and the groups of rows `(rows,)` where the
                data has some, into what each row adds `(rows, size)`. A row's numbers must follow from its own alone.

        Returns:
            The sum, `(size,)` or `(silos, size)`.
        """
        ...

    def represent(self, name: str, models: Tensor, *, rows: Shown) -> Tensor:
        """A sum over all the silo's training rows of what models make of them; released, and priced, as by `query`.

        Args:
            name: as for `query`.
            models: as for `query`.
            rows: turns what goes into each model's last dense layer `(rows, models, width)`, its outputs
                `(rows, models, classes)` and the classes of rows `(rows,)` into what each row adds `(rows, size)`. A
                row's numbers must follow from its own alone.

        Returns:
            The sum, `(size,)` or `(silos, size)`.
        """
        ...

    def evaluate(self, model: Tensor, guard: Guard | None = None) -> Mapping[str, Tensor]:
        """Loss and score of a model on the silo's own held-out rows, each `()` or `(silos,)`; private."""
        ...


class Strategy:
    """A federated algorithm. Subclasses are frozen dataclasses whose fields are their YAML schema."""

    name: ClassVar[str] = ""
    reveals: ClassVar[bool] = False
    """Whether the server half must see single updates; its silo-level epsilon is then infinite."""
    fits: ClassVar[int] = 1
    """How often the silo half trains in a round; under example-level privacy each is charged and no more are run."""

    @property
    def heaviest(self) -> float:
        """The largest weight that a silo may give its update without privacy; a larger one is refused."""
        return 1.0

    def problems(self, *, private: bool) -> list[str]:
        """What in these settings cannot work, a line each; `private`: silo- or example-level privacy is on."""
        return []

    def misfits(self, experiment: Experiment, silos: int) -> list[str]:
        """What in these settings does not fit the rest of the experiment, or its number of silos; a line each."""
        return []

    def grouped(self, groups: Tensor | None, targets: Tensor) -> Tensor | None:
        """The groups `(rows,)` that the silo half knows rows by, from those of the data and the rows' targets."""
        return groups

    def group_problems(self, names: Sequence[str]) -> list[str]:
        """What in these settings does not fit the groups of the data, `names`; a line each."""
        return []

    @property
    def queries(self) -> Mapping[str, NoisyQuery]:
        """What the silo half asks of single rows in a round, by name; under example-level privacy each is charged."""
        return {}

    def channels(self, size: int) -> Mapping[str, int]:
        """The length of every channel, for a model of `size` trainable numbers."""
        return {"delta": size}

    def kept(self, layout: Layout, round_: int, tier: int) -> Mapping[str, int]:
        """How many numbers of a channel travel up, where the others are zero; left out, all of them do.

        It decides how long a message is, so it must not depend on rows: every silo of a tier sends as many.
        """
        return {}

    def personal(self, size: int) -> Mapping[str, int]:
        """The personal vectors a silo keeps between rounds, with their lengths."""
        return {}

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """The server's state before round 1, from the initial model `(N,)`.

        Raises:
            ValueError: the model has not what the strategy needs; one line.
        """
        return {"model": model}

    def tier(self, silo: int) -> int:
        """The tier of a silo, from its number alone: public, and the same in every round."""
        return 0

    def instruct(self, state: State, round_: int, tier: int = 0) -> Instruction:
        """What the silos of a tier are sent in a round."""
        return Instruction(round_, {"model": state["model"]}, tier)

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """The silo half of a round."""
        raise TypeError(f"strategy {self.name!r} defines no local(silo, instruction)")

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """The server half of a round: the next state."""
        raise TypeError(f"strategy {self.name!r} defines no aggregate(state, release, rng)")

    def predictor(self, state: State) -> Tensor:
        """The model that is evaluated, saved and served, `(N,)`."""
        return state["model"]

    def audited(self, state: State) -> Tensor:
        """Where canaries are looked for, `(N,)`: what the releases moved, of which no less may be known than is."""
        return self.predictor(state)

    def guard(self, state: State) -> Guard | None:
        """A second model that is evaluated, saved and served with the predictor, as one; None: there is none."""
        return None

    def variants(self, state: State, round_: int) -> Mapping[str, Tensor]:
        """Other models `(N,)` worth looking at beside the predictor after a round, by name."""
        return {}

    def flagged(self, state: State) -> Tensor | None:
        """The silos whose updates the last round left out, `(silos,)` int64; None where it judged nobody."""
        return None

    def report(self, state: State) -> Mapping[str, Reported]:
        """Numbers worth telling at the end of a run, by name; from the state alone, so as public as the model."""
        return {}

    def evaluate(self, silo: Silo, instruction: Instruction) -> Mapping[str, Tensor]:
        """How well a silo is served, on its own held-out rows."""
        return silo.evaluate(instruction["model"])
