"""Checks of arguments that name the argument and reject NaN."""

import math


def positive(**values: float) -> None:
    """Requires every value to be > 0.

    >>> positive(clip_norm=0.0)
    Traceback (most recent call last):
        ...
    ValueError: clip_norm must be > 0, got 0.0
    """
    for name, value in values.items():
        if not value > 0:  # Written so that NaN fails too.
            raise ValueError(f"{name} must be > 0, got {value!r}")


def non_negative(**values: float) -> None:
    """Requires every value to be >= 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value!r}")


def finite(**values: float) -> None:
    """Requires every value to be a finite number."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value!r}")


def probability(**values: float) -> None:
    """Requires every value to lie in (0, 1]."""
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {value!r}")


def open_unit(**values: float) -> None:
    """Requires every value to lie in (0, 1), as a delta does."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), got {value!r}")
