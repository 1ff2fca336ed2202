"""Runs an experiment in Flower's own simulation: a SuperLink of the run's own, silos in Ray's actors, nothing left."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from server.loop import RoundResult
from simulations.data.federation import build
from simulations.deploying.flower import READY_S, environment
from simulations.deploying.processes import Program, free_ports, listens
from simulations.deploying.submitting import Federation, submit
from simulations.deploying.virtual import require_named
from simulations.running import Outcome
from strategies.experiment import Experiment
from strategies.schema import ConfigError

NAME = "simulation"
MISSING = "--engine ray: ray is not installed; use: pip install 'confide[ray]'"
LONGEST = 40  # Characters: Ray's sockets lie 60 deeper, and a socket's path has 107 at most.


def simulate(
    experiment: Experiment,
    folder: Path,
    *,
    resume: bool = False,
    on_round: Callable[[RoundResult], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Runs an experiment with a simulated node for each silo; arguments and errors are those of `submit`.

    Raises:
        ConfigError: Ray is not installed, too.
        ProcessError: the SuperLink did not start.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError([MISSING])
    require_named(experiment)  # As the server will, half a minute later.
    silos = experiment.data.silos or len(build(experiment.data, seed=experiment.seed).train)
    with tempfile.TemporaryDirectory(prefix="confide-") as temporary, _superlink(Path(temporary)):
        # A silo trains on one thread; so Ray may start as many actors as there are cores.
        federation = Federation(NAME, Path(temporary), f"num-supernodes={silos} client-resources-num-cpus=1")
        return submit(experiment, folder, federation, resume=resume, on_round=on_round, stop=stop)


@contextmanager
def _superlink(home: Path) -> Iterator[None]:
    """A SuperLink for simulations, on loopback, as long as it is needed."""
    [port] = free_ports(1)
    (home / "config.toml").write_text(f'[superlink.{NAME}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--disable-runtime-dependency-installation"]
    # Ray's programs write their titles over their environment, where they are known by; with SPT_NOENV they do not.
    told = environment(home) | {"RAY_USAGE_STATS_ENABLED": "0", "SPT_NOENV": "1"}
    if len(str(home)) <= LONGEST:
        told |= {"RAY_TMPDIR": str(home)}
    with Program("flower-superlink", command, log=home / "superlink.log", environment=told) as program:
        program.until(lambda: listens("127.0.0.1", port), timeout_s=READY_S, what="it answered")
        yield
