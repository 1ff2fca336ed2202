from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from strategies.codec import encode
from strategies.experiment import Cohort, Train
from strategies.loading import parse
from strategies.rules import problems
from strategies.schema import ConfigError
from strategies.yaml_text import override

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


PRIVATE = changed(f"privacy.silo={SILO}")
EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3, "rows": 100, "batch": 10.0}
ROWS = changed("train.steps=1", f"privacy.example={EXAMPLE}")

ONE_PROBLEM = [
    (
        PRIVATE,
        "privacy.audit.repeats=2",
        "privacy.audit.repeats: found 2, but only participation: spread uses it; remove it",
    ),
    (
        PRIVATE,
        "privacy.audit={canaries: 5, participation: spread, repeats: 4}",
        "privacy.audit.repeats: must be <= rounds = 3, got 4",
    ),
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
    (
        SMALL,
        "data.kind=regression",
        "data.kind: found 'regression', but a data set by name has its own; remove it, or use data.path",
    ),
    # Cohort and training.
    (SMALL, "cohort.rate=0", "cohort.rate: must be > 0 and <= 1, got 0.0"),
    (SMALL, "cohort.sampling=fixed", "cohort.size: missing, sampling: fixed needs the number of silos in a round"),
    (SMALL, "cohort.size=3", "cohort.size: found 3, but only sampling: fixed uses it; remove it"),
    (
        SMALL,
        "cohort={sampling: all, rate: 0.5}",
        "cohort.rate: found 0.5, but only sampling: poisson uses it; remove it",
    ),
    (SMALL, "cohort={sampling: all, cap: 3}", "cohort.cap: found 3, but only sampling: poisson uses it; remove it"),
    (SMALL, "cohort.cap=3", "cohort.cap: with rate: 1 every cohort has that size; use sampling: fixed and size: 3"),
    (SMALL, "cohort={rate: 0.5, cap: 0}", "cohort.cap: must be >= 1, got 0"),
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
    # Wire.
    (
        SMALL,
        "wire.feedback=true",
        "wire.feedback: found true, but float32 rounds nothing off; use values: float16, or feedback: false",
    ),
    (
        changed(f"privacy.local={SILO}"),
        "wire={values: float16, feedback: true}",
        "wire.values: found 'float16', but with privacy.local a silo's noise is float32; use values: float32",
    ),
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
        "strategy.weighting: 'examples' counts private rows; under privacy use 'uniform'",
    ),
    (PRIVATE, "budget={epsilon: 2, delta: 1e-6}", "budget.delta: must equal privacy.silo.delta = 1.0e-05, got 1.0e-06"),
    (
        SMALL,
        "budget={epsilon: 2, delta: 1e-6}",
        "budget: there is no privacy.silo to spend it, so epsilon is infinite; add privacy.silo or remove budget",
    ),
    (PRIVATE, "budget={}", "budget: limits nothing, give epsilon and delta, or example; or remove it"),
    (
        PRIVATE,
        "budget={epsilon: 2}",
        "budget.delta: missing, a budget of silos has epsilon and delta; give both or neither",
    ),
    (
        PRIVATE,
        "budget={delta: 1e-5}",
        "budget.epsilon: missing, a budget of silos has epsilon and delta; give both or neither",
    ),
    (
        SMALL,
        "budget={example: {epsilon: 2, delta: 1e-5}}",
        "budget.example: there is no privacy.example to spend it; add it or remove budget.example",
    ),
    (
        ROWS,
        "budget={example: {epsilon: 2}}",
        "budget.example.delta: missing, give a number > 0 and < 1 (its delta, the same as privacy.example.delta)",
    ),
    (
        ROWS,
        "budget={example: {epsilon: 2, delta: 1.0e-4}}",
        "budget.example.delta: must equal privacy.example.delta = 0.001, got 0.0001",
    ),
    (
        ROWS,
        "budget={example: {epsilon: [2, 3], delta: 1.0e-3}}",
        "budget.example.epsilon: found 2 numbers for 10 silos; give one, or one per silo",
    ),
    (
        ROWS,
        "budget={example: {epsilon: [], delta: 1.0e-3}}",
        "budget.example.epsilon: found an empty list; give one number, or one per silo",
    ),
    (ROWS, "budget={example: {epsilon: 0, delta: 1.0e-3}}", "budget.example.epsilon: must be > 0, got 0.0"),
    (ROWS, "budget={example: {epsilon: .nan, delta: 1.0e-3}}", "budget.example.epsilon: must be finite, got nan"),
    (
        ROWS,
        "budget={epsilon: 2, delta: 1.0e-3}",
        "budget: there is no privacy.silo to spend it, so epsilon is infinite; add privacy.silo or remove budget",
    ),
    (
        SMALL,
        "privacy.audit.canaries=20",
        "privacy.audit.canaries: found 20, but there is no privacy.silo to audit; add it or use canaries: 0",
    ),
    (
        SMALL,
        "privacy.noise=system",
        "privacy.noise: found 'system', but there is no privacy section to add noise for; use simulated",
    ),
    (SMALL, "privacy.row={}", "privacy.row: unknown key, choose from audit, example, local, noise, silo"),
    (SMALL, "privacy.noise=secret", "privacy.noise: must be one of simulated, system, found the text 'secret'"),
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
        "data={path: a.npz, silos: 3, kind: regression}",
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
