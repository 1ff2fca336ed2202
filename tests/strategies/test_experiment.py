from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import strategies
from strategies.codec import encode
from strategies.describe import describe
from strategies.experiment import Experiment, digest
from strategies.loading import parse
from strategies.partitions import PARTITIONS
from strategies.registry import STRATEGIES
from strategies.standardize import STANDARDIZE
from strategies.tasks import TASKS
from strategies.yaml_text import override

SMALL: dict[str, Any] = {"rounds": 3, "task": "logistic", "data": {"name": "digits", "silos": 10}}


def changed(*overrides: str) -> dict[str, Any]:
    mapping = SMALL
    for each in overrides:
        mapping = override(mapping, each)
    return mapping


def test_three_keys_are_an_experiment() -> None:
    experiment = parse(SMALL)
    assert experiment.rounds == 3
    assert type(experiment.task) is TASKS["logistic"]
    assert type(experiment.strategy) is STRATEGIES["fedavg"]
    assert type(experiment.data.partition) is PARTITIONS["iid"]
    assert type(experiment.data.standardize) is STANDARDIZE["none"]
    assert (experiment.train.steps, experiment.train.epochs) == (None, 1)
    assert experiment.privacy.silo is None
    assert experiment.budget is None


# The digest.


def test_the_digest_knows_one_spelling() -> None:
    spelled = changed(
        "task={name: logistic}", "train.epochs=1", "train.momentum=0", "strategy={name: fedavg}", "budget=null"
    )
    backwards = dict(reversed([*spelled.items(), ("data", dict(reversed(spelled["data"].items())))]))
    assert digest(parse(spelled)) == digest(parse(backwards)) == digest(parse(SMALL))


@pytest.mark.parametrize(
    "change",
    ["name=other", "metrics.every=5", "metrics={inline: true, port: 1}", "engine={kind: pool, workers: 2, chunk: 4}"],
)
def test_facts_of_the_machine_and_sinks_leave_the_digest_alone(change: str) -> None:
    assert digest(parse(changed(change))) == digest(parse(SMALL))


def test_the_path_of_the_data_leaves_the_digest_alone() -> None:
    first, second = (changed(f"data={{path: {path}, silos: 3}}") for path in ("/a/x.npz", "/b/y.npz"))
    assert digest(parse(first)) == digest(parse(second)) != digest(parse(SMALL))


CHANGES = [
    "rounds=4",
    "seed=1",
    "task=mlp",
    "data.name=adult",
    "data.silos=11",
    "data.partition=shards",
    "data.standardize=own",
    "data.public_test=0.5",
    "data.limit=100",
    "cohort.rate=0.5",
    "train.steps=1",
    "train.epochs=2",
    "train.batch_size=8",
    "train.learning_rate=0.2",
    "strategy={name: fedavg, proximal: 0.1}",
    "attacks=[{name: sign_flip, fraction: 0.1}]",
    "attacks=[{name: sign_flip, fraction: 0.2}]",
    "wire.values=float16",
    "wire={values: float16, feedback: true}",
    "privacy.silo={clip_norm: 1, epsilon: 2, delta: 1e-5}",
    "privacy.silo={clip_norm: 1, noise_multiplier: 2, delta: 1e-5}",
]


def test_whatever_decides_a_result_decides_the_digest() -> None:
    digests = [digest(parse(changed(change))) for change in [*CHANGES, "rounds=3"]]
    assert len(set(digests)) == len(digests)


# The registries.


def test_every_key_of_every_variant_has_a_line_of_help() -> None:
    rows = describe(Experiment)
    assert [row.path for row in rows if not row.help or not row.help.isprintable()] == []
    assert {row.path.split("[")[0] for row in rows if "[" in row.path} == {
        "task",
        "data.partition",
        "data.standardize",
        "privacy.silo.channels",
        "strategy",
        "attacks",
        "metrics.sinks",
    }


variants = st.sampled_from(
    [("task", name) for name in TASKS] + [("strategy", name) for name in STRATEGIES] + [("data.partition", "shards")]
)


@given(
    variants,
    st.integers(1, 10**6),
    st.floats(0, 1, exclude_min=True),
    st.none() | st.integers(1, 99),
    st.floats(1e-300, 1e38),
)
def test_parse_inverts_encode(
    variant: tuple[str, str], rounds: int, rate: float, batch: int | None, learning_rate: float
) -> None:
    cohort, train = {"rate": rate}, {"batch_size": batch, "learning_rate": learning_rate}
    mapping = override(SMALL | {"rounds": rounds, "cohort": cohort, "train": train}, f"{variant[0]}={variant[1]}")
    experiment = parse(mapping)
    assert parse(encode(experiment)) == experiment
    assert parse(yaml.safe_load(yaml.safe_dump(encode(experiment)))) == experiment


def test_the_schema_is_there_before_torch() -> None:
    code = (
        "import sys, strategies.loading; from strategies.describe import describe; "
        "from strategies.experiment import Experiment; "
        "print(len(describe(Experiment, open_variants=False)), 'torch' in sys.modules)"
    )
    root = Path(strategies.__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(len(describe(Experiment, open_variants=False))), "False"]
