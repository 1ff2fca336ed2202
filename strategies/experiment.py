"""An experiment: the one YAML file that drives a run, as frozen dataclasses.

Their fields are the file's keys. Machine facts that change no result (path of the data, engine, sinks) are keys too,
but are left out of the digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from strategies.attacks import ATTACKS, Attack
from strategies.backbones import is_name
from strategies.clipping import ChannelPrivacy, ClipNorm
from strategies.codec import encode
from strategies.partitions import PARTITIONS, Partition
from strategies.schema import key
from strategies.shifts import Shift
from strategies.sinks import SINKS, Sink
from strategies.standardize import STANDARDIZE, Standardize

if TYPE_CHECKING:  # Their registries import torch: loaded when a value is read, so that the schema itself is fast.
    from strategies.base import Strategy
    from strategies.tasks.base import Task


def _tasks() -> Mapping[str, type[Any]]:
    from strategies.tasks import TASKS

    return TASKS


def _strategies() -> Mapping[str, type[Any]]:
    from strategies.registry import STRATEGIES

    return STRATEGIES


def _partitions() -> Mapping[str, type[Any]]:
    return PARTITIONS


def _attacks() -> Mapping[str, type[Any]]:
    return ATTACKS


def _sinks() -> Mapping[str, type[Any]]:
    return SINKS


def _standardize() -> Mapping[str, type[Any]]:
    return STANDARDIZE


FILES = ("csv", "npz")  # What `name` may say beside a path.


@dataclass(frozen=True, kw_only=True)
class TargetScale:
    """Regression in units of public constants: (target - mean) / std."""

    mean: float = key(help="public constant taken from every target; never computed from the rows")
    std: float = key(above=0, help="public constant that every target is then divided by, likewise")


@dataclass(frozen=True)
class Data:
    """What the silos hold, and how it is dealt to them."""

    name: str | None = key(None, help="a data set that confide knows (confide list); with path: csv, npz or left out")
    path: str | None = key(None, help="a CSV or npz file of your own")
    target: str | None = key(None, help="CSV: the column to predict")
    silo: str | None = key(None, help="CSV: the column that says whose row it is (partition: column)")
    group: str | None = key(None, help="CSV: the column of groups to report on; not a feature")
    kind: Literal["classification", "regression"] | None = key(
        None, help="path: what the target is; null: what the task is for, or what the target's values tell"
    )
    silos: int | None = key(None, at_least=1, help="number of silos; left out with partition: column")
    partition: Partition = key(
        None, variants=_partitions, help="how rows are dealt to silos; null: column where silo names one, else iid"
    )
    standardize: Standardize = key("none", variants=_standardize, help="how features are centred and scaled")
    target_scale: TargetScale | None = key(None, help="regression: targets by public mean and std; null: as they are")
    public_test: float = key(0.2, at_least=0, at_most=1, help="fraction of all rows that is public, to test on")
    validation: float = key(0.0, at_least=0, below=1, help="fraction of each silo's rows held out to choose with")
    test: float = key(0.0, at_least=0, below=1, help="fraction of each silo's rows held out to test on")
    limit: int | None = key(None, at_least=1, help="use at most this many rows, drawn by the seed")
    shift: Shift | None = key(None, help="images or labels that change in a round of the run; null: they do not")
    seed: int | None = key(
        None, at_least=0, at_most=2**63 - 1, help="of order, public test and partition; null: the experiment's seed"
    )

    def __post_init__(self) -> None:
        # Resolved here, so that the digest knows one spelling of each.
        if self.name in FILES and self.path is not None and self.path.lower().endswith(f".{self.name}"):
            object.__setattr__(self, "name", None)
        if self.partition is None:
            object.__setattr__(self, "partition", PARTITIONS["iid" if self.silo is None else "column"]())

    @property
    def named(self) -> bool:
        """Whether it is a data set that confide knows: its kind, target and silos are its own."""
        return self.name is not None and self.name != "dataset"


@dataclass(frozen=True)
class Cohort:
    """The silos of one round."""

    sampling: Literal["poisson", "fixed", "all", "cyclic"] = key(
        "poisson", help="each silo by a coin, a fixed number, all, or in turns"
    )
    rate: float = key(1.0, above=0, at_most=1, help="poisson: chance that a silo is in a round")
    cap: int | None = key(None, at_least=1, help="poisson: silos in a round at most, a random choice; costs epsilon")
    size: int | None = key(None, at_least=1, help="fixed: silos in a round")
    separation: int | None = key(None, at_least=1, help="cyclic: groups, and rounds from a silo's turn to its next")


@dataclass(frozen=True)
class Train:
    """What one silo does in one round: SGD on its own rows."""

    steps: int | None = key(None, at_least=1, help="SGD steps; give this or epochs")
    epochs: int | None = key(None, at_least=1, help="passes over the silo's rows; 1 where steps is not given either")
    batch_size: int | None = key(None, at_least=1, help="rows per step; null: all rows of the silo")
    learning_rate: float = key(0.1, above=0, help="SGD's step size")
    momentum: float = key(0.0, at_least=0, below=1, help="SGD's momentum, from zero in every round")
    weight_decay: float = key(0.0, at_least=0, help="L2 penalty on every parameter")

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:  # Resolved here, so that the digest knows one spelling of it.
            object.__setattr__(self, "epochs", 1)


@dataclass(frozen=True)
class Wire:
    """How numbers cross the link, in both directions."""

    values: Literal["float32", "float16"] = key("float32", help="type of each number; float16 is rounded to nearest")
    feedback: bool = key(False, help="float16: what rounding took from a silo's update is added to its next one")


@dataclass(frozen=True, kw_only=True)
class SiloPrivacy:
    """Differential privacy of whole silos: updates clipped, their sum noised."""

    clip_norm: ClipNorm = key(above=0, help="largest L2 norm of an update; or a section that adapts it, from start")
    noise_multiplier: float | None = key(None, above=0, help="noise std / clip norm, on the sum; this or epsilon")
    epsilon: float | None = key(None, above=0, help="the whole run's epsilon, noise follows; this or noise_multiplier")
    mechanism: Literal["gaussian", "banded"] = key(
        "gaussian", help="noise of rounds: independent, or correlated so that it cancels in sums (sampling: cyclic)"
    )
    delta: float = key(above=0, below=1, help="the delta of every epsilon that is reported")
    neighbours: Literal["add_remove", "zero_out", "replace"] = key("add_remove", help="what differs by one silo")
    channels: tuple[ChannelPrivacy, ...] = key((), help="channels with settings of their own; left out, all are alike")
    allow_large_delta: bool = key(False, help="accept delta >= 1 / silos, which lets a silo be published whole")


@dataclass(frozen=True, kw_only=True)
class LocalPrivacy:
    """Privacy against the server: every silo clips and noises its own update before it leaves."""

    clip_norm: float = key(above=0, help="largest L2 norm of an update, before the silo's own noise")
    noise_multiplier: float | None = key(None, above=0, help="noise std / clip norm, on each update; this or epsilon")
    epsilon: float | None = key(None, above=0, help="of a silo that is asked in every round; this or noise_multiplier")
    delta: float = key(above=0, below=1, help="the delta of the server's view, below 1 / silos")
    neighbours: Literal["replace", "zero_out", "add_remove"] = key(
        "replace", help="what differs: other data, or zeros; add_remove has no price, since the server sees who answers"
    )
    budget: float | None = key(None, above=0, help="epsilon that no silo may pass; the run ends before one would")


@dataclass(frozen=True, kw_only=True)
class ExamplePrivacy:
    """Differential privacy of single examples: DP-SGD inside every silo, with train.steps noisy steps a round."""

    clip_norm: float = key(above=0, help="largest L2 norm of one example's gradient")
    noise_multiplier: tuple[float, ...] | None = key(
        None, above=0, help="noise std / clip norm, on a batch's sum; one, or one per silo; this or epsilon"
    )
    epsilon: tuple[float, ...] | None = key(
        None, above=0, help="each silo's epsilon if it is asked in every round; one, or one per silo"
    )
    delta: float = key(above=0, below=1, help="the delta of every epsilon that is reported")
    rows: tuple[int, ...] = key(at_least=1, help="nominal rows of a silo, public; one number, or one per silo")
    batch: float = key(above=0, help="expected rows of a batch, public; a row is in it with chance batch / rows")
    allow_large_delta: bool = key(False, help="accept delta >= 1 / rows, which lets an example be published whole")


@dataclass(frozen=True)
class ExampleAudit:
    """Measuring what single silos leak of a row: canary examples in their batches."""

    canaries: int = key(0, at_least=0, help="canary examples of each audited silo; 0: no such audit")
    silos: tuple[int, ...] = key((0,), at_least=0, help="the audited silos, by number from 0; each is measured alone")


@dataclass(frozen=True)
class Audit:
    """Measuring what the run really leaks."""

    canaries: int = key(0, at_least=0, help="canary silos of the one-shot audit; 0: no audit")
    iterates: Literal["auto", "off"] = key("auto", help="also score every round's step, unless that is too much work")
    participation: Literal["bernoulli", "spread"] = key(
        "bernoulli", help="canaries as silos (coins of their rate, or turns), or each `repeats` times: never amplified"
    )
    repeats: int = key(1, at_least=1, help="spread: rounds that each canary is in")
    reference: Literal["start", "zero"] = key("start", help="score the final model minus the initial one, or itself")
    examples: ExampleAudit = key(ExampleAudit(), help="the same for privacy.example, inside some silos")


@dataclass(frozen=True)
class Privacy:
    """What protects silos, and how that is checked."""

    silo: SiloPrivacy | None = key(None, help="silo-level differential privacy; null: none")
    example: ExamplePrivacy | None = key(None, help="example-level differential privacy; null: none")
    local: LocalPrivacy | None = key(None, help="noise of each silo's own, against the server; null: none")
    audit: Audit = key(Audit(), help="the measured epsilon, beside the claimed one")
    noise: Literal["simulated", "system"] | None = key(
        None,
        help="simulated: from the seed, repeatable; system: noise and cohorts are secret, no run repeats; null: system "
        "across machines, else simulated",
    )


@dataclass(frozen=True, kw_only=True)
class ExampleBudget:
    """No round starts in which a silo that is asked would pass it."""

    epsilon: tuple[float, ...] = key(above=0, help="largest epsilon of a silo's examples; one, or one per silo")
    delta: float = key(above=0, below=1, help="its delta, the same as privacy.example.delta")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """No round starts whose worst case would pass it."""

    epsilon: float | None = key(None, above=0, help="largest epsilon of whole silos; with delta, or neither")
    delta: float | None = key(None, above=0, below=1, help="its delta, the same as privacy.silo.delta")
    example: ExampleBudget | None = key(
        None, help="where to stop for examples; with secret cohorts all silos count as asked; null: no limit"
    )


@dataclass(frozen=True)
class Metrics:
    """What is measured, and what of it may leave."""

    privacy: Literal["strict", "research"] = key("strict", help="strict: only what is public or noised; research: all")
    every: int = key(1, at_least=1, help="evaluate every so many rounds")
    inline: bool = key(False, help="serve the metrics of this run on loopback while it lasts; of a single local run")
    port: int = key(9464, at_least=0, at_most=65535, help="inline: its port; 0 takes a free one")
    sinks: tuple[Sink, ...] = key((), variants=_sinks, help="where its numbers go, too; a CSV file is always written")


@dataclass(frozen=True)
class Engine:
    """Where the work is done; changes no result beyond rounding, and on a GPU what dropout draws.

    Across machines, which silos answer is up to them and to the network; that does change results.
    """

    kind: Literal["local", "pool", "flower"] = key(
        "local", help="this process, a pool of worker processes, or silos on machines of their own"
    )
    workers: int | None = key(None, at_least=1, help="pool: processes; null: one per core")
    stacked: Literal["auto", "off"] = key("auto", help="train many silos at once where the model allows it")
    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", help="of silos trained one by one; auto: a GPU where there is one; stacks stay on the CPU"
    )
    chunk: int | None = key(None, at_least=1, help="silos summed together, whatever the workers; null: chosen")
    deadline_s: float = key(600.0, above=0, help="flower: seconds that silos have to answer; who is later is left out")
    quorum: float | None = key(
        None, above=0, at_most=1, help="flower, without privacy: a round ends once this part of its cohort answered"
    )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole run."""

    name: str = key("run", help="letters, digits, - _ and . ; names the run's folder")
    seed: int = key(0, at_least=0, at_most=2**63 - 1, help="every draw of a simulated run follows from it")
    rounds: int = key(at_least=1, at_most=1_000_000, help="rounds of training")
    task: Task = key(variants=_tasks, help="the model and its loss")
    data: Data = key(help="what the silos hold")
    cohort: Cohort = key(Cohort(), help="the silos of one round")
    train: Train = key(Train(), help="what a silo does in a round")
    strategy: Strategy = key("fedavg", variants=_strategies, help="the federated algorithm")
    wire: Wire = key(Wire(), help="how numbers cross the link")
    privacy: Privacy = key(Privacy(), help="what protects silos")
    budget: Budget | None = key(None, help="where to stop; null: no limit")
    attacks: tuple[Attack, ...] = key((), variants=_attacks, help="what malicious silos do, in this order")
    metrics: Metrics = key(Metrics(), help="what is measured")
    engine: Engine = key(Engine(), help="where the work is done")

    def __post_init__(self) -> None:
        kinds: tuple[Literal["classification", "regression"], ...] = ("classification", "regression")
        able = [kind for kind in kinds if kind in self.task.kinds]
        if self.data.kind is None and not self.data.named and len(able) == 1:
            object.__setattr__(self, "data", replace(self.data, kind=able[0]))
        if self.privacy.noise is None:  # Resolved here, so that the digest knows one spelling of each.
            private = (self.privacy.silo, self.privacy.local, self.privacy.example)
            secret = self.engine.kind == "flower" and any(section is not None for section in private)
            object.__setattr__(self, "privacy", replace(self.privacy, noise="system" if secret else "simulated"))


def digest(experiment: Experiment) -> str:
    """SHA-256 of what decides the results: all keys but name, metrics, engine and paths (hexadecimal)."""
    keys = {name: value for name, value in encode(experiment).items() if name not in ("name", "metrics", "engine")}
    if not keys["attacks"]:
        del keys["attacks"]
    keys["data"] = {name: value for name, value in keys["data"].items() if name != "path"}
    if keys["data"]["shift"] is None:
        del keys["data"]["shift"]
    keys["task"] = _without_paths(experiment.task, keys["task"])
    text = json.dumps(keys, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_paths(task: Task, keys: Mapping[str, Any]) -> dict[str, Any]:
    """A task's keys with "file" for every path; what the files hold is a part of a run's identity."""
    found = dict(keys)
    for name in task.places:
        if isinstance(found[name], str) and not is_name(found[name]):
            found[name] = "./file"
    for name, value in vars(task).items():
        if hasattr(value, "places"):
            found[name] = _without_paths(value, found[name])
    return found
