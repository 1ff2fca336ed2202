"""What cannot be done with silos on machines of their own is said before anybody is asked."""

from __future__ import annotations

from typing import Any

import pytest

from strategies.loading import parse
from strategies.schema import ConfigError

DATA = {"name": "digits", "silos": 4}
BASE: dict[str, Any] = {"name": "apart", "rounds": 2, "task": "logistic", "data": DATA, "engine": {"kind": "flower"}}
SILO = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}
PRIVATE = {"name": "private", "low": -4.0, "high": 4.0, "noise_multiplier": 4.0}
PATCH = {"name": "pixel_patch", "fraction": 0.2, "target": 1}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": {"name": "dataset", "silos": 4}}, "data.name: dataset is rows of one process"),
        ({"data": {"path": "a.csv", "target": "y", "silo": "s"}}, "data.silos: missing; with engine.kind: flower"),
        ({"data": DATA | {"shift": {"round": 2, "rotate": 12}}}, "data.shift: is simulated"),
        ({"attacks": [PATCH]}, "attacks: are simulated"),
        ({"engine": {"kind": "local", "quorum": 0.5}}, "engine.quorum: found 0.5, but only kind: flower uses it"),
        ({"engine": {"kind": "flower", "quorum": 0.5}, "privacy": {"silo": SILO}}, "engine.quorum: under privacy"),
        ({"metrics": {"inline": True}}, "metrics.inline: found true, but a run across machines is in a process of"),
        ({"engine": {"kind": "flower", "workers": 2}}, "engine.workers: found 2, but only kind: pool uses it"),
    ],
)
def test_what_cannot_be_apart_is_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(BASE | changes)
    assert any(found.startswith(line) for found in refused.value.problems), refused.value.problems


def test_what_can_is_taken() -> None:
    parse(BASE)
    parse(BASE | {"engine": {"kind": "flower", "quorum": 0.5, "deadline_s": 5.0}})
    parse(BASE | {"privacy": {"silo": SILO}})
    parse(BASE | {"data": DATA | {"standardize": PRIVATE}, "privacy": {"silo": SILO}})
