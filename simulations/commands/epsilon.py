"""`confide epsilon`: what a plan costs, without a run."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, get_args

from privacy.terms import Neighbours
from simulations.commands import OK, output
from simulations.commands.shared import format_argument
from strategies.schema import ConfigError

if TYPE_CHECKING:
    from privacy.events import Event

NAME = "epsilon"
HELP = "the epsilon of a number of rounds of the Gaussian mechanism"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--noise-multiplier", metavar="Z", type=float, required=True, help="noise std / clip norm")
    parser.add_argument("--rounds", metavar="T", type=int, required=True)
    parser.add_argument("--delta", metavar="D", type=float, required=True)
    parser.add_argument("--sampling", choices=("poisson", "fixed", "none"), default="poisson", help="default: poisson")
    parser.add_argument("--rate", metavar="Q", type=float, help="poisson: chance that a silo is in a round")
    parser.add_argument("--silos", metavar="N", type=int, help="fixed, or with --cap: silos there are")
    parser.add_argument("--cap", metavar="B", type=int, help="poisson: silos in a round at most, with --silos")
    parser.add_argument("--size", metavar="M", type=int, help="fixed: silos in a round (or give --rate)")
    parser.add_argument(
        "--neighbours", choices=get_args(Neighbours), help="default: add_remove; with --sampling fixed: replace"
    )
    format_argument(parser)


def execute(args: argparse.Namespace) -> int:
    """Prints the bracket."""
    problems = list(_problems(args))
    if problems:
        raise ConfigError(problems)
    from privacy.accountant import epsilon
    from privacy.events import Repeated

    neighbours: Neighbours = args.neighbours or ("replace" if args.sampling == "fixed" else "add_remove")
    found = epsilon(Repeated(_round(args), args.rounds), args.delta, neighbours=neighbours)
    lower, upper = output.finite(found.lower), output.finite(found.upper)
    if args.format == "json":
        facts = {"lower": lower, "upper": upper, "method": found.method, "neighbours": neighbours}
        print(output.document({**facts, "delta": args.delta, "note": found.note}))
        return OK
    pairs = [
        ("epsilon", f"{output.bracket(lower, upper)} at delta {output.short(args.delta)}"),
        ("protects", output.RELATIONS[neighbours]),
        ("method", found.method),
    ]
    print(output.facts([*pairs, ("note", found.note)] if found.note else pairs))
    return OK


def _problems(args: argparse.Namespace) -> list[str]:
    """All that is wrong with the values, a line each; written so that NaN fails."""
    lines = []
    if not (args.noise_multiplier > 0 and math.isfinite(args.noise_multiplier)):
        lines.append(f"--noise-multiplier: must be a finite number > 0, got {args.noise_multiplier:g}")
    if not 1 <= args.rounds <= 1_000_000:
        lines.append(f"--rounds: must be between 1 and 1000000, got {args.rounds}")
    if not 0 < args.delta < 1:
        lines.append(f"--delta: must be > 0 and < 1, got {args.delta:g}")
    if args.rate is not None and not 0 < args.rate <= 1:
        lines.append(f"--rate: must be > 0 and <= 1, got {args.rate:g}")
    return lines or _sampling_problems(args)


def _sampling_problems(args: argparse.Namespace) -> list[str]:
    if args.sampling == "fixed":
        return _fixed_problems(args)
    given = [name for name in ("rate", "silos", "cap", "size") if getattr(args, name) is not None]
    if args.sampling == "none":
        return [f"--{name}: every silo is in every round with --sampling none; remove it" for name in given]
    capped = () if args.cap is None else ("cap", "silos")
    users = {"size": "--sampling fixed", "silos": "--sampling fixed or --cap"}
    lines = [f"--{name}: only {users[name]} uses it; remove it" for name in given if name not in ("rate", *capped)]
    lines += [f"--{name}: missing or below 1, a cap needs it" for name in capped if not (getattr(args, name) or 0) >= 1]
    return lines if args.rate is not None else ["--rate: missing, give the chance that a silo is in a round", *lines]


def _fixed_problems(args: argparse.Namespace) -> list[str]:
    if args.cap is not None:
        return ["--cap: only --sampling poisson uses it; remove it"]
    if args.silos is None or args.silos < 1:
        return ["--silos: missing, --sampling fixed needs the number of silos" if args.silos is None else
                f"--silos: must be >= 1, got {args.silos}"]  # fmt: skip
    if (args.size is None) == (args.rate is None):
        return ["--size: give one of --size and --rate with --sampling fixed"]
    size = _size(args)
    if not math.isclose(size, round(size), rel_tol=1e-9):
        return [f"--rate: {args.rate:g} of {args.silos} silos is {size:g}, no whole number; give --size"]
    if not 1 <= round(size) <= args.silos:
        return [f"--size: must be between 1 and the {args.silos} silos, got {size:g}"]
    return []


def _size(args: argparse.Namespace) -> float:
    return float(args.size if args.size is not None else args.rate * args.silos)


def _round(args: argparse.Namespace) -> Event:
    from privacy.events import Capped, FixedSize, Gaussian, Poisson, Sampled

    noise = Gaussian(args.noise_multiplier)
    match args.sampling:
        case "none":
            return noise
        case "fixed":
            return Sampled(FixedSize(round(_size(args)), args.silos), noise)
        case _:
            sampler = Poisson(args.rate) if args.cap is None else Capped(args.rate, args.cap, args.silos)
            return Sampled(sampler, noise)
