"""`confide sweep`: the best of a random number of runs over a grid, and what that choice costs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulations.commands import INTERRUPTED, OK, output
from simulations.commands.interrupt import Interrupt
from simulations.commands.shared import config_argument, dataset_argument, format_argument, load_code, read_rows
from simulations.shipped import find
from strategies.schema import ConfigError

if TYPE_CHECKING:
    from client.tables import Table
    from simulations.sweep.plan import Spec
    from simulations.sweep.sweep import Sweep

NAME = "sweep"
HELP = "choose settings by private runs, and charge the choice"
ASKED = ("over", "runs", "distribution", "eta", "select", "on", "score_noise", "release", "out")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    config_argument(parser, optional=True)
    dataset_argument(parser)
    parser.add_argument(
        "--over", metavar="KEY=V,V", action="append", default=[], help="values to try for a key; may be repeated"
    )
    parser.add_argument(
        "--runs", metavar="MEAN", type=float, help="expected number of runs; the number itself is drawn"
    )
    parser.add_argument(
        "--distribution",
        choices=("truncated_negative_binomial", "poisson"),
        help="of the number of runs; default: truncated_negative_binomial",
    )
    parser.add_argument("--eta", metavar="E", type=float, help="truncated_negative_binomial: its eta > -1; default: 1")
    parser.add_argument(
        "--select", choices=("accuracy", "mse", "loss"), help="what to choose by; default: accuracy (mse for numbers)"
    )
    parser.add_argument(
        "--on", choices=("public", "silos"), help="choose on public rows, or on the silos' validation rows with noise"
    )
    parser.add_argument("--score-noise", metavar="Z", type=float, help="--on silos: noise std on the sum of accuracies")
    parser.add_argument(
        "--release", choices=("best", "all"), help="best: the losers' models are deleted; all: everything composes"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the sweep, with each run in DIR/run-K")
    parser.add_argument("--resume", metavar="DIR", type=Path, help="go on with the sweep in this folder")
    format_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def execute(args: argparse.Namespace) -> int:
    """Draws, runs and chooses, or goes on with that; prints what was chosen."""
    _check(args)
    load_code(args.plugins)
    from simulations.sweep import memory as sweep_memory

    if args.resume is not None:
        folder: Path = args.resume
        sweep, memory, table = sweep_memory.reopen(folder, lambda base: read_rows(args.dataset, base))
    else:
        folder = args.out
        sweep, table = _drawn(args)
        memory = sweep_memory.begin(sweep, folder)
    if not _run(args, sweep, memory, folder, table):
        return INTERRUPTED
    print(output.document(memory) if args.format == "json" else describe(memory, folder))
    return OK


def _check(args: argparse.Namespace) -> None:
    if args.resume is not None:
        given = {"CONFIG": args.config, "--set": args.overrides}
        given |= {f"--{name.replace('_', '-')}": getattr(args, name) for name in ASKED}
        refused = [name for name, value in given.items() if value not in (None, [])]
        if refused:
            raise ConfigError([f"--resume: goes on with what was drawn for its folder; remove {', '.join(refused)}"])
        return
    needed = {"CONFIG": args.config, "--over": args.over, "--runs": args.runs, "--out": args.out}
    missing = [name for name, value in needed.items() if value in (None, [])]
    problems = [f"sweep: {', '.join(missing)} missing; see: confide sweep --help"] if missing else []
    if args.eta is not None and args.distribution == "poisson":
        problems.append("--eta: only truncated_negative_binomial has one; remove it")
    if args.score_noise is not None and not 0 < args.score_noise < float("inf"):  # NaN fails too.
        problems.append(f"--score-noise: must be a finite number > 0, got {args.score_noise:g}")
    if problems:
        raise ConfigError(problems)


def _drawn(args: argparse.Namespace) -> tuple[Sweep, Table | None]:
    from simulations.sweep.sweep import prepared
    from strategies.loading import parse
    from strategies.yaml_text import override, read_yaml

    config = read_yaml(find(args.config))
    for assignment in args.overrides:
        config = override(config, assignment)
    table = read_rows(args.dataset, parse(config))
    return prepared(_spec(args), config, table=table), table


def _spec(args: argparse.Namespace) -> Spec:
    from simulations.sweep.plan import Spec

    return Spec(
        over=tuple(args.over),
        distribution=args.distribution or "truncated_negative_binomial",
        mean=args.runs,
        eta=1.0 if args.eta is None else args.eta,
        select=args.select,
        on=args.on or "public",
        score_noise=args.score_noise,
        release=args.release or "best",
    )


def _run(args: argparse.Namespace, sweep: Sweep, memory: dict[str, Any], folder: Path, table: Table | None) -> bool:
    """Whether the sweep came to its end."""
    from server.store import StoreError
    from simulations.sweep.run import Means, go_on

    def show(line: str) -> None:
        if not args.quiet:
            print(line, file=sys.stderr, flush=True)  # No scores: what is not released need not be seen either.

    options = [f"--plugin {name}" for name in args.plugins] + ([f"--dataset {args.dataset}"] if args.dataset else [])
    again = " ".join([f"confide sweep --resume {shlex.quote(str(folder))}", *options])
    try:
        with Interrupt() as interrupt:
            ended = go_on(sweep, memory, folder, Means(interrupt.asked, show, args.plugins, table))
    except KeyboardInterrupt:
        ended = False
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{error.filename or folder}: {reason}; mend that and go on with: {again}") from error
    if not ended:
        print(f"confide: interrupted; the runs stay as they were drawn, go on with: {again}", file=sys.stderr)
    return ended


def describe(memory: Mapping[str, Any], folder: Path) -> str:
    """The runs, the choice and its price."""
    from simulations.words.privacy import chosen_words

    spec, chosen, runs = memory["spec"], memory["chosen"], memory["runs"]
    keys = list(runs[0]["settings"]) if runs else []
    name = chosen["run"] if chosen is not None else None
    rows = [
        [
            f"{run['run']} *" if run["run"] == name else run["run"],
            *(output.word(run["settings"][key]) for key in keys),
            run["state"] if run["score"] is None else f"{run['score']:.4f}",
        ]
        for run in runs
    ]
    pairs = [("chosen", f"{folder / name}, marked *" if name else "none: no run was drawn, or none has a score")]
    pairs += zip(("why it costs", "epsilon", "keep secret"), chosen_words(memory["privacy"], spec))
    table = output.table(["run", *keys, spec["select"]], rows, left=1) if rows else "no runs were drawn"
    return f"{table}\n\n{output.facts(pairs)}"
