"""`confide list`: what an experiment can be made of."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping

from simulations.commands import OK, output
from simulations.commands.shared import format_argument, load_code, plugin_argument
from simulations.shipped import CONFIGS, shipped

NAME = "list"
HELP = "strategies, tasks, data sets, backbones, partitions, server optimizers, shipped configs and studies"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    format_argument(parser)
    plugin_argument(parser)


def execute(args: argparse.Namespace) -> int:
    """Prints every choice with a line about it."""
    load_code(args.plugins)
    found = choices()
    if args.format == "json":
        print(output.document(found))
        return OK
    for number, (title, entries) in enumerate(found.items()):
        print(("\n" if number else "") + title)
        pairs = [(f"  {name}", about) for name, about in entries.items()]
        print(output.facts(pairs))
    return OK


def choices() -> dict[str, dict[str, str]]:
    """Every registry: title to name to what it is."""
    from simulations.data import backbones  # noqa: F401  Importing it registers them.
    from simulations.data.sources import SOURCES
    from simulations.studies.registry import load
    from strategies.backbones import BACKBONES
    from strategies.optimizers import OPTIMIZERS
    from strategies.partitions import PARTITIONS
    from strategies.registry import STRATEGIES
    from strategies.standardize import STANDARDIZE
    from strategies.tasks import TASKS

    return {
        "strategies": _first_lines(STRATEGIES),
        "tasks": _first_lines(TASKS),
        "data": {name: source.about for name, source in SOURCES.items()},
        "backbones": {name: each.about for name, each in sorted(BACKBONES.items())},
        "partitions": _first_lines(PARTITIONS),
        "standardize": _first_lines(STANDARDIZE),
        "server optimizers": _first_lines(OPTIMIZERS),
        "configs": {name: _heading(name) for name in shipped()},
        "studies": {name: study.about for name, study in load().items()},
    }


def _first_lines(registry: Mapping[str, type]) -> dict[str, str]:
    return {name: (inspect.getdoc(cls) or "").partition("\n")[0] for name, cls in sorted(registry.items())}


def _heading(name: str) -> str:
    """The first line of a shipped config, which is a comment."""
    with open(CONFIGS / f"{name}.yaml", encoding="utf-8") as file:
        return file.readline().strip("# \n")
