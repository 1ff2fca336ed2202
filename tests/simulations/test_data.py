from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.errors import DataError
from client.examples import Examples, Shards
from client.tables import Table
from simulations.data import carriers, sources
from simulations.data.federation import Federation, build
from simulations.data.plays import UNKNOWN, VOCABULARY, speeches, windows
from strategies.experiment import Data, TargetScale
from strategies.partitions import Column, Dirichlet, Iid, LabelShards, Partition, Quantity, Rotation
from strategies.standardize import Constants, OwnSilo

torch.set_num_threads(1)


def numbered(rows: int, *, silos: int = 0, labels: int = 3) -> Table:
    """A table whose only feature is the row's number, so that a test can follow every row."""
    number = torch.arange(rows)
    return Table(
        kind="classification",
        features=number.float().unsqueeze(1),
        targets=number % labels,
        classes=labels,
        silo=number % silos if silos else None,
        silo_names=tuple(f"s{index}" for index in range(silos)),
        groups=number % 2,
        group_names=("even", "odd"),
    )


def data(**changes: Any) -> Data:
    return replace(Data(name="digits", silos=4, public_test=0.0), **changes)


def held(part: Shards | Examples | None) -> list[int]:
    if part is None:
        return []
    rows = part.rows if isinstance(part, Shards) else part
    return [int(value) for value in rows.features.flatten()]


PARTITIONS: list[Partition] = [Iid(), Dirichlet(0.3), LabelShards(1), Quantity(2.0)]


@settings(max_examples=50, deadline=None)
@given(
    partition=st.sampled_from(PARTITIONS),
    seed=st.integers(0, 2**63 - 1),
    public=st.sampled_from([0.0, 0.2]),
    validation=st.sampled_from([0.0, 0.1]),
    test=st.sampled_from([0.0, 0.3]),
)
def test_every_row_is_in_exactly_one_place(
    partition: Partition, seed: int, public: float, validation: float, test: float
) -> None:
    config = data(partition=partition, public_test=public, validation=validation, test=test)
    table = numbered(200)
    made = build(config, seed=seed, table=table)
    places = [made.train, made.validation, made.test, made.public_test]
    assert sorted(number for place in places for number in held(place)) == list(range(200))
    assert (made.train.sizes >= 1).all()
    assert len(held(made.public_test)) == 200 * public
    for place in places:
        if place is not None:
            rows = place.rows if isinstance(place, Shards) else place
            numbers = rows.features.flatten().long()
            assert torch.equal(rows.targets, numbers % 3)
            assert rows.groups is not None
            assert torch.equal(rows.groups, numbers % 2)
    again = build(config, seed=seed, table=table)
    assert held(again.train) == held(made.train)


def test_the_seed_decides() -> None:
    one, two = (build(data(), seed=seed, table=numbered(100)) for seed in (1, 2))
    assert held(one.train) != held(two.train)


def test_held_out_rows_are_the_stated_fraction_of_every_silo() -> None:
    made = build(data(validation=0.1, test=0.25), seed=3, table=numbered(160))
    assert made.validation is not None
    assert made.test is not None
    assert made.train.sizes.tolist() == [26] * 4  # 40 rows each: 10 to test, 4 to validate.
    assert made.validation.sizes.tolist() == [4] * 4
    assert made.test.sizes.tolist() == [10] * 4


def test_held_out_rows_follow_their_silo() -> None:
    made = build(data(silos=None, partition=Column(), test=0.5), seed=3, table=numbered(40, silos=4))
    assert made.silo_names == ("s0", "s1", "s2", "s3")
    assert made.test is not None
    for silo in range(4):
        for split in (made.train, made.test):
            assert {int(value) % 4 for value in split.silo(silo).features} == {silo}


def test_silos_without_rows_are_named_not_hidden() -> None:
    table = replace(numbered(40), silo=torch.tensor([0] * 39 + [1]), silo_names=("large", "tiny"))
    left = [build(data(silos=None, partition=Column(), limit=20), seed=seed, table=table) for seed in range(20)]
    without = [made for made in left if made.silo_names == ("large",)]
    assert 0 < len(without) < 20  # One row of 40 is among 20 by a fair coin.
    assert all("1 silos have no row left beside the public test and limit: tiny" in made.notes for made in without)


def test_a_public_test_out_of_silos_that_the_data_names_is_said_to_be_uncovered() -> None:
    table, note = numbered(40, silos=4), "public test rows were the silos' own"
    named = build(data(silos=None, partition=Column(), public_test=0.2), seed=0, table=table)
    assert sum(note in line and "epsilon does not cover them" in line for line in named.notes) == 1
    for without in (data(silos=None, partition=Column()), data(silos=4, public_test=0.2)):
        assert not any(note in line for line in build(without, seed=0, table=table).notes)


def test_limit_keeps_that_many_rows_before_anything_else() -> None:
    made = build(data(limit=50, public_test=0.2), seed=1, table=numbered(200))
    assert (len(held(made.public_test)), len(held(made.train))) == (10, 40)
    assert len(held(build(data(limit=500), seed=1, table=numbered(200)).train)) == 200


def test_fingerprint_is_of_the_rows_not_of_their_partition() -> None:
    one = build(data(), seed=1, table=numbered(100))
    other = build(data(partition=Dirichlet(0.1), silos=7, limit=60, public_test=0.3), seed=9, table=numbered(100))
    assert one.fingerprint == other.fingerprint
    changed = numbered(100)
    changed.features[3, 0] += 1
    assert build(data(), seed=1, table=changed).fingerprint != one.fingerprint
    relabelled = replace(numbered(100), targets=numbered(100).targets.flip(0))
    assert build(data(), seed=1, table=relabelled).fingerprint != one.fingerprint


def test_own_standardisation_uses_each_silos_training_rows_alone() -> None:
    table = numbered(40, silos=2)
    plain = build(data(silos=None, partition=Column(), test=0.25, public_test=0.1), seed=2, table=table)
    config = data(silos=None, partition=Column(), test=0.25, public_test=0.1, standardize=OwnSilo())
    made = build(config, seed=2, table=table)
    assert made.test is not None
    assert plain.test is not None
    for silo in range(2):
        rows = plain.train.silo(silo).features.double()
        mean, std = rows.mean(), rows.std(correction=0)
        for seen, raw in ((made.train, plain.train), (made.test, plain.test)):
            expected = ((raw.silo(silo).features - mean) / std).float()
            torch.testing.assert_close(seen.silo(silo).features, expected)
    assert made.public_test is not None
    assert abs(float(made.public_test.features.mean())) < 1e-6
    assert any("not by example-level privacy" in note for note in made.notes)
    assert not any("standardised" in note for note in plain.notes)


def test_constants_reach_every_split() -> None:
    config = data(test=0.25, public_test=0.1, standardize=Constants((10.0,), (2.0,)))
    made, plain = (
        build(config, seed=2, table=numbered(40)),
        build(data(test=0.25, public_test=0.1), seed=2, table=numbered(40)),
    )
    for seen, raw in ((made.train, plain.train), (made.test, plain.test)):
        assert seen is not None
        assert raw is not None
        assert torch.equal(seen.rows.features, (raw.rows.features - 10) / 2)
    assert made.public_test is not None
    assert plain.public_test is not None
    assert torch.equal(made.public_test.features, (plain.public_test.features - 10) / 2)


def test_rotation_turns_the_silos_images_and_leaves_the_public_test() -> None:
    turned = build(data(partition=Rotation((0, 180)), public_test=0.1, test=0.1), seed=5)
    plain = build(data(partition=Iid(), public_test=0.1, test=0.1), seed=5)
    assert turned.test is not None
    assert plain.test is not None
    for seen, raw in ((turned.train, plain.train), (turned.test, plain.test)):
        for silo in range(4):
            expected = raw.silo(silo).features.rot90(2 * (silo % 2), dims=(-2, -1))
            assert torch.equal(seen.silo(silo).features, expected)
    assert turned.public_test is not None
    assert plain.public_test is not None
    assert torch.equal(turned.public_test.features, plain.public_test.features)
    assert "public test rows are not rotated" in turned.notes


def test_digits_are_1797_images_in_the_unit_interval() -> None:
    made = build(data(silos=10), seed=0)
    assert made.shape == (1, 8, 8)
    assert (made.name, made.kind, made.classes) == ("digits", "classification", 10)
    assert int(made.train.sizes.sum()) == 1797
    rows = made.train.rows
    assert rows.features.dtype == torch.float32
    assert rows.targets.dtype == torch.int64
    assert (float(rows.features.min()), float(rows.features.max())) == (0.0, 1.0)
    assert made.silo_names == tuple(f"silo-{index}" for index in range(10))


def sequence() -> Table:
    tokens = torch.arange(40).view(10, 4)
    return Table("sequence", tokens, tokens + 1, classes=41, silo=torch.arange(10) % 2, silo_names=("a", "b"))


BAD: list[tuple[dict[str, Any], Callable[[], Table] | None, str]] = [
    ({"name": "cifar"}, None, "data.name: no data set 'cifar'; there are: digits, "),
    ({"group": "sex"}, None, "data.group: digits has no group 'sex'; leave it out"),
    (
        {"name": "adult", "group": "job"},
        None,
        "data.group: adult has no group 'job'; use one of: sex, race, age",
    ),
    ({"target": "y"}, None, "data.target: found 'y', but digits has its own; remove it"),
    ({"silo": "s"}, None, "data.silo: found 's', but digits has its own; remove it"),
    (
        {"partition": Column(), "silos": None},
        None,
        "data.partition: column needs data that names silos; give",
    ),
    ({"partition": Column()}, None, "data.silos: found 4, but partition: column takes those of the data; remove it"),
    ({"silos": None}, None, "data.silos: missing; give the number of silos, or use partition: column"),
    ({"silos": 11}, lambda: numbered(10), "data.partition iid: 10 rows cannot fill 11 silos; use fewer silos"),
    ({"public_test": 0.01}, lambda: numbered(10), "data.public_test: 0.01 of 10 rows is none; raise it or use 0"),
    ({"test": 0.01}, lambda: numbered(10), "data.test: 0.01 of every silo's rows is none; raise it or use 0"),
    ({"validation": 0.01}, lambda: numbered(10), "data.validation: 0.01 of every silo's rows is none; raise it"),
    (
        {"silos": 8, "test": 0.5},
        lambda: numbered(10),
        "data: validation 0 and test 0.5 leave 6 of 8 silos without a training row; lower them or use fewer silos",
    ),
    ({"standardize": OwnSilo()}, sequence, "data.standardize: tokens are no quantities; use standardize: none"),
    ({"partition": Dirichlet(1.0)}, sequence, "data.partition dirichlet: needs classes as targets"),
    ({"partition": Rotation()}, lambda: numbered(10), "data.partition rotation: needs square images"),
    ({"standardize": Constants((1.0, 2.0), (1.0,))}, lambda: numbered(10), "data.standardize.mean: 2 numbers for 1 fe"),
    (
        {"name": None, "path": "rows.parquet"},
        None,
        "data.path: rows.parquet ends in '.parquet'; give a .csv",
    ),
    ({"name": None, "path": "rows.csv"}, None, "data.target: missing; name the column of rows.csv to predict"),
    (
        {"name": None, "path": "a.npz", "silo": "s"},
        None,
        "data.silo: npz arrays are named x, y, silo and group",
    ),
    ({"name": None, "path": "absent.npz"}, None, "absent.npz: no such file; check the path"),
]


@pytest.mark.parametrize(("changes", "table", "message"), BAD)
def test_what_cannot_be_built_is_one_line(
    changes: dict[str, Any], table: Callable[[], Table] | None, message: str
) -> None:
    with pytest.raises(DataError) as error:
        build(data(**changes), seed=0, table=None if table is None else table())
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_federation_of_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "clinics.csv"
    path.write_text("clinic,age,sex,ill\n" + "".join(f"c{k % 3},{k},{'fm'[k % 2]},{k % 5}\n" for k in range(60)))
    config = Data(
        path=str(path), target="ill", silo="clinic", group="sex", partition=Column(), kind="regression", public_test=0.1
    )
    made = build(config, seed=0)
    assert (made.name, made.kind, made.classes) == ("clinics.csv", "regression", None)
    assert (made.silo_names, made.group_names) == (("c0", "c1", "c2"), ("f", "m"))
    for silo in range(3):
        assert {int(age) % 3 for age in made.train.silo(silo).features} == {silo}


def test_a_federation_of_an_npz_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.zeros((20, 3, 4, 4)), y=np.arange(20) % 2)
    made = build(Data(path=str(path), silos=2, public_test=0.0), seed=0)
    assert (made.shape, made.classes, made.train.sizes.tolist()) == ((3, 4, 4), 2, [10, 10])


@settings(max_examples=15, deadline=None)
@given(validation=st.sampled_from([0.0, 0.2]), test=st.sampled_from([0.0, 0.2]), public=st.sampled_from([0.0, 0.2]))
def test_save_and_load_give_the_same_federation(
    tmp_path_factory: pytest.TempPathFactory, validation: float, test: float, public: float
) -> None:
    folder = tmp_path_factory.mktemp("saved") / "federation"
    made = build(data(validation=validation, test=test, public_test=public), seed=4, table=numbered(100))
    made.save(folder)
    assert not any(np.load(file, allow_pickle=False).dtype.hasobject for file in folder.glob("*.npy"))
    loaded = Federation.load(folder)
    for field in fields(Federation):
        one, two = getattr(made, field.name), getattr(loaded, field.name)
        if isinstance(one, Shards):
            assert torch.equal(one.offsets, two.offsets)
            one, two = one.rows, two.rows
        if isinstance(one, Examples):
            assert one.groups is not None
            assert torch.equal(one.features, two.features)
            assert torch.equal(one.targets, two.targets)
            assert torch.equal(one.groups, two.groups)
        else:
            assert one == two


def test_writing_to_loaded_rows_does_not_reach_the_file(tmp_path: Path) -> None:
    build(data(), seed=4, table=numbered(100)).save(tmp_path / "f")
    one, two = Federation.load(tmp_path / "f"), Federation.load(tmp_path / "f")
    before = two.train.rows.features.clone()
    one.train.rows.features.fill_(-1)
    assert torch.equal(two.train.rows.features, before)
    assert torch.equal(Federation.load(tmp_path / "f").train.rows.features, before)


def test_folders_that_do_not_load_are_one_line(tmp_path: Path) -> None:
    made = build(data(), seed=4, table=numbered(100))
    with pytest.raises(DataError, match=r": no saved federation \(.*\); save it again$"):
        Federation.load(tmp_path / "none")
    made.save(tmp_path / "f")
    with pytest.raises(DataError, match=r": already holds a federation; give a new folder$"):
        made.save(tmp_path / "f")
    (tmp_path / "f" / "train.features.npy").unlink()
    with pytest.raises(DataError, match=r": no saved federation \(.*\); save it again$"):
        Federation.load(tmp_path / "f")
    manifest = tmp_path / "f" / "federation.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    with pytest.raises(DataError, match=r"no saved federation \(version 99, expected 1\); save it again$"):
        Federation.load(tmp_path / "f")
    manifest.write_text("{")
    with pytest.raises(DataError, match=r"no saved federation \(.*\); save it again$"):
        Federation.load(tmp_path / "f")


PLAY = """# A Play

_Enter ANNE, and with her
two dogs_

**ANNE**  
Good day\\--good night.  
_Aside_  
[Within]_  
Who — there?

**BOB**  
__\\[Awaking]_
I.

## ACT II

lying asleep.

**ANNE**  
*Exit BOB, and
a dog.*
Gone.
"""  # noqa: W291


def test_speeches_are_what_roles_say_without_stage_directions(tmp_path: Path) -> None:
    path = tmp_path / "a-play.md"
    path.write_text(PLAY, encoding="utf-8")
    said = {"a-play/ANNE": "Good day--good night.\nWho -- there?\nGone.\n", "a-play/BOB": "I.\n"}
    assert speeches(path) == said


@given(text=st.text(max_size=400))
def test_windows_are_the_text_and_targets_the_next_characters(text: str) -> None:
    features, targets = windows(text)
    assert features.shape == targets.shape == (max(len(text) - 1, 0) // 80, 80)
    known = "".join(character if character in VOCABULARY else "\0" for character in text)
    read = "".join("\0" if code == UNKNOWN else VOCABULARY[code] for code in features.flatten().tolist())
    following = "".join("\0" if code == UNKNOWN else VOCABULARY[code] for code in targets.flatten().tolist())
    assert known.startswith(read)
    assert known[1:].startswith(following)


# What the carriers really hold; the rest of this file needs none of them.


def carried(name: str, group: str | None = None) -> tuple[Table, Table | None]:
    try:
        carriers.locate(name)
    except DataError as error:
        pytest.skip(str(error))
    return sources.load(name, group=group)


@pytest.mark.carrier
@pytest.mark.parametrize(
    ("name", "rows", "official", "silos"),
    [
        ("mnist5k", 5_000, None, 0),
        ("fashion_mnist", 60_000, 10_000, 0),
        ("adult", 32_561, 16_281, 0),
        ("healthtweets", 14_306, None, 16),
        ("schools:exam", 4_059, None, 65),
        ("schools:hsb82", 7_185, None, 160),
        ("schools:chem97", 31_022, None, 131),
    ],
)
def test_carriers_hold_the_published_rows(name: str, rows: int, official: int | None, silos: int) -> None:
    table, own = carried(name)
    assert len(table) == rows
    assert (None if own is None else len(own)) == official
    assert len(table.silo_names) == silos
    assert torch.isfinite(table.features).all()


@pytest.mark.carrier
@pytest.mark.parametrize("name", ["mnist5k", "fashion_mnist"])
def test_image_carriers_are_balanced(name: str) -> None:
    table, _ = carried(name)
    assert table.features.shape[1:] == (1, 28, 28)
    assert table.targets.bincount().tolist() == [len(table) // 10] * 10


@pytest.mark.carrier
def test_adult_has_the_documented_rates_and_its_group_is_no_feature() -> None:
    table, own = carried("adult", "sex")
    assert own is not None
    assert int(table.targets.sum()) == 7_841  # adult.names: 24.08 % of 32,561 earn more.
    assert int(own.targets.sum()) == 3_846
    assert (table.group_names, own.group_names) == (("Female", "Male"), ("Female", "Male"))
    assert table.groups is not None
    assert table.groups.bincount().tolist() == [10_771, 21_790]
    assert not any(name.startswith("sex") for name in table.feature_names)
    assert table.feature_names == own.feature_names
    assert table.features.abs().max() <= 1


@pytest.mark.carrier
def test_an_official_test_set_is_public_and_costs_the_silos_nothing() -> None:
    carried("adult")
    made = build(Data(name="adult", silos=5, limit=1000, public_test=0.3), seed=0)
    assert int(made.train.sizes.sum()) == 1000
    assert made.public_test is not None
    assert len(made.public_test) == 300
    assert "public test: 300 of 16281 rows of the official test set" in made.notes


@pytest.mark.carrier
def test_shakespeare_speaks_by_role() -> None:
    table, _ = carried("shakespeare")
    assert table.silo is not None
    assert (table.kind, table.classes) == ("sequence", 97)
    assert int(table.silo.bincount().min()) >= 2_000 // 80
    assert int((table.features == UNKNOWN).sum()) == 0
    hamlet = table.features[table.silo == table.silo_names.index("hamlet/HAMLET")].flatten().tolist()
    assert "To be, or not to be: that is the question" in "".join(VOCABULARY[code] for code in hamlet)


def test_targets_in_units_of_public_constants_are_the_same_data(tmp_path: Path) -> None:
    path = tmp_path / "ages.csv"
    path.write_text("clinic,age,score\n" + "".join(f"c{k % 3},{k},{100 + 10 * k}\n" for k in range(30)))
    config = Data(path=str(path), target="score", silo="clinic", partition=Column(), kind="regression")
    plain = build(config, seed=0)
    scaled = build(replace(config, target_scale=TargetScale(mean=100.0, std=10.0)), seed=0)
    for one, two in ((plain.train.rows, scaled.train.rows), (plain.public_test, scaled.public_test)):
        assert one is not None
        assert two is not None
        assert torch.equal(two.features, one.features)
        assert torch.equal(two.targets, two.features[:, 0])  # (100 + 10 k - 100) / 10 = k, the only feature.
    assert (scaled.fingerprint, scaled.deal) == (plain.fingerprint, plain.deal)  # A budget knows them in any units.
    assert "targets are (target - 100) / 10, by public constants; errors are in these units" in scaled.notes
    with pytest.raises(DataError, match=r"data.target_scale: the data is classification, .* remove it"):
        build(data(target_scale=TargetScale(mean=0.0, std=1.0)), seed=0, table=numbered(10))
