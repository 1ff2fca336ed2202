"""A measurement beside its claim, in words; of a result's `privacy.measured`, so nothing slow is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from simulations.commands.output import at_most, short

Measured = Mapping[str, Any]

RUN_CLAIM = "the run's claim"


def sentence(measured: Measured) -> str:
    """One sentence: what the measurement says of the claim, and what it could not have said."""
    if measured["alarm"]:
        return alarm(measured)
    claim, limit = measured["claim"], measured["detectable"]
    could = f"by counting, {measured['canaries']} canaries could show {short(limit)} at most"
    if claim is None:
        return f"An estimate, neither an upper nor a lower bound, with no finite claim to contradict; {could}."
    blind = ", too little to contradict this claim" if claim >= limit else ""
    against = f"{at_most(claim)} ({measured['compared_with']})"
    return (
        f"An estimate, neither an upper nor a lower bound: nothing beyond chance contradicts {against}; {could}{blind}."
    )


def alarm(measured: Measured) -> str:
    """The one line of an alarm."""
    shown = max(_finite(measured["lower_bound"]), _finite(measured["shared_bound"]))
    return (
        f"ALARM: canaries show epsilon {short(shown)} or more where {at_most(measured['claim'])} is claimed "
        f"({measured['compared_with']}); noise is missing or mis-scaled "
        f"(by chance alone in {measured['false_alarm']:g} of runs)"
    )


def every(privacy: Mapping[str, Any]) -> list[Measured]:
    """All that was measured, of silos and of single rows, from a result's `privacy`."""
    silo, examples = privacy["measured"], privacy.get("measured_example") or []
    return [*([silo] if silo is not None else []), *examples]


def alarms(privacy: Mapping[str, Any]) -> bool:
    """Whether any measurement contradicts its claim."""
    return any(measured["alarm"] for measured in every(privacy))


def warn(privacy: Mapping[str, Any]) -> None:
    """Says the line of each alarm on stderr."""
    for measured in every(privacy):
        if measured["alarm"]:
            print(f"confide: {alarm(measured)}", file=sys.stderr)


def largest(privacy: Mapping[str, Any]) -> Measured | None:
    """The measurement of single rows that shows most, of all audited silos."""
    return max(privacy.get("measured_example") or [], key=lambda each: _finite(each["epsilon"]), default=None)


def unsound(measured: Measured) -> str:
    """Why the measurement cannot be relied on; empty where it can."""
    if measured["sound"]:
        return ""
    return (
        "do not rely on the measurement: canaries that took no part do not look random "
        f"(p = {measured['ks_pvalue']:.2g}; one sound run in 100 has less than 0.01)"
    )


def facts(measured: Measured) -> Iterator[tuple[str, str]]:
    """Everything that was measured, as names and values."""
    spread = f"95% interval {short(measured['lower'])} to {short(measured['upper'])}"
    at = f"at delta {short(measured['delta'])}"
    yield "measured", f"{short(measured['epsilon'])}, {spread} ({measured['method']}) {at}"
    yield "compared with", f"{at_most(measured['claim'])}, {measured['compared_with']}"
    yield "meaning", sentence(measured)
    where = f"in {measured['dimension']} dimensions, from {measured['reference']}"
    yield "canaries", f"{measured['canaries']} seen, as many unseen, {where}"
    yield "null", f"unseen canaries: Kolmogorov-Smirnov p = {measured['ks_pvalue']:.3g}"
    if unsound(measured):
        yield "warning", unsound(measured)
    yield "alarm", _bounds(measured)
    counted = f"{short(measured['detectable'])} by Clopper-Pearson at 95% and one threshold"
    yield "detectable", f"{counted}, {short(measured['detectable_by_alarm'])} by the counting half of the alarm"
    yield "fitted spread", _estimate(measured["fitted"])
    yield "all iterates", measured["iterates_off"] or _estimate(measured["all_iterates"])


def _bounds(measured: Measured) -> str:
    counted, shared = short(measured["lower_bound"]), short(measured["shared_bound"])
    each = f"each too high in {measured['false_alarm'] / 2:g} of runs at most"
    return f"bounds {counted} by Clopper-Pearson and {shared} by the shared spread, {each}, against the claim"


def _estimate(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "needs 2 canaries or more"
    if not found["quotable"]:
        return "not quoted: a fitted spread needs 1000 canaries, with fewer it reads too high"
    return f"{short(found['epsilon'])}, 95% interval {short(found['lower'])} to {short(found['upper'])}"


def _finite(value: float | None) -> float:
    return float("inf") if value is None else float(value)
