"""Shadow learning: a backbone that everyone trains, and a filtered second model that answers for the attacked class.

Source: Wang, Hayase, Fanti, Oh, "Towards a Defense Against Federated Backdoor Attacks Under Continuous Training", TMLR
2023, arXiv 2205.11736, algorithms 1 and 2; the filter is SPECTRE (`strategies.spectre`). A filter alone leaks: over
many rounds enough poisoned updates pass. So a shadow starts fresh once the backbone has settled, learns from the silos
that pass, and stops before much has leaked. Wherever the backbone says the target label, the shadow answers.

Deviations: accuracies are averaged over rounds (`shadow_course`). A shadow learns once `pool` rounds of the settled
backbone have been seen: before, it does not yet know what it is to hide. It restarts from the model of round 1, which
is as untrained as a fresh one. With several candidate labels one shadow is kept, for the label whose silos stand apart
most. Until a shadow reaches `stop_floor`, the one before it answers, or the backbone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from privacy.queries import NoisyQuery
from privacy.release import Release
from privacy.revealed import Revealed
from strategies import spectre
from strategies.base import Guard, Instruction, Reported, Silo, State, Strategy, Update
from strategies.layout import Layout
from strategies.optimizers import OPTIMIZERS, SGD, Optimizer, step
from strategies.registry import strategy
from strategies.robust import by_silo
from strategies.schema import key
from strategies.shadow_course import Course, Phase
from strategies.shadow_looks import Look

if TYPE_CHECKING:
    from strategies.experiment import Experiment

SHOWN, COUNTED = "shown", "counted"
OTHERS = "shadow."  # Before the names of what the shadow's optimizer works on.


@strategy("shadow")
@dataclass(frozen=True)
class Shadow(Strategy):
    """Per candidate label a silo also sends the mean of what the backbone makes of its rows, and how many are right."""

    target: tuple[int, ...] = key((0,), at_least=0, help="the label under attack; or several, of which one is chosen")
    malicious: float = key(0.15, at_least=0, below=0.5, help="fraction of silos that may be malicious; 0: no filter")
    pool: int = key(10, at_least=1, help="rounds whose representations are filtered together; 5 or more above 0.2")
    window: int = key(5, at_least=1, help="rounds whose accuracies are averaged before they are compared")
    settle: float = key(0.01, above=0, help="the backbone has settled when its accuracy on the target changes by less")
    floor: float = key(0.8, at_least=0, below=1, help="and when that accuracy is above this")
    shift_window: int = key(2, at_least=1, help="rounds whose accuracies are compared with the `window` before them")
    shift: float = key(0.05, above=0, help="to find a shift, a change by more than this; then a new shadow starts")
    stop: float = key(0.01, above=0, help="a shadow is done when its accuracy on the target changes by less")
    stop_floor: float = key(0.8, at_least=0, below=1, help="and when that accuracy is above this")
    stop_window: int = key(20, at_least=1, help="rounds whose accuracies of the shadow are averaged likewise")
    stopping: bool = key(True, help="off: the shadow learns on until a shift, as a filter alone would")
    width: int = key(128, at_least=1, help="numbers a silo shows of a label; longer representations are projected")
    look_epsilon: float = key(0.5, above=0, help="privacy.example: of each of two looks at the rows a round")
    look_clip: float = key(10.0, above=0, help="privacy.example: largest norm of what one row shows")
    server: Optimizer = key(SGD(), variants=lambda: OPTIMIZERS, help="optimizer of the server's step, of both models")

    reveals: ClassVar[bool] = True
    fits: ClassVar[int] = 2

    def problems(self, *, private: bool) -> list[str]:
        """Labels are told apart by their numbers; a shift must be more than what counts as settled."""
        lines = []
        if not self.target or len(set(self.target)) != len(self.target):
            lines.append("strategy.target: give one label, or several that differ")
        if len(self.target) > 1 and self.malicious == 0:
            lines.append("strategy.malicious: 0 filters nothing and chooses no label; give one strategy.target")
        if not self.shift > self.settle:
            lines.append(f"strategy.shift: must be above settle ({self.settle:g}), got {self.shift:g}")
        return lines

    def misfits(self, experiment: Experiment, silos: int) -> list[str]:
        """There must be classes to watch."""
        if "classification" in experiment.task.kinds:
            return []
        return [f"strategy.target: a label needs classes, which task {experiment.task.name!r} has not"]

    @property
    def course(self) -> Course:
        """When a shadow starts and stops."""
        stop = self.stop if self.stopping else 0.0
        return Course(
            window=self.window,
            settle=self.settle,
            floor=self.floor,
            shift_window=self.shift_window,
            shift=self.shift,
            stop_window=self.stop_window,
            stop=stop,
            stop_floor=self.stop_floor,
        )

    @property
    def queries(self) -> Mapping[str, NoisyQuery]:
        """What is shown of the rows of each label, and how many of them there are and are right."""
        labels = len(self.target)
        return {
            SHOWN: NoisyQuery.costing(self.look_epsilon, size=labels * self.width, clip_norm=self.look_clip),
            COUNTED: NoisyQuery.costing(self.look_epsilon, size=3 * labels, clip_norm=math.sqrt(3)),
        }

    def channels(self, size: int) -> Mapping[str, int]:
        """Both changes; per label what is shown, and whether there are rows, and both models' accuracies."""
        labels = len(self.target)
        return {"delta": size, "shadow": size, SHOWN: labels * self.width, COUNTED: 3 * labels}

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        """Nobody judged, no shadow, no history."""
        labels = len(self.target)
        return {
            "model": model,
            "initial": model.clone(),
            "shadow": model.clone(),
            "guard": model.clone(),
            "guarded": torch.tensor(-1),
            "phase": torch.tensor(int(Phase.GROWING)),
            "label": torch.tensor(0),
            "shadows": torch.tensor(0),
            "accuracies": torch.zeros(0),
            "shadow_accuracies": torch.zeros(0),
            "pooled": torch.zeros(0, labels, self.width),
            "present": torch.zeros(0, labels, dtype=torch.bool),
            "ages": torch.zeros(0, dtype=torch.int64),
            "flagged": torch.zeros(0, dtype=torch.int64),
            "judged": torch.tensor(False),
        }

    def instruct(self, state: State, round_: int, tier: int = 0) -> Instruction:
        """The backbone; the shadow while it learns; and the model that answers for the label."""
        sent = {name: state[name] for name in ("model", "guard", "guarded") if name == "model" or _guarded(state)}
        if self._learning(state):
            sent["shadow"] = state["shadow"]
        return Instruction(round_, {name: value.float() for name, value in sent.items()}, tier)

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Trains both models, and says what the backbone makes of its rows of each candidate label."""
        model, shadow = instruction["model"], instruction.get("shadow")
        shown, counts = self._look(silo, model, shadow)
        sent = {"delta": silo.fit(model) - model, SHOWN: shown.flatten(-2), COUNTED: counts.flatten(-2)}
        sent["shadow"] = torch.zeros_like(sent["delta"]) if shadow is None else silo.fit(shadow) - shadow
        return Update(sent)

    def _look(self, silo: Silo, model: Tensor, shadow: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is shown, `(..., labels, width)`; and both accuracies and whether there are rows, `(..., labels, 3)`."""
        look = Look(self.target, self.width)
        models = torch.stack([model] if shadow is None else [model, shadow])
        shown = look.by_label(silo.represent(SHOWN, models[:1], rows=look.shown))
        counted = look.by_label(silo.represent(COUNTED, models, rows=look.counted))
        rows = counted[..., 2:].clamp(min=1.0)  # Noised where rows are private.
        present = (counted[..., 2:] >= 0.5).float()
        return shown / rows, torch.cat([(counted[..., :2] / rows).clamp(0, 1), present], dim=-1) * present

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """A round of the backbone, then of the course, then of the shadow."""
        seen = by_silo(release.reveal())
        quiet = {"flagged": torch.zeros(0, dtype=torch.int64), "judged": torch.tensor(False)}
        after = step(self.server, {**state, **quiet}, release.mean("delta"))
        present, rates = self._claims(seen)
        if not bool(present.any()):
            return after
        learning, before = self._learning(state), Phase(int(state["phase"]))
        after |= self._remembered(after, seen, present, rates)
        if learning:
            if not len(after["shadow_accuracies"]):
                after |= {"label": torch.tensor(self._suspect(after)), "shadows": state["shadows"] + 1}
            kept = ~self._out(after, len(seen.silos))
            after["shadow_accuracies"] = self._said(after, seen, kept)
        phase = self.course.next(before, after["accuracies"].tolist(), after["shadow_accuracies"].tolist())
        if phase != before:
            return after | self._turned(after, phase)
        return self._shadowed(after, seen, kept) if learning else after

    def _learning(self, state: State) -> bool:
        """Whether the shadow learns in the next round: with it, `pool` rounds of the settled backbone are known."""
        return bool(state["phase"] == Phase.FILTERING) and _rounds(state["ages"]) + 1 >= self.pool

    def _claims(self, seen: Revealed) -> tuple[Tensor, Tensor]:
        """Who has rows of which label, `(silos, labels)` bool; and of each label both models' accuracy, `(labels, 2)`.

        Every silo counts once, and a claim outside [0, 1] counts as the end it is beyond.
        """
        claims = seen.channels[COUNTED].view(-1, len(self.target), 3).clamp(0, 1)
        present = claims[..., 2] >= 0.5
        total = (claims[..., :2] * present.unsqueeze(-1)).sum(0)
        return present, total / present.sum(0).clamp(min=1).unsqueeze(-1)

    def _said(self, state: State, seen: Revealed, kept: Tensor) -> Tensor:
        """The shadow's accuracies of the last rounds, with a round's: as told by the silos that pass the filter."""
        claims = seen.channels[COUNTED].view(-1, len(self.target), 3)[kept, int(state["label"])].clamp(0, 1)
        said = claims[claims[:, 2] >= 0.5, 1]
        fresh = said.mean().reshape(1) if len(said) else said
        return torch.cat([state["shadow_accuracies"], fresh])[-2 * self.stop_window :]

    def _remembered(self, state: State, seen: Revealed, present: Tensor, rates: Tensor) -> dict[str, Tensor]:
        """The backbone's accuracies and what silos showed of the last rounds, with a round's."""
        shown = seen.channels[SHOWN].view(-1, len(self.target), self.width)
        fresh = torch.zeros(len(shown), dtype=torch.int64)
        recent = state["ages"] + 1 < self.pool
        accuracy = rates[present.any(0), 0].mean().reshape(1)
        return {
            "accuracies": torch.cat([state["accuracies"], accuracy])[-self.course.remembered :],
            "pooled": torch.cat([state["pooled"][recent], shown]),
            "present": torch.cat([state["present"][recent], present]),
            "ages": torch.cat([state["ages"][recent] + 1, fresh]),
        }

    def _turned(self, state: State, phase: Phase) -> dict[str, Tensor]:
        """What changes where a phase begins; what was shown before it says nothing of what comes."""
        found = {"phase": torch.tensor(int(phase))}
        if phase == Phase.STOPPED:
            return found
        old = ["pooled", "present", "ages", "shadow_accuracies"]
        if phase == Phase.GROWING:
            old.append("accuracies")
        empty = {name: state[name][:0].clone() for name in old}
        return found | empty | {"shadow": state["initial"].clone()}

    def _suspect(self, state: State) -> int:
        """The place of the label whose silos stand apart most; that of the only one."""
        if len(self.target) == 1:
            return 0
        shown = [state["pooled"][state["present"][:, at], at] for at in range(len(self.target))]
        apart = [spectre.standing_apart(rows, self.malicious) for rows in shown]
        return max(range(len(apart)), key=lambda at: apart[at])

    def _shadowed(self, state: State, seen: Revealed, kept: Tensor) -> State:
        """A round of the shadow over the silos that pass; what it says of the label is served once it is good."""
        found = {**state, "flagged": torch.tensor(seen.silos, dtype=torch.int64)[~kept], "judged": torch.tensor(True)}
        if not bool(kept.any()):
            return found
        slots = {name.removeprefix(OTHERS): value for name, value in state.items() if name.startswith(OTHERS)}
        own = slots if len(state["shadow_accuracies"]) > 1 else {}  # Of a shadow before this one.
        moved = step(self.server, {**own, "model": state["shadow"]}, seen.channels["shadow"][kept].mean(0))
        found["shadow"] = moved.pop("model")
        found |= {OTHERS + name: value for name, value in moved.items()}
        if state["shadow_accuracies"][-1:].sum() > self.stop_floor:
            found |= {"guard": found["shadow"].clone(), "guarded": torch.tensor(self.target[int(state["label"])])}
        return found

    def _out(self, state: State, silos: int) -> Tensor:
        """The silos of this round that do not pass, `(silos,)`; one that shows nothing does not."""
        if self.malicious == 0:
            return torch.zeros(silos, dtype=torch.bool)
        label = int(state["label"])
        present = state["present"][:, label]
        out = torch.ones(len(present), dtype=torch.bool)
        out[present] = spectre.flagged(state["pooled"][present, label], self.malicious)
        return out[len(out) - silos :]

    def predictor(self, state: State) -> Tensor:
        """The backbone."""
        return state["model"]

    def guard(self, state: State) -> Guard | None:
        """The shadow, for the label."""
        return Guard(int(state["guarded"]), state["guard"]) if _guarded(state) else None

    def flagged(self, state: State) -> Tensor | None:
        """The silos that the filter kept from the shadow in the last round; None where none learned."""
        return state["flagged"] if bool(state["judged"]) else None

    def variants(self, state: State, round_: int) -> Mapping[str, Tensor]:
        """Both models alone: what they do without each other."""
        return {"backbone": state["model"], "shadow": state["shadow"]} if _guarded(state) else {}

    def report(self, state: State) -> Mapping[str, Reported]:
        """Where the course is, how many shadows have begun to learn, and which label is guarded: -1 for none yet."""
        phase = Phase(int(state["phase"])).name.lower()
        return {"phase": phase, "shadows": float(state["shadows"]), "guarded": float(state["guarded"])}

    def evaluate(self, silo: Silo, instruction: Instruction) -> Mapping[str, Tensor]:
        """Both models as one."""
        if "guard" not in instruction:
            return silo.evaluate(instruction["model"])
        return silo.evaluate(instruction["model"], Guard(int(instruction["guarded"]), instruction["guard"]))


def _rounds(ages: Tensor) -> int:
    return int(ages.max()) + 1 if len(ages) else 0


def _guarded(state: State) -> bool:
    return int(state["guarded"]) >= 0
