"""What several commands take: a config, overrides, plugins, a format."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulations.shipped import find
from strategies.schema import ConfigError

if TYPE_CHECKING:
    from client.tables import Table
    from strategies.experiment import Experiment

MOST_SEEDS = 1000
FEDERATION = "federation"
"""Of `confide serve`, where no other name is given."""


def config_argument(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """CONFIG, --set and --plugin."""
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?" if optional else None, help="a YAML file, or a shipped one by its name"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change a key, such as train.learning_rate=0.1; may be repeated",
    )
    plugin_argument(parser)


def plugin_argument(parser: argparse.ArgumentParser) -> None:
    """--plugin."""
    parser.add_argument(
        "--plugin",
        metavar="MODULE",
        action="append",
        default=[],
        dest="plugins",
        help="import a module of yours that registers strategies or tasks; may be repeated",
    )


def dataset_argument(parser: argparse.ArgumentParser) -> None:
    """--dataset."""
    parser.add_argument(
        "--dataset",
        metavar="MODULE:NAME",
        help="a torch Dataset of yours, or a function that returns one, for a config with data.name: dataset",
    )


def read_rows(dataset: str | None, experiment: Experiment) -> Table | None:
    """The rows of --dataset; None where it is not given."""
    if dataset is None:
        return None
    if experiment.data.name != "dataset":
        raise ConfigError([f"--dataset: the config's data.name is {experiment.data.name}; set data.name: dataset"])
    from client.files import read_dataset
    from strategies.plugins import import_path

    _look_here()
    found = import_path(dataset, where="--dataset")
    try:
        made = found() if isinstance(found, type) or not hasattr(found, "__getitem__") else found
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError([f"--dataset {dataset}: {type(error).__name__}: {line}; fix the module"]) from error
    return read_dataset(made, kind=experiment.data.kind, where=f"--dataset {dataset}")


def sink_argument(parser: argparse.ArgumentParser) -> None:
    """Declares `--sink`, where a run's numbers go, too."""
    parser.add_argument(
        "--sink",
        metavar="NAME",
        action="append",
        default=[],
        dest="sinks",
        help="tensorboard, mlflow or wandb: numbers go there, too; may be repeated; see metrics.sinks",
    )


def format_argument(parser: argparse.ArgumentParser, *, choices: Sequence[str] = ("table", "json")) -> None:
    """--format, the first choice being the default."""
    parser.add_argument("--format", choices=choices, default=choices[0], help=f"default: {choices[0]}")


def read(args: argparse.Namespace, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that CONFIG, --set and --plugin say, `overrides` applied last."""
    load_code(args.plugins)
    from strategies.loading import load

    return load(find(args.config), [*args.overrides, *overrides])


def load_code(plugins: Sequence[str]) -> None:
    """Imports what registers further strategies and tasks."""
    from strategies.plugins import load_entry_points, load_plugins

    load_entry_points()
    if plugins:
        _look_here()
    load_plugins(plugins)


def _look_here() -> None:
    """Lets modules that are named on the command line lie in the folder where it is given."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)


def seeds_of(text: str) -> list[int]:
    """`0..4` or `0,3,7` as seeds."""
    if match := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", text):
        first, last = map(int, match.groups())
        seeds = list(range(first, min(last, first + MOST_SEEDS) + 1))
    else:
        seeds = [int(part) for part in text.split(",")] if re.fullmatch(r"\d{1,18}(,\d{1,18})*", text) else []
    if not 1 <= len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise ConfigError([f"--seeds: write 0..4 or 0,3,7 (up to {MOST_SEEDS} different seeds), found {text[:40]!r}"])
    return seeds
