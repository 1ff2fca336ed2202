from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from strategies.partitions import (
    PARTITIONS,
    Column,
    Dirichlet,
    Iid,
    LabelShards,
    Partition,
    Quantity,
    Rotation,
    generator,
    occupy,
    proportions,
)

torch.set_num_threads(1)

DRAWN: list[Partition] = [
    Iid(),
    Dirichlet(0.01),
    Dirichlet(1.0),
    LabelShards(1),
    LabelShards(3),
    Quantity(0.05),
    Rotation(),
]


def classes(rows: int, labels: int) -> torch.Tensor:
    return torch.arange(rows) % labels


def test_registry_holds_the_names_that_experiments_use() -> None:
    assert sorted(PARTITIONS) == ["column", "dirichlet", "iid", "quantity", "rotation", "shards"]
    assert all(kind.name == name for name, kind in PARTITIONS.items())


@settings(max_examples=60, deadline=None)
@given(
    how=st.sampled_from(DRAWN),
    silos=st.integers(1, 12),
    extra=st.integers(0, 80),
    labels=st.integers(1, 5),
    key=st.integers(0, 2**63 - 1),
)
def test_every_row_goes_to_exactly_one_silo_and_no_silo_is_empty(
    how: Partition, silos: int, extra: int, labels: int, key: int
) -> None:
    rows = 3 * silos + extra
    parts = how.split(classes(rows, labels), silos=silos, key=key)
    assert len(parts) == silos
    assert all(len(part) >= 1 for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(rows))
    again = how.split(classes(rows, labels), silos=silos, key=key)
    assert all(torch.equal(one, two) for one, two in zip(parts, again))


@pytest.mark.parametrize("how", DRAWN, ids=lambda how: how.name)
def test_the_key_decides_and_the_global_generator_does_not(how: Partition) -> None:
    targets = classes(300, 5)
    state = torch.random.get_rng_state()
    first, other = (how.split(targets, silos=4, key=key) for key in (1, 2))
    assert any(not torch.equal(one, two) for one, two in zip(first, other))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("how", [*DRAWN, Column()], ids=lambda how: how.name)
def test_fewer_rows_than_silos_is_one_line(how: Partition) -> None:
    with pytest.raises(ValueError, match=rf"^partition {how.name}: 3 rows cannot fill 4 silos; use fewer silos$"):
        how.split(classes(3, 2), silos=4, key=0, natural=torch.arange(3))


@pytest.mark.parametrize("how", [Iid(), Rotation()], ids=lambda how: how.name)
def test_even_partitions_differ_by_one_row_at_most(how: Partition) -> None:
    sizes = [len(part) for part in how.split(classes(103, 4), silos=10, key=5)]
    assert sorted(sizes) == [10] * 7 + [11] * 3


@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
def test_proportions_have_the_beta_marginals_of_a_dirichlet(alpha: float) -> None:
    """Each share of a symmetric Dirichlet over K is Beta(alpha, (K - 1) alpha); false alarm at most 1e-6."""
    rng = generator(7)
    first = [float(proportions(alpha, 4, rng)[0]) for _ in range(2000)]
    assert stats.kstest(first, stats.beta(alpha, 3 * alpha).cdf).pvalue > 1e-6


def test_proportions_survive_an_alpha_whose_gamma_variates_all_underflow() -> None:
    rng = generator(0)
    for _ in range(50):
        drawn = proportions(1e-4, 10, rng)
        assert math.isclose(float(drawn.sum()), 1.0)
        assert float(drawn.max()) > 0.5  # Nearly all of the mass on one silo.


def test_large_alpha_gives_every_silo_the_same_classes() -> None:
    targets = classes(4000, 4)
    for part in Dirichlet(1e6).split(targets, silos=5, key=3):
        assert all(abs(int(count) - 200) <= 3 for count in targets[part].bincount())


def test_small_alpha_gives_each_class_to_few_silos() -> None:
    targets = classes(4000, 4)
    held = torch.stack([targets[part].bincount(minlength=4) for part in Dirichlet(1e-3).split(targets, silos=5, key=3)])
    assert (held.max(dim=0).values > 900).all()


def test_shards_bound_the_classes_of_a_silo() -> None:
    """Classes as large as shards: two shards hold at most four classes, for each touches at most two."""
    targets = classes(1000, 10)
    parts = LabelShards(2).split(targets, silos=5, key=1)
    assert [len(part) for part in parts] == [200] * 5
    assert all(len(set(targets[part].tolist())) == 2 for part in parts)  # Here shard and class borders fall together.


def test_shards_sort_numbers_too() -> None:
    targets = torch.linspace(0, 1, 100)
    for part in LabelShards(1).split(targets, silos=4, key=1):
        assert float(targets[part].max() - targets[part].min()) < 0.25


def test_quantity_follows_its_proportions() -> None:
    targets = classes(1010, 2)
    sizes = [len(part) for part in Quantity(0.3).split(targets, silos=10, key=9)]
    expected = 1 + proportions(0.3, 10, generator(9)) * 1000
    assert all(abs(size - float(ideal)) < 1 + 1e-9 for size, ideal in zip(sizes, expected))


def test_column_follows_the_data() -> None:
    parts = Column().split(torch.zeros(5), silos=3, key=0, natural=torch.tensor([2, 0, 1, 0, 2]))
    assert [part.tolist() for part in parts] == [[1, 3], [2], [0, 4]]


@pytest.mark.parametrize(
    ("natural", "message"),
    [
        (None, "partition column: the data names no silos; give data.silo or another partition"),
        (torch.tensor([0, 0, 2]), "partition column: the data's silos are not numbered 0 to 2 without a gap"),
        (torch.tensor([0, 1, 3]), "partition column: the data's silos are not numbered 0 to 2 without a gap"),
        (torch.tensor([0, 1]), "partition column: 2 silo names for 3 rows"),
    ],
)
def test_column_refuses(natural: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError) as error:
        Column().split(torch.zeros(3), silos=3, key=0, natural=natural)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("how", "targets", "message"),
    [
        (
            Dirichlet(1.0),
            torch.zeros(8),
            "partition dirichlet: needs classes as targets; use iid or quantity for other data",
        ),
        (Dirichlet(1.0), torch.zeros(8, 3, dtype=torch.int64), "partition dirichlet: needs classes as targets"),
        (LabelShards(1), torch.zeros(8, 3), "partition shards: needs one target per row"),
        (LabelShards(5), torch.zeros(8), "partition shards: 8 rows cannot fill 10 shards; lower shards_per_silo"),
    ],
)
def test_partitions_by_target_refuse_other_data(how: Partition, targets: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError) as error:
        how.split(targets, silos=2, key=0)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("kind", [Dirichlet, Quantity])
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_a_positive_number(kind: type[Dirichlet] | type[Quantity], alpha: float) -> None:
    with pytest.raises(ValueError, match=r"^alpha must be "):
        kind(alpha)


def test_no_silos_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^partition iid: silos must be at least 1, got 0$"):
        Iid().split(classes(3, 2), silos=0, key=0)


def test_occupy_takes_from_the_largest() -> None:
    parts = [torch.arange(0), torch.arange(5), torch.arange(5, 7), torch.arange(0)]
    assert [part.tolist() for part in occupy(parts)] == [[4], [0, 1, 2], [5, 6], [3]]


def test_rotation_turns_by_the_silo_and_four_quarters_are_none() -> None:
    image = torch.arange(4.0).view(1, 1, 2, 2)
    how = Rotation((0, 90))
    assert torch.equal(how.transform(image, silo=2), image)
    assert how.transform(image, silo=3).flatten().tolist() == [1, 3, 0, 2]  # Counter-clockwise.
    turned = image
    for _ in range(4):
        turned = how.transform(turned, silo=1)
    assert torch.equal(turned, image)


def test_rotation_refuses_what_it_cannot_turn_exactly() -> None:
    with pytest.raises(ValueError, match=r"^angles must be multiples of 90, at least one, got \(45,\)$"):
        Rotation((45,))
    with pytest.raises(ValueError, match=r"^angles must be multiples of 90"):
        Rotation(())
    for shape in ((3, 64), (3, 1, 8, 6)):
        with pytest.raises(ValueError, match=r"^partition rotation: needs square images"):
            Rotation().transform(torch.zeros(shape), silo=0)
