"""The rules of `privacy.audit.examples`: refused in one line, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from strategies.experiment import Experiment
from strategies.loading import parse
from strategies.schema import ConfigError

WHERE = "privacy.audit.examples"
EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": 1.5, "delta": 1e-3, "rows": 40, "batch": 10}
SILO = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}


def experiment(privacy: dict[str, Any], *, metrics: str = "strict", **audit: Any) -> Experiment:
    return parse(
        {
            "rounds": 5,
            "task": "logistic",
            "data": {"name": "digits", "silos": 4},
            "train": {"steps": 3},
            "privacy": privacy | {"audit": {"examples": {"canaries": 30} | audit}},
            "metrics": {"privacy": metrics},
        }
    )


@pytest.mark.parametrize(
    ("privacy", "audit", "says"),
    [
        (
            {"silo": SILO},
            {},
            ".canaries: found 30, but there is no privacy.example to audit; add it or use canaries: 0",
        ),
        ({"example": EXAMPLE}, {"silos": []}, ".silos: found an empty list; name a silo to audit, or use canaries: 0"),
        ({"example": EXAMPLE}, {"silos": [2, 0, 2]}, ".silos: found 2 more than once; name each silo once"),
        ({"example": EXAMPLE}, {"silos": [0, 4]}, ".silos: found 4, but the last of 4 silos is 3"),
        (
            {"example": EXAMPLE, "silo": SILO},
            {},
            ".canaries: scores follow from one silo's own updates, which have no price under privacy.silo; "
            "use metrics.privacy: research, or canaries: 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(privacy: dict[str, Any], audit: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(privacy, **audit)
    assert f"{WHERE}{says}" in caught.value.problems
    assert all(problem.startswith(WHERE) for problem in caught.value.problems)


def test_what_fits_is_taken() -> None:
    assert experiment({"example": EXAMPLE}, silos=[3, 0]).privacy.audit.examples.silos == (3, 0)
    both = experiment({"example": EXAMPLE, "silo": SILO}, metrics="research")
    assert both.privacy.audit.examples.silos == (0,)
    experiment({"silo": SILO}, canaries=0, silos=[9])
