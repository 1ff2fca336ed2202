"""What a page that travels does not say: in which folders the files of an experiment lie."""

from __future__ import annotations

from typing import Any


def without_folders(value: Any) -> Any:
    """A value of an experiment as read from YAML, with `./NAME` for every path; the file's name is left.

    >>> without_folders({"data": {"path": "/srv/ward/rows.csv", "silos": 3}, "tags": ["a", "b\\\\c.npz"]})
    {'data': {'path': './rows.csv', 'silos': 3}, 'tags': ['a', './c.npz']}
    """
    if isinstance(value, dict):
        return {name: without_folders(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return f"./{value.replace(chr(92), '/').rstrip('/').rpartition('/')[2]}"
    return value
