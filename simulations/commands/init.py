"""`confide init`: a commented config to start from."""

from __future__ import annotations

import argparse

from simulations.commands import OK
from simulations.shipped import CONFIGS, STARTER
from strategies.schema import ConfigError

NAME = "init"
HELP = "write a commented config to start from"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("file", metavar="FILE", nargs="?", default="experiment.yaml", help="default: experiment.yaml")


def execute(args: argparse.Namespace) -> int:
    """Writes the file; never over another one."""
    text = (CONFIGS / f"{STARTER}.yaml").read_bytes()
    try:
        with open(args.file, "xb") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError([f"{args.file}: is there already; give another name"]) from error
    print(f"wrote {args.file}; run it with: confide run {args.file}")
    return OK
