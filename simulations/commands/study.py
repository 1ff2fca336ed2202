"""`confide study`: experiments that show a claim, or fail to, by criteria that are never hidden."""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.commands import FAILED, INTERRUPTED, OK, output
from simulations.commands.interrupt import Interrupt
from simulations.commands.shared import format_argument, load_code, plugin_argument, seeds_of
from strategies.schema import ConfigError

if TYPE_CHECKING:
    from simulations.studies.findings import Findings
    from simulations.studies.registry import Study

NAME = "study"
HELP = "run a study: many experiments, and whether they show what they are for"
MOST_WORKERS = 64


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("study", metavar="NAME", nargs="?", help="which study; left out, they are listed")
    parser.add_argument("--quick", action="store_true", help="a small version; says what it left out")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="its folder, default: runs/study-NAME-DATE; where one was stopped, go on",
    )
    parser.add_argument("--seeds", metavar="0..4", help="of its runs, as 0..4 or 0,3,7; default: the study's own")
    parser.add_argument(
        "--workers", metavar="N", type=int, default=1, help="processes, one experiment each; default: 1"
    )
    format_argument(parser)
    plugin_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def execute(args: argparse.Namespace) -> int:
    """Runs a study and prints its criteria; 1 where a required one fails."""
    load_code(args.plugins)
    from simulations.studies.registry import load

    studies = load()
    if args.study is None:
        return _list(args, studies)
    study, seeds = _asked(args, studies)
    folder: Path = args.out if args.out is not None else _default(study.name)
    _usable(folder, study.name)
    found = _run(args, study, seeds, folder)
    if found is None:
        return INTERRUPTED
    from simulations.studies.page import summary, write

    findings, seconds = found
    said = summary(study.name, findings, seeds=seeds, seconds=seconds)
    write(folder, study.about, said, findings, ["confide", "study", study.name, *_options(args)])
    print(output.document(said) if args.format == "json" else describe(findings, folder))
    return OK if findings.passed else FAILED


def _list(args: argparse.Namespace, studies: dict[str, Study]) -> int:
    given = [f"--{name}" for name in ("quick", "out", "seeds") if getattr(args, name)]
    if given:
        raise ConfigError([f"study: NAME is missing, but {', '.join(given)} is given; choose one of confide study"])
    found = {name: study.about for name, study in studies.items()}
    print(output.document(found) if args.format == "json" else output.facts(list(found.items())))
    return OK


def _asked(args: argparse.Namespace, studies: dict[str, Study]) -> tuple[Study, tuple[int, ...]]:
    problems = []
    if args.study not in studies:
        problems.append(f"study: no study {args.study[:60]!r}; there are: {', '.join(studies)}")
    if not 1 <= args.workers <= MOST_WORKERS:
        problems.append(f"--workers: must be 1 to {MOST_WORKERS}, got {args.workers}")
    if problems:
        raise ConfigError(problems)
    study = studies[args.study]
    if args.seeds is not None and not study.seeds:
        raise ConfigError([f"--seeds: {study.name} draws nothing, so it has none; remove it"])
    if args.seeds is not None:
        return study, tuple(seeds_of(args.seeds))
    return study, study.quick_seeds if args.quick else study.seeds


def _default(name: str) -> Path:
    base = Path("runs") / f"study-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _usable(folder: Path, name: str) -> None:
    """Refuses a folder of something else, before any work."""
    from server.store import StoreError
    from simulations.folders import usable

    usable(folder, resume=False)
    held = re.search(rb'"study": "([^"]*)"', path.read_bytes()) if (path := folder / "study.json").exists() else None
    if held is not None and held[1].decode() != name:
        raise StoreError(f"{folder}: holds the study {held[1].decode()}; choose another --out")


def _run(args: argparse.Namespace, study: Study, seeds: tuple[int, ...], folder: Path) -> tuple[Findings, float] | None:
    """What it found, and the seconds it took; None where a signal ended it."""
    from simulations.studies.cells import Cells, Stopped
    from simulations.studies.registry import Ask

    def say(line: str) -> None:
        if not args.quiet:
            print(line, file=sys.stderr, flush=True)

    before = time.monotonic()
    try:
        with Interrupt() as interrupt:
            cells = Cells(folder, workers=args.workers, stop=interrupt.asked, say=say, plugins=args.plugins)
            findings = study.run(Ask(args.quick, seeds, cells, say, interrupt.asked))
    except (Stopped, KeyboardInterrupt):
        again = f"confide study {study.name} {' '.join(_options(args, folder))}"
        print(f"confide: interrupted; what was done is kept, go on with: {again}", file=sys.stderr)
        return None
    if cells.computed + cells.recalled:
        say(f"{cells.computed} cells computed, {cells.recalled} read from {cells.folder}")
    if len(seeds) < len(study.seeds):
        findings = replace(findings, skipped=[*findings.skipped, f"seeds: {len(seeds)} of {len(study.seeds)}"])
    return findings, time.monotonic() - before


def _options(args: argparse.Namespace, folder: Path | None = None) -> list[str]:
    """The options that decide what is found; with a folder, those that go on in it."""
    options = ["--quick"] if args.quick else []
    options += ["--seeds", args.seeds] if args.seeds is not None else []
    options += [part for name in args.plugins for part in ("--plugin", name)]
    return options + (["--out", str(folder)] if folder is not None else [])


def describe(findings: Findings, folder: Path) -> str:
    """Criteria, tables, and what was left out, as text."""
    from simulations.studies.page import shown

    parts = []
    if findings.criteria:
        rows = [[shown(each)[0], each.name, *shown(each)[1:], each.kind] for each in findings.criteria]
        parts.append(output.table(["", "criterion", "measured", "threshold", "kind"], rows, left=2))
    for sheet in findings.sheets:
        parts.append(f"{sheet.title}\n{output.table(sheet.header, sheet.body)}")
    pairs = [
        (title, line) for title, lines in (("note", findings.notes), ("left out", findings.skipped)) for line in lines
    ]
    parts.append(output.facts([*pairs, ("report", str(folder / "report.html"))]))
    return "\n\n".join(parts)
