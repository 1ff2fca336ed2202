"""Argument checks: what lies in the range passes, the edges and NaN do not, and the message names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from privacy import checks

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("check", "passes", "fails"),
    [
        (checks.positive, (1e-300, 1, INF), (0, 0.0, -0.0, -1e-300, -INF, NAN)),
        (checks.non_negative, (0, -0.0, 1e-300, INF), (-1e-300, -INF, NAN)),
        (checks.finite, (0, -1e308, 1e308), (INF, -INF, NAN)),
        (checks.probability, (1e-300, 0.5, 1, 1.0), (0, -0.1, math.nextafter(1, 2), INF, NAN)),
        (checks.open_unit, (1e-300, 0.5, math.nextafter(1, 0)), (0, 1, 1.0, -0.1, INF, NAN)),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_check_passes_its_range_and_nothing_else(
    check: Callable[..., None], passes: tuple[float, ...], fails: tuple[float, ...]
) -> None:
    for value in passes:
        check(rate=value)
    for value in fails:
        with pytest.raises(ValueError, match=r"^rate must be .*, got " + repr(value).replace("+", r"\+")) as caught:
            check(rate=value)
        assert "\n" not in str(caught.value)


def test_every_argument_is_looked_at() -> None:
    with pytest.raises(ValueError, match="second"):
        checks.positive(first=1.0, second=NAN, third=1.0)
