"""The studies by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from simulations.studies.cells import Cells, Stopped
from simulations.studies.findings import Findings

FIVE = (0, 1, 2, 3, 4)
MODULES = (
    "accountant_grid",
    "alarm",
    "bounded_group_loss",
    "canary_cost",
    "flasc",
    "flasc_beyond",
    "iterates",
    "mean_estimation",
    "mr_mtl",
    "one_shot_table",
    "reading_epsilon",
    "scoreboard",
    "shadow_learning",
)  # Of this folder; each registers its studies.


@dataclass(frozen=True)
class Ask:
    """What a study is asked for.

    Attributes:
        quick: a small version, which lists under `skipped` what it left out.
        seeds: of its runs.
        cells: runs experiments, and remembers those that were done.
        say: prints a line of progress.
        stop: whether a signal came.
    """

    quick: bool
    seeds: tuple[int, ...]
    cells: Cells
    say: Callable[[str], None]
    stop: Callable[[], bool] = lambda: False

    def go_on(self) -> None:
        """Between two long pieces of work: ends the study where a signal came.

        Raises:
            Stopped: one did.
        """
        if self.stop():
            raise Stopped


@dataclass(frozen=True)
class Study:
    """An experiment, or many, that shows or fails to show a claim.

    Attributes:
        name: what `confide study` calls it.
        about: one line for people.
        seeds: of the whole study; empty where nothing is drawn.
        quick_seeds: of the quick one.
        run: does it.
    """

    name: str
    about: str
    seeds: tuple[int, ...]
    quick_seeds: tuple[int, ...]
    run: Callable[[Ask], Findings]


STUDIES: dict[str, Study] = {}


def study(
    name: str, *, about: str, seeds: Sequence[int] = FIVE, quick_seeds: Sequence[int] = (0, 1)
) -> Callable[[Callable[[Ask], Findings]], Callable[[Ask], Findings]]:
    """Registers a function as the study that `confide study` calls `name`.

    Raises:
        ValueError: the name is taken.
    """

    def register(run: Callable[[Ask], Findings]) -> Callable[[Ask], Findings]:
        if name in STUDIES:
            raise ValueError(f"study {name!r} is there already")
        STUDIES[name] = Study(name, about, tuple(seeds), tuple(quick_seeds), run)
        return run

    return register


def load() -> dict[str, Study]:
    """All studies, in the order of their names."""
    for module in MODULES:
        import_module(f"simulations.studies.{module}")
    return dict(sorted(STUDIES.items()))
