"""Answers about a silo's rows: exact or bounded and noised, and never with numbers that mix rows."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from client.examples import Examples
from client.queries import Queries
from client.single import SingleTrainer
from privacy.queries import NoisyQuery
from strategies.experiment import Train
from strategies.layout import Layout
from strategies.tasks import Shape, initial
from strategies.tasks.dense import MLP

torch.set_num_threads(1)

SHAPE, TASK = Shape((4,), 3), MLP((5,), "tanh")
QUERY = NoisyQuery(2, 0.2, 1e-9)


def held(groups: bool = False) -> Examples:
    rng = torch.Generator().manual_seed(1)
    features, targets = torch.randn(11, 4, generator=rng), torch.randint(3, (11,), generator=rng)
    return Examples(features, targets, torch.randint(2, (11,), generator=rng) if groups else None)


def models() -> Tensor:
    start = initial(TASK, SHAPE, seed=1)[1]
    return start + 0.3 * torch.randn(2, start.numel(), generator=torch.Generator().manual_seed(2))


def queries(*, private: bool, query: NoisyQuery = QUERY, seed: int = 3) -> Queries:
    single = SingleTrainer(initial(TASK, SHAPE, seed=1)[0], TASK, Train())
    declared: Mapping[str, NoisyQuery] = {"choice": query}
    return Queries(declared, single, private=private, seed=seed, secret=False)


def losses() -> Tensor:
    """Of every row under both models, by the module itself."""
    rows, found = held(), []
    for model in models():
        module = initial(TASK, SHAPE, seed=1)[0]
        Layout.of(module).load(module, model)
        with torch.no_grad():
            found.append(TASK.losses(module(rows.features), rows.targets))
    return torch.stack(found, dim=1)


def test_without_privacy_the_answer_is_the_sum_over_all_rows() -> None:
    found = queries(private=False).answer("choice", 0, 1, held(), models(), lambda losses, _: losses)
    torch.testing.assert_close(found, losses().sum(0))


def test_with_privacy_every_row_is_clipped() -> None:
    found = queries(private=True).answer("choice", 0, 1, held(), models(), lambda losses, _: losses)
    each = losses()
    assert bool((each.norm(dim=1) > 0.2).all())
    torch.testing.assert_close(found, (0.2 * each / each.norm(dim=1, keepdim=True)).sum(0), rtol=1e-5, atol=1e-6)


def test_with_privacy_every_answer_has_noise_of_its_own() -> None:
    asked = queries(private=True, query=NoisyQuery(2, 0.2, 50.0))

    def answer(silo: int, round_: int) -> Tensor:
        return asked.answer("choice", silo, round_, held(), models(), lambda losses, _: losses)

    exact = queries(private=True).answer("choice", 0, 1, held(), models(), lambda losses, _: losses)
    different = [answer(0, 1), answer(1, 1), answer(0, 2)]
    assert torch.equal(different[0], answer(0, 1))
    for number, one in enumerate(different):
        assert float((one - exact).abs().min()) > 1e-3
        assert all(not torch.equal(one, other) for other in different[number + 1 :])


def test_groups_of_rows_are_known() -> None:
    def of_group(losses: Tensor, groups: Tensor | None) -> Tensor:
        assert groups is not None
        return torch.stack([losses[:, 0] * (groups == group) for group in range(2)], dim=1)

    rows = held(groups=True)
    assert rows.groups is not None
    found = queries(private=False).answer("choice", 0, 1, rows, models(), of_group)
    truth = [float(losses()[rows.groups == group, 0].sum()) for group in range(2)]
    assert found.tolist() == pytest.approx(truth, rel=1e-5)
    queries(private=True).answer("choice", 0, 1, rows, models(), of_group)


@pytest.mark.parametrize("mixed", ["mean", "rank"])
def test_rows_that_depend_on_others_are_refused_under_privacy(mixed: str) -> None:
    def rows(losses: Tensor, _: Tensor | None) -> Tensor:
        return losses - losses.mean(0) if mixed == "mean" else losses.argsort(0).float()

    with pytest.raises(ValueError, match="depend on other rows"):
        queries(private=True).answer("choice", 0, 1, held(), models(), rows)


def test_rows_of_another_shape_than_declared_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows have shape \(11,\), declared \(11, 2\)"):
        queries(private=False).answer("choice", 0, 1, held(), models(), lambda losses, _: losses[:, 0])


def test_a_silo_without_rows_answers_with_noise_alone() -> None:
    empty = Examples(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    found = queries(private=True).answer("choice", 0, 1, empty, models(), lambda losses, _: losses)
    assert found.abs().max() < 1e-8
    assert found.any()
