"""A data holder's own file: read as the server's schema says, or refused without a word about what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.errors import DataError, Refused
from client.office import Office
from privacy.chain import load
from simulations.data.own import named, of_file
from simulations.deploying.connecting import schema
from simulations.preparing import prepare
from strategies.envelope import Schema
from strategies.experiment import Experiment
from tests.simulations.silos import SILO, asked, experiment, hello, office, policy, said

PUBLIC = "age,colour,ill\n1,red,no\n2,blue,yes\n3,green,no\n4,red,yes\n5,blue,no\n6,green,yes\n7,red,no\n8,blue,yes\n"
OWN = "ill,colour,age\n" + "yes,blue,10\nno,blue,20\nno,red,30\nyes,red,40\n" * 5


@pytest.fixture
def run(tmp_path: Path) -> Experiment:
    """An experiment about the server's own public file."""
    (tmp_path / "public.csv").write_text(PUBLIC)
    data = {"path": str(tmp_path / "public.csv"), "target": "ill", "silos": 2, "public_test": 0.25}
    return experiment(data=data, task="logistic")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text(OWN)
    return tmp_path / "rows.csv"


@pytest.fixture
def silo(own: Path, tmp_path: Path) -> Iterator[Office]:
    with closing(office(tmp_path / "silo", policy(), number=1, data=str(own))) as found:
        yield found


def asks(run: Experiment) -> Schema:
    return schema(prepare(run).federation)


def test_columns_words_and_classes_are_the_servers_whatever_their_order_in_the_file(run: Experiment, own: Path) -> None:
    """The server's columns: age, then blue, green and red; its classes: no, then yes. Nobody here is green."""
    federation, _ = of_file(str(own), run, asks(run), number=1, silos=2)
    assert federation.feature_names == ("age", "colour=blue", "colour=green", "colour=red")
    assert federation.train.sizes.tolist() == [0, 20]
    rows = federation.train.silo(1)
    found = {(*row, target) for row, target in zip(map(tuple, rows.features.tolist()), rows.targets.tolist())}
    assert found == {(10, 1, 0, 0, 1), (20, 1, 0, 0, 0), (30, 0, 0, 1, 0), (40, 0, 0, 1, 1)}


def test_a_silo_trains_on_all_rows_of_its_file(run: Experiment, silo: Office) -> None:
    assert said(silo.handle(hello(run))).status == "ok"
    assert float(said(silo.handle(asked(run)), run).channels["delta"].norm()) > 0


@pytest.mark.parametrize(
    ("old", "new", "code", "reason"),
    [
        ("age", "years", "schema", "no column 'age'"),
        ("age\n", "age,name\n", "data", "cannot be read"),
        ("blue,10", "violet,10", "data", "cannot be read"),
        ("blue,10", "blue,secret", "schema", "column 'age' holds words"),
        ("yes,", "perhaps,", "data", "cannot be read"),
    ],
)
def test_rows_of_another_form_are_refused_in_words_that_quote_none_of_them(
    old: str, new: str, code: str, reason: str, run: Experiment, own: Path, silo: Office
) -> None:
    own.write_text(OWN.replace(old, new))
    answer = said(silo.handle(hello(run)))
    assert answer.code == code
    assert reason in answer.reason
    for private in ("violet", "secret", "perhaps", str(own.parent)):
        assert private not in answer.reason


def test_a_column_too_many_is_named(run: Experiment, own: Path) -> None:
    own.write_text("\n".join(f"{line},{at}" if at else f"{line},visit" for at, line in enumerate(OWN.split())) + "\n")
    with pytest.raises(Refused, match="column 'visit', which is none of the experiment's"):
        of_file(str(own), run, asks(run), number=1, silos=2)


def test_arrays_take_the_numbers_of_the_servers_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.arange(8.0).reshape(4, 2), y=np.array(["b", "c", "b", "c"]))
    run = experiment(data={"name": "digits", "silos": 4})
    asked_for = Schema(kind="classification", shape=(2,), classes=3, class_names=("a", "b", "c"))
    federation, _ = of_file(str(tmp_path / "rows.npz"), run, replace(asked_for), number=0, silos=1)
    rows = federation.train.silo(0)
    assert sorted(zip(rows.features[:, 0].tolist(), rows.targets.tolist())) == [(0, 1), (2, 2), (4, 1), (6, 2)]
    with pytest.raises(DataError, match="class 'c'"):
        of_file(str(tmp_path / "rows.npz"), run, replace(asked_for, class_names=("a", "b")), number=0, silos=1)


@pytest.mark.parametrize(
    ("changes", "code"), [({"limit": 5}, "unsupported"), ({"silos": None, "silo": "colour"}, "unsupported")]
)
def test_what_deals_rows_to_silos_means_nothing_to_a_silo_with_a_file(
    changes: dict[str, Any], code: str, run: Experiment, silo: Office
) -> None:
    data = {"path": run.data.path, "target": "ill", "silos": 2, "public_test": 0.25, **changes}
    assert said(silo.handle(hello(experiment(data=data), schema=asks(run)))).code == code


def test_the_budget_is_of_the_file_whatever_an_experiment_reads_of_it(own: Path, tmp_path: Path) -> None:
    """A server that asks for another column to predict does not get another budget."""
    private = {"silo": SILO, "noise": "simulated"}
    rules = policy(unprotected=False, simulated_noise=True, silo={"epsilon": 50.0, "delta": 1e-2})
    with closing(office(tmp_path / "silo", rules, data=str(own))) as silo:
        for target, id_ in (("ill", "a" * 32), ("colour", "b" * 32)):
            public = tmp_path / f"{target}.csv"
            public.write_text(PUBLIC)
            run = experiment(data={"path": str(public), "target": target, "silos": 2}, privacy=private)
            assert said(silo.handle(hello(run, id_=id_))).status == "ok"
            assert said(silo.handle(asked(run, id_=id_)), run).status == "ok"
    [ledger] = (tmp_path / "silo" / "ledgers").glob("*.jsonl")
    assert {entry.run for entry in load(ledger).chain.counted()} == {"a" * 32, "b" * 32}


def test_a_named_silo_holds_its_own_rows_and_nobody_elses() -> None:
    run = experiment()
    whole = prepare(run).federation
    for number in range(4):
        alone, fingerprint = named(run, number=number)
        assert fingerprint == whole.fingerprint
        assert alone.public_test is None
        assert len(alone.train.rows) == int(whole.train.sizes[number])
        assert alone.train.silo(number).features.equal(whole.train.silo(number).features)
        assert alone.test is not None
        assert whole.test is not None
        assert alone.test.silo(number).targets.equal(whole.test.silo(number).targets)
        # Not a view of all rows: what others hold is not even in memory.
        assert alone.train.rows.features.untyped_storage().nbytes() == alone.train.rows.features.nbytes
