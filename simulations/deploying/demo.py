"""`make deploy-demo`: a server and three silos on this machine, over TLS, in about a minute.

    python -m simulations.deploying.demo [FOLDER]

The quickstart's experiment with three silos and five rounds. The folder gets what a run leaves, and beside it, of each
silo, what its own daemon wrote: ledger, audit log, policy.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from simulations.commands import REFUSED, summary
from simulations.commands.interrupt import Interrupt
from simulations.commands.progress import watch
from simulations.deploying.rehearsal import Stage, running
from simulations.deploying.submitting import submit
from simulations.shipped import find
from strategies.experiment import Experiment
from strategies.loading import load

SILOS, ROUNDS = 3, 5
MARK = "deploy-demo"  # A file by which the next demo knows that the folder may be replaced.
POLICY = """\
silo: {epsilon: 8, delta: 0.0001, least_noise: 2, most_clip_norm: 0.5}
strategies: [fedavg]
tasks: [logistic]
"""


def experiment() -> Experiment:
    """The quickstart, for three silos that are all in every round."""
    changes = [f"data.silos={SILOS}", f"rounds={ROUNDS}", "cohort.rate=1", "engine.kind=flower"]
    return load(find("quickstart"), [*changes, "name=deploy-demo"])


def main(folder: Path) -> int:
    """Runs the demo; returns the exit code."""
    if folder.exists() and not (folder / MARK).exists():
        print(f"confide: {folder}: holds something else; remove it, or name another folder", file=sys.stderr)
        return REFUSED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    started = time.monotonic()
    print(f"confide: starting a server and {SILOS} silos on loopback, with TLS and node keys", file=sys.stderr)
    stage = Stage(folder.absolute(), [POLICY] * SILOS, ["digits"] * SILOS)
    with Interrupt() as interrupt, running(stage) as there, watch(ROUNDS) as show:
        outcome = submit(experiment(), folder, there.federation, on_round=show, stop=interrupt.asked)
        up, down = there.meter.up, there.meter.down
    (folder / "socket-bytes.json").write_text(json.dumps({"up": up, "down": down}) + "\n")
    print(summary.describe(outcome.result, folder, public=True))
    sent = outcome.result["communication"]
    print(f"at the socket     {up:,} bytes up, {down:,} down; of these {sent['bytes_up']:,} and {sent['bytes_down']:,}")
    print("                  are updates and models, and the rest is Flower's: code, polls, TLS")
    for number in range(SILOS):
        ledgers = sorted((folder / f"silo-{number}" / "ledgers").glob("*.jsonl"))
        print(f"ledger of silo {number}  {', '.join(map(str, ledgers))}")
    print(f"all stopped       after {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/deploy-demo")))
