"""Strategies and tasks from outside: a module's decorators register them by name.

Code is only ever named by the person at the keyboard (`--plugin package.module`) or by an installed package (entry
points); an experiment file is data and can name neither.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

GROUPS = ("confide.strategies", "confide.tasks")


class PluginError(ValueError):
    """A plugin that cannot be loaded, in one line."""


def load_plugins(modules: Sequence[str]) -> None:
    """Imports modules by their dotted names; their decorators register strategies and tasks.

    Raises:
        PluginError: a name that is no module's, or a module that fails while it is imported.
    """
    for module in modules:
        _import(module, where=f"--plugin {module}")


def load_entry_points() -> None:
    """Loads what installed packages offer in the groups `confide.strategies` and `confide.tasks`.

    Raises:
        PluginError: an entry point that fails; it names the package to fix or to uninstall.
    """
    for group in GROUPS:
        for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
            package = point.dist.name if point.dist is not None else "unknown"
            where = f"entry point {point.name} of package {package}"
            if point.attr:
                import_path(point.value, where=where)
            else:
                _import(point.value, where=where)


def import_path(path: str, *, where: str = "import path") -> Any:
    """The object at `package.module:attribute`, for names that come from the command line.

    >>> import_path("math:pi")
    3.141592653589793

    Raises:
        PluginError: not of that form, or nothing is there.
    """
    module, colon, attribute = path.partition(":")
    if not colon or not attribute.strip():
        raise PluginError(f"{where}: found {path[:60]!r}; write package.module:attribute")
    value: Any = _import(module.strip(), where=where)
    for name in attribute.strip().split("."):
        if not hasattr(value, name):
            raise PluginError(f"{where}: module {module.strip()} has no {attribute.strip()[:60]!r}; check the name")
        value = getattr(value, name)
    return value


def _import(module: str, *, where: str) -> Any:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module):
        raise PluginError(f"{where}: found {module[:60]!r}; write package.module, as in an import")
    try:
        return importlib.import_module(module)
    except Exception as error:  # The code is the user's own: whatever it raises is their line to read.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        missing = isinstance(error, ModuleNotFoundError)
        remedy = "install it, or put its folder on PYTHONPATH" if missing else "fix the module"
        raise PluginError(f"{where}: {reason}; {remedy}") from error
