"""What running across machines costs beside the work itself, on one machine, in one run.

    python -m simulations.benchmarks.deployment [--silos 2 8] [--payloads 4000 10000000 100000000] [--out figures.json]

Parts (`--parts`, all unless said): `legs`, a payload from a relay to the silo's daemon and back against plain copies;
`starts`, how long a relay's process takes to start, without torch and with it; `rounds`, seconds of a round of a real
federation over TLS, split into Flower's and ours, with the largest memory of each kind of process; `torch`, the same
with the smallest payload, where the node's app imports torch; `resume`, from SIGKILL of the server's app to the first
round after. Progress goes to stderr, a table or JSON to stdout, and JSON to `--out` after every part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from simulations.benchmarks import deployment_legs, deployment_rounds

PAYLOADS = (4_000, 10_000_000, 100_000_000)
PARTS = ("legs", "starts", "rounds", "torch", "resume")


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures so far, after each part; peaks of memory only grow, so the smallest payload comes first."""
    sizes, found = sorted(options.payloads), dict[str, Any]()
    if "legs" in options.parts:
        _say("from a relay to the daemon and back")
        yield (found := found | {"legs": deployment_legs.legs(sizes, options.repeats)})
    if "starts" in options.parts:
        _say("starts of a process")
        yield (found := found | {"starts": deployment_legs.starts(options.repeats)})
    for silos in sorted(options.silos):
        for name, chosen, torch in (("rounds", sizes, False), ("torch", sizes[:1], True)):
            resumes = name == "rounds" and "resume" in options.parts and silos == min(options.silos)
            chosen = chosen if name in options.parts else []
            if not chosen and not resumes:
                continue
            _say(f"starting a federation of {silos} silos{', whose node apps import torch' if torch else ''}")
            with deployment_rounds.federation(silos, torch=torch) as (there, folder):
                for size in chosen:
                    say = f"{silos} silos, {size:,} bytes"
                    row = deployment_rounds.measured(there, folder, size, options.rounds, say)
                    yield (found := found | {name: [*found.get(name, []), row]})
                if resumes:
                    _say(f"{silos} silos: the server's app is killed, and goes on")
                    yield (found := found | {"resume": deployment_rounds.resumed(there, folder, sizes[0])})


def table(found: dict[str, Any]) -> Iterator[str]:
    """The results as lines of text."""
    for each in found.get("legs", []):
        yield (
            f"relay to daemon and back {each['bytes']:>11,} bytes {each['relay_ms']:8.1f} ms "
            f"{each['relay_mb_s']:7.1f} MB/s, plain copies {each['copy_mb_s']:7.1f} MB/s "
            f"({each['slower_than_copies']:.1f}x); daemon's peak +{each['daemon_mb_more']:.0f} MB"
        )
    for name, seconds in found.get("starts", {}).items():
        yield f"start of {name:17} {seconds:6.2f} s"
    for part, more in (("rounds", ""), ("torch", ", torch in the app")):
        yield from (f"{_row(each)}{more}" for each in found.get(part, []))
    if each := found.get("resume"):
        yield f"server app killed and resumed at once: a round after {each['first_round_s']:.1f} s"


def _row(each: dict[str, Any]) -> str:
    return (
        f"round of {each['silos']} silos, {each['model_bytes']:>11,} bytes: {each['round_s']:6.2f} s = "
        f"Flower {each['flower_s']:.2f} + server {each['server_s']:.2f} + relay and daemon "
        f"{each['relay_and_daemon_s']:.2f} (daemon {each['of_which_daemon_s']:.2f}); peaks: server app "
        f"{each['server_app_peak_mb']:.0f} MB, daemon {each['daemon_peak_mb']:.0f}, SuperLink "
        f"{each['superlink_peak_mb']:.0f}, SuperNode {each['supernode_peak_mb']:.0f}"
    )


def _say(what: str) -> None:
    print(f"confide: {what}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; prints a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.deployment", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--silos", nargs="+", type=int, default=[2, 8], help="of the federations; default: 2 8")
    parser.add_argument("--payloads", nargs="+", type=int, default=list(PAYLOADS), help="bytes of a model")
    parser.add_argument("--rounds", type=int, default=4, help="of each run; the first one is left out; default: 4")
    parser.add_argument("--repeats", type=int, default=5, help="of legs and starts; default: 5")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON, written anew after every part")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    found: dict[str, Any] = {}
    for found in measure(options):
        if options.out is not None:
            options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2) if options.format == "json" else "\n".join(table(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
