"""Local training: every silo on its own rows, alone. What federating has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from privacy.release import Release
from strategies.base import Instruction, Silo, State, Strategy, Update
from strategies.registry import strategy

if TYPE_CHECKING:
    from strategies.experiment import Experiment


@strategy("local")
@dataclass(frozen=True)
class Local(Strategy):
    """Nothing leaves a silo; the server's model stays the initial one."""

    def misfits(self, experiment: Experiment, silos: int) -> list[str]:
        """Privacy of what is sent has nothing to protect."""
        privacy = experiment.privacy
        sections = (("silo", privacy.silo), ("local", privacy.local))
        return [
            f"privacy.{name}: strategy local sends nothing that it could protect; remove it"
            for name, section in sections
            if section is not None
        ]

    def channels(self, size: int) -> Mapping[str, int]:
        """None."""
        return {}

    def personal(self, size: int) -> Mapping[str, int]:
        """The silo's model."""
        return {"model": size}

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        """Goes on from the silo's own model."""
        silo.state["model"] = silo.fit(silo.state.get("model", instruction["model"]))
        return Update({})

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        """Nothing came."""
        return {name: value.clone() for name, value in state.items()}

    def evaluate(self, silo: Silo, instruction: Instruction) -> Mapping[str, Tensor]:
        """A silo is served its own model."""
        return silo.evaluate(silo.state.get("model", instruction["model"]))
