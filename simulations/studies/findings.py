"""What a study finds: criteria that hold or fail, tables, figures, and what it left out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from simulations.report.markup import Html

Kind = Literal["required", "goal"]
Relation = Literal[">=", "<="]


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One claim, as a number against a threshold.

    Attributes:
        name: the claim in words.
        spec_id: where it is asked for, such as `flasc.1`.
        kind: whether the study fails with it.
        measured: the number; NaN or None where there is none, which fails.
        threshold: what it is held against.
        relation: how.
        spread: standard deviation over seeds, or None.
    """

    name: str
    spec_id: str
    kind: Kind = "required"
    measured: float | None
    threshold: float
    relation: Relation = ">="
    spread: float | None = None

    @property
    def passed(self) -> bool:
        """Whether it holds; NaN, None and infinities on the wrong side fail.

        >>> Criterion(name="a", spec_id="x", measured=float("nan"), threshold=0.0, relation="<=").passed
        False
        """
        if self.measured is None:
            return False
        return self.measured >= self.threshold if self.relation == ">=" else self.measured <= self.threshold

    def row(self) -> dict[str, Any]:
        """For JSON, which has neither NaN nor infinity: None stands for them."""
        return {
            "name": self.name,
            "spec_id": self.spec_id,
            "kind": self.kind,
            "measured": finite(self.measured),
            "threshold": finite(self.threshold),
            "spread": finite(self.spread),
            "passed": self.passed,
        }


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Attributes:
        title: what it holds.
        header: a name per column.
        body: the rows.
        remark: what a reader must know of it, or nothing.
    """

    title: str
    header: Sequence[str]
    body: Sequence[Sequence[str]]
    remark: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        name: of its file, without the ending.
        svg: the picture, from `simulations.report.plots`.
    """

    name: str
    svg: Html


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a study found.

    Attributes:
        criteria: claims, in the order of the specification.
        sheets: tables for people.
        figures: pictures.
        rows: a mapping per cell, for study.json.
        skipped: what was left out, a line each; empty for the whole study.
        notes: what a reader must know before trusting the numbers.
    """

    criteria: Sequence[Criterion] = ()
    sheets: Sequence[Sheet] = ()
    figures: Sequence[Figure] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    skipped: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        """Whether every required criterion holds."""
        return all(each.passed for each in self.criteria if each.kind == "required")


def finite(value: float | None) -> float | None:
    """The number itself, None where it is no finite one."""
    return value if value is not None and math.isfinite(value) else None


def mean(values: Sequence[float | None]) -> float:
    """The mean; NaN where there is no value, or one that is missing or no number.

    >>> mean([1.0, 2.0]), mean([]), mean([1.0, None])
    (1.5, nan, nan)
    """
    numbers = [math.nan if value is None else value for value in values]
    return statistics.fmean(numbers) if numbers else math.nan


def largest(values: Sequence[float]) -> float:
    """The largest; NaN where there is no value or one of them is NaN, which `max` may pass over.

    >>> largest([1.0, 2.0]), largest([1.0, math.nan]), max(1.0, math.nan)
    (2.0, nan, 1.0)
    """
    return max(values) if values and not any(map(math.isnan, values)) else math.nan


def spread(values: Sequence[float | None]) -> float | None:
    """The standard deviation; None for fewer than two values, NaN where one is missing or not finite.

    >>> spread([1.0, 3.0]), spread([1.0]), spread([1.0, None])
    (1.4142135623730951, None, nan)
    """
    if len(values) < 2:
        return None
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.stdev(numbers) if len(numbers) == len(values) else math.nan


def told(values: Sequence[float | None], places: int = 3) -> str:
    """Mean and standard deviation as text.

    >>> told([0.91, 0.93]), told([0.5]), told([1.0, None])
    ('0.920 ± 0.014', '0.500', 'none')
    """
    middle, width = mean(values), spread(values)
    if not math.isfinite(middle):
        return "none"
    return f"{middle:.{places}f}" + ("" if width is None else f" ± {width:.{places}f}")
