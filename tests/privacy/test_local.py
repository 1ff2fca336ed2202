"""Noise of a silo's own: clip, then noise, one stream for each silo, and the price of the silo that was asked most."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from privacy.accountant import epsilon
from privacy.chain import Entry, LedgerError, check, load
from privacy.events import Composed, Event, Gaussian, gaussian_composed
from privacy.ledger import Charge, Ledger
from privacy.local import CANARY, LOCAL, LocalNoise, NotProtected, counts
from privacy.mechanism import GaussianSum
from privacy.noise import SimulatedNoise, SystemNoise
from privacy.spending import Spending, worst

torch.set_num_threads(1)

FALSE_ALARM = 1e-6  # Probability that a statistical test here fails although the code is right, for a fresh seed.
SIZE, CLIP, NOISE = 4, 0.5, 3.0
LOCAL_NOISE = LocalNoise({"delta": GaussianSum(CLIP, NOISE)}, SimulatedNoise(1))


def sent(vectors: Tensor, silos: list[int], *, round_: int = 1, noise: LocalNoise = LOCAL_NOISE) -> Tensor:
    return noise.protect({"delta": vectors}, 1.0, silos, round_=round_)[0]["delta"]


def test_every_silo_has_noise_of_its_own_as_strong_as_its_event_says() -> None:
    """Sums of squares over the declared variance are chi-squared; silos and rounds are not correlated (Fisher)."""
    size, silos = 20_000, [0, 1, 2]
    draws = torch.cat([sent(torch.zeros(3, size), silos, round_=round_) for round_ in (1, 2)]).double().numpy()
    draws = np.vstack([draws, SimulatedNoise(1).normals(size, "noise", 1, "delta").numpy() * CLIP * NOISE])
    assert LOCAL_NOISE.event == Gaussian(NOISE)
    low, high = stats.chi2.ppf([FALSE_ALARM / 20, 1 - FALSE_ALARM / 20], size)
    for row in draws:
        assert low < float((row**2).sum()) / (CLIP * NOISE) ** 2 < high
    pairs = list(itertools.combinations(range(len(draws)), 2))  # Two silos, two rounds, or a silo and the server.
    bound = stats.norm.isf(FALSE_ALARM / (4 * len(pairs)))
    for one, other in pairs:
        correlation = np.corrcoef(draws[one], draws[other])[0, 1]
        assert abs(math.atanh(correlation)) * math.sqrt(size - 3) < bound


def test_system_noise_is_never_the_same_for_two_silos_nor_twice_for_one() -> None:
    noise = LocalNoise({"delta": GaussianSum(CLIP, NOISE)}, SystemNoise())
    draws = torch.cat([sent(torch.zeros(3, SIZE), [0, 1, 2], noise=noise) for _ in range(2)])
    assert len({tuple(row) for row in draws.tolist()}) == 6


def test_canaries_have_other_streams_than_silos_of_their_number() -> None:
    zeros = {"delta": torch.zeros(1, SIZE)}
    silo, canary = (
        LOCAL_NOISE.protect(zeros, 1.0, [5], round_=1, purpose=purpose)[0]["delta"]
        for purpose in ("local noise", CANARY)
    )
    assert not bool((silo == canary).any())


vectors = st.lists(st.floats(-10, 10, width=32), min_size=SIZE, max_size=SIZE)


@settings(deadline=None)
@given(vectors)
def test_an_update_is_clipped_before_its_noise(values: list[float]) -> None:
    """What is sent, less the noise that zeros get, is the clipped update: at most the clip norm, the direction kept."""
    vector = torch.tensor([values])
    moved = (sent(vector, [3]).double() - sent(torch.zeros(1, SIZE), [3]).double())[0]
    assert float(torch.linalg.vector_norm(moved)) <= CLIP * (1 + 1e-5)
    norm = float(torch.linalg.vector_norm(vector.double()))
    expected = vector[0].double() * min(1.0, CLIP / norm if norm else 1.0)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)  # Twice float32's rounding of about 5.


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_sent_as_noise_alone_and_named_only_at_home(bad: float) -> None:
    rows = torch.tensor([[0.1] * SIZE, [0.1, bad, 0.0, 0.0], [0.2] * SIZE])
    channels, broken = LOCAL_NOISE.protect({"delta": rows}, 1.0, [7, 8, 9], round_=1)
    assert broken == [8]
    assert torch.equal(channels["delta"][1], sent(torch.zeros(1, SIZE), [8])[0])
    assert torch.equal(channels["delta"][0], sent(rows[:1], [7])[0])  # The others do not notice.


def test_one_broken_channel_silences_all_channels_of_its_silo() -> None:
    two = LocalNoise({"delta": GaussianSum(CLIP, NOISE), "loss": GaussianSum(1.0, NOISE)}, SimulatedNoise(1))
    whole = {"delta": torch.ones(2, SIZE), "loss": torch.tensor([[0.5], [math.nan]])}
    zeros = {"delta": torch.zeros(2, SIZE), "loss": torch.zeros(2, 1)}
    (found, broken), (noise, _) = (two.protect(each, 1.0, [0, 1], round_=1) for each in (whole, zeros))
    assert broken == [1]
    assert all(torch.equal(found[name][1], noise[name][1]) for name in found)
    assert two.event == Composed((Gaussian(NOISE), Gaussian(NOISE)))


def test_a_stack_sends_what_its_silos_would_send_one_by_one() -> None:
    rows = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    single = torch.cat([sent(rows[at], [silo]) for at, silo in enumerate([4, 2, 9])])
    assert torch.equal(sent(rows, [4, 2, 9]), single)


@pytest.mark.parametrize(
    ("channels", "weight", "message"),
    [
        ({"delta": torch.zeros(2, SIZE)}, 0.5, "a weight leaves the silo, use 1"),
        ({"delta": torch.zeros(2, SIZE)}, torch.tensor([1.0, math.nan]), "a weight leaves the silo, use 1"),
        ({"delta": torch.zeros(2, SIZE), "more": torch.zeros(2, 1)}, 1.0, r"channels \['delta', 'more'\] where"),
        ({}, 1.0, r"channels \[\] where \['delta'\] are declared"),
        ({"delta": torch.zeros(3)}, 1.0, "no vector of numbers for each silo"),
        ({"delta": torch.zeros(2, SIZE, dtype=torch.int64)}, 1.0, "no vector of numbers for each silo"),
    ],
)
def test_what_has_no_guarantee_does_not_leave(channels: dict[str, Tensor], weight: object, message: str) -> None:
    with pytest.raises(NotProtected, match=message):
        LOCAL_NOISE.protect(channels, weight, [0, 1], round_=1)


def line(silos: tuple[int, ...] | None, event: Event = LOCAL_NOISE.event) -> Entry:
    return Entry(1, "reserve", 1, LOCAL, "replace", event, None, "run", silos=silos)


def test_a_silo_that_was_asked_k_times_has_released_k_unsampled_gaussians() -> None:
    """Replacing moves an update by two clip norms: one Gaussian of noise z / (2 sqrt k), z / sqrt k for zeros."""
    entries = [line((0, 1)), line((1, 2)), line((1,)), line(()), line((0,))]  # Silo 1 three times, 0 twice, 2 once.
    assert counts(entries, 4) == [2, 3, 1, 0]
    for neighbours, half in (("replace", 0.5), ("zero_out", 1.0)):
        found = worst(Spending(entries), 1e-5, neighbours=neighbours)  # type: ignore[arg-type]
        closed = epsilon(Gaussian(half * NOISE / math.sqrt(3)), 1e-5).upper
        assert found.upper == pytest.approx(closed, rel=1e-9)
        assert found.lower == pytest.approx(closed, rel=1e-9)


def test_a_line_that_names_no_silos_charges_all_of_them() -> None:
    assert counts([line(None), line((1,))], 3) == [1, 2, 1]
    twice = worst(Spending([line((1,)), line((1,))]), 1e-5, neighbours="replace")
    assert worst(Spending([line(None), line((1,))]), 1e-5, neighbours="replace") == twice
    assert worst(Spending([]), 1e-5, neighbours="replace").upper == 0.0
    assert worst(Spending([line(())]), 1e-5, neighbours="replace").upper == 0.0


EVENTS = (Gaussian(1.0), Gaussian(2.0))


@given(st.lists(st.tuples(st.none() | st.frozensets(st.integers(0, 3)), st.sampled_from(EVENTS)), max_size=6))
def test_histories_are_those_of_single_silos_and_none_is_forgotten(
    lines: list[tuple[frozenset[int] | None, Event]],
) -> None:
    entries = [line(None if silos is None else tuple(silos), event) for silos, event in lines]
    found = [spent for spent, _ in Spending(entries).histories()]
    each = [Counter(event for silos, event in lines if silos is None or silo in silos) for silo in range(4)]
    assert all(not spent or any(spent <= one for one in found) for spent in each)
    everyone = Counter(event for silos, event in lines if silos is None)
    assert all(one in [*each, everyone, Counter()] for one in found)


def test_several_channels_together_cost_the_noise_of_the_plan() -> None:
    parts = GaussianSum(CLIP, NOISE * math.sqrt(2))
    event = LocalNoise({"a": parts, "b": parts}, SimulatedNoise(0)).event
    assert isinstance(event, Composed)
    assert gaussian_composed(*(each.noise_multiplier for each in event.events)) == pytest.approx(NOISE, rel=1e-12)  # type: ignore[union-attr]


def test_a_ledger_keeps_whom_a_line_charges_and_a_torn_line_charges_all(tmp_path: Path) -> None:
    path, charge = tmp_path / "ledger.jsonl", Charge(LOCAL, "replace", Gaussian(NOISE))
    ledger = Ledger(path, run="r", dataset="d")
    for round_, silos in enumerate([(0, 2), (), (2,)], 1):
        entry = ledger.reserve(round_, charge.event, unit=LOCAL, neighbours="replace", silos=silos)
        ledger.commit(entry)
    ledger.close()
    path.write_bytes(path.read_bytes() + b'{"kind": "reserve", "nei')
    ledger = Ledger(path, run="r", dataset="d", told=[charge])
    ledger.close()
    assert [entry.silos for entry in load(path).chain.counted()] == [(0, 2), (), (2,), None]
    assert counts(load(path).chain.counted(), 4) == [2, 1, 3, 1]


@pytest.mark.parametrize("silos", ["all", [-1], [1.5], [True], {"0": 1}])
def test_a_line_that_names_no_numbers_of_silos_is_no_line(tmp_path: Path, silos: object) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, run="r", dataset="d")
    ledger.reserve(1, Gaussian(NOISE), unit=LOCAL, neighbours="replace", silos=(1,))
    ledger.close()
    record = json.loads(path.read_bytes()) | {"silos": silos}
    del record["check"]
    path.write_bytes(json.dumps(record | {"check": check(record)}, sort_keys=True).encode() + b"\n")
    with pytest.raises(LedgerError, match="expected a list of numbers from 0 on"):
        load(path)
