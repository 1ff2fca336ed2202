"""A measurement in words: which of a run's measurements raise the alarm, and what stands for all of them."""

from __future__ import annotations

from typing import Any

import pytest

from simulations.words import audit as audit_words


def measured(epsilon: float | None = 1.0, *, alarm: bool = False, **more: Any) -> dict[str, Any]:
    bounds = {"lower_bound": 2.0, "shared_bound": 3.0, "claim": 1.5, "false_alarm": 1e-4, "compared_with": "a claim"}
    return {"epsilon": epsilon, "alarm": alarm} | bounds | more


@pytest.mark.parametrize("silo", [None, measured(), measured(alarm=True)])
@pytest.mark.parametrize("examples", [None, [measured()], [measured(), measured(alarm=True)]])
def test_one_alarm_of_any_unit_is_an_alarm_of_the_run(silo: Any, examples: Any, capsys: Any) -> None:
    privacy = {"measured": silo, "measured_example": examples}
    expected = sum(each["alarm"] for each in [*([silo] if silo else []), *(examples or [])])
    assert audit_words.alarms(privacy) is (expected > 0)
    audit_words.warn(privacy)
    said = capsys.readouterr().err
    assert said.count("\n") == said.count("confide: ALARM: canaries show epsilon 3 or more") == expected


def test_of_several_silos_the_largest_stands_for_all_infinity_included() -> None:
    few = [measured(1.0, silo=0), measured(4.0, silo=2), measured(2.0, silo=3)]
    assert audit_words.largest({"measured": measured(9.0), "measured_example": few}) == few[1]
    most = measured(None, silo=5)  # JSON has no infinity.
    assert audit_words.largest({"measured": None, "measured_example": [*few, most]}) == most
    assert audit_words.largest({"measured": measured(), "measured_example": None}) is None
