from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from client.columns import Grid, tabulate
from client.errors import DataError
from client.files import read_csv, read_dataset, read_npz

torch.set_num_threads(1)

CLINICS = """clinic,age,ward,sex,ill
north,30,b,f,no
south,41.5,a,m,yes
north,52,b,m,yes
"""


def write(folder: Path, text: str, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_codes_words_and_keeps_silo_and_group_out_of_the_features(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, CLINICS), target="ill", silo="clinic", group="sex")
    assert table.feature_names == ("age", "ward=a", "ward=b")
    assert table.features.tolist() == [[30.0, 0.0, 1.0], [41.5, 1.0, 0.0], [52.0, 0.0, 1.0]]
    assert table.features.dtype == torch.float32
    assert table.targets.tolist() == [0, 1, 1]
    assert table.targets.dtype == torch.int64
    assert table.classes == 2
    assert table.silo is not None
    assert [table.silo_names[index] for index in table.silo] == ["north", "south", "north"]
    assert table.groups is not None
    assert [table.group_names[index] for index in table.groups] == ["f", "m", "m"]
    assert any("ward" in note and "read off the rows" in note for note in table.notes)
    assert any("0 = no, 1 = yes" in note for note in table.notes)


def test_csv_regression_has_float_targets_and_no_classes(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, "x,y\n1,0.5\n2,1e-3\n"), target="y", kind="regression")
    assert table.targets.dtype == torch.float32
    assert table.targets.tolist() == torch.tensor([0.5, 1e-3]).tolist()
    assert table.classes is None


def test_numbers_as_words_are_ordered_by_size(tmp_path: Path) -> None:
    big = 2**60  # Neighbours that one float64 cannot tell apart.
    text = f"x,silo,y\n1,{big + 1},10\n2,{big},9\n3,7,10\n"
    table = read_csv(write(tmp_path, text), target="y", silo="silo")
    assert table.silo_names == ("7", str(big), str(big + 1))
    assert table.targets.tolist() == [1, 0, 1]


def test_byte_order_mark_blank_lines_and_spaces_are_read_over(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, "\ufeffx , y\n 1,a\n\n2 ,b\n"), target="y")
    assert table.feature_names == ("x",)
    assert table.features.tolist() == [[1.0], [2.0]]


def test_declared_categories_are_the_same_columns_for_every_data_holder(tmp_path: Path) -> None:
    declared = {"ward": ("a", "b", "c"), "ill": ("no", "yes")}
    one = read_csv(write(tmp_path, "ward,ill\nb,no\nb,yes\n"), target="ill", categories=declared)
    two = read_csv(write(tmp_path, "ward,ill\na,yes\nc,no\n", "two.csv"), target="ill", categories=declared)
    assert one.feature_names == two.feature_names == ("ward=a", "ward=b", "ward=c")
    assert not any("read off" in note for note in one.notes)
    with pytest.raises(DataError, match=r"line 3, column 'ward': 'd' is none of the declared categories; correct it$"):
        read_csv(write(tmp_path, "ward,ill\na,no\nd,yes\n", "three.csv"), target="ill", categories=declared)


BAD_CSV = [
    ("", "line 1: empty file; give every column a name of its own"),
    ("x,y\n", "no rows below the header; give a file with data"),
    ("x,z\n1,2\n", "no column 'y'; set target to one of: x, z"),
    ("x,x,y\n1,2,3\n", "line 1: column name 'x' is empty or used twice; give every column a name of its own"),
    ("x,,y\n1,2,3\n", "line 1: column name '' is empty or used twice; give every column a name of its own"),
    ("x,y\n1,a\n2\n", "line 3: 1 cells, the header has 2; correct the line"),
    ("x,y\n1,a\n\n2,b,c\n", "line 4: 3 cells, the header has 2; correct the line"),
    ("x,y\n1,a\n,b\n", "line 3, column 'x': missing value ''; fill it in or drop the row"),
    ("x,y\n1,a\nNaN,b\n", "line 3, column 'x': missing value 'NaN'; fill it in or drop the row"),
    ("x,y\n1,a\nN/A,b\n", "line 3, column 'x': missing value 'N/A'; fill it in or drop the row"),
    ("x,y\nred,a\n,b\n", "line 3, column 'x': missing value ''; fill it in or drop the row"),
    ("x,y\n1,a\n2,\n", "line 3, column 'y': missing value ''; fill it in or drop the row"),
    ("x,y\n1,a\ninf,b\n", "line 3, column 'x': 'inf' is not finite in float32; correct it"),
    ("x,y\n1,a\n1e39,b\n", "line 3, column 'x': '1e39' is not finite in float32; correct it"),
    ("x,y\n1,a\n2,a\n", "column 'y': one class only, nothing to learn; give rows of at least two classes"),
    ("x,y\n1,1\n2,1.0\n", "column 'y': '1' and '1.0' are one number written in two ways; write it in one way"),
    ("y\na\nb\n", "no feature column is left beside target, silo and group; add one"),
    ('x,y\n1,"a\n', "unexpected end of data; correct the line"),
]


@pytest.mark.parametrize(("text", "message"), BAD_CSV)
def test_bad_csv_is_one_line_with_file_place_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_csv(path, target="y")
    said = str(error.value)
    assert said.startswith(str(path))
    assert said.endswith(message)
    assert "\n" not in said


def test_a_word_in_a_regression_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3, column 'y': 'tall' is not a number; correct it$"):
        read_csv(write(tmp_path, "x,y\n1,2\n2,tall\n"), target="y", kind="regression")


def ages(*odd: str, rows: int = 50) -> str:
    """A file with an age in every row, the first ones as given."""
    cells = [*odd, *(f"{20 + row}.5" for row in range(len(odd), rows))]
    return "age,ill\n" + "".join(f"{cell},{row % 2}\n" for row, cell in enumerate(cells))


@pytest.mark.parametrize(("typos", "rows"), [(["4o"], 50), (["4o"], 22), (["4o", "", "n/a"], 50), (["4o", "5l"], 200)])
def test_a_typo_among_numbers_is_refused_with_its_line(tmp_path: Path, typos: list[str], rows: int) -> None:
    # One typo, or 1 in 100, turned every other number of the column into a category.
    held = rows - sum(not typo or typo == "n/a" for typo in typos)
    wrong = sum(typo in ("4o", "5l") for typo in typos)
    with pytest.raises(DataError) as error:
        read_csv(write(tmp_path, ages(*typos, rows=rows)), target="ill")
    found = f"'4o' is not a number, and {held - wrong} of {held} cells here are; correct it, or drop the row"
    assert str(error.value).endswith(f"line 2, column 'age': {found}")


def test_a_column_of_categories_stays_one(tmp_path: Path) -> None:
    few = "".join(f"{row % 20},{row % 2}\n" for row in range(60))  # 20 codes and a word: 21 would be too many.
    assert read_csv(write(tmp_path, "ward,ill\n" + few.replace("19,", "x,")), target="ill").features.shape == (60, 20)
    mixed = read_csv(write(tmp_path, ages("a", "b", rows=50)), target="ill")  # 2 of 50 are more than 1 in 100.
    assert mixed.features.shape == (50, 50)


def test_a_typo_in_a_target_is_refused_where_nobody_says_what_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "y,x\n" + "".join(f"{row}.5,{row % 2}\n" for row in range(40)) + "4o,1\n")
    with pytest.raises(DataError, match=r"line 42, column 'y': '4o' is not a number, and 40 of 41 cells here are"):
        read_csv(path, target="y", kind=None)


TARGETS: list[tuple[list[str], str | None]] = [
    (["no", "yes"], "classification"),
    (["0", "1", "2"], "classification"),
    ([str(value) for value in range(20)], "classification"),
    (["0", "0.5", "1"], "regression"),
    ([f"{value}.25" for value in range(30)], "regression"),
    ([str(value) for value in range(21)], None),  # Classes or amounts: nobody can tell.
]


@pytest.mark.parametrize(("words", "kind"), TARGETS)
def test_the_targets_values_tell_what_it_is_or_it_is_asked(tmp_path: Path, words: list[str], kind: str | None) -> None:
    path = write(tmp_path, "x,y\n" + "".join(f"{row},{word}\n" for row, word in enumerate(words * 2)))
    if kind is None:
        line = (
            r"column 'y': 21 different whole numbers, which may be classes or amounts; set data\.kind to classification"
        )
        with pytest.raises(DataError, match=line):
            read_csv(path, target="y", kind=None)
        return
    assert read_csv(path, target="y", kind=None).kind == kind


@pytest.mark.parametrize(
    ("y", "kind"),
    [
        (np.array(["a", "b"] * 4), "classification"),
        (np.arange(8) % 3, "classification"),
        (np.linspace(0, 1, 8), "regression"),
        (np.array([True, False] * 4), "classification"),
    ],
)
def test_the_targets_of_an_npz_tell_what_they_are(tmp_path: Path, y: Any, kind: str) -> None:
    np.savez(tmp_path / "rows.npz", x=np.zeros((8, 2)), y=y)
    assert read_npz(tmp_path / "rows.npz", kind=None).kind == kind


def test_amounts_are_no_classes(tmp_path: Path) -> None:
    path = write(tmp_path, "x,y\n" + "".join(f"{row},{row}.5\n" for row in range(30)))
    with pytest.raises(
        DataError, match=r"line 2, column 'y': '0\.5' is an amount, no class; use a task for regression"
    ):
        read_csv(path, target="y", kind="classification")


def test_a_column_of_identifiers_is_refused(tmp_path: Path) -> None:
    text = "name,y\n" + "".join(f"person{index},{index % 2}\n" for index in range(300))
    with pytest.raises(
        DataError, match=r"column 'name': 300 different words, .*; drop the column or write it in numbers"
    ):
        read_csv(write(tmp_path, text), target="y")


@pytest.mark.parametrize("read", [lambda path: read_csv(path, target="y"), read_npz])
def test_paths_that_are_no_files(tmp_path: Path, read: Any) -> None:
    with pytest.raises(DataError, match=r"none: no such file; check the path$"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match=r": a folder; give the file in it$"):
        read(tmp_path)


def test_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("x,y\n1,é\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 6\); save the file as UTF-8$"):
        read_csv(path, target="y")


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(FINITE, st.sampled_from(["a", "b,c", 'd"e']), FINITE), min_size=1, max_size=20))
def test_numbers_survive_a_csv_exactly(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("x", "silo", "y"), *rows])
    table = read_csv(path, target="y", silo="silo", kind="regression")
    assert table.features.flatten().tolist() == [x for x, _, _ in rows]
    assert table.targets.tolist() == [y for _, _, y in rows]
    assert table.silo is not None
    assert [table.silo_names[index] for index in table.silo] == [silo for _, silo, _ in rows]


def test_grid_errors_name_the_line_of_the_file() -> None:
    grid = Grid("f.csv", [2, 9], {"x": ["1", "2"], "y": ["a", ""]})
    with pytest.raises(DataError, match=r"^f\.csv, line 9, column 'y': missing value ''"):
        tabulate(grid, kind="classification", target="y")


def test_npz_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    x = np.arange(12, dtype=np.float64).reshape(3, 1, 2, 2)
    np.savez(path, x=x, y=np.array([5, 3, 5]), silo=np.array(["s2", "s1", "s2"]), group=np.array([0, 1, 1]))
    table = read_npz(path)
    assert table.features.dtype == torch.float32
    assert table.features.tolist() == x.tolist()
    assert (table.targets.tolist(), table.classes) == ([1, 0, 1], 2)
    assert table.notes == ("classes of y: 0 = 3, 1 = 5",)
    assert table.silo is not None
    assert (table.silo.tolist(), table.silo_names) == ([1, 0, 1], ("s1", "s2"))
    assert table.groups is not None
    assert (table.groups.tolist(), table.group_names) == ([0, 1, 1], ("0", "1"))


GOOD: dict[str, Any] = {"x": np.ones((2, 3)), "y": np.array([0, 1])}
BAD_NPZ: list[tuple[dict[str, Any], str]] = [
    ({"x": GOOD["x"]}, "no array 'y', found: x; name the arrays x, y, silo, group"),
    ({**GOOD, "x": np.ones(2)}, "x has shape (2,), y (2,); give x as (rows, features, ...) and y as (rows,), at least"),
    ({**GOOD, "y": np.array([0, 1, 1])}, "x has shape (2, 3), y (3,); give x as"),
    ({"x": np.ones((0, 3)), "y": np.zeros(0, dtype=int)}, "x has shape (0, 3), y (0,); give x as"),
    ({**GOOD, "x": np.array([[1.0], [np.nan]])}, "x, row 1: a value that is not finite in float32; correct it"),
    ({**GOOD, "x": np.array([["a"], ["b"]])}, "x: <U1 values are no numbers; convert them"),
    ({**GOOD, "y": np.array([0.5, 1.0])}, "y: float64 values are no classes; give integers or set kind: regression"),
    ({**GOOD, "y": np.array([1, 1])}, "y: one class only, nothing to learn; give rows of at least two classes"),
    ({**GOOD, "silo": np.array([0, 1, 2])}, "silo: int64 values of shape (3,); give one integer or word per row"),
    ({**GOOD, "group": np.array([0.0, 1.0])}, "group: float64 values of shape (2,); give one integer or word per row"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD_NPZ)
def test_bad_npz_is_one_line(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError) as error:
        read_npz(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_npz_never_unpickles(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> Any:
            return (ran.write_text, ("code of the file was run",))

    path = tmp_path / "rows.npz"
    np.savez(path, x=np.array([Payload()], dtype=object), y=np.array([1]))
    with pytest.raises(DataError, match=r"no npz file of plain arrays"):
        read_npz(path)
    assert not ran.exists()


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no npz file of plain arrays .*; write it with numpy.savez$"):
        read_npz(write(tmp_path, "x,y\n", "rows.npz"))
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(DataError, match=r"a single array; save several"):
        read_npz(tmp_path / "one.npy")


def test_dataset_with_and_without_silos() -> None:
    x, y = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0])
    plain = read_dataset(TensorDataset(x, y))
    assert torch.equal(plain.features, x)
    assert torch.equal(plain.targets, y)
    assert plain.silo is None
    named = read_dataset([(x[k], y[k], name) for k, name in enumerate(["b", "a", "b"])])
    assert named.silo is not None
    assert (named.silo.tolist(), named.silo_names) == ([1, 0, 1], ("a", "b"))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter([]), "dataset: list_iterator has no length or no items; give an indexable Dataset"),
        ([], "dataset: items of no items parts"),
        ([(1.0,)], "dataset: items of 1 parts; every item must be (x, y), or every one (x, y, silo)"),
        ([([1.0], 0), ([1.0], 1, "s")], "dataset: items of 2, 3 parts"),
        ([([1.0], 0), ([1.0, 2.0], 1)], "dataset, x: shapes (1,) and (2,); make all rows one shape"),
    ],
)
def test_bad_datasets(dataset: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_dataset(dataset)
    assert str(error.value).startswith(message)
