"""`confide run`: trains, shows progress, and says what came out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.commands import ALARM, BUDGET, INTERRUPTED, OK, output, summary
from simulations.commands.interrupt import Interrupt
from simulations.commands.progress import watch
from simulations.commands.shared import (
    FEDERATION,
    config_argument,
    dataset_argument,
    format_argument,
    load_code,
    read,
    read_rows,
    seeds_of,
    sink_argument,
)
from simulations.outcomes import spread
from simulations.words import audit as audit_words
from strategies.schema import ConfigError

if TYPE_CHECKING:
    from simulations.running import Outcome
    from strategies.experiment import Experiment

NAME = "run"
HELP = "run an experiment, or go on with one"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    config_argument(parser, optional=True)
    dataset_argument(parser)
    parser.add_argument("--resume", metavar="DIR", type=Path, help="go on with the run in this folder")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the run; default: runs/NAME-DATE")
    parser.add_argument(
        "--engine",
        choices=("local", "pool", "flower", "ray"),
        help="this process, worker processes, silos elsewhere, or Flower's own simulation",
    )
    parser.add_argument("--federation", metavar="NAME", default=FEDERATION, help="flower: which; see confide serve")
    parser.add_argument("--workers", metavar="N", help="pool: processes")
    parser.add_argument("--stacked", choices=("auto", "off"), help="train many silos at once where the model allows")
    sink_argument(parser)
    parser.add_argument("--seeds", metavar="0..4", help="one run per seed, as 0..4 or 0,3,7, in DIR/seed-K")
    format_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def execute(args: argparse.Namespace) -> int:
    """Runs, resumes, or runs once per seed; returns the exit code."""
    _check(args)
    if args.resume is not None:
        load_code(args.plugins)
        from simulations.folders import reopen

        return _single(args, reopen(args.resume, _engine(args)), args.resume, resume=True)
    seeds = seeds_of(args.seeds) if args.seeds is not None else None
    experiment = read(args, _engine(args))
    from simulations.folders import default_folder

    folder = args.out if args.out is not None else default_folder(experiment)
    return _single(args, experiment, folder) if seeds is None else _many(args, experiment, folder, seeds)


def _check(args: argparse.Namespace) -> None:
    if args.resume is None:
        if args.config is None:
            raise ConfigError(["run: CONFIG is missing; for example: confide run quickstart"])
        return
    given = {"CONFIG": args.config, "--set": args.overrides, "--out": args.out, "--seeds": args.seeds}
    refused = [name for name, value in given.items() if value]
    if refused:
        raise ConfigError([f"--resume: goes on with the experiment of its folder; remove {', '.join(refused)}"])


def _engine(args: argparse.Namespace) -> list[str]:
    """Options of where the work is done, and where its numbers go, as overrides."""
    kind = "flower" if args.engine == "ray" else args.engine  # Its silos are simulated, and reached as real ones are.
    lines = [f"engine.kind={kind}"] if kind else []
    if args.engine == "local" and args.workers is None:
        lines.append("engine.workers=null")  # A config for the pool may name a number that means nothing here.
    lines += [f"engine.workers={args.workers}"] if args.workers is not None else []
    lines += [f"metrics.sinks=[{', '.join(args.sinks)}]"] if args.sinks else []
    return lines + ([f"engine.stacked='{args.stacked}'"] if args.stacked else [])  # YAML reads a bare off as false.


def _single(args: argparse.Namespace, experiment: Experiment, folder: Path, *, resume: bool = False) -> int:
    outcome = _train(args, experiment, folder, resume=resume)
    if outcome is None:
        return INTERRUPTED
    if args.format == "json":
        print(output.document(outcome.result))
    else:
        print(summary.describe(outcome.result, folder, public=experiment.data.public_test > 0))
    return _ended(outcome)


def _many(args: argparse.Namespace, experiment: Experiment, folder: Path, seeds: Sequence[int]) -> int:
    from dataclasses import replace

    taken = [str(seed) for seed in seeds if (folder / f"seed-{seed}" / "experiment.yaml").exists()]
    if taken:
        raise ConfigError([f"--seeds: {folder} holds runs of seed {', '.join(taken)} already; choose another --out"])
    outcomes: list[Outcome] = []
    code = OK
    for seed in seeds:
        if not args.quiet:
            print(f"seed {seed}", file=sys.stderr)
        outcome = _train(args, replace(experiment, seed=seed), folder / f"seed-{seed}")
        if outcome is not None:
            outcomes.append(outcome)
        ended = INTERRUPTED if outcome is None else _ended(outcome)
        code = max(code, ended)
        if ended == INTERRUPTED:
            left = ",".join(map(str, seeds[seeds.index(seed) + 1 :]))
            if left:
                print(f"confide: seeds that did not start: --seeds {left}", file=sys.stderr)
            break
    results = [outcome.result for outcome in outcomes]
    if args.format == "json":
        mean, std = spread(results)
        print(output.document({"runs": results, "mean": mean, "std": std}))
    elif results:
        print(f"{summary.seeds_table(results)}\n\nrun folders  {folder}/seed-*")
    return code


def _train(args: argparse.Namespace, experiment: Experiment, folder: Path, *, resume: bool = False) -> Outcome | None:
    """Trains to the end or to a signal; None where a second signal broke a round off."""
    from server.store import StoreError
    from simulations.running import ActiveRun, train

    again = _again(args, folder)
    if experiment.engine.kind == "flower":
        return _far(args, experiment, folder, again, resume=resume)
    rows = read_rows(args.dataset, experiment)
    try:
        opened = ActiveRun(experiment, folder, resume=resume, plugins=args.plugins, table=rows)
        with opened as active, Interrupt() as interrupt:
            if active.inline.line and not (args.quiet and active.inline.port):
                print(f"confide: {active.inline.line}", file=sys.stderr, flush=True)
            rounds, done = experiment.rounds, len(active.store.rows())
            with watch(rounds, done=done, quiet=args.quiet) as show:
                train(active, show, stop=interrupt.asked)
            outcome = active.finish()
    except KeyboardInterrupt:
        where = f"go on with: {again}" if (folder / "experiment.yaml").exists() else "nothing was written"
        print(f"confide: aborted; {where}", file=sys.stderr)
        return None
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{error.filename or folder}: {reason}; mend that and go on with: {again}") from error
    _say_how_it_ended(outcome, again)
    audit_words.warn(outcome.result["privacy"])
    return outcome


def _far(args: argparse.Namespace, experiment: Experiment, folder: Path, again: str, *, resume: bool) -> Outcome:
    """Has a federation train, whose silos are elsewhere; a second signal ends the run there, too."""
    from simulations.deploying.simulating import simulate
    from simulations.deploying.submitting import Federation, submit

    if args.plugins or args.dataset:
        raise ConfigError(["--plugin, --dataset: stay in this process; with --engine flower install them at each silo"])
    with Interrupt() as interrupt, watch(experiment.rounds, quiet=args.quiet) as show:
        if args.engine == "ray":
            outcome = simulate(experiment, folder, resume=resume, on_round=show, stop=interrupt.asked)
        else:
            federation = Federation.find(args.federation)
            outcome = submit(experiment, folder, federation, resume=resume, on_round=show, stop=interrupt.asked)
    _say_how_it_ended(outcome, again)
    audit_words.warn(outcome.result["privacy"])
    return outcome


def _again(args: argparse.Namespace, folder: Path) -> str:
    """The command that goes on with a run."""
    options = [f"--plugin {name}" for name in args.plugins] + ([f"--dataset {args.dataset}"] if args.dataset else [])
    options += [f"--engine flower --federation {args.federation}"] if args.engine == "flower" else []
    options += ["--engine ray"] if args.engine == "ray" else []
    return " ".join([f"confide run --resume {shlex.quote(str(folder))}", *options])


def _say_how_it_ended(outcome: Outcome, again: str) -> None:
    stopped = outcome.result["stopped"]
    if stopped is None:
        return
    if stopped.startswith("budget"):
        print(f"confide: {stopped}; the model of the last round is kept", file=sys.stderr)
    else:
        print(f"confide: interrupted after round {outcome.result['rounds']}; go on with: {again}", file=sys.stderr)


def _ended(outcome: Outcome) -> int:
    """An interruption first, as there is more to come; then an alarm, which outweighs the budget."""
    stopped = outcome.result["stopped"]
    if stopped is not None and not stopped.startswith("budget"):
        return INTERRUPTED
    if audit_words.alarms(outcome.result["privacy"]):
        return ALARM
    return OK if stopped is None else BUDGET
