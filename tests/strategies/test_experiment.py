from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import strategies
from strategies import plugins
from strategies.experiment import Cohort, Data, Experiment, Train, digest, load, parse, problems
from strategies.partitions import PARTITIONS, Dirichlet
from strategies.registry import STRATEGIES
from strategies.schema import ConfigError, describe, encode, override
from strategies.standardize import STANDARDIZE
from strategies.tasks import TASKS

SMALL: dict[str, Any] = {"rounds": 3, "task": "logistic", "data": {"name": "digits", "silos": 10}}
SILO = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}


def changed(*overrides: str, base: Mapping[str, Any] = SMALL) -> dict[str, Any]:
    mapping = dict(base)
    for each in overrides:
        mapping = override(mapping, each)
    return mapping


def problem(mapping: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(mapping)
    return str(caught.value)


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


PRIVATE = changed(f"privacy.silo={SILO}")

ONE_PROBLEM = [
    (SMALL, "name=../x", "name: use up to 100 letters, digits, - _ or . (not first), found '../x'"),
    (SMALL, "name=.hidden", "name: use up to 100 letters, digits, - _ or . (not first), found '.hidden'"),
    (SMALL, "name=a/b", "name: use up to 100 letters, digits, - _ or . (not first), found 'a/b'"),
    (SMALL, "name=''", "name: use up to 100 letters, digits, - _ or . (not first), found ''"),
    (SMALL, 'name="a\\n"', "name: use up to 100 letters, digits, - _ or . (not first), found 'a\\n'"),
    (SMALL, "rounds=0", "rounds: must be >= 1 and <= 1000000, got 0"),
    (SMALL, "rounds=1000001", "rounds: must be >= 1 and <= 1000000, got 1000001"),
    (SMALL, "rounds=true", "rounds: expected an integer, found true"),
    (SMALL, "seed=-1", "seed: must be >= 0 and <= 9223372036854775807, got -1"),
    (
        SMALL,
        "task=my.models:Net",
        "task.name: 'my.models:Net' would import code; give it on the command line: --plugin my.models",
    ),
    (SMALL, "strategy=x:Y", "strategy.name: 'x:Y' would import code; give it on the command line: --plugin x"),
    # Data.
    (SMALL, "data.path=x.npz", "data: give one of name and path, found both"),
    (SMALL, "data.name=null", "data: give one of name and path, found neither"),
    (
        SMALL,
        "data.name=../digits",
        "data.name: not the name of a data set, found '../digits'; see confide list, or use data.path",
    ),
    (
        SMALL,
        "data.silos=null",
        "data.silos: missing, give the number of silos, or use partition: column for those of the data",
    ),
    (
        SMALL,
        "data.partition=column",
        "data.silos: found 10, but partition: column takes the silos of the data; remove it",
    ),
    (SMALL, "data={path: a.csv, silos: 3}", "data.target: missing, give the CSV column to predict"),
    (
        SMALL,
        "data={path: a.CSV, target: y, partition: column}",
        "data.silo: missing, partition: column needs the CSV column that says whose row it is",
    ),
    (SMALL, "data.public_test=1.5", "data.public_test: must be >= 0 and <= 1, got 1.5"),
    (SMALL, "data.test=1.0", "data.test: must be >= 0 and < 1, got 1.0"),
    (
        SMALL,
        "data={name: digits, silos: 2, test: 0.5, validation: 0.5}",
        "data.test: validation + test must be < 1, got 0.5 + 0.5; leave rows to train on",
    ),
    (
        SMALL,
        "data.partition=dirichlet",
        "data.partition.alpha: missing, give a number > 0 "
        "(skew of classes between silos: 0.1 is strong, 100 is almost none)",
    ),
    (SMALL, "data.partition={name: dirichlet, alpha: -1}", "data.partition.alpha: must be > 0, got -1.0"),
    # Cohort and training.
    (SMALL, "cohort.rate=0", "cohort.rate: must be > 0 and <= 1, got 0.0"),
    (SMALL, "cohort.sampling=fixed", "cohort.size: missing, sampling: fixed needs the number of silos in a round"),
    (SMALL, "cohort.size=3", "cohort.size: found 3, but only sampling: fixed uses it; remove it"),
    (
        SMALL,
        "cohort={sampling: all, rate: 0.5}",
        "cohort.rate: found 0.5, but only sampling: poisson uses it; remove it",
    ),
    (SMALL, "cohort={sampling: fixed, size: 11}", "cohort.size: must be <= data.silos = 10, got 11"),
    (
        SMALL,
        "train={steps: 5, epochs: 2}",
        "train: give one of steps and epochs, found both (5 and 2); set one to null",
    ),
    (SMALL, "train.learning_rate=.nan", "train.learning_rate: must be finite, got nan"),
    (SMALL, "train.learning_rate=-0.1", "train.learning_rate: must be > 0, got -0.1"),
    (
        SMALL,
        "train.learning_rate='1e-5'",
        "train.learning_rate: expected a number, found the text '1e-5', write 1.0e-5",
    ),
    (SMALL, "train.learning_rte=0.1", "train.learning_rte: unknown key, did you mean 'learning_rate'?"),
    # Privacy.
    (PRIVATE, "privacy.silo.epsilon=1.0", "privacy.silo: give one of noise_multiplier and epsilon, found both"),
    (
        PRIVATE,
        "privacy.silo.noise_multiplier=null",
        "privacy.silo: give one of noise_multiplier and epsilon, found neither",
    ),
    (PRIVATE, "privacy.silo.noise_multiplier=0", "privacy.silo.noise_multiplier: must be > 0, got 0.0"),
    (PRIVATE, "privacy.silo.delta=1", "privacy.silo.delta: must be > 0 and < 1, got 1.0"),
    (
        PRIVATE,
        "privacy.silo.delta=0.1",
        "privacy.silo.delta: must be < 1 / silos = 0.1, got 0.1; lower it, or set allow_large_delta: true",
    ),
    (
        PRIVATE,
        "cohort={sampling: fixed, size: 5}",
        "privacy.silo.neighbours: cohorts of fixed size have no add_remove price; use neighbours: replace",
    ),
    (
        PRIVATE,
        "strategy={name: fedavg, weighting: examples}",
        "strategy.weighting: 'examples' counts private rows; under privacy.silo use 'uniform'",
    ),
    (PRIVATE, "budget={epsilon: 2, delta: 1e-6}", "budget.delta: must equal privacy.silo.delta = 1.0e-05, got 1.0e-06"),
    (
        SMALL,
        "budget={epsilon: 2, delta: 1e-6}",
        "budget: there is no privacy.silo to spend it, so epsilon is infinite; add privacy.silo or remove budget",
    ),
    (
        SMALL,
        "privacy.audit.canaries=20",
        "privacy.audit.canaries: found 20, but there is no privacy.silo to audit; add it or use canaries: 0",
    ),
    (SMALL, "privacy.example={}", "privacy.example: unknown key, choose from audit, noise, silo"),
    (SMALL, "privacy.noise=secret", "privacy.noise: must be one of simulated, found the text 'secret'"),
    (SMALL, "engine.workers=2", "engine.workers: found 2, but only kind: pool uses it; remove it or use kind: pool"),
]


@pytest.mark.parametrize(("base", "change", "line"), ONE_PROBLEM, ids=[row[1] for row in ONE_PROBLEM])
def test_a_problem_is_one_line_with_path_value_and_remedy(base: dict[str, Any], change: str, line: str) -> None:
    assert problem(changed(change, base=base)) == line


def test_rules_between_keys_are_reported_with_the_other_problems() -> None:
    mapping = changed("rounds=0", "train.learning_rte=1", "cohort={sampling: fixed, size: 3}", base=PRIVATE)
    assert problem(mapping).split("\n") == [
        "rounds: must be >= 1 and <= 1000000, got 0",
        "train.learning_rte: unknown key, did you mean 'learning_rate'?",
        "privacy.silo.neighbours: cohorts of fixed size have no add_remove price; use neighbours: replace",
    ]


def test_a_section_that_could_not_be_read_does_not_break_rules() -> None:
    # data.name is missing only because it is misspelt: one mistake, one line.
    assert problem(SMALL | {"data": {"nmae": "digits", "silos": 10}}) == "data.nmae: unknown key, did you mean 'name'?"


@pytest.mark.parametrize(
    "change",
    [
        "data.path=null",
        "data.name=schools:exam",
        "data={name: adult, partition: column}",
        "data={path: ../up/a.npz, silos: 3}",
        "data={path: a.csv, target: y, silo: s, partition: column}",
        "cohort={sampling: fixed, size: 10}",
        "train.steps=5",
        "privacy.silo={clip_norm: 1, epsilon: 2, delta: 1e-5}",
        "privacy.silo={clip_norm: 1, epsilon: 2, delta: 0.5, allow_large_delta: true}",
        "engine={kind: pool, workers: 2}",
        "name=a.b-c_1",
    ],
)
def test_what_is_allowed_has_no_problems(change: str) -> None:
    experiment = parse(changed(change))
    assert problems(experiment) == []
    assert parse(encode(experiment)) == experiment


@pytest.mark.parametrize("neighbours", ["zero_out", "replace"])
def test_fixed_cohorts_go_with_relations_that_keep_the_number_of_silos(neighbours: str) -> None:
    change = ("cohort={sampling: fixed, size: 5}", f"privacy.silo.neighbours={neighbours}")
    assert problems(parse(changed(*change, base=PRIVATE))) == []


def test_problems_of_an_experiment_built_in_python_are_found_too() -> None:
    experiment = dataclasses.replace(parse(SMALL), cohort=Cohort("fixed"), train=Train(steps=1, epochs=1))
    assert [line.split(":")[0] for line in problems(experiment)] == ["cohort.size", "train"]


# Files and overrides.


def test_load_reads_a_file_and_then_the_overrides_in_order(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("rounds: 3\ntask: {name: mlp, hidden: [16]}\ndata: {name: digits, silos: 10}\n")
    overrides = [
        "rounds=4",
        "rounds=5",
        "data.partition=dirichlet",
        "data.partition.alpha=1e-1",
        "task.activation=tanh",
    ]
    experiment = load(path, overrides)
    assert experiment.rounds == 5
    assert experiment.data.partition == Dirichlet(0.1)
    assert encode(experiment)["task"] == {"name": "mlp", "hidden": [16], "activation": "tanh"}


def test_every_bad_override_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("rounds: 3\n")
    with pytest.raises(ConfigError) as caught:
        load(path, ["a", "b=!x 1"])
    assert [line.split(":")[0] for line in caught.value.problems] == ["--set a", "--set b"]


def test_a_file_cannot_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "booby.py").write_text("raise SystemError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_text("rounds: 3\ntask: booby:Trap\ndata: {name: digits, silos: 10}\n")
    with pytest.raises(ConfigError, match=r"--plugin booby$"):
        load(path)
    assert "booby" not in sys.modules


# The digest.


def test_the_digest_knows_one_spelling() -> None:
    spelled = changed(
        "task={name: logistic}", "train.epochs=1", "train.momentum=0", "strategy={name: fedavg}", "budget=null"
    )
    backwards = dict(reversed([*spelled.items(), ("data", dict(reversed(spelled["data"].items())))]))
    assert digest(parse(spelled)) == digest(parse(backwards)) == digest(parse(SMALL))


@pytest.mark.parametrize("change", ["name=other", "metrics.every=5", "engine={kind: pool, workers: 2, chunk: 4}"])
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
    "cohort.deadline_s=10",
    "train.steps=1",
    "train.epochs=2",
    "train.batch_size=8",
    "train.learning_rate=0.2",
    "strategy={name: fedavg, proximal: 0.1}",
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
        "strategy",
    }


variants = st.sampled_from(
    [("task", name) for name in TASKS] + [("strategy", name) for name in STRATEGIES] + [("data.partition", "shards")]
)


@given(
    variants,
    st.integers(1, 10**6),
    st.floats(0, 1, exclude_min=True),
    st.none() | st.integers(1, 99),
    st.floats(1e-300, 1e300),
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
        "import sys; from strategies.experiment import Experiment; from strategies.schema import describe; "
        "print(len(describe(Experiment, open_variants=False)), 'torch' in sys.modules)"
    )
    root = Path(strategies.__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(len(describe(Experiment, open_variants=False))), "False"]


# Plugins.


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(STRATEGIES)
    yield
    STRATEGIES.clear()
    STRATEGIES.update(before)


PLUGIN = """
from dataclasses import dataclass
from strategies.base import Strategy
from strategies.registry import strategy
from strategies.schema import key

@strategy("mine")
@dataclass(frozen=True)
class Mine(Strategy):
    pull: float = key(0.5, at_least=0, help="how hard")
"""


def test_a_plugin_adds_a_strategy_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: None) -> None:
    (tmp_path / "confide_test_mine.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    assert "unknown 'mine'" in problem(changed("strategy=mine"))
    plugins.load_plugins(["confide_test_mine"])
    assert encode(parse(changed("strategy=mine")))["strategy"] == {"name": "mine", "pull": 0.5}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (
            "confide_none",
            "--plugin confide_none: ModuleNotFoundError: No module named 'confide_none'; "
            "install it, or put its folder on PYTHONPATH",
        ),
        ("confide_broken", "--plugin confide_broken: ZeroDivisionError: division by zero; fix the module"),
        ("a:b", "--plugin a:b: found 'a:b'; write package.module, as in an import"),
        ("../x", "--plugin ../x: found '../x'; write package.module, as in an import"),
        (".x", "--plugin .x: found '.x'; write package.module, as in an import"),
        ("", "--plugin : found ''; write package.module, as in an import"),
    ],
)
def test_a_plugin_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, line: str
) -> None:
    (tmp_path / "confide_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(plugins.PluginError) as caught:
        plugins.load_plugins([module])
    assert str(caught.value) == line


def test_import_path_finds_nested_attributes() -> None:
    assert plugins.import_path("strategies.experiment:Data.__name__") == Data.__name__


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("math", "import path: found 'math'; write package.module:attribute"),
        ("math:", "import path: found 'math:'; write package.module:attribute"),
        ("math:tau2", "import path: module math has no 'tau2'; check the name"),
        ("ma th:pi", "import path: found 'ma th'; write package.module, as in an import"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_one_line(path: str, line: str) -> None:
    with pytest.raises(plugins.PluginError) as caught:
        plugins.import_path(path)
    assert str(caught.value) == line


def offer(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    points = EntryPoints(EntryPoint(f"p{i}", value, "confide.strategies") for i, value in enumerate(values))
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: points.select(group=group))


def test_entry_points_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: None) -> None:
    for number, attribute in ((1, ""), (2, ":Mine")):
        (tmp_path / f"confide_test_point{number}.py").write_text(PLUGIN.replace('"mine"', f'"mine{number}"'))
        monkeypatch.syspath_prepend(tmp_path)
        offer(monkeypatch, f"confide_test_point{number}{attribute}")
        plugins.load_entry_points()
        assert f"mine{number}" in STRATEGIES


def test_an_entry_point_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "confide_none:Thing")
    with pytest.raises(plugins.PluginError, match=r"^entry point p0 of package unknown: ModuleNotFoundError: .*$"):
        plugins.load_entry_points()
