"""Which confide this is."""

from __future__ import annotations


def version() -> str:
    """The installed version; a checkout that is not installed has none."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("confide")
    except PackageNotFoundError:
        return "(not installed)"
