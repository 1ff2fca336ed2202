"""Examples and shards: rows, targets and groups stay together, and a silo's rows are its own."""

from __future__ import annotations

import pytest
import torch

from client.examples import Examples, Shards


def rows(count: int, *, groups: bool = True) -> Examples:
    numbers = torch.arange(count)
    return Examples(numbers.float()[:, None] * torch.ones(3), numbers, numbers % 2 if groups else None)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="features has 3 rows, targets 2"):
        Examples(torch.zeros(3, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="groups has 1 rows, targets 3"):
        Examples(torch.zeros(3, 1), torch.zeros(3), torch.zeros(1))


@pytest.mark.parametrize("groups", [True, False])
def test_selecting_keeps_a_row_together(groups: bool) -> None:
    chosen = rows(6, groups=groups).select(torch.tensor([4, 1, 4]))
    assert chosen.targets.tolist() == [4, 1, 4]
    assert chosen.features[:, 0].tolist() == [4.0, 1.0, 4.0]
    assert (chosen.groups.tolist() if chosen.groups is not None else None) == ([0, 1, 0] if groups else None)
    assert len(rows(6).select(slice(2, 2))) == 0


def test_shards_give_back_each_silos_rows_in_order() -> None:
    parts = [torch.tensor([5, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([2, 3, 1])]
    shards = Shards.gather(rows(6), parts)
    assert len(shards) == 3
    assert shards.sizes.tolist() == [2, 0, 3]
    assert [shards.silo(silo).targets.tolist() for silo in range(3)] == [[5, 0], [], [2, 3, 1]]
    assert shards.silo(0).features.data_ptr() == shards.rows.features.data_ptr()  # A view, not a copy.


def test_no_silos_are_no_rows() -> None:
    assert len(Shards.gather(rows(4), [])) == 0
    assert len(Shards.gather(rows(4), []).rows) == 0


@pytest.mark.parametrize("offsets", [[], [0], [0, 3], [1, 4], [0, 3, 2, 4], [0, 5], [[0, 4]], [-1, 4]])
def test_offsets_that_do_not_split_the_rows_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets must rise from 0 to 4"):
        Shards(rows(4), torch.tensor(offsets))
