"""Releases: what one silo can move, what is refused, what a mean divides by; the order of arrival is nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from privacy.contributions import Contributions, Failure, Partial
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from privacy.noise import SimulatedNoise, grid
from privacy.release import Collector, Release

torch.set_num_threads(1)

SIZE = 4
CLIP = 0.7
PRIVATE: dict[str, Mechanism] = {"delta": GaussianSum(CLIP, 1.0)}
EXACT: dict[str, Mechanism] = {"delta": ExactSum()}
NOISE, STREAM = SimulatedNoise(1), ("noise", 1)
BAD_NUMBERS = [math.nan, math.inf, -math.inf]

numbers = st.one_of(
    st.floats(-10, 10, width=32),
    st.floats(-(2.0**127), 2.0**127, width=32),
    st.floats(-(2.0**-120), 2.0**-120, width=32),
    st.sampled_from([0.0, *BAD_NUMBERS]),
)
updates = st.tuples(
    st.lists(numbers, min_size=SIZE, max_size=SIZE),
    st.one_of(st.floats(0, 1), st.sampled_from([1.0, 0.0, 1.5, 1e12, -1.0, math.nan, math.inf])),
)
cohorts = st.lists(updates, min_size=1, max_size=6)
Rows = Sequence[tuple[Sequence[float], float]]


def contributed(rows: Rows, mechanisms: Mapping[str, Mechanism] = PRIVATE) -> Contributions:
    out = Contributions(mechanisms, {"delta": SIZE})
    vectors = torch.tensor([vector for vector, _ in rows], dtype=torch.float32).reshape(len(rows), SIZE)
    weights = torch.tensor([weight for _, weight in rows], dtype=torch.float64)
    out.add({"delta": vectors}, weights, range(len(rows)))
    return out


def total(rows: Rows) -> Tensor:
    return contributed(rows).sums["delta"]


def collector(mechanisms: Mapping[str, Mechanism], *, expected: float = 8.0, size: int = SIZE) -> Collector:
    return Collector(mechanisms, dict.fromkeys(mechanisms, size), expected=expected, population=100)


def drawn(channel: str) -> Tensor:
    """What the release of a channel draws, `(SIZE,)`."""
    return NOISE.normals(SIZE, *STREAM, channel)


@settings(deadline=None)
@given(cohorts, st.integers(0, 5))
@example([([1e38] * SIZE, 1.0), ([math.inf] * SIZE, 1.0), ([0.1] * SIZE, math.nan)], 0)
def test_one_silo_moves_the_sum_by_at_most_the_clip_norm(rows: Rows, gone: int) -> None:
    gone %= len(rows)
    without = [row for at, row in enumerate(rows) if at != gone]
    moved = float(torch.linalg.vector_norm(total(rows) - total(without)))
    assert moved <= CLIP * (1 + 1e-6)


@settings(deadline=None)
@given(cohorts, updates, st.integers(0, 5))
def test_one_silo_that_sends_anything_else_moves_the_sum_by_at_most_two_clip_norms(
    rows: Rows, other: tuple[Sequence[float], float], which: int
) -> None:
    which %= len(rows)
    changed = [other if at == which else row for at, row in enumerate(rows)]
    assert float(torch.linalg.vector_norm(total(rows) - total(changed))) <= 2 * CLIP * (1 + 1e-6)


def test_the_worst_silo_moves_the_sum_by_the_whole_clip_norm() -> None:
    moved = torch.linalg.vector_norm(total([([1.0] * SIZE, 1.0), ([9.0, 0, 0, 0], 1.0)]) - total([([1.0] * SIZE, 1.0)]))
    assert float(moved) == pytest.approx(CLIP, rel=1e-12)  # The bound above is not idle.


@settings(deadline=None)
@given(cohorts, st.randoms(use_true_random=False))
def test_the_order_of_the_silos_does_not_matter(rows: Rows, random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    torch.testing.assert_close(total(shuffled), total(rows), rtol=0, atol=1e-12)


@settings(deadline=None)
@given(cohorts)
def test_one_by_one_is_the_same_as_stacked(rows: Rows) -> None:
    stacked, single = contributed(rows), Contributions(PRIVATE, {"delta": SIZE})
    for at, (vector, weight) in enumerate(rows):
        single.add({"delta": torch.tensor(vector, dtype=torch.float32)}, weight, [at])
    torch.testing.assert_close(single.sums["delta"], stacked.sums["delta"], rtol=0, atol=1e-12)
    assert single.failures == stacked.failures
    assert (single.arrived, single.clipped, single.payload) == (stacked.arrived, stacked.clipped, stacked.payload)
    assert single.weight == pytest.approx(stacked.weight, abs=1e-12)


@settings(deadline=None)
@given(cohorts)
def test_every_silo_either_arrives_or_fails_once(rows: Rows) -> None:
    out = contributed(rows)
    failed = [failure.silo for failure in out.failures]
    assert failed == sorted(set(failed))
    assert out.arrived + len(failed) == len(rows)
    assert out.payload == out.arrived * SIZE
    assert bool(torch.isfinite(out.sums["delta"]).all())


@pytest.mark.parametrize("number", BAD_NUMBERS)
def test_an_update_that_is_not_finite_is_left_out_and_the_others_stay_bit_for_bit(number: float) -> None:
    good: Rows = [([0.3, -0.2, 5.0, 0.1], 0.3), ([1e-3, 0.0, 0.7, 3.0], 1.0)]
    out = contributed([good[0], ([0.0, number, 0.0, 0.0], 1.0), good[1]])
    assert torch.equal(out.sums["delta"], total(good))
    assert out.failures == [Failure(1, "update is not finite")]
    assert (out.weight, out.arrived) == (1.3, 2)


@pytest.mark.parametrize("weight", [math.nextafter(1, 2), 1.5, 1e12, math.inf, -math.inf, math.nan, -1.0, -1e-300])
def test_under_privacy_a_weight_outside_0_to_1_is_refused_and_the_others_stay_bit_for_bit(weight: float) -> None:
    good: Rows = [([0.3, -0.2, 5.0, 0.1], 0.3), ([1e-3, 0.0, 0.7, 3.0], 1.0)]
    out = contributed([good[0], good[1], ([0.1, 0.1, 0.1, 0.1], weight)])
    assert torch.equal(out.sums["delta"], total(good))
    assert out.failures == [Failure(2, "weight is not in [0, 1]")]  # Its value may be private, and reasons are shown.


def test_without_privacy_a_weight_may_be_a_count_of_rows_but_no_nonsense() -> None:
    out = contributed([([1.0, 0, 0, 0], 250.0), ([0, 1.0, 0, 0], 0.0), ([1.0] * 4, -1.0), ([1.0] * 4, math.nan)], EXACT)
    assert out.sums["delta"].tolist() == [250.0, 0.0, 0.0, 0.0]
    assert [failure.silo for failure in out.failures] == [2, 3]
    assert (out.weight, out.arrived, out.clipped) == (250.0, 2, 0)


@pytest.mark.parametrize(
    "weight", ["1", None, True, 1j, [1.0], {}, torch.ones(3), torch.ones(2, 1), torch.tensor(True)]
)
def test_a_weight_that_is_no_number_is_refused_and_stops_nobody(weight: Any) -> None:
    out = Contributions(PRIVATE, {"delta": SIZE})
    out.add({"delta": torch.ones(2, SIZE)}, weight, [4, 7])
    assert [failure.silo for failure in out.failures] == [4, 7]
    assert all(failure.reason.startswith("weight ") for failure in out.failures)
    assert not out.sums["delta"].any()
    out.add({"delta": torch.ones(SIZE)}, 1, [5])
    assert out.arrived == 1


MALFORMED = [
    ({}, "channels []"),
    ({"loss": torch.ones(SIZE)}, "channels ['loss']"),
    ({"delta": torch.ones(SIZE), "loss": torch.ones(1)}, "channels ['delta', 'loss']"),
    ({"delta": torch.ones(1)}, "shape (1,)"),
    ({"delta": torch.ones(1, 1)}, "shape (1, 1)"),
    ({"delta": torch.tensor(1.0)}, "shape ()"),
    ({"delta": torch.ones(SIZE - 1)}, "shape (3,)"),
    ({"delta": torch.ones(SIZE + 1)}, "shape (5,)"),
    ({"delta": torch.ones(SIZE, 1)}, "shape (4, 1)"),
    ({"delta": torch.ones(2, SIZE)}, "shape (2, 4)"),
    ({"delta": torch.ones(1, 1, SIZE)}, "shape (1, 1, 4)"),
    ({"delta": torch.ones(SIZE, dtype=torch.int64)}, "torch.int64"),
    ({"delta": torch.ones(SIZE, dtype=torch.uint8)}, "torch.uint8"),
    ({"delta": torch.ones(SIZE, dtype=torch.bool)}, "torch.bool"),
    ({"delta": torch.ones(SIZE, dtype=torch.complex64)}, "torch.complex64"),
    ({"delta": np.ones(SIZE, dtype=np.float32)}, "ndarray, not a tensor"),
    ({"delta": [1.0] * SIZE}, "list, not a tensor"),
    ({"delta": None}, "NoneType, not a tensor"),
]


@pytest.mark.parametrize(("channels", "found"), MALFORMED, ids=[found for _, found in MALFORMED])
def test_a_malformed_update_is_refused_with_what_was_found(channels: dict[str, Any], found: str) -> None:
    out = Contributions(PRIVATE, {"delta": SIZE})
    out.add(channels, 1.0, [3])
    assert [failure.silo for failure in out.failures] == [3]
    assert found in out.failures[0].reason
    assert "\n" not in out.failures[0].reason
    assert (out.arrived, out.payload, out.weight) == (0, 0, 0.0)
    assert not out.sums["delta"].any()


def test_one_vector_is_not_spread_over_a_stack() -> None:
    out = Contributions(PRIVATE, {"delta": SIZE})
    out.add({"delta": torch.ones(SIZE)}, 1.0, [0, 1])
    out.add({"delta": torch.ones(1, SIZE)}, 1.0, [0, 1])
    assert len(out.failures) == 4
    assert not out.sums["delta"].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_point_type_is_summed_in_double_precision(dtype: torch.dtype) -> None:
    out = Contributions(EXACT, {"delta": SIZE})
    for silo in range(3):
        out.add({"delta": torch.full((SIZE,), 0.1, dtype=dtype)}, 1.0, [silo])
    assert out.sums["delta"].dtype == torch.float64
    assert out.sums["delta"].tolist() == [sum([float(torch.tensor(0.1, dtype=dtype))] * 3)] * SIZE


def test_an_update_of_zeros_is_fine() -> None:
    out = contributed([([0.0] * SIZE, 1.0), ([0.0] * SIZE, 1.0)])
    assert (out.arrived, out.clipped, out.failures, out.weight) == (2, 0, [], 2.0)
    assert out.sums["delta"].tolist() == [0.0] * SIZE


def test_no_silos_add_nothing() -> None:
    out = Contributions(PRIVATE, {"delta": SIZE})
    out.add({"delta": torch.empty(0, SIZE)}, 1.0, [])
    out.add({"delta": torch.empty(0, SIZE)}, torch.empty(0), [])
    assert (out.arrived, out.payload, out.failures, out.sums["delta"].tolist()) == (0, 0, [], [0.0] * SIZE)


def test_a_silo_is_refused_in_all_channels_when_one_is_bad() -> None:
    mechanisms = {"delta": GaussianSum(1.0, 1.0), "loss": GaussianSum(1.0, 1.0)}
    out = Contributions(mechanisms, {"delta": 2, "loss": 1})
    out.add({"delta": torch.full((2, 2), 0.5), "loss": torch.tensor([[math.nan], [0.5]])}, 1.0, [0, 1])
    assert out.sums["delta"].tolist() == [0.5, 0.5]
    assert out.sums["loss"].tolist() == [0.5]
    assert out.failures == [Failure(0, "update is not finite")]


def test_each_channel_has_its_own_clip_and_a_silo_clipped_twice_counts_once() -> None:
    mechanisms = {"delta": GaussianSum(1.0, 1.0), "loss": GaussianSum(0.25, 1.0)}
    out = Contributions(mechanisms, {"delta": 2, "loss": 1})
    out.add({"delta": torch.tensor([[3.0, 4.0], [0.3, 0.4]]), "loss": torch.tensor([[2.0], [0.125]])}, 1.0, [0, 1])
    torch.testing.assert_close(out.sums["delta"], torch.tensor([0.9, 1.2], dtype=torch.float64))
    assert out.sums["loss"].tolist() == [0.375]
    assert out.clipped == 1


def partials(count: int) -> list[Partial]:
    """Sums whose float64 total depends on the order of adding them."""
    values = [1e16, 1.0, -1e16, 1.0, 3e-1, 1e8]
    return [
        Partial(chunk, {"delta": torch.full((SIZE,), values[chunk])}, weight=0.1, arrived=1, losses=(float(chunk),))
        for chunk in range(count)
    ]


def test_the_order_in_which_chunks_come_changes_no_bit() -> None:
    chunks = partials(6)
    naive, seen, losses = set(), set(), set()
    for order in itertools.permutations(chunks):
        taken = collector(EXACT)
        for chunk in order:
            taken.add(chunk)
        seen.add(tuple(taken.release(NOISE, stream=STREAM).sums["delta"].tolist()))
        losses.add(tuple(taken.tally.losses))
        naive.add(float(sum(float(chunk.sums["delta"][0]) for chunk in order)))
    assert len(naive) > 1  # Adding as they come would tell the orders apart.
    assert len(seen) == 1
    assert losses == {tuple(map(float, range(6)))}


def test_chunks_are_added_as_soon_as_their_turn_comes() -> None:
    taken = collector(EXACT)
    first, second, third = partials(3)
    taken.add(third)
    assert taken.tally.arrived == 0
    taken.add(first)
    assert taken.tally.arrived == 1
    taken.add(second)
    assert taken.tally.arrived == 3


@pytest.mark.parametrize("came", [[0, 0], [1, 1], [0, 1, 0], [1, 0, 1], [2, 0, 2]])
def test_a_chunk_never_counts_twice(came: list[int]) -> None:
    chunks, taken = partials(3), collector(EXACT)
    for chunk in came[:-1]:
        taken.add(chunks[chunk])
    before = {name: value.clone() for name, value in taken.sums.items()}
    with pytest.raises(ValueError, match=f"chunk {came[-1]} was added twice"):
        taken.add(chunks[came[-1]])
    assert torch.equal(taken.sums["delta"], before["delta"])


@pytest.mark.parametrize(("came", "missing"), [([1], 0), ([0, 2], 1), ([0, 1, 4], 2)])
def test_a_round_with_a_chunk_missing_releases_nothing(came: list[int], missing: int) -> None:
    chunks, taken = partials(5), collector(PRIVATE)
    for chunk in came:
        taken.add(chunks[chunk])
    with pytest.raises(ValueError, match=f"chunk {missing} is missing"):
        taken.release(NOISE, stream=STREAM)


def test_the_tally_adds_up_every_field() -> None:
    taken = collector(PRIVATE)
    for chunk in range(2):
        failure = Failure(chunk, "late")
        sums = {"delta": torch.zeros(SIZE, dtype=torch.float64)}
        taken.add(Partial(chunk, sums, 1.5, arrived=2, clipped=1, payload=8, failures=(failure,), losses=(0.5,)))
    tally = taken.tally
    assert (tally.weight, tally.arrived, tally.clipped, tally.payload) == (3.0, 4, 2, 16)
    assert (tally.failures, tally.losses) == ([Failure(0, "late"), Failure(1, "late")], [0.5, 0.5])


@pytest.mark.parametrize("arrived", [0, 1, 4, 8, 12])
def test_under_privacy_a_mean_divides_by_the_expected_cohort_whatever_arrives(arrived: int) -> None:
    taken = collector(PRIVATE, expected=8.0)
    out = contributed([([0.1] * SIZE, 1.0)] * arrived)
    taken.add(out.partial(0))
    release = taken.release(NOISE, stream=STREAM)
    assert release.divisors == {"delta": 8.0}
    assert torch.equal(release.mean("delta"), (release.sums["delta"] / 8.0).float())


def test_without_privacy_a_mean_divides_by_the_weight_that_arrived() -> None:
    taken = collector(EXACT, expected=8.0)
    taken.add(contributed([([1.0] * SIZE, 1.0), ([4.0] * SIZE, 2.0), ([math.nan] * SIZE, 5.0)], EXACT).partial(0))
    release = taken.release(NOISE, stream=STREAM)
    assert release.divisors == {"delta": 3.0}
    assert release.mean("delta").tolist() == [3.0] * SIZE
    assert release.sum("delta").tolist() == [9.0] * SIZE


def test_without_privacy_an_empty_cohort_means_zero_not_nan() -> None:
    assert collector(EXACT).release(NOISE, stream=STREAM).mean("delta").tolist() == [0.0] * SIZE


@pytest.mark.parametrize("arrived", [0, 1, 7])
def test_the_noise_is_the_same_however_many_arrive(arrived: int) -> None:
    taken = collector(PRIVATE)
    out = contributed([([0.1] * SIZE, 1.0)] * arrived)
    taken.add(out.partial(0))
    noise = taken.release(NOISE, stream=STREAM).sums["delta"] - out.sums["delta"]
    torch.testing.assert_close(noise, drawn("delta") * CLIP, rtol=0, atol=grid(CLIP))


def test_an_empty_cohort_is_noised_on_every_coordinate() -> None:
    size, false_alarm = 100_000, 1e-6
    mechanisms = {"delta": GaussianSum(CLIP, 2.0)}
    release = collector(mechanisms, size=size).release(NOISE, stream=STREAM)
    noise = release.sums["delta"]
    assert bool((noise != 0).all())
    squares = float((noise / (2.0 * CLIP)).square().sum())
    low, high = stats.chi2.ppf([false_alarm / 2, 1 - false_alarm / 2], size)
    assert low < squares < high


def test_channels_are_noised_by_their_own_streams_and_strengths() -> None:
    mechanisms = {"delta": GaussianSum(1.0, 2.0), "loss": GaussianSum(0.5, 3.0)}
    release = collector(mechanisms).release(NOISE, stream=STREAM)
    for name, std in (("delta", 2.0), ("loss", 1.5)):
        torch.testing.assert_close(release.sums[name], drawn(name) * std, rtol=0, atol=grid(std))
    assert not torch.equal(drawn("delta"), drawn("loss"))


def test_answers_are_single_precision_vectors_that_leave_the_sum_as_it_is() -> None:
    release = Release({"delta": torch.tensor([1.0, 2.0], dtype=torch.float64)}, {"delta": 4.0}, population=10)
    release.sum("delta").mul_(0)
    release.mean("delta").mul_(0)
    assert release.sum("delta").dtype == release.mean("delta").dtype == torch.float32
    assert release.mean("delta").tolist() == [0.25, 0.5]


@settings(deadline=None)
@given(cohorts, st.integers(1, 6))
def test_how_a_cohort_is_cut_into_chunks_does_not_matter(rows: Rows, chunk: int) -> None:
    assume(len(rows) > 1)
    taken = collector(EXACT)
    for number, at in enumerate(range(0, len(rows), chunk)):
        taken.add(contributed(rows[at : at + chunk]).partial(number))
    torch.testing.assert_close(taken.sums["delta"], total(rows), rtol=0, atol=1e-12)
