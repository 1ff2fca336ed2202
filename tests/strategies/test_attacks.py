"""Attacks as an experiment names them: read, written, and refused where they cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from strategies.attacks import ATTACKS, PixelPatch, Poison, SignFlip
from strategies.codec import decode, encode
from strategies.experiment import Experiment
from strategies.loading import parse
from strategies.schema import ConfigError

SMALL: dict[str, Any] = {"rounds": 3, "task": "logistic", "data": {"name": "digits", "silos": 10}}
FLIP = {"name": "sign_flip", "fraction": 0.2}
PATCH = {"name": "pixel_patch", "fraction": 0.2, "target": 1}


def read(*attacks: Any, **changes: Any) -> Experiment:
    return parse(SMALL | changes | {"attacks": list(attacks)})


def test_a_list_of_attacks_is_read_in_its_order_and_written_back() -> None:
    found = read(PATCH | {"crew": 1, "size": 2}, FLIP)
    assert found.attacks == (PixelPatch(fraction=0.2, target=1, crew=1, size=2), SignFlip(fraction=0.2))
    assert decode(Experiment, encode(found)) == found


def test_every_attack_is_frozen_and_says_what_it_does() -> None:
    for name, cls in ATTACKS.items():
        assert cls.name == name
        assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert cls.__doc__ is not None


EXAMPLE = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3, "rows": 100, "batch": 10.0}

PROBLEMS: list[tuple[list[Any], dict[str, Any], str]] = [
    (["sign_flip"], {}, "attacks[0].fraction: missing, give a number > 0 and <= 1 (silos that are malicious, as a"),
    ([FLIP | {"name": "sign_flop"}], {}, "attacks[0].name: unknown 'sign_flop', choose from"),
    ([FLIP | {"fraction": 0}], {}, "attacks[0].fraction: must be > 0 and <= 1, got 0.0"),
    ([FLIP, FLIP | {"start": 4}], {}, "attacks[1].start: must be <= rounds = 3, got 4; it would never begin"),
    ([FLIP | {"until": 0.1}], {}, "attacks[0].until: must be >= fraction = 0.2, got 0.1; a crew only grows"),
    ([FLIP, FLIP | {"draw": "exact"}], {}, "attacks: found draw: exact and fixed; give all of them the same"),
    ([FLIP | {"fraction": 0.6}, FLIP | {"fraction": 0.5, "crew": 1}], {}, "attacks: crews hold 1.1 of the silos"),
    ([PATCH | {"source": 1}], {}, "attacks[0].source: 1 is the target, too; give another"),
    ([PATCH | {"name": "distributed_patch", "parts": 5}], {}, "attacks[0].parts: must be <= size = 4, got 5"),
    ([FLIP], {"strategy": "local"}, "attacks[0]: sign_flip changes channel 'delta', which strategy local has not"),
    (
        [PATCH | {"longer": 4}],
        {"privacy": {"example": EXAMPLE}, "train": {"steps": 1}},
        "attacks[0].longer: privacy.example charges each silo for train.steps, got 4; use 1",
    ),
]


@pytest.mark.parametrize(("attacks", "changes", "line"), PROBLEMS, ids=[line for *_, line in PROBLEMS])
def test_what_cannot_be_is_refused_in_one_line(attacks: list[Any], changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*attacks, **changes)
    assert [each[: len(line)] for each in caught.value.problems] == [line]


def test_no_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="attacks: expected a list of sections with a name, found a section of keys"):
        parse(SMALL | {"attacks": FLIP})


def test_poisons_name_their_target_and_attacks_on_updates_have_none() -> None:
    for cls in ATTACKS.values():
        assert issubclass(cls, Poison) == ("target" in cls.__dataclass_fields__)  # type: ignore[attr-defined]
