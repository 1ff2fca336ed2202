"""`confide predict`: a run's model on the rows of a file."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from simulations.commands import OK, output
from simulations.commands.runs import read_result
from simulations.commands.shared import format_argument, load_code, plugin_argument

NAME = "predict"
HELP = "predict the rows of a file with a run's model"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    parser.add_argument(
        "--input",
        metavar="FILE",
        type=Path,
        required=True,
        help="a CSV file (for a run on your own CSV: with its feature columns) or an npz file with an array x",
    )
    format_argument(parser, choices=("csv", "json"))
    plugin_argument(parser)


def execute(args: argparse.Namespace) -> int:
    """Prints a line per row."""
    result = read_result(args.run)
    load_code(args.plugins)
    from simulations.prediction import Predictor

    predictor = Predictor.load(args.run, result)
    predictions = predictor.predict(predictor.read(args.input))
    if predictor.experiment.data.standardize.name == "own":
        print("confide: features are standardised with the rows of this file, as with one silo's own", file=sys.stderr)
    if args.format == "json":
        print(output.document(predictions))
        return OK
    writer = csv.DictWriter(sys.stdout, list(predictions[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(predictions)
    return OK
