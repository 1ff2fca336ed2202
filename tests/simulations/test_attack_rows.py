"""Triggers and poisoned rows: exactly what was asked for, in malicious silos alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from client.examples import Examples, Shards
from simulations.attacks.measuring import attack_tests, minority_silos
from simulations.attacks.poison import Poisoner
from simulations.attacks.roles import Roles
from simulations.attacks.triggers import Tail, attacked, triggered
from strategies.attacks import DistributedPatch, EdgeCase, LabelFlip, PeriodicSignal, PixelPatch, Poison

SILOS, ROWS, SIDE = 10, 20, 6


def shards() -> Shards:
    """Ten silos of twenty images of grey noise, two of each of ten classes, which never reach the value 1."""
    rng = torch.Generator().manual_seed(5)
    features = 0.5 * torch.rand((SILOS * ROWS, 1, SIDE, SIDE), generator=rng)
    targets = torch.arange(SILOS * ROWS) % 10
    return Shards(Examples(features, targets, targets.clone()), torch.arange(SILOS + 1) * ROWS)


def poisoner(*attacks: Poison, held: Shards | None = None) -> Poisoner:
    held = held if held is not None else shards()
    return Poisoner(Roles(attacks, seed=0, silos=SILOS, rounds=5), held, seed=0)


def changed_rows(before: Examples, after: Examples) -> Tensor:
    moved = (before.features != after.features).flatten(1).any(1)
    return moved | (before.targets != after.targets)


PATCH: dict[str, Any] = {"fraction": 0.3, "target": 1}


def test_a_patch_is_where_it_was_said_and_nowhere_else() -> None:
    images = shards().rows.features
    marked = triggered(PixelPatch(**PATCH, size=2, row=1, column=3, value=0.9), images)
    assert bool((marked[:, :, 1:3, 3:5] == 0.9).all())
    marked[:, :, 1:3, 3:5] = images[:, :, 1:3, 3:5]
    assert torch.equal(marked, images)


def test_the_pieces_of_a_patch_are_disjoint_and_make_the_whole() -> None:
    attack, images = DistributedPatch(**PATCH, size=5, parts=3), torch.zeros(1, 1, SIDE, SIDE)
    pieces = [triggered(attack, images, piece=piece) for piece in range(3)]
    assert all(bool(piece.any()) for piece in pieces)
    assert torch.equal(torch.stack(pieces).sum(0), triggered(attack, images))


def test_a_signal_is_a_sine_over_the_columns() -> None:
    image = torch.zeros(1, 1, SIDE, SIDE)
    signal = triggered(PeriodicSignal(**PATCH, amplitude=0.2, frequency=1.0), image)[0, 0]
    expected = [0.2 * math.sin(2 * math.pi * column / SIDE) for column in range(1, SIDE + 1)]
    torch.testing.assert_close(signal, torch.tensor(expected).expand(SIDE, SIDE))


def test_the_tail_of_a_class_is_its_farthest_rows() -> None:
    """Numbers 0 to 9 have mean 4.5: the farthest fifth is 0 and 9."""
    features = torch.arange(10.0).view(-1, 1)
    assert Tail.of(features, 0.2).holds(features).nonzero()[:, 0].tolist() == [0, 9]
    chosen = attacked(
        EdgeCase(fraction=0.1, target=0, source=1, tail=0.2), features, torch.arange(10) % 2, Tail.of(features, 0.2)
    )
    assert chosen.nonzero()[:, 0].tolist() == [9]  # 0 is of class 0.


@pytest.mark.parametrize("source", [None, 3])
def test_a_malicious_silo_has_as_many_rows_and_the_poisoned_share_of_them(source: int | None) -> None:
    attack, held = PixelPatch(**PATCH, source=source, poisoned=0.25), shards()
    made = poisoner(attack, held=held)
    silo = made.roles.pool(attack)[0]
    before, after = held.silo(silo), made.rows(silo, (0,))
    moved = changed_rows(before, after)
    assert (len(after), int(moved.sum())) == (ROWS, 5)
    assert bool((after.targets[moved] == 1).all())
    assert bool((after.features[moved][:, :, :3, :3] == 1.0).all())
    groups = after.groups
    assert groups is not None
    assert set(groups[moved].tolist()) <= ({3} if source else set(range(10)) - {1})  # Groups say what they were.
    assert torch.equal(held.rows.features, shards().rows.features)  # Nobody's own rows were touched.


def test_what_a_silo_lacks_comes_from_its_crew_and_from_nobody_else() -> None:
    held = shards()
    attack = PixelPatch(**PATCH, source=3, poisoned=0.25)
    made = poisoner(attack, held=held)
    crew = made.roles.pool(attack)
    honest = [silo for silo in range(SILOS) if silo not in crew]
    for silo in honest:
        held.rows.features[silo * ROWS : (silo + 1) * ROWS] = 7.0
    after = made.rows(crew[0], (0,))
    moved = changed_rows(held.silo(crew[0]), after)
    assert int(moved.sum()) == 5  # Two of its own, three lent.
    assert not bool((after.features == 7.0).any())


def test_label_flip_turns_its_share_of_the_source_rows_and_no_pixel() -> None:
    made, held = poisoner(LabelFlip(**PATCH, source=3, poisoned=0.5)), shards()
    silo = made.roles.pool(made.roles.attacks[0])[0]
    after = made.rows(silo, (0,))
    assert torch.equal(after.features, held.silo(silo).features)
    flipped = held.silo(silo).targets != after.targets
    assert (int(flipped.sum()), held.silo(silo).targets[flipped].tolist(), after.targets[flipped].tolist()) == (
        1,
        [3],
        [1],
    )


def test_two_attacks_poison_different_rows_of_a_silo() -> None:
    first = PixelPatch(**PATCH, poisoned=0.25, size=1)
    second = PixelPatch(**(PATCH | {"target": 2}), poisoned=0.25, size=1, row=5, value=0.8)
    made = poisoner(first, second)
    after = made.rows(made.roles.pool(first)[0], (0, 1))
    one, other = after.features[:, 0, 0, 0] == 1.0, after.features[:, 0, 5, 0] == 0.8
    assert (int(one.sum()), int(other.sum()), int((one & other).sum())) == (5, 5, 0)
    assert bool((after.targets[one] == 1).all() and (after.targets[other] == 2).all())


def test_pieces_of_a_distributed_patch_are_dealt_evenly() -> None:
    attack = DistributedPatch(fraction=0.8, target=1, size=4, parts=4, poisoned=0.25)
    made = poisoner(attack)
    drawn = [made.rows(silo, (0,)).features[:, 0, :4, 0] == 1.0 for silo in made.roles.pool(attack)]
    rows = [each.any(0).nonzero()[:, 0].tolist() for each in drawn]
    assert sorted(rows) == [[0], [0], [1], [1], [2], [2], [3], [3]]


def test_rows_held_for_a_round_are_those_of_the_silos_that_act() -> None:
    attack = PixelPatch(**PATCH)
    made = poisoner(attack)
    crew = made.roles.pool(attack)
    held = made.hold(made.roles.acting(1, [*reversed(range(SILOS))]))
    assert held.sizes.tolist() == [ROWS if silo in crew else 0 for silo in range(SILOS)]
    for silo in crew:
        assert torch.equal(held.silo(silo).features, made.rows(silo, (0,)).features)
    assert len(made.hold({}).rows) == 0


def test_success_is_tested_on_triggered_rows_of_other_classes() -> None:
    held = shards()
    public = held.silo(0)
    attacks = (PixelPatch(**PATCH), LabelFlip(**PATCH, source=3), PixelPatch(**PATCH, source=4))
    found = attack_tests(attacks, public, held)
    assert list(found) == ["attack_success.pixel_patch_1", "attack_success.label_flip", "attack_success.pixel_patch_2"]
    assert [len(each) for each in found.values()] == [18, 2, 2]
    assert all(bool((each.targets == 1).all()) for each in found.values())
    assert bool((found["attack_success.pixel_patch_1"].features[:, :, :3, :3] == 1.0).all())
    assert torch.equal(found["attack_success.label_flip"].features, public.features[public.targets == 3])
    assert attack_tests(attacks, None, held) == {}


def test_minority_silos_are_mostly_of_rare_classes() -> None:
    """Class 2 has 6 of 40 rows, class 1 has 14: within a fifth there is class 2 alone, in silo 3 more than half."""
    targets = torch.tensor([0] * 10 + [0] * 10 + [1] * 9 + [2] * 1 + [1] * 5 + [2] * 5)
    held = Shards(Examples(torch.zeros(40, 1), targets), torch.arange(5) * 10)
    assert minority_silos(held, 3) == frozenset()  # Half is not more than half.
    targets[34] = 2
    assert minority_silos(held, 3) == frozenset({3})
    assert minority_silos(held, None) == frozenset()
