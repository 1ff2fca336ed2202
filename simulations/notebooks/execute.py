"""Runs a notebook from its first cell to its last, as a reader does with "run all": `make notebooks` keeps the outputs.

python -m simulations.notebooks.execute [NAME ...]
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TIMEOUT_S = 60  # Of a cell.


def names() -> list[str]:
    """The notebooks, without their ending."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def execute(name: str) -> Any:
    """A notebook with the outputs of today, nothing of when and where it ran kept; a cell that fails is an error.

    Commands such as `!confide` are those of the Python that runs this.
    """
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    found = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        found,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # On loopback; other users are there, too.
    )
    with tempfile.TemporaryDirectory() as home:  # No start-up files and no history of whoever runs this.
        beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        client.execute(env={**os.environ, "PATH": beside, "IPYTHONDIR": home, "COLUMNS": "100"})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    found.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Executes the notebooks that are named, or all, and writes their outputs into them."""
    import nbformat

    for name in (sys.argv[1:] if argv is None else argv) or names():
        nbformat.write(execute(name), FOLDER / f"{name}.ipynb")
        print(f"{name}: executed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
