"""`confide config`: the resolved experiment, and the documentation of every key."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

from simulations.commands import OK, output
from simulations.commands.shared import config_argument, format_argument, load_code, plugin_argument, read

if TYPE_CHECKING:
    from strategies.describe import Row

NAME = "config"
HELP = "show a config with every default, or document its keys"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    what = parser.add_subparsers(metavar="WHAT", required=True, dest="what")
    config_argument(what.add_parser("show", help="print the resolved experiment as YAML", allow_abbrev=False))
    schema = what.add_parser("schema", help="document every key", allow_abbrev=False)
    format_argument(schema)
    plugin_argument(schema)


def execute(args: argparse.Namespace) -> int:
    """Shows the config or the schema."""
    return show(args) if args.what == "show" else schema(args)


def show(args: argparse.Namespace) -> int:
    """Prints the resolved experiment: a file that runs as it is."""
    experiment = read(args)
    from strategies.codec import encode
    from strategies.yaml_text import yaml_of

    print(yaml_of(encode(experiment)), end="")
    return OK


def schema(args: argparse.Namespace) -> int:
    """Prints every key: its kind, default, bounds and meaning."""
    load_code(args.plugins)
    from strategies.describe import describe
    from strategies.experiment import Experiment

    rows = describe(Experiment)
    if args.format == "json":
        print(output.document([asdict(row) for row in rows]))
        return OK
    for row in rows:
        print("\n".join(_entry(row)))
    return OK


def _entry(row: Row) -> list[str]:
    allowed = f": {row.allowed}" if row.allowed else ""
    default = "required" if row.default == "required" else f"default {row.default}"
    about = textwrap.wrap(f"{row.kind}{allowed}; {default}", output.width() - 4, break_on_hyphens=False)
    help_ = textwrap.wrap(row.help, output.width() - 4)
    return [row.path, *(f"    {line}" for line in [*help_, *about])]
