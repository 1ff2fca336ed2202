"""A sweep before it runs: its grid, which runs were drawn, and what choosing among them costs.

Papernot & Steinke 2022 (arXiv 2110.03620): settings are drawn from the grid uniformly and with replacement, as often as
a random number says. Number and settings follow from the experiment's seed, before anything has been trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from privacy import accountant, streams, tuning
from privacy.events import Composed, Event, Gaussian, Repeated
from simulations.planning import Plan
from strategies.experiment import Experiment
from strategies.loading import parse
from strategies.schema import ConfigError
from strategies.yaml_text import override

MOST_SETTINGS = 1000
SEEDED = "privacy.noise: a sweep draws its runs and scores from the seed; use simulated for it"
# All runs must be about the same silos, the same public rows and the same promise; the rest is the sweep's to set.
HELD = ("name", "seed", "data", "engine", "metrics", "budget", "privacy.silo.delta", "privacy.silo.neighbours")


@dataclass(frozen=True)
class Spec:
    """What was asked of a sweep, as sweep.json keeps it.

    Attributes:
        over: `key=value,value` texts, which span the grid.
        distribution: of the number of runs.
        mean: expected number of runs.
        eta: of the truncated negative binomial.
        select: the metric to choose by; None: the score of the data's kind.
        on: `public`: rows that are nobody's. `silos`: the silos' validation rows, as one noised mean a run.
        score_noise: noise std of the sum of the silos' scores, each in [0, 1]; None with `public`.
        release: `best`: one run is ever seen. `all`: every run is.
    """

    over: tuple[str, ...]
    distribution: Literal["truncated_negative_binomial", "poisson"]
    mean: float
    eta: float
    select: Literal["accuracy", "mse", "loss"] | None
    on: Literal["public", "silos"]
    score_noise: float | None
    release: Literal["best", "all"]

    @property
    def law(self) -> tuning.Runs:
        """The law of the number of runs.

        Raises:
            ConfigError: a mean or eta that it cannot have.
        """
        try:
            if self.distribution == "poisson":
                return tuning.PoissonRuns(self.mean)
            return tuning.TruncatedNegativeBinomial.with_mean(self.mean, eta=self.eta)
        except ValueError as error:
            option = "--eta" if str(error).startswith("eta") else "--runs"
            raise ConfigError([f"{option}: {error}"]) from error

    def said(self) -> dict[str, Any]:
        """The law for result files: what a reader needs to price the choice again."""
        return {"kind": self.distribution, **asdict(self.law), "mean": self.mean}


@dataclass(frozen=True)
class Drawn:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        point: its place in the grid.
        seed: of the run; silos and public rows keep the seed of the sweep.
    """

    name: str
    point: int
    seed: int


@dataclass(frozen=True)
class Price:
    """What a sweep costs a silo.

    Attributes:
        epsilon_lower: None where only an upper bound is known.
        epsilon_upper: of all that is released, the choice included.
        one_run: upper epsilon of the dearest single run of the grid.
        delta: of all of them.
        neighbours: the relation that they are for.
        method: how `epsilon_upper` was found.
    """

    epsilon_lower: float | None
    epsilon_upper: float
    one_run: float
    delta: float
    neighbours: accountant.Neighbours
    method: str


def grid(over: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of the values of `key=value,value` texts, each as overrides.

    Raises:
        ConfigError: no grid, a key that all runs must share, a value twice.

    >>> grid(["train.learning_rate=0.5,1", "task.hidden=[8],[8,8]"])[1]
    ('train.learning_rate=0.5', 'task.hidden=[8,8]')
    """
    axes: list[list[str]] = []
    problems: list[str] = []
    for text in over:
        key, _, values = text.partition("=")
        found = _values(values)
        if not key.strip() or not all(found):
            problems.append(f"--over {text[:60]!r}: write KEY=VALUE,VALUE, for example train.learning_rate=0.1,0.3")
        elif any(key == held or key.startswith(f"{held}.") for held in HELD):
            problems.append(f"--over {key}: must be the same in all runs of a sweep; change it with --set")
        elif len(set(found)) < len(found):
            problems.append(f"--over {key}: a value is there twice; each is as likely as the others")
        axes.append([f"{key}={value}" for value in found])
    keys = [axis[0].partition("=")[0] for axis in axes]
    problems += [
        f"--over {key}: is there twice; give its values once" for key in {k for k in keys if keys.count(k) > 1}
    ]
    if problems:
        raise ConfigError(problems)
    points = list(itertools.islice(itertools.product(*axes), MOST_SETTINGS + 1))
    if len(points) > MOST_SETTINGS:
        raise ConfigError([f"--over: more than {MOST_SETTINGS} settings; give fewer values"])
    return points


def _values(text: str) -> list[str]:
    """Splits at commas that stand outside of brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "[{") - (char in "]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def settings(point: Sequence[str]) -> dict[str, Any]:
    """A point of the grid as keys and values.

    >>> settings(("train.learning_rate=1e-1",))
    {'train.learning_rate': 0.1}
    """
    found = {}
    for text in point:
        key = text.partition("=")[0].strip()
        value: Any = override({}, text)
        for name in key.split("."):
            value = value[name]
        found[key] = value
    return found


def experiments(config: Mapping[str, Any], points: Sequence[Sequence[str]]) -> list[Experiment]:
    """The experiment of every point of the grid, all on the silos and public rows of the config's seed.

    Raises:
        ConfigError: a point that is no experiment; the first such.
    """
    base = parse(config)
    if base.privacy.noise == "system":  # The number of runs is part of the secret that the price rests on.
        raise ConfigError([SEEDED])
    found = []
    for point in points:
        mapping = dict(config)
        for text in point:
            mapping = override(mapping, text)
        experiment = parse(mapping)
        if experiment.privacy.noise == "system":
            raise ConfigError([SEEDED])
        kept = base.data.seed if base.data.seed is not None else base.seed
        found.append(replace(experiment, data=replace(experiment.data, seed=kept)))
    return found


def draw(spec: Spec, *, seed: int, points: int) -> list[Drawn]:
    """Which runs there will be; the same for the same seed, so asking again draws nothing new."""
    uniform = float(streams.uniforms(streams.keys(streams.derive(seed, "sweep", "number"), [0]), 1)[0, 0])
    keys = streams.keys(streams.derive(seed, "sweep", "settings"), range(spec.law.draw(uniform)))
    picked = [int(share * points) for share in streams.uniforms(keys, 1)[:, 0]]
    return [
        Drawn(f"run-{number}", point, streams.derive(seed, "sweep", "run", number))
        for number, point in enumerate(picked, 1)
    ]


def event(plan: Plan, spec: Spec, *, rounds: int, scores: int = 1) -> Event:
    """What one run costs: all that it was charged, and the scores that were released of it."""
    noise = spec.score_noise
    score = () if noise is None else (Repeated(Gaussian(noise), scores),)
    return Composed((plan.after(rounds), *score))


def price(
    spec: Spec,
    grid_events: Sequence[Event],
    run_events: Sequence[Event],
    *,
    delta: float,
    neighbours: accountant.Neighbours,
) -> Price:
    """What the sweep costs.

    Only where a single run is ever seen does the random number of runs protect the others. Whatever else is released,
    all runs compose: looking at the metrics of private models on public rows is post-processing of each of them.

    Args:
        spec: what was asked.
        grid_events: what a run costs at each point of the grid.
        run_events: what each run that was drawn costs.
        delta: of epsilon.
        neighbours: the relation that epsilon is for.
    """
    one = max(accountant.epsilon(point, delta, neighbours=neighbours).upper for point in set(grid_events))
    if spec.release == "best":
        upper = tuning.epsilon(grid_events, spec.law, delta, neighbours=neighbours)
        return Price(None, upper, one, delta, neighbours, "RDP, best of a random number of runs")
    whole = accountant.epsilon(Composed(tuple(run_events)), delta, neighbours=neighbours)
    return Price(whole.lower, whole.upper, one, delta, neighbours, f"{whole.method}, all runs composed")
