from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.durable import atomic_write
from server.checkpoint import Checkpoint, CheckpointError, read, write

SMALL = Checkpoint(3, {"model": torch.tensor([1.5, -2.0]), "step": torch.tensor(7)}, {"line": "{}", "seq": 5})


def same(left: Checkpoint, right: Checkpoint) -> bool:
    """Equal to the bit, names, shapes and dtypes included."""
    if (left.round, dict(left.meta), left.state.keys()) != (right.round, dict(right.meta), right.state.keys()):
        return False
    pairs = [(left.state[name], right.state[name]) for name in left.state]
    return all(
        (a.dtype, a.shape, a.contiguous().numpy().tobytes()) == (b.dtype, b.shape, b.contiguous().numpy().tobytes())
        for a, b in pairs
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "small"
    write(path, SMALL)
    return path.read_bytes()


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.floats(width=32), max_size=8),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(-9, 9) | st.none(), max_size=3),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, round_: int, values: list[float], dtype: torch.dtype, meta: dict[str, Any]
) -> None:
    vector = torch.tensor(values)  # NaN and infinities included.
    other = torch.arange(6).reshape(2, 3).to(dtype)
    checkpoint = Checkpoint(round_, {"model": vector, "other": other, "scalar": torch.tensor(1.0)}, meta)
    path = tmp_path_factory.getbasetemp() / "round-trip"
    write(path, checkpoint)
    assert same(read(path), checkpoint)


def test_floats_of_the_meta_survive_to_the_last_bit(tmp_path: Path) -> None:
    write(tmp_path / "c", Checkpoint(1, {}, {"epsilon": math.pi, "tiny": 5e-324}))
    assert read(tmp_path / "c").meta == {"epsilon": math.pi, "tiny": 5e-324}


def test_two_names_of_one_tensor_and_a_view_can_be_kept(tmp_path: Path) -> None:
    model = torch.arange(6.0).reshape(2, 3)
    state = {"model": model, "initial": model, "turned": model.T, "row": model[1]}
    write(tmp_path / "c", Checkpoint(0, state, {}))
    assert same(read(tmp_path / "c"), Checkpoint(0, state, {}))


def test_a_number_that_json_lacks_is_refused_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    write(tmp_path / "c", SMALL)
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "c", Checkpoint(4, {}, {"epsilon": math.inf}))
    assert same(read(tmp_path / "c"), SMALL)


def test_a_checkpoint_cut_at_any_length_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    for length in range(len(small)):
        path.write_bytes(small[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            read(path)


def test_a_checkpoint_with_any_byte_changed_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flipped"
    for position in range(len(small)):
        for mask in (0xFF, *(1 << bit for bit in range(8))):
            changed = bytearray(small)
            changed[position] ^= mask
            path.write_bytes(changed)
            with pytest.raises(CheckpointError):
                read(path)


def test_bytes_behind_the_end_are_refused(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "longer").write_bytes(small + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        read(tmp_path / "longer")


def test_a_checkpoint_of_other_tensors_is_refused(small: bytes, tmp_path: Path) -> None:
    # The header of one and the numbers of another: lengths agree, so only the digest tells.
    write(tmp_path / "other", Checkpoint(3, {"model": torch.tensor([9.0, 9.0]), "step": torch.tensor(7)}, SMALL.meta))
    header = 8 + int.from_bytes(small[:8], "little")
    (tmp_path / "mixed").write_bytes(small[:header] + (tmp_path / "other").read_bytes()[header:])
    with pytest.raises(CheckpointError, match="SHA-256"):
        read(tmp_path / "mixed")


@pytest.mark.parametrize("contents", [b"", b"{}", b"\x02\0\0\0\0\0\0\0{}", b"PK\x03\x04", b"\x80\x04cos\nsystem\n."])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "c").write_bytes(contents)
    with pytest.raises(CheckpointError, match="damaged"):
        read(tmp_path / "c")


def test_a_missing_checkpoint_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(path)


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "c", SMALL)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "c", Checkpoint(4, {}, {}))
    assert same(read(tmp_path / "c"), SMALL)


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    atomic_write(tmp_path / "file", b"contents")
    assert steps == ["file", "rename", "folder"]
    assert (tmp_path / "file").read_bytes() == b"contents"
