"""Groups of rows across silos: what each group loses at the server's model, and what a row of it shall weigh.

Shared by strategies that weigh groups. All minimise sum_a c_a L_a, beside base * F, where L_a is the mean loss of group
a in the whole federation and F = sum_k p_k f_k. A silo's part of that is the mean of u_i loss_i over its rows, with
u_i = base + c_a n_k / (p_k n_a).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from privacy.queries import NoisyQuery
from privacy.release import Release
from strategies.base import MOST_ROWS, Instruction, Reweight, Silo, State, Strategy, Update
from strategies.schema import key

if TYPE_CHECKING:
    from strategies.experiment import Experiment

CHANNEL = "groups"


@dataclass(frozen=True)
class Groups:
    """The groups of rows, and how their losses are asked for.

    Without `counts`, silos send in round 1 how many rows of each group they hold, in the place of losses and at the
    same price; there is no weight before that.
    """

    number: int = key(2, at_least=1, help="groups that data.group names")
    labels: int = key(
        1, at_least=1, help="2 or more: a group and a class make a group, classes from labels - 1 on being one"
    )
    counts: tuple[float, ...] | None = key(
        None, above=0, help="rows of each group in all silos, public; null: asked in round 1, as private as losses"
    )
    weighting: Literal["uniform", "examples"] = key(
        "uniform", help="a silo counts once, or by its training rows (only where silos are not private)"
    )
    smooth: float = key(0.0, at_least=0, below=1, help="part of the last estimate of losses that is kept")
    loss_clip: float = key(5.0, above=0, help="privacy.example: largest loss of a row in the sums of losses")
    noise_multiplier: float = key(5.0, above=0, help="privacy.example: noise std / loss_clip on each silo's sums")

    @property
    def size(self) -> int:
        """Groups in the sense of the constraints."""
        return self.number * self.labels

    @property
    def heaviest(self) -> float:
        """Who weighs by rows takes a silo's word for them, up to a billion."""
        return 1.0 if self.weighting == "uniform" else MOST_ROWS

    @property
    def query(self) -> NoisyQuery:
        """A silo's sums: all its rows are in them, and each in one group."""
        return NoisyQuery(self.size, self.loss_clip, self.noise_multiplier)

    def problems(self) -> Iterator[str]:
        """What in these settings cannot work."""
        if self.counts is not None and len(self.counts) != self.size:
            yield f"strategy.groups.counts: found {len(self.counts)} numbers for {self.size} groups; give one per group"

    def misfits(self, experiment: Experiment) -> Iterator[str]:
        """What does not fit the rest of the experiment."""
        privacy, cohort = experiment.privacy, experiment.cohort
        for name, section in (("silo", privacy.silo), ("local", privacy.local)):
            if section is not None and self.weighting == "examples":
                yield (
                    f"strategy.groups.weighting: 'examples' counts rows, which privacy.{name} keeps private; "
                    "use 'uniform'"
                )
        if privacy.local is not None:
            yield f"privacy.local: has one clip norm for updates and for sums of losses ({CHANNEL!r}); use privacy.silo"
        everyone = cohort.sampling == "all" or (cohort.sampling == "poisson" and cohort.rate == 1)
        if self.counts is None and not everyone:
            yield "strategy.groups.counts: missing, and round 1 asks only some of the silos; give each group's rows"
        given = {} if privacy.silo is None else {each.name: each.clip_norm for each in privacy.silo.channels}
        if privacy.silo is not None and given.get(CHANNEL) is None:
            yield (
                f"privacy.silo.channels: give {CHANNEL!r} a clip_norm of its own; sums of losses of all rows of a silo "
                "are longer than updates"
            )

    def unknown(self, names: Sequence[str]) -> Iterator[str]:
        """Whether the data has these groups."""
        if not names:
            yield "data.group: missing, and the strategy bounds or weighs groups; name the column that holds them"
        elif len(names) != self.number:
            yield f"strategy.groups.number: the data has {len(names)} groups, got {self.number}; write {len(names)}"

    def of(self, groups: Tensor | None, targets: Tensor) -> Tensor | None:
        """The group of each row, `(rows,)` int64; with `labels`, of group and class.

        Raises:
            ValueError: targets are no classes.
        """
        if groups is None or self.labels == 1:
            return groups
        if targets.is_floating_point() or targets.dim() != 1:
            raise ValueError("strategy.groups.labels: targets are no classes; use labels: 1")
        return groups * self.labels + targets.clamp(max=self.labels - 1)

    def start(self) -> dict[str, Tensor]:
        """What the server knows before round 1."""
        counts = torch.zeros(self.size) if self.counts is None else torch.tensor(self.counts)
        return {
            "round": torch.zeros(1, dtype=torch.int64),
            "counts": counts,
            "silos": torch.zeros(1),
            "losses": torch.zeros(self.size),
        }

    def knows(self, state: State) -> bool:
        """Whether a round has brought losses."""
        return int(state["round"]) > (self.counts is None)

    def pull(self, state: State, coefficients: Tensor) -> Tensor:
        """c_a / n_a times the number of silos (or of rows, where silos count by rows), `(groups,)`; 0 in round 1."""
        if not int(state["round"]):
            return torch.zeros(self.size)
        of = state["silos"] if self.weighting == "uniform" else state["counts"].sum()
        return coefficients * of / state["counts"]

    def sums(self, silo: Silo, instruction: Instruction) -> Tensor:
        """The sums of losses at the server's model, `(groups,)` or `(silos, groups)`; in a round of counts, these."""
        counting = instruction.round == 1 and self.counts is None

        def rows(losses: Tensor, groups: Tensor | None) -> Tensor:
            if groups is None:
                raise ValueError("data.group: missing, and the strategy weighs groups")
            own = one_hot(groups, self.size).to(losses.dtype)
            return own * (self.loss_clip if counting else losses)

        found = silo.query(CHANNEL, instruction["model"].unsqueeze(0), rows=rows)
        return found / self.loss_clip if counting else found

    def weights(self, silo: Silo, instruction: Instruction, *, base: float) -> Reweight | None:
        """The weights of rows; None where all are 1, to the bit what no weights are."""
        pull = instruction["pull"]
        if not bool(pull.any()):
            return None
        rows = silo.examples.unsqueeze(-1) if self.weighting == "uniform" else torch.ones(())
        return by_group(base + pull * rows)

    def update(self, silo: Silo, delta: Tensor, sums: Tensor) -> Update:
        """What a silo sends: its change, weighed, and its sums, whatever that weight."""
        if self.weighting == "uniform":
            return Update({"delta": delta, CHANNEL: sums})
        rows = silo.examples
        return Update({"delta": delta, CHANNEL: sums / rows.clamp(min=1.0).unsqueeze(-1)}, weight=rows)

    def seen(self, state: State, release: Release) -> dict[str, Tensor]:
        """What the server knows after a round.

        The sum over the cohort divided by the silos' rate errs to no side, whether a group was there or not.
        """
        after = {name: state[name].clone() for name in ("counts", "losses")}
        after |= {"round": state["round"] + 1, "silos": torch.full((1,), float(release.population))}
        total = release.sum(CHANNEL) / release.rate
        if self.counts is None and not int(state["round"]):
            return after | {"counts": total.clamp(min=1.0)}  # Noise may bring the count of a small group below 0.
        mean = total / state["counts"]
        kept = self.smooth if self.knows(state) else 0.0
        return after | {"losses": kept * state["losses"] + (1.0 - kept) * mean}


class GroupStrategy(Strategy):
    """What all strategies share that weigh groups; `groups` is a field of each, after its own."""

    groups: Groups

    @property
    def heaviest(self) -> float:
        """See `Groups.heaviest`."""
        return self.groups.heaviest

    def problems(self, *, private: bool) -> list[str]:
        """See `Groups.problems`."""
        return list(self.groups.problems())

    def misfits(self, experiment: Experiment, silos: int) -> list[str]:
        """See `Groups.misfits`."""
        return list(self.groups.misfits(experiment))

    def group_problems(self, names: Sequence[str]) -> list[str]:
        """The data must have these groups."""
        return list(self.groups.unknown(names))

    def grouped(self, groups: Tensor | None, targets: Tensor) -> Tensor | None:
        """With labels, of group and class."""
        return self.groups.of(groups, targets)

    @property
    def queries(self) -> Mapping[str, NoisyQuery]:
        """The sums of losses."""
        return {CHANNEL: self.groups.query}

    def channels(self, size: int) -> Mapping[str, int]:
        """The change, and the sums of losses."""
        return {"delta": size, CHANNEL: self.groups.size}


def zeta_problems(zeta: Sequence[float], groups: Groups) -> Iterator[str]:
    """A bound for all groups or one for each."""
    if len(zeta) not in (1, groups.size):
        yield f"strategy.zeta: found {len(zeta)} numbers for {groups.size} groups; give one, or as many"


def by_group(table: Tensor) -> Reweight:
    """Weights of rows by a table of their groups', `(groups,)` or one per silo `(silos, groups)`."""

    def reweight(losses: Tensor, groups: Tensor | None) -> Tensor:
        if groups is None:
            raise ValueError("data.group: missing, and the strategy weighs groups")
        each = table.expand(*losses.shape[:-1], table.shape[-1])
        return each.gather(-1, groups).to(losses.dtype)

    return reweight
