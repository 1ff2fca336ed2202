"""What is compiled is what the interface says: `make proto` gives the files that are checked in, byte for byte."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "client/proto/silo.proto"


def test_the_compiled_interface_is_that_of_its_source(tmp_path: Path) -> None:
    """By the very command of the Makefile, into another folder."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed here; make .venv installs it")
    [line] = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines() if "grpc_tools.protoc" in line]
    words = shlex.split(line.replace("$(BIN)/python", sys.executable).replace("_out=.", f"_out={tmp_path}"))
    assert words[-1] == SOURCE
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert [path.name for path in made] == ["silo_pb2.py", "silo_pb2.pyi", "silo_pb2_grpc.py"]
    for path in made:
        assert (tmp_path / path).read_bytes() == (ROOT / path).read_bytes(), f"{path}: run make proto"
