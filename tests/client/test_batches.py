"""Batches: every row once an epoch, padding never counted, and a silo's plan is its own affair."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.batches import Plan, plan
from privacy import streams
from strategies.experiment import Train

sizes_ = st.lists(st.integers(0, 13), min_size=1, max_size=5)
batches = st.one_of(st.none(), st.integers(1, 20))
lengths = st.one_of(
    st.builds(lambda n: {"epochs": n}, st.integers(1, 3)), st.builds(lambda n: {"steps": n}, st.integers(1, 9))
)


def planned(sizes: list[int], train: Train, seed: int = 1) -> tuple[Plan, np.ndarray]:
    held = np.array(sizes, dtype=np.int64)
    starts = np.concatenate([[0], held.cumsum()[:-1]])
    return plan(starts, held, train, streams.keys(seed, np.arange(len(sizes)))), starts


def steps_of(found: Plan, silo: int) -> list[list[int]]:
    """The real rows of every step of a silo, in order."""
    counts = [int(count) for count in found.counts[silo] if count > 0]
    return [found.rows[silo, step, :count].tolist() for step, count in enumerate(counts)]


@settings(deadline=None)
@given(sizes_, batches, st.integers(1, 3))
def test_every_row_is_seen_exactly_once_an_epoch(sizes: list[int], batch: int | None, epochs: int) -> None:
    found, starts = planned(sizes, Train(epochs=epochs, batch_size=batch))
    for silo, size in enumerate(sizes):
        steps = steps_of(found, silo)
        per_epoch = -(-size // min(batch or size or 1, size or 1))
        assert len(steps) == epochs * per_epoch
        for epoch in range(epochs):
            seen = [row for step in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for row in step]
            assert Counter(seen) == Counter(range(int(starts[silo]), int(starts[silo]) + size))
        assert all(len(step) <= (batch or size) for step in steps)


@settings(deadline=None)
@given(sizes_, batches, st.integers(1, 9))
def test_steps_are_taken_exactly_and_walk_through_epochs(sizes: list[int], batch: int | None, count: int) -> None:
    found, _ = planned(sizes, Train(steps=count, batch_size=batch))
    for silo, size in enumerate(sizes):
        steps = steps_of(found, silo)
        assert len(steps) == (count if size else 0)
        if size:
            often = Counter(row for step in steps for row in step)
            times = [often[row] for row in set(often)] + ([0] if len(often) < size else [])
            assert max(times) - min(times) <= 1  # No row a second time before every row was seen.


@settings(deadline=None)
@given(sizes_, batches, lengths)
def test_padding_is_not_counted_and_points_at_rows_that_exist(
    sizes: list[int], batch: int | None, length: dict[str, int]
) -> None:
    found, starts = planned(sizes, Train(**length, batch_size=batch))
    assert found.counts.shape == found.rows.shape[:2]
    assert found.steps == found.rows.shape[1]
    real = torch.arange(found.rows.shape[2]) < found.counts.unsqueeze(-1)
    assert found.full == bool(real.all())
    for silo, size in enumerate(sizes):
        padding = found.rows[silo][~real[silo]]
        assert bool((padding == (int(starts[silo]) if size else 0)).all())
        # Steps come first, then nothing: a trainer may stop at the first empty one.
        active = (found.counts[silo] > 0).tolist()
        assert active == sorted(active, reverse=True)
    if found.rows.numel():
        assert 0 <= int(found.rows.min()) <= int(found.rows.max()) < sum(sizes)


@settings(deadline=None)
@given(sizes_, batches, lengths)
def test_a_plan_is_the_same_alone_and_in_a_stack(sizes: list[int], batch: int | None, length: dict[str, int]) -> None:
    train = Train(**length, batch_size=batch)
    together, starts = planned(sizes, train)
    keys = streams.keys(1, np.arange(len(sizes)))
    for silo, size in enumerate(sizes):
        alone = plan(starts[silo : silo + 1], np.array([size]), train, keys[silo : silo + 1])
        assert steps_of(alone, 0) == steps_of(together, silo)


def test_epochs_silos_and_keys_shuffle_differently_and_repeat() -> None:
    train = Train(epochs=2, batch_size=4)
    found, _ = planned([24, 24], train)
    first, second = ([row - 24 * silo for step in steps_of(found, silo) for row in step] for silo in (0, 1))
    orders = {tuple(first[:24]), tuple(first[24:]), tuple(second[:24]), tuple(second[24:]), tuple(range(24))}
    assert len(orders) == 5  # Five of 24! orders: equal ones by chance once in 10^22 seeds.
    assert torch.equal(planned([24, 24], train)[0].rows, found.rows)
    assert not torch.equal(planned([24, 24], train, seed=2)[0].rows, found.rows)


@pytest.mark.parametrize("batch", [5, 6, 1000, None])
def test_a_batch_larger_than_the_silo_is_all_of_it(batch: int | None) -> None:
    found, _ = planned([5], Train(steps=2, batch_size=batch))
    assert found.rows.shape == (1, 2, 5)
    assert found.full
    assert steps_of(found, 0) == [[0, 1, 2, 3, 4]] * 2


def test_the_last_batch_of_an_epoch_is_as_short_as_it_falls() -> None:
    found, _ = planned([10, 4], Train(epochs=1, batch_size=4))
    assert found.counts.tolist() == [[4, 4, 2], [4, 0, 0]]
    assert not found.full


def test_empty_silos_take_no_step() -> None:
    for sizes in ([0], [0, 0]):
        found, _ = planned(sizes, Train(steps=3, batch_size=2))
        assert found.steps == 0
    found, _ = planned([0, 3, 0], Train(steps=3, batch_size=2))
    assert found.counts.sum(1).tolist() == [0, 5, 0]
    nobody, _ = planned([], Train(steps=3))
    assert nobody.rows.shape[0] == 0
