"""Noise: Gaussian from either source, secret where it says so, and on a grid whose points tell nothing of the sum."""

from __future__ import annotations

import copy
import inspect
import math
import os
import pickle
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from privacy import noise as module
from privacy import streams
from privacy.mechanism import GaussianSum
from privacy.noise import BLOCK, FINENESS, LIMIT, NoiseSource, SimulatedNoise, SystemNoise, grid, noised

torch.set_num_threads(1)

FALSE_ALARM = 1e-6  # Probability that a statistical test here fails although the code is right.
DRAWS = 200_000
SOURCES = pytest.mark.parametrize("source", [SimulatedNoise(1), SystemNoise()], ids=["simulated", "system"])
stds = st.floats(1e-300, 1e300)


class Given:
    """A source that draws what it is told."""

    secret: ClassVar[bool] = False
    stamp: ClassVar[str] = "given"

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def normals(self, size: int, *stream: int | str) -> Tensor:
        return self.values.clone()


# The law of the noise


@SOURCES
def test_the_noise_has_standard_deviation_one(source: NoiseSource) -> None:
    squares = float(source.normals(DRAWS, "noise").square().sum())
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], DRAWS)
    assert low < squares < high  # Holds the standard deviation to 0.8%.


@SOURCES
def test_the_noise_is_gaussian_in_the_middle_and_in_the_tails(source: NoiseSource) -> None:
    drawn = source.normals(DRAWS, "noise").numpy()
    assert stats.kstest(drawn, "norm").pvalue > FALSE_ALARM / 4
    # Both are exact in the limit of many draws (Anscombe & Glynn 1983; D'Agostino 1970).
    assert stats.kurtosistest(drawn).pvalue > FALSE_ALARM / 4
    assert stats.skewtest(drawn).pvalue > FALSE_ALARM / 4
    beyond = int((np.abs(drawn) > 3).sum())
    assert stats.binomtest(beyond, DRAWS, 2 * stats.norm.sf(3)).pvalue > FALSE_ALARM / 4


def test_the_two_numbers_of_a_pair_and_neighbours_are_independent() -> None:
    drawn = SystemNoise().normals(BLOCK, "noise")
    pairs = [(drawn[: BLOCK // 2], drawn[BLOCK // 2 :]), (drawn[:-1], drawn[1:])]
    for one, two in pairs:
        for first, second in ((one, two), (one.square(), two.square())):
            # A sample correlation of n independent pairs has a standard deviation of 1 / sqrt(n) in the limit.
            found = float(np.corrcoef(first.numpy(), second.numpy())[0, 1])
            assert abs(found) * math.sqrt(len(first)) < stats.norm.isf(FALSE_ALARM / 8)


def test_words_at_either_end_give_finite_numbers_within_nine_and_a_half() -> None:
    ends = np.array([0, -1, 1, np.iinfo(np.int64).max, np.iinfo(np.int64).min], dtype=np.int64)
    words = np.stack([np.repeat(ends, len(ends)), np.tile(ends, len(ends))])
    drawn = module._box_muller(words.reshape(-1))
    assert bool(torch.isfinite(drawn).all())
    assert float(drawn.abs().max()) == math.sqrt(2 * 63 * math.log(2))  # Word 0: the radius's logarithm is of 2^-63.
    assert float(drawn.abs().min()) == 0.0  # Word -1: of 1.


def test_pairs_are_those_of_box_and_muller() -> None:
    words = np.array([1 << 62, 3 << 61, 1 << 62, -(1 << 61)], dtype=np.int64)
    drawn = module._box_muller(words)
    radius = [math.sqrt(-2 * math.log(0.25)), math.sqrt(-2 * math.log(0.375))]
    expected = [0.0, radius[1] * math.sqrt(0.5), radius[0], -radius[1] * math.sqrt(0.5)]  # Angles 1/4 and -1/8 turn.
    np.testing.assert_allclose(drawn.numpy(), expected, rtol=0, atol=1e-15)


# Simulated noise repeats, system noise does not


@given(st.integers(0, 2**63 - 1), st.integers(1, 10**6), st.integers(0, 100))
def test_simulated_noise_is_that_of_its_named_stream(seed: int, round_: int, size: int) -> None:
    drawn = SimulatedNoise(seed).normals(size, "noise", round_, "delta")
    expected = torch.randn(size, generator=streams.generator(seed, "noise", round_, "delta"), dtype=torch.float64)
    assert torch.equal(drawn, expected)


def test_simulated_streams_differ_by_every_part_of_their_name() -> None:
    names = [(0, "noise", 1, "delta"), (1, "noise", 1, "delta"), (0, "noise", 2, "delta"), (0, "noise", 1, "loss")]
    assert len({tuple(SimulatedNoise(seed).normals(4, *name).tolist()) for seed, *name in names}) == len(names)


def test_system_noise_never_comes_twice() -> None:
    one, two = SystemNoise(), SystemNoise()
    drawn = [source.normals(8, "noise", 1, "delta") for source in (one, one, two, two)]
    assert len({tuple(values.tolist()) for values in drawn}) == 4
    blocks = one.normals(3 * BLOCK, "noise").split(BLOCK)
    assert not torch.equal(blocks[0], blocks[1])


def test_a_forked_process_draws_other_noise() -> None:
    source = SystemNoise()
    source.normals(8, "noise")
    end, child_end = os.pipe()
    child = os.fork()
    if not child:
        os.write(child_end, source.normals(8, "noise").numpy().tobytes())
        os._exit(0)
    os.close(child_end)
    with open(end, "rb") as pipe:
        theirs = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert len(theirs) == 64
    assert theirs != source.normals(8, "noise").numpy().tobytes()


def test_every_block_takes_a_fresh_key_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []
    entropy = os.urandom

    def urandom(size: int) -> bytes:
        keys.append(entropy(size))
        return keys[-1]

    monkeypatch.setattr(os, "urandom", urandom)
    SystemNoise().normals(2 * BLOCK + 1, "noise")
    assert [len(key) for key in keys] == [32, 32, 32]
    assert len(set(keys)) == 3


def test_the_words_are_the_key_stream_of_chacha20(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    # RFC 8439, appendix A.1, test vectors 1 and 2: key 0, nonce 0, blocks 0 and 1.
    first = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    second = "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    words = module._random_words(16).tobytes()
    assert words[:32].hex() == first
    assert words[64:96].hex() == second


@pytest.mark.parametrize("size", [0, 1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1])
@SOURCES
def test_as_many_numbers_come_as_were_asked_for(source: NoiseSource, size: int) -> None:
    drawn = source.normals(size, "noise")
    assert (tuple(drawn.shape), drawn.dtype) == ((size,), torch.float64)
    assert bool((drawn != 0).all())  # A number nobody drew; a drawn zero has a chance of 2^-62.


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_system_noise_cannot_be_copied_or_pickled(duplicate: object) -> None:
    assert callable(duplicate)
    with pytest.raises(TypeError, match="system noise cannot be copied or pickled"):
        duplicate(SystemNoise())


def test_there_is_no_way_to_give_system_noise_a_seed() -> None:
    assert not inspect.signature(SystemNoise).parameters
    with pytest.raises(TypeError):
        SystemNoise(0)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        SystemNoise().seed = 0  # type: ignore[attr-defined]
    public = {name for name in dir(SystemNoise()) if not name.startswith("_")}
    assert public == {"secret", "stamp", "normals"}


def test_what_reports_say_of_a_source_is_what_it_is() -> None:
    assert (SimulatedNoise.secret, SystemNoise.secret) == (False, True)
    assert SimulatedNoise.stamp.startswith("simulated noise")
    assert SystemNoise.stamp.startswith("system noise: not reproducible")


# The grid


@given(stds)
def test_the_grid_is_a_power_of_two_finer_than_the_noise(std: float) -> None:
    step = grid(std)
    assert math.frexp(step)[0] == 0.5
    assert std / 2 ** (FINENESS + 1) < step <= std / 2**FINENESS


@given(st.floats(allow_nan=False, allow_infinity=False), stds, st.floats(-9.4, 9.4))
@example(-1e-9, 1.0, 0.0)  # Rounds to zero from below.
@example(1.7e308, 1e-300, 0.0)
def test_released_sums_are_grid_points_within_the_limit_whatever_the_sum(total: float, std: float, z: float) -> None:
    if not math.isfinite(grid(std) * LIMIT):
        return  # GaussianSum refuses such noise.
    out = float(noised(torch.tensor([total], dtype=torch.float64), std, torch.tensor([z], dtype=torch.float64)))
    steps = Fraction(out) / Fraction(grid(std))
    assert steps.denominator == 1
    assert abs(steps) <= LIMIT
    assert out != 0 or math.copysign(1, out) == 1.0  # No negative zero.


@given(st.floats(-1e6, 1e6), st.floats(1e-2, 1e2), st.floats(-9.4, 9.4))
def test_rounding_is_of_the_exact_sum_to_the_nearest_point(total: float, std: float, z: float) -> None:
    out = float(noised(torch.tensor([total], dtype=torch.float64), std, torch.tensor([z], dtype=torch.float64)))
    exact = Fraction(total) + Fraction(std) * Fraction(z)
    # Half a step, and what the module says of its own rounding: 2^-29 of a step.
    assert abs(Fraction(out) - exact) <= Fraction(grid(std)) * (Fraction(1, 2) + Fraction(1, 2**29))


@given(st.integers(-(2**40), 2**40), st.floats(-9.4, 9.4), st.floats(0, 0.999))
def test_adding_grid_points_to_the_sum_moves_the_output_by_just_those(points: int, z: float, rest: float) -> None:
    step = grid(1.5)
    low = rest * step
    moved = torch.tensor([low, points * step + low], dtype=torch.float64)
    if (Fraction(moved[1].item()) - points * Fraction(step)) != Fraction(low):
        moved[0], moved[1] = 0.0, points * step  # The sum itself was rounded: take one that was not.
    out = noised(moved, 1.5, torch.full((2,), z, dtype=torch.float64))
    assert float(out[1]) - float(out[0]) == points * step


def test_rounding_adds_nothing_to_speak_of_to_the_noise() -> None:
    drawn = SimulatedNoise(1).normals(DRAWS, "noise")
    out = noised(torch.full_like(drawn, 0.1), 3.0, drawn)
    torch.testing.assert_close(out, 0.1 + 3.0 * drawn, rtol=0, atol=0.5001 * grid(3.0))


# What the low-order bits tell


def test_single_precision_noise_tells_a_sum_of_zero_from_one() -> None:
    """The leak that the grid is for: a quarter of what is released at x = 0 could not have come from x = 1.

    Single-precision numbers in [1/2, 1) are 2^-24 apart, so 1 + noise is a multiple of 2^-24 wherever it ends up. Noise
    alone in [2^-k-1, 2^-k) has k bits below that, and is such a multiple with probability 2^-k only.
    """
    drawn = torch.from_numpy(np.random.default_rng(0).standard_normal(DRAWS).astype(np.float32))
    at_zero, at_one = 0.0 + drawn, 1.0 + drawn
    assert bool((at_one.double() * 2**24 % 1 == 0).all())
    share = sum(2 * (stats.norm.cdf(2.0**-k) - stats.norm.cdf(2.0 ** (-k - 1))) * (1 - 2.0**-k) for k in range(1, 40))
    assert share == pytest.approx(0.257, abs=5e-4)
    impossible = int((at_zero.double() * 2**24 % 1 != 0).sum())
    assert stats.binomtest(impossible, DRAWS, share).pvalue > FALSE_ALARM


@pytest.mark.parametrize("x", [1.0, -1.0, 1 / 3, -1e-9, math.pi * 1e3])
@SOURCES
def test_every_output_at_zero_could_have_come_from_another_sum(source: NoiseSource, x: float) -> None:
    """None of 200 000 outputs at x = 0 is impossible at x: the noise that leads there is found, and leads there."""
    mechanism = GaussianSum(1.0, 1.0)
    zero = torch.zeros(DRAWS, dtype=torch.float64)
    outputs = mechanism.privatize(zero, source, stream=("noise",))
    needed = Given((outputs - x) / mechanism.std)
    again = mechanism.privatize(zero + x, needed, stream=("noise",))
    assert int((again != outputs).sum()) == 0


@pytest.mark.parametrize("x", [0.0, 1.0, 1 / 3, math.pi * 1e3])
@SOURCES
def test_the_last_bit_of_an_output_is_a_fair_coin_whatever_the_sum(source: NoiseSource, x: float) -> None:
    mechanism = GaussianSum(1.0, 1.0)
    total = torch.full((DRAWS,), x, dtype=torch.float64)
    outputs = mechanism.privatize(total, source, stream=("noise", "last bit"))
    odd = int((outputs / grid(mechanism.std)).remainder(2).sum())
    # A Gaussian over 2^20 steps to a standard deviation has odd and even points alike to all digits.
    assert stats.binomtest(odd, DRAWS, 0.5).pvalue > FALSE_ALARM / 8
