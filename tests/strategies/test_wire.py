"""The wire format: exact, of public length, near the entropy bound, and closed to whatever no encoder wrote."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies import wire
from strategies.wire_entropy import Entropy, _by_ones, _frequencies, _lanes, _words, _write
from strategies.wire_index import bitmap

SPECIAL = (0x80000000, 0x00000001, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x3F800000)
every_form = pytest.mark.parametrize("form", wire.FORMS)


def bits_of(vector: torch.Tensor) -> list[int]:
    return [int(each) for each in vector.numpy().view(np.uint32)]


def vector_of(bits: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.float32).copy())


@st.composite
def sparse(draw: st.DrawFn, most: int = 300) -> tuple[NDArray[Any], int]:
    """The bits of a vector and a count; fewer numbers than the count may be other than zero."""
    numbers = draw(st.integers(0, most))
    kept = draw(st.one_of(st.sampled_from([0, numbers]), st.integers(0, numbers)))
    places = draw(st.lists(st.integers(0, max(numbers - 1, 0)), max_size=kept, unique=True)) if numbers else []
    bits = np.zeros(numbers, dtype=np.uint32)
    for place in places:
        bits[place] = draw(st.one_of(st.sampled_from(SPECIAL), st.integers(0, 2**32 - 1)))
    return bits, kept


def patterns(numbers: int, kept: int) -> list[NDArray[Any]]:
    """Masks that are as unlike as possible: at the ends, evenly spread, in whole bytes, in pairs, at random."""
    rng, masks = np.random.default_rng(5), [np.arange(kept), np.arange(numbers - kept, numbers)]
    masks.append(np.arange(kept) * numbers // max(kept, 1))
    for run in (2, 4, 8):
        if kept * 8 <= numbers * run:
            masks.append(np.arange(kept) // run * 8 + np.arange(kept) % run)
    return [*masks, np.sort(rng.choice(numbers, kept, replace=False))]


def choices(numbers: int, kept: int) -> float:
    """log2 C(numbers, kept)."""
    return (math.lgamma(numbers + 1) - math.lgamma(kept + 1) - math.lgamma(numbers - kept + 1)) / math.log(2)


# Lengths.


@pytest.mark.parametrize(("numbers", "kept"), [(1, 0), (1, 1), (97, 12), (1000, 31), (1000, 32), (15882, 1588)])
def test_lengths_are_the_formulas(numbers: int, kept: int) -> None:
    assert wire.HEADER.size == 12
    assert wire.size(numbers, numbers) == 12 + 4 * numbers
    assert wire.body("dense", numbers, kept) == 4 * numbers
    assert wire.body("bitmap", numbers, kept) == 4 * kept + math.ceil(numbers / 8)
    assert wire.body("indices", numbers, kept) == 8 * kept
    assert wire.body("bitmap", numbers, kept, "float16") == 2 * kept + math.ceil(numbers / 8)


@given(st.integers(1, 4000).map(lambda octets: 8 * octets), st.data())
def test_a_bitmap_is_smaller_than_indices_where_the_density_is_above_one_32nd(
    numbers: int, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(0, numbers))
    smaller = wire.body("bitmap", numbers, kept) < wire.body("indices", numbers, kept)
    assert smaller == (kept / numbers > 1 / 32)


@given(st.integers(0, 5000), st.data())
def test_the_form_is_the_shortest(numbers: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, numbers))
    for values in ("float32", "float16"):
        assert wire.size(numbers, kept, values) == 12 + min(
            wire.body(each, numbers, kept, values) for each in wire.FORMS
        )


@every_form
@given(given_=sparse())
def test_every_form_is_exact_and_as_long_as_said(form: str, given_: tuple[NDArray[Any], int]) -> None:
    bits, kept = given_
    message = wire.pack(form, bits, kept)
    assert len(message) == wire.body(form, len(bits), kept)
    back = wire.unpack(form, np.frombuffer(message, dtype=np.uint8), len(bits), kept, "float32")
    assert back.tolist() == bits.tolist()


@given(sparse())
def test_a_message_is_exact_to_the_last_bit_and_as_long_as_said(given_: tuple[NDArray[Any], int]) -> None:
    bits, kept = given_
    message = wire.encode(vector_of(bits), kept=kept)
    assert len(message) == wire.size(len(bits), kept)
    assert bits_of(wire.decode(message, size=len(bits), kept=kept)) == bits.tolist()


@every_form
def test_all_choices_of_numbers_are_exact_and_of_one_length(form: str) -> None:
    for kept in range(11):
        for places in itertools.combinations(range(10), kept):
            bits = np.zeros(10, dtype=np.uint32)
            bits[list(places)] = 1 + np.arange(kept)
            message = wire.pack(form, bits, kept)
            assert len(message) == wire.body(form, 10, kept)
            assert (wire.unpack(form, np.frombuffer(message, np.uint8), 10, kept, "float32") == bits).all()


@pytest.mark.parametrize("kept", [0, 1, 7, 40, 41, 60, 79, 80])
@every_form
def test_the_length_says_nothing_of_which_numbers_travel(form: str, kept: int) -> None:
    lengths = set()
    for mask in patterns(8 * 80, 8 * kept):
        bits = np.zeros(8 * 80, dtype=np.uint32)
        bits[mask] = 1
        lengths.add(len(wire.pack(form, bits, 8 * kept)))
    assert lengths == {wire.body(form, 8 * 80, 8 * kept)}


def test_fewer_numbers_than_may_travel_make_no_shorter_message() -> None:
    full = torch.zeros(500)
    full[::10] = 1.0
    lengths = {len(wire.encode(full * (torch.arange(500) < end), kept=50)) for end in (0, 1, 250, 500)}
    assert lengths == {wire.size(500, 50)}


# The entropy code.


@given(st.integers(1, 2**32 - 1), st.data())
@settings(max_examples=300)
def test_frequencies_fill_the_table_and_leave_none_out(numbers: int, data: st.DataObject) -> None:
    rare = data.draw(st.one_of(st.integers(0, min(numbers // 2, 50)), st.integers(0, numbers // 2)))
    by_ones = _by_ones(numbers, rare)
    assert min(by_ones) >= 1
    assert sum(math.comb(8, ones) * each for ones, each in enumerate(by_ones)) == 2**20


@pytest.mark.parametrize(("numbers", "kept"), [(8, 1), (800, 8), (8000, 125), (8000, 1000), (8000, 2000), (8000, 4000)])
def test_no_choice_takes_more_words_than_the_longest_and_the_dearest_takes_nearly_all(numbers: int, kept: int) -> None:
    frequencies, bound = _frequencies(numbers, kept), _words(numbers, kept)
    taken = [len(_write(bitmap(mask, numbers), frequencies, _lanes(numbers))[1]) for mask in patterns(numbers, kept)]
    assert max(taken) <= bound
    assert bound <= max(taken) + 2 * _lanes(numbers) + 1  # Each lane holds up to 32 bits back: its state.


@pytest.mark.parametrize("density", [1 / 4, 1 / 10, 1 / 16, 1 / 64])
@pytest.mark.parametrize("numbers", [100_000, 1_000_000])
def test_a_message_is_close_to_the_entropy_bound(numbers: int, density: float) -> None:
    kept = int(numbers * density)
    bound = 4 * kept + choices(numbers, kept) / 8
    assert wire.form(numbers, kept) == "entropy"
    # Header and states; and for 125,000 bytes 2^-10 bits each beyond 2^20 / f, 2^-12 where logarithms are rounded up,
    # and .0035 for at most 3/4 of them that are 0, whose frequency pays for the others': 60 bytes of 1,101,409.
    assert bound < wire.size(numbers, kept) < 1.0001 * bound + 12 + 8 * _lanes(numbers) + 4
    assert wire.size(10 * numbers, 10 * kept) < 1.004 * 10 * bound
    assert wire.body("delta", numbers, kept) < 1.014 * bound
    assert wire.CODES["delta"].size(numbers, kept) < 1.1 * choices(numbers, kept) / 8


@pytest.mark.parametrize("kept", [1, 100, 5000, 34_999, 35_000, 60_000, 69_999])
def test_many_lanes_are_exact(kept: int) -> None:
    code = Entropy()  # 70,001 numbers: three lanes, a last row of one lane, a last byte of one bit.
    assert _lanes(70_001) == 3
    for mask in patterns(70_001, kept):
        message = code.pack(mask, 70_001)
        assert len(message) == code.size(70_001, kept)
        assert (code.unpack(np.frombuffer(message, np.uint8), 70_001, kept) == mask).all()


# What is refused.


def test_more_numbers_than_may_travel_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^wire: found 3 numbers that are not zero \(-0.0 is not\), where 2 may travel$"
    ):
        wire.encode(torch.tensor([1.0, 0.0, -0.0, 2.0]), kept=2)
    with pytest.raises(ValueError, match=r"must be 0 <= kept <= numbers"):
        wire.encode(torch.zeros(3), kept=4)
    for strange in (torch.zeros(2, 2), torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int32)):
        with pytest.raises(ValueError, match="must be a vector of float32"):
            wire.encode(strange, kept=3)


MESSAGES = [(0, 0), (1, 1), (10, 10), (40, 39), (100, 50), (64, 0), (100, 1), (300, 20), (1000, 250), (2001, 1900)]


def message_of(numbers: int, kept: int, values: wire.Values, seed: int, missing: int = 0) -> bytes:
    rng = torch.Generator().manual_seed(seed)
    vector = torch.zeros(numbers)
    vector[torch.randperm(numbers, generator=rng)[: max(0, kept - missing)]] = 1.0 + torch.rand(1, generator=rng)
    return wire.encode(vector, kept=kept, values=values)


def test_the_messages_below_are_of_four_forms() -> None:
    assert {wire.form(*each) for each in MESSAGES} == {"dense", "bitmap", "delta", "entropy", "indices"}


def refused_or_the_very_same(data: bytes, numbers: int, kept: int, values: wire.Values) -> bool:
    try:
        vector = wire.decode(data, size=numbers, kept=kept, values=values)
    except ValueError:
        return True
    assert wire.encode(vector, kept=kept, values=values) == data
    return False


@given(
    shape=st.sampled_from(MESSAGES),
    values=st.sampled_from(["float32", "float16"]),
    seed=st.integers(0, 20),
    missing=st.integers(0, 2),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 20),
    tail=st.binary(max_size=9),
)
@settings(max_examples=600)
def test_a_damaged_message_is_refused_or_is_another_message(
    shape: tuple[int, int],
    values: wire.Values,
    seed: int,
    missing: int,
    flips: list[tuple[float, int]],
    cut: int,
    tail: bytes,
) -> None:
    data = bytearray(message_of(*shape, values, seed, missing))
    for where, what in flips:
        data[int(where * len(data))] ^= what
    length = len(data)
    damaged = bytes(data[: len(data) - cut] + tail) if cut < 10 else bytes(data)
    refused = refused_or_the_very_same(damaged, *shape, values)
    assert refused or len(damaged) == length


@pytest.mark.parametrize("shape", MESSAGES)
def test_every_flip_of_one_bit_is_refused_or_is_another_message(shape: tuple[int, int]) -> None:
    whole = message_of(*shape, "float32", 3)
    head = len(whole) - 4 * (shape[0] if wire.form(*shape) == "dense" else shape[1])
    for place in range(min(head, 200)):
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            refused = refused_or_the_very_same(bytes(data), *shape, "float32")
            assert refused or place >= wire.HEADER.size


@pytest.mark.parametrize(("form", "kept"), [("bitmap", 3), ("delta", 1), ("delta", 3), ("delta", 8)])
def test_as_many_bytes_are_taken_as_there_are_choices(form: str, kept: int) -> None:
    code = wire.CODES[form]
    length, taken = code.size(10, kept), set()
    assert length <= 2
    for number in range(256**length):
        data = number.to_bytes(length, "little")
        try:
            indices = code.unpack(np.frombuffer(data, np.uint8), 10, kept)
        except ValueError:
            continue
        assert code.pack(indices, 10) == data
        taken.add(tuple(indices.tolist()))
    assert len(taken) == math.comb(10, kept)


@pytest.mark.parametrize("indices", [[3, 2], [3, 3], [9, 10], [0, 2**32 - 1]])
def test_indices_that_do_not_rise_or_lie_outside_are_refused(indices: list[int]) -> None:
    data = np.array(indices, dtype="<u4").view(np.uint8)
    with pytest.raises(ValueError, match=r"^wire: (indices do not rise|found index \d+ of 10 numbers)$"):
        wire.CODES["indices"].unpack(data, 10, 2)


@pytest.mark.parametrize("form", ["dense", "bitmap", "indices", "delta"])
def test_a_form_that_is_not_the_shortest_is_refused(form: str) -> None:
    bits = np.zeros(1000, dtype=np.uint32)
    bits[:250] = 1
    header = wire.HEADER.pack(b"cw", 1, wire.FORMS.index(form), 1000, 250)
    with pytest.raises(ValueError, match="found form and type"):
        wire.decode(header + wire.pack(form, bits, 250), size=1000, kept=250)


@pytest.mark.parametrize(
    ("place", "due"), [(0, "magic"), (2, "version"), (3, "form and type"), (4, "numbers"), (8, "kept")]
)
def test_every_field_of_the_header_is_looked_at(place: int, due: str) -> None:
    data = bytearray(message_of(100, 50, "float32", 1))
    data[place] ^= 1
    with pytest.raises(ValueError, match=rf"^wire: found {due} .* where .* was expected$"):
        wire.decode(data, size=100, kept=50)
    with pytest.raises(ValueError, match="found form and type"):
        wire.decode(message_of(100, 50, "float16", 1), size=100, kept=50)
    with pytest.raises(ValueError, match="a header has 12"):
        wire.decode(bytes(data[:11]), size=100, kept=50)


@pytest.mark.parametrize("form", ["bitmap", "indices", "delta", "entropy"])
def test_zeros_that_travel_are_the_first_ones(form: str) -> None:
    bits = np.zeros(40, dtype=np.uint32)
    bits[[0, 5, 6]] = 7
    data = np.frombuffer(wire.pack(form, bits, 5), np.uint8).copy()
    assert wire.unpack(form, data, 40, 5, "float32").tolist() == bits.tolist()  # 1 and 2 travel as zeros.
    data[-4:] = 0  # Now 6 does too, which 3 goes before.
    with pytest.raises(ValueError, match="zero travels that is not among the first"):
        wire.unpack(form, data, 40, 5, "float32")


def test_dense_messages_hold_no_more_numbers_than_may_travel() -> None:
    assert wire.form(40, 39) == "dense"
    header = wire.encode(torch.zeros(40), kept=39)[:12]
    with pytest.raises(ValueError, match="found 40 numbers that are not zero, where 39 may travel"):
        wire.decode(header + np.ones(40, dtype=np.float32).tobytes(), size=40, kept=39)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda states, words: (states >> 33, words), "outside of its range"),
        (lambda states, words: (states | 1 << 63, words), "outside of its range"),
        (lambda states, words: (states, np.r_[words[:-1], 1]), "does not end where it started"),
        (lambda states, words: (states ^ 1, words), "end"),
        (lambda states, words: (states, 0 * words), "marked|end"),
    ],
)
def test_a_broken_entropy_code_is_refused(change: Any, problem: str) -> None:
    mask = np.arange(0, 4000, 4)
    data = Entropy().pack(mask, 4000)
    states, words = np.frombuffer(data[:8], "<u8"), np.frombuffer(data[8:], "<u4")
    states, words = change(states.astype(np.uint64), words.astype(np.uint32))
    broken = states.astype("<u8").tobytes() + words.astype("<u4").tobytes()
    assert len(broken) == len(data)
    with pytest.raises(ValueError, match=problem):
        Entropy().unpack(np.frombuffer(broken, np.uint8), 4000, 1000)


def test_words_that_no_lane_takes_are_zeros() -> None:
    frequencies, bound = _frequencies(8000, 1000), _words(8000, 1000)
    shorter = [each for each in patterns(8000, 1000) if len(_write(bitmap(each, 8000), frequencies, 1)[1]) < bound]
    assert shorter
    for mask in shorter:
        data = np.frombuffer(Entropy().pack(mask, 8000), np.uint8).copy()
        assert not data[-4:].any()
        data[-1] = 1
        with pytest.raises(ValueError, match="does not end where it started"):
            Entropy().unpack(data, 8000, 1000)


@pytest.mark.parametrize("shape", MESSAGES)
def test_a_message_of_another_length_is_refused(shape: tuple[int, int]) -> None:
    whole = message_of(*shape, "float32", 2)
    for data in [whole + bytes(more) for more in range(1, 10)] + [whole[:end] for end in range(12, len(whole))]:
        with pytest.raises(ValueError, match=rf"^wire: found {len(data)} bytes where {len(whole)} were expected$"):
            wire.decode(data, size=shape[0], kept=shape[1])


@pytest.mark.parametrize("field", [4, 8])
def test_nothing_is_made_of_a_size_that_a_message_says(field: int) -> None:
    data = bytearray(message_of(1000, 250, "float32", 1))
    data[field : field + 4] = b"\xff\xff\xff\xff"
    huge = wire.HEADER.pack(b"cw", 1, wire.FORMS.index(wire.form(10**8, 10**6)), 10**8, 10**6) + bytes(100)
    wire.size(10**8, 10**6)  # What its caller expects is no news.
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="was expected"):
            wire.decode(data, size=1000, kept=250)
        with pytest.raises(ValueError, match="found 112 bytes where"):
            wire.decode(huge, size=10**8, kept=10**6)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


# float16.


def test_rounding_is_to_nearest_ties_to_even_and_ends_at_the_largest() -> None:
    given_ = [2049.0, 2051.0, 1.0 + 2.0**-11, 1.0 + 3 * 2.0**-11, -0.0, 2.0**-24, 2.0**-25, 1.5 * 2.0**-25]
    expected = [2048.0, 2052.0, 1.0, 1.0 + 2.0**-9, -0.0, 2.0**-24, 0.0, 2.0**-24]
    assert bits_of(wire.rounded(torch.tensor(given_), "float16")) == bits_of(torch.tensor(expected))
    beyond = torch.tensor([65504.0, 65519.0, 65520.0, -1e30, math.inf, -math.inf, math.nan])
    found = wire.rounded(beyond, "float16").tolist()
    assert found[:6] == [65504.0, 65504.0, 65504.0, -65504.0, math.inf, -math.inf]
    assert math.isnan(found[6])
    assert wire.rounded(beyond, "float32") is beyond
    assert wire.rounded(torch.tensor([[2049.0]], dtype=torch.float64), "float16").tolist() == [[2048.0]]


@given(sparse(most=60))
def test_what_is_read_of_float16_is_what_was_rounded(given_: tuple[NDArray[Any], int]) -> None:
    bits, kept = given_
    vector = vector_of(bits)
    message = wire.encode(vector, kept=kept, values="float16")
    assert len(message) == wire.size(len(bits), kept, "float16")
    back, rounded = wire.decode(message, size=len(bits), kept=kept, values="float16"), wire.rounded(vector, "float16")
    numbers = ~rounded.isnan()
    assert (back.isnan() == rounded.isnan()).all()
    assert bits_of(back[numbers]) == bits_of(rounded[numbers])
    assert wire.encode(back, kept=kept, values="float16") == message


def test_a_nan_of_float16_that_no_encoder_writes_is_refused() -> None:
    message = wire.encode(torch.tensor([math.nan]), kept=1, values="float16")
    assert message[-2:] == b"\x00\x7e"
    for other in (b"\x01\x7e", b"\x01\x7c", b"\x00\xfe"):
        with pytest.raises(ValueError, match="NaN that no encoder writes"):
            wire.decode(message[:-2] + other, size=1, kept=1, values="float16")
