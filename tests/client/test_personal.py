"""Personal vectors: unseen before the commit, whole after a crash at every seam, shared by all stores on a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.personal import PersonalStore

torch.set_num_threads(1)

SILOS, SIZE = 5, 3


def store(folder: Path, *, silos: int = SILOS, sizes: dict[str, int] | None = None) -> PersonalStore:
    return PersonalStore(folder, silos=silos, sizes={"model": SIZE} if sizes is None else sizes)


def value(number: float) -> Tensor:
    return torch.full((SIZE,), float(number))


def put(at: PersonalStore, silo: int, number: float) -> None:
    at.rows([silo], stacked=False)["model"] = value(number)


def current(at: PersonalStore) -> list[float]:
    """The first number of every silo's committed vector; -1 where none was ever written."""
    return at.rows(range(SILOS), stacked=True).get("model", value(-1))[:, 0].tolist()


def test_what_is_staged_shows_after_the_commit_only(tmp_path: Path) -> None:
    mine, other = store(tmp_path), store(tmp_path)
    put(mine, 1, 7)
    rows = mine.rows([1], stacked=False)
    for at in (mine, other):
        assert current(at) == [-1] * SILOS
    with pytest.raises(KeyError, match="never written"):
        rows["model"]
    assert "model" not in rows
    mine.flush()
    assert current(store(tmp_path)) == [-1] * SILOS  # On the disk, and still not current.
    mine.commit(1)
    for at in (mine, other, store(tmp_path)):
        assert current(at) == [-1, 7, -1, -1, -1]
    assert torch.equal(rows["model"], value(7))


def test_reading_in_a_round_sees_the_round_before(tmp_path: Path) -> None:
    at = store(tmp_path)
    put(at, 2, 1)
    at.commit(1)
    put(at, 2, 2)
    assert current(at)[2] == 1
    at.commit(2)
    assert current(at)[2] == 2


def test_only_what_was_staged_is_committed(tmp_path: Path) -> None:
    at = store(tmp_path)
    put(at, 0, 1)
    at.commit(1)
    put(at, 3, 9)
    at.commit(2)
    at.commit(3)  # A round in which nobody wrote.
    assert current(at) == [1, -1, -1, 9, -1]


def test_discard_and_forget_take_back(tmp_path: Path) -> None:
    at = store(tmp_path)
    for silo in range(SILOS):
        put(at, silo, silo)
    at.commit(1)
    for silo in range(SILOS):
        put(at, silo, 10 + silo)
    at.forget([1, 4])
    at.forget([])
    at.commit(2)
    assert current(at) == [10, 1, 12, 13, 4]
    put(at, 0, 99)
    at.discard()
    at.commit(3)
    assert current(at) == [10, 1, 12, 13, 4]


def test_forgotten_rows_may_be_written_again(tmp_path: Path) -> None:
    at = store(tmp_path)
    put(at, 1, 5)
    at.forget([1])
    put(at, 1, 6)
    at.commit(1)
    assert current(at)[1] == 6


def committed_round(folder: Path) -> PersonalStore:
    """A store after round 1, with round 2 staged by silos 0 and 1."""
    at = store(folder)
    for silo in range(SILOS):
        put(at, silo, 1)
    at.flush()
    at.commit(1)
    put(at, 0, 2)
    put(at, 1, 2)
    return at


def test_a_crash_before_the_checkpoint_drops_the_round(tmp_path: Path) -> None:
    committed_round(tmp_path).flush()
    again = store(tmp_path)
    again.recover(1)
    assert current(again) == [1] * SILOS
    again.commit(2)  # Nothing of the lost round is left to be committed by the one that is done again.
    assert current(again) == [1] * SILOS


def test_a_crash_after_the_checkpoint_finishes_the_commit(tmp_path: Path) -> None:
    committed_round(tmp_path).flush()
    again = store(tmp_path)
    again.recover(2)
    assert current(again) == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("seam", ["a row copied", "all rows copied", "marker half written"])
def test_a_crash_inside_the_commit_finishes_it(tmp_path: Path, seam: str) -> None:
    at = committed_round(tmp_path)
    at.flush()
    copied = [0] if seam == "a row copied" else [0, 1]
    at.current["model"][copied] = at.staged["model"][copied]
    if seam == "marker half written":
        (tmp_path / "round.tmp").write_text("")
    again = store(tmp_path)
    again.recover(2)
    assert current(again) == [2, 2, 1, 1, 1]
    again.recover(2)  # And may crash again right after.
    assert current(again) == [2, 2, 1, 1, 1]


def test_a_crash_after_the_commit_before_the_marks_are_cleared_changes_nothing(tmp_path: Path) -> None:
    at = committed_round(tmp_path)
    marks = at.marks["model"].copy()
    at.commit(2)
    at.marks["model"][:] = marks
    put(at, 4, 3)  # Round 3 had begun.
    again = store(tmp_path)
    again.recover(2)
    assert current(again) == [2, 2, 1, 1, 1]
    again.commit(3)
    assert current(again) == [2, 2, 1, 1, 1]


@pytest.mark.parametrize(("done", "checkpoint"), [(1, 0), (3, 1), (3, 2), (0, 2), (2, 4)])
def test_vectors_of_another_round_than_the_checkpoint_are_refused(tmp_path: Path, done: int, checkpoint: int) -> None:
    at = store(tmp_path)
    for round_ in range(1, done + 1):
        put(at, 0, round_)
        at.commit(round_)
    with pytest.raises(ValueError, match=f"of round {done}, the checkpoint of round {checkpoint}; restore") as caught:
        store(tmp_path).recover(checkpoint)
    assert "\n" not in str(caught.value)


def test_a_new_run_recovers_to_nothing(tmp_path: Path) -> None:
    at = store(tmp_path / "new" / "folder")
    put(at, 0, 5)
    at.recover(0)
    at.commit(1)
    assert current(at) == [-1] * SILOS


steps = st.lists(
    st.tuples(st.sampled_from(["put", "forget", "commit", "discard", "crash"]), st.integers(0, 4)), max_size=20
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_any_history_leaves_the_last_committed_round(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("personal")
    at, kept, staged, round_ = store(folder), [-1.0] * SILOS, dict[int, float](), 0
    for number, (kind, silo) in enumerate(steps):
        match kind:
            case "put":
                put(at, silo, number)
                staged[silo] = float(number)
            case "forget":
                at.forget([silo])
                staged.pop(silo, None)
            case "commit":
                round_ += 1
                at.commit(round_)
                kept = [staged.get(one, kept[one]) for one in range(SILOS)]
                staged = {}
            case "discard":
                at.discard()
                staged = {}
            case "crash":
                at.flush()
                at = store(folder)
                at.recover(round_)
                staged = {}
        assert current(at) == kept


def test_stores_on_one_folder_share_what_is_staged(tmp_path: Path) -> None:
    server, workers = store(tmp_path), [store(tmp_path) for _ in range(2)]
    put(workers[0], 0, 1)
    put(workers[1], 1, 2)
    server.flush()
    server.commit(1)
    assert current(workers[0]) == current(workers[1]) == [1, 2, -1, -1, -1]
    put(workers[0], 2, 3)
    server.discard()
    workers[1].commit(2)
    assert current(server) == [1, 2, -1, -1, -1]


def test_several_names_of_several_lengths_are_kept_apart(tmp_path: Path) -> None:
    at = store(tmp_path, sizes={"model": SIZE, "control": 2})
    rows = at.rows([1], stacked=False)
    assert (len(rows), set(rows)) == (2, {"model", "control"})
    rows["model"] = value(1)
    at.commit(1)
    assert torch.equal(rows["model"], value(1))
    assert torch.equal(rows.get("control", torch.zeros(2)), torch.zeros(2))
    assert [name in rows for name in ("model", "control")] == [True, False]


def test_a_stack_reads_and_writes_as_its_silos_do(tmp_path: Path) -> None:
    at = store(tmp_path)
    at.rows([3, 0], stacked=True)["model"] = torch.stack([value(3), value(0)])
    at.commit(1)
    assert current(at) == [0, -1, -1, 3, -1]
    mixed = at.rows([4, 3], stacked=True)
    assert mixed.get("model", value(8))[:, 0].tolist() == [8, 3]  # A late joiner starts from the default.
    with pytest.raises(KeyError):
        mixed["model"]
    assert at.rows([3], stacked=False)["model"].shape == (SIZE,)
    assert at.rows([3], stacked=True)["model"].shape == (1, SIZE)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (SIZE + 1,), (1, SIZE), (SIZE, 1)])
def test_a_vector_of_another_shape_is_refused_never_spread(tmp_path: Path, shape: tuple[int, ...]) -> None:
    at = store(tmp_path)
    with pytest.raises(ValueError, match="personal vector 'model' has shape"):
        at.rows([0], stacked=False)["model"] = torch.ones(shape)
    for stack in (torch.ones(SIZE), torch.ones(SIZE, 1), torch.ones(2, SIZE)):
        with pytest.raises(ValueError, match="personal vector 'model' has shape"):
            at.rows([0, 1, 2], stacked=True)["model"] = stack
    at.commit(1)
    assert current(at) == [-1] * SILOS


def test_what_is_read_is_a_copy(tmp_path: Path) -> None:
    at = store(tmp_path)
    put(at, 0, 1)
    at.commit(1)
    rows, default = at.rows([0], stacked=False), value(-1)
    rows["model"].mul_(0)
    rows.get("model", default).mul_(0)
    at.rows([1], stacked=False).get("model", default).mul_(0)
    assert current(at)[0] == 1
    assert torch.equal(default, value(-1))


def test_a_stack_of_nobody_reads_and_writes_nothing(tmp_path: Path) -> None:
    nobody = store(tmp_path).rows([], stacked=True)
    nobody["model"] = torch.empty(0, SIZE)
    assert nobody.get("model", value(1)).shape == (0, SIZE)
    assert not store(tmp_path).marks["model"].any()


def test_a_vector_is_written_anew_never_taken_away(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="written anew"):
        del store(tmp_path).rows([0], stacked=False)["model"]


def test_tables_of_another_run_are_refused(tmp_path: Path) -> None:
    store(tmp_path)
    with pytest.raises(ValueError, match="it is of another run"):
        store(tmp_path, silos=SILOS + 1)


def test_a_silo_shown_as_never_asked_has_nothing_and_keeps_nothing(tmp_path: Path) -> None:
    mine = store(tmp_path)
    put(mine, 1, 7)
    mine.commit(1)
    fresh = mine.unwritten([1])
    assert fresh.get("model", value(-1)).tolist() == [-1.0] * SIZE
    with pytest.raises(KeyError, match="never written"):
        fresh["model"]
    with pytest.raises(TypeError, match="stays unwritten"):
        fresh["model"] = value(3)
    assert current(mine)[1] == 7
