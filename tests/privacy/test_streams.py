"""Streams: a draw is a pure function of its key, keys differ, draws are uniform, permutations are permutations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy import streams

FALSE_ALARM = 1e-6


def test_every_seed_in_the_world_depends_on_these_numbers() -> None:
    # A change here changes the result of every experiment ever run. The first two were computed by this code once; the
    # last two are the first outputs of splitmix64 from state 0, as its authors' C code prints them.
    assert streams.derive(0, "noise", 1, "delta") == 7866010735905284343
    assert streams.keys(7, [0, 1, 2]).tolist() == [7191089600892374487, 309689372594955804, 16616101746815609346]
    assert streams.bits(np.array([0], dtype=np.uint64), 2)[0].tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert streams.uniforms(np.array([0], dtype=np.uint64), 1)[0, 0] == (0xE220A8397B1DCDAF >> 11) / 2**53


def test_streams_differ_by_seed_purpose_round_and_silo() -> None:
    named = {
        streams.derive(seed, purpose, round_, silo)
        for seed in range(5)
        for purpose in ("noise", "cohort", "batches")
        for round_ in range(1, 20)
        for silo in range(20)
    }
    assert len(named) == 5 * 3 * 19 * 20
    assert all(0 <= key < 2**63 for key in named)


def test_parts_do_not_run_into_each_other() -> None:
    names = [("a", 11), ("a", 1, 1), ("a1", 1), ("a", "11"), (11, "a"), ("a",), ("a", 1)]
    assert len({streams.derive(0, *name) for name in names}) == len(names)


def test_a_million_silos_have_keys_of_their_own() -> None:
    assert len(np.unique(streams.keys(3, np.arange(1_000_000)))) == 1_000_000  # A bijection of the silo's number.


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
def test_a_key_depends_on_its_own_id_alone(base: int, ids: list[int]) -> None:
    together = streams.keys(base, ids)
    assert together.tolist() == [int(streams.keys(base, [one])[0]) for one in ids]
    assert together.tolist() == [int(streams.keys(base, one)) for one in ids]  # One id, without a list around it.


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 40), st.integers(0, 40))
def test_a_draw_depends_on_its_position_alone(base: int, count: int, more: int) -> None:
    keys = streams.keys(base, [5, 6])
    assert np.array_equal(streams.uniforms(keys, count + more)[:, :count], streams.uniforms(keys, count))
    assert np.array_equal(streams.uniforms(keys, count)[1], streams.uniforms(keys[1:], count)[0])


@pytest.mark.parametrize(
    "draws",
    [
        lambda: streams.uniforms(streams.keys(1, [0]), 50_000)[0],  # Along one stream.
        lambda: streams.uniforms(streams.keys(1, np.arange(50_000)), 1)[:, 0],  # First draws of many silos.
        lambda: np.array(
            [streams.uniforms(streams.keys(streams.derive(0, "cohort", r), [3]), 1) for r in range(9_000)]
        ),
    ],
    ids=["positions", "silos", "rounds"],
)
def test_draws_are_uniform(draws: object) -> None:
    values = np.ravel(draws())  # type: ignore[operator]
    assert ((values >= 0) & (values < 1)).all()
    assert stats.kstest(values, "uniform").pvalue > FALSE_ALARM
    # Neighbours do not know of each other: pairs fall evenly on a grid of 8 by 8.
    cells = (8 * values[0::2]).astype(int) * 8 + (8 * values[1::2]).astype(int)
    assert stats.chisquare(np.bincount(cells, minlength=64)).pvalue > FALSE_ALARM


def test_the_largest_draw_is_below_one() -> None:
    assert (np.uint64(2**64 - 1) >> np.uint64(11)).astype(np.float64) * 2.0**-53 < 1.0


sizes_ = st.lists(st.integers(0, 30), min_size=1, max_size=6)


@settings(deadline=None)
@given(st.integers(0, 2**62), sizes_, st.integers(0, 10))
def test_a_permutation_is_one_and_depends_neither_on_width_nor_on_neighbours(
    base: int, sizes: list[int], extra: int
) -> None:
    keys = streams.keys(base, np.arange(len(sizes)))
    width = max(sizes) + extra
    orders = streams.permutations(keys, np.array(sizes), width)
    assert orders.shape == (len(sizes), width)
    for silo, size in enumerate(sizes):
        assert sorted(orders[silo, :size].tolist()) == list(range(size))
        alone = streams.permutations(keys[silo : silo + 1], np.array([size]), size)
        assert np.array_equal(alone[0], orders[silo, :size])


def test_all_permutations_are_equally_likely() -> None:
    orders = streams.permutations(streams.keys(1, np.arange(24_000)), np.full(24_000, 4), 4)
    counts = np.unique(orders @ np.array([64, 16, 4, 1]), return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


def test_a_generator_repeats_and_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    first = torch.randn(5, generator=streams.generator(1, "noise", 2))
    assert torch.equal(first, torch.randn(5, generator=streams.generator(1, "noise", 2)))
    assert not torch.equal(first, torch.randn(5, generator=streams.generator(1, "noise", 3)))
    assert torch.equal(before, torch.get_rng_state())


def test_streams_differ_although_their_keys_agree_in_32_bits() -> None:
    # torch's manual_seed looks at 32 bits only; these two rounds of seed 0 once had the same noise, number by number.
    one, other = (streams.derive(0, "noise", round_, "delta") for round_ in (59_442, 84_757))
    assert one != other
    assert one & 0xFFFFFFFF == other & 0xFFFFFFFF
    first, second = (
        torch.randn(1_000, generator=streams.generator(0, "noise", round_, "delta"), dtype=torch.float64)
        for round_ in (59_442, 84_757)
    )
    assert not bool((first == second).any())
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 / 1_000**0.5  # Chance: below 6e-7.


def test_the_first_draws_of_many_generators_are_normal() -> None:
    draws = [torch.randn(2, generator=streams.generator(3, "noise", r), dtype=torch.float64) for r in range(20_000)]
    assert stats.kstest(torch.cat(draws).numpy(), "norm").pvalue > FALSE_ALARM
