import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.events import (
    MAX_DEPTH,
    Capped,
    Composed,
    FixedSize,
    Gaussian,
    NonPrivate,
    Poisson,
    Repeated,
    Sampled,
    Turn,
    from_json,
    gaussian_composed,
    to_json,
)

noises = st.floats(min_value=1e-6, max_value=1e6)
samplers = st.builds(Poisson, st.floats(min_value=0, max_value=1, exclude_min=True)) | st.integers(1, 1000).flatmap(
    lambda population: (
        st.builds(FixedSize, st.integers(1, population), st.just(population))
        | st.builds(Capped, st.floats(1e-9, 1), st.integers(1, 2000), st.just(population))
    )
)
events = st.recursive(
    st.builds(NonPrivate, st.text()) | st.builds(Gaussian, noises),
    lambda inner: (
        st.builds(Sampled, samplers, inner)
        | st.builds(Repeated, inner, st.integers(0, 10**6))
        | st.builds(Turn, inner, charged=st.booleans())
        | st.builds(Composed, st.lists(inner, max_size=3).map(tuple))
    ),
    max_leaves=6,
)


@given(events)
def test_json_text_gives_the_same_event_back(event):
    back = from_json(json.loads(json.dumps(to_json(event))))
    assert back == event
    assert hash(back) == hash(event)


def test_the_json_of_a_round_is_readable():
    event = Repeated(Sampled(FixedSize(10, 1000), Composed((Gaussian(1.5), NonPrivate("accuracy")))), 3)
    assert to_json(event) == {
        "kind": "repeated",
        "times": 3,
        "event": {
            "kind": "sampled",
            "sampler": {"kind": "fixed_size", "size": 10, "population": 1000},
            "event": {
                "kind": "composed",
                "events": [
                    {"kind": "gaussian", "noise_multiplier": 1.5},
                    {"kind": "non_private", "reason": "accuracy"},
                ],
            },
        },
    }


GAUSSIAN = {"kind": "gaussian", "noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"kind": "os.system", "noise_multiplier": 1.0}, "event.kind: unknown kind 'os.system'"),
        ({"noise_multiplier": 1.0}, "event.kind: unknown kind None"),
        ({"kind": ["gaussian"]}, "event.kind: unknown kind"),
        ({"kind": "poisson", "rate": 0.5}, "event.kind: unknown kind 'poisson'"),
        ([GAUSSIAN], "event: expected an object"),
        ({"kind": "gaussian"}, "missing ['noise_multiplier']"),
        ({**GAUSSIAN, "seed": 1}, "not known ['seed']"),
        ({**GAUSSIAN, "noise_multiplier": "1e-5"}, "event.noise_multiplier: expected a number, found '1e-5'"),
        ({**GAUSSIAN, "noise_multiplier": True}, "event.noise_multiplier: expected a number"),
        ({**GAUSSIAN, "noise_multiplier": math.nan}, "event: noise_multiplier must be > 0, got nan"),
        ({**GAUSSIAN, "noise_multiplier": math.inf}, "event: noise_multiplier must be finite"),
        ({**GAUSSIAN, "noise_multiplier": 0}, "event: noise_multiplier must be > 0"),
        ({**GAUSSIAN, "noise_multiplier": 10**400}, "event.noise_multiplier: the number is too large"),
        ({"kind": "non_private", "reason": 3}, "event.reason: expected text"),
        ({"kind": "repeated", "event": GAUSSIAN, "times": 1.0}, "event.times: expected a whole number"),
        ({"kind": "repeated", "event": GAUSSIAN, "times": -1}, "event: times must be a whole number >= 0"),
        ({"kind": "composed", "events": {"0": GAUSSIAN}}, "event.events: expected a list"),
        ({"kind": "composed", "events": [GAUSSIAN, {"kind": "x"}]}, "event.events[1].kind: unknown kind 'x'"),
        (
            {"kind": "sampled", "sampler": {"kind": "poisson", "rate": 1.1}, "event": GAUSSIAN},
            "event.sampler: rate must be in (0, 1], got 1.1",
        ),
        (
            {"kind": "sampled", "sampler": {"kind": "poisson", "rate": math.nan}, "event": GAUSSIAN},
            "event.sampler: rate must be in (0, 1], got nan",
        ),
        (
            {"kind": "sampled", "sampler": {"kind": "fixed_size", "size": 3, "population": 2}, "event": GAUSSIAN},
            "event.sampler: size must be <= population, got 3 of 2",
        ),
        (
            {
                "kind": "sampled",
                "sampler": {"kind": "capped", "rate": 0.1, "cap": 0, "population": 9},
                "event": GAUSSIAN,
            },
            "event.sampler: cap must be a whole number >= 1, got 0",
        ),
        ({"kind": "sampled", "sampler": GAUSSIAN, "event": GAUSSIAN}, "event.sampler.kind: unknown kind 'gaussian'"),
    ],
)
def test_bad_data_is_refused_in_one_line_with_the_path(data, where):
    with pytest.raises(ValueError) as error:
        from_json(data)
    assert where in str(error.value)
    assert "\n" not in str(error.value)


def test_deep_nesting_is_refused_and_not_followed():
    data: dict[str, Any] = dict(GAUSSIAN)
    for _ in range(MAX_DEPTH + 1):
        data = {"kind": "repeated", "event": data, "times": 1}
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        from_json(data)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Gaussian(math.nan),
        lambda: Gaussian(-1.0),
        lambda: Poisson(0.0),
        lambda: Poisson(math.nan),
        lambda: FixedSize(0, 10),
        lambda: Capped(math.nan, 2, 10),
        lambda: Capped(0.1, 2.0, 10),
        lambda: Capped(0.1, 2, 0),
        lambda: FixedSize(1.0, 10),
        lambda: FixedSize(True, 10),
        lambda: Repeated(Gaussian(1.0), 2.5),
        lambda: Repeated("gaussian", 2),
        lambda: Composed([Gaussian(1.0)]),
        lambda: Composed((Gaussian(1.0), None)),
        lambda: Sampled(0.5, Gaussian(1.0)),
        lambda: Sampled(Poisson(0.5), Poisson(0.5)),
    ],
)
def test_an_event_that_means_nothing_cannot_be_built(build):
    with pytest.raises(ValueError):
        build()


def test_equal_gaussians_together_have_the_noise_divided_by_the_root_of_their_number():
    assert gaussian_composed(*[6.0] * 4) == pytest.approx(3.0, rel=1e-15)


@given(st.lists(noises, min_size=1, max_size=5))
def test_precisions_add(noise_multipliers):
    together = gaussian_composed(*noise_multipliers)
    assert together**-2 == pytest.approx(sum(noise**-2 for noise in noise_multipliers))


def test_the_noise_of_nothing_is_infinite_and_extremes_survive():
    assert gaussian_composed() == math.inf
    assert gaussian_composed(1e-200, 1e-200) == pytest.approx(1e-200 / math.sqrt(2))
    assert gaussian_composed(1e200) == pytest.approx(1e200)
    with pytest.raises(ValueError, match=r"noise_multipliers\[1\] must be > 0, got nan"):
        gaussian_composed(1.0, math.nan)
