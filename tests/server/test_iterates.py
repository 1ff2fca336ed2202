"""The largest cosines of all rounds: of the step, seen and unseen alike, and not lost by a restart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from privacy.audit import cosines, direction
from server.iterates import WORK_LIMIT, MaximalCosines, too_much_work

torch.set_num_threads(1)

SIZE, CANARIES, SEED = 40, 6, 3


def steps() -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(1)
    models = torch.randn(6, SIZE, generator=rng).cumsum(0)
    return list(pairwise(models))


def watched(count: int) -> MaximalCosines:
    watcher = MaximalCosines(canaries=CANARIES, size=SIZE, seed=SEED)
    for before, after in steps()[:count]:
        watcher.see(before, after)
    return watcher


def test_each_canary_keeps_its_largest_cosine_with_a_step() -> None:
    found = watched(5).scores()
    every = np.array([cosines(b - a, seed=SEED, first=0, count=2 * CANARIES) for a, b in steps()]).max(0)
    np.testing.assert_allclose(found.seen, every[:CANARIES], atol=1e-6)
    np.testing.assert_allclose(found.unseen, every[CANARIES:], atol=1e-6)
    assert found.dimension == SIZE


def test_a_canary_in_one_round_is_found_in_that_round() -> None:
    watcher = watched(5)
    model = torch.zeros(SIZE)
    watcher.see(model, model + direction(SEED, 2, SIZE).float())
    assert watcher.scores().seen[2] == pytest.approx(1, abs=1e-6)
    assert watcher.scores().unseen.max() < 0.9


def test_what_was_kept_is_gone_on_with() -> None:
    first, whole = watched(2), watched(5)
    resumed = MaximalCosines(canaries=CANARIES, size=SIZE, seed=SEED)
    resumed.restore(first.kept())
    first.see(*steps()[4])  # What goes on in one watcher does not reach the other.
    for before, after in steps()[2:]:
        resumed.see(before, after)
    assert np.array_equal(resumed.scores().seen, whole.scores().seen)
    assert np.array_equal(resumed.scores().unseen, whole.scores().unseen)
    resumed.restore({})
    assert (resumed.scores().seen == -1).all()


def test_a_model_that_stays_shows_nothing() -> None:
    watcher = watched(3)
    before = watcher.scores().seen.copy()
    watcher.see(torch.ones(SIZE), torch.ones(SIZE))
    assert np.array_equal(watcher.scores().seen, before)


def test_the_limit_is_of_numbers_a_round() -> None:
    assert not too_much_work(WORK_LIMIT // 2_000, 1_000)
    assert too_much_work(WORK_LIMIT // 2_000 + 1, 1_000)
