"""The host: chunks of silos trained stacked or one by one, bad silos set apart, private numbers only when asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.examples import Examples, Shards
from client.host import SiloHost
from client.personal import PersonalStore
from client.session import Session
from privacy.contributions import Failure
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from strategies.base import Evaluation, Instruction, Silo, Strategy, Update
from strategies.experiment import Train
from strategies.fedavg import FedAvg
from strategies.tasks import Shape, evaluate, initial
from strategies.tasks.dense import Logistic

torch.set_num_threads(1)

SHAPE, SIZES = Shape((4,), 3), [6, 0, 9, 2, 5]
SIZE = 15
EXACT: dict[str, Mechanism] = {"delta": ExactSum()}
both = pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "one by one"])


@dataclass(frozen=True)
class Remembering(Strategy):
    """FedAvg whose silos also keep what they trained."""

    def personal(self, size: int) -> Mapping[str, int]:
        return {"model": size}

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        after = silo.fit(instruction["model"])
        silo.state["model"] = after
        return Update({"delta": after - instruction["model"]})


def federation(seed: int = 1, sizes: list[int] = SIZES) -> Shards:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(sum(sizes), 4, generator=rng)
    return Shards(
        Examples(features, torch.randint(3, (sum(sizes),), generator=rng)), torch.tensor([0, *sizes]).cumsum(0)
    )


def hosted(
    *,
    stacked: bool,
    strategy: Strategy | None = None,
    shards: Shards | None = None,
    held_out: Shards | None = None,
    validation: Shards | None = None,
    personal: PersonalStore | None = None,
) -> SiloHost:
    return SiloHost(
        strategy=strategy or FedAvg(),
        task=Logistic(),
        module=initial(Logistic(), SHAPE, seed=1)[0],
        shape=SHAPE,
        train=Train(epochs=2, batch_size=4),
        shards=shards if shards is not None else federation(),
        held_out=held_out,
        validation=validation,
        seed=7,
        stacked=stacked,
        personal=personal,
    )


def ask(round_: int = 1) -> Instruction:
    return Instruction(round_, {"model": torch.linspace(-1, 1, SIZE)})


def everyone() -> list[int]:
    return list(range(len(SIZES)))


def test_stacked_and_one_by_one_contribute_the_same() -> None:
    together, alone = (
        hosted(stacked=stacked).contribute(ask(), everyone(), EXACT, chunk=3, record=True) for stacked in (True, False)
    )
    assert float((together.sums["delta"] - alone.sums["delta"]).norm() / alone.sums["delta"].norm()) < 1e-5
    assert (together.chunk, together.weight, together.arrived, together.payload) == (3, 5.0, 5, 5 * SIZE)
    assert (alone.chunk, alone.weight, alone.arrived, alone.payload) == (3, 5.0, 5, 5 * SIZE)
    assert together.losses == pytest.approx(alone.losses, rel=1e-5, nan_ok=True)


@both
def test_a_silos_contribution_does_not_depend_on_who_else_is_asked(stacked: bool) -> None:
    host = hosted(stacked=stacked)
    total = host.contribute(ask(), everyone(), EXACT, chunk=0).sums["delta"]
    each = [host.contribute(ask(), [silo], EXACT, chunk=0).sums["delta"] for silo in everyone()]
    torch.testing.assert_close(torch.stack(each).sum(0), total, rtol=1e-5, atol=1e-6)
    assert not each[1].any()  # No rows, no change.


@both
def test_the_clip_holds_for_every_silo(stacked: bool) -> None:
    host, mechanisms = hosted(stacked=stacked), {"delta": GaussianSum(1e-3, 1.0)}
    for silo in everyone():
        norm = float(host.contribute(ask(), [silo], mechanisms, chunk=0).sums["delta"].norm())
        assert norm == pytest.approx(1e-3 if SIZES[silo] else 0.0, rel=1e-9)
    assert host.contribute(ask(), everyone(), mechanisms, chunk=0).clipped == 4


@both
def test_a_silo_with_nonsense_is_set_apart_with_a_reason_and_the_others_stay(stacked: bool) -> None:
    clean, broken = federation(), federation()
    broken.rows.features[6:15] = math.nan  # Silo 2.
    found = hosted(stacked=stacked, shards=broken).contribute(ask(), everyone(), EXACT, chunk=0)
    assert found.failures == (Failure(2, "update is not finite"),)
    assert (found.arrived, found.weight) == (4, 4.0)
    others = hosted(stacked=stacked, shards=clean).contribute(ask(), [0, 1, 3, 4], EXACT, chunk=0)
    torch.testing.assert_close(found.sums["delta"], others.sums["delta"], rtol=1e-5, atol=1e-6)


@both
def test_a_silo_that_is_set_apart_keeps_its_personal_vector(stacked: bool, tmp_path: Path) -> None:
    broken = federation()
    broken.rows.features[6:15] = math.nan
    personal = PersonalStore(tmp_path, silos=len(SIZES), sizes={"model": SIZE})
    host = hosted(stacked=stacked, strategy=Remembering(), shards=broken, personal=personal)
    host.contribute(ask(), everyone(), EXACT, chunk=0)
    personal.commit(1)
    assert personal.present["model"].tolist() == [1, 1, 0, 1, 1]
    assert bool(torch.isfinite(torch.from_numpy(personal.current["model"].copy())).all())


@both
def test_personal_vectors_are_what_was_trained(stacked: bool, tmp_path: Path) -> None:
    personal = PersonalStore(tmp_path, silos=len(SIZES), sizes={"model": SIZE})
    host = hosted(stacked=stacked, strategy=Remembering(), personal=personal)
    sums = host.contribute(ask(), [0, 2], EXACT, chunk=0).sums["delta"]
    personal.commit(1)
    kept = personal.rows([0, 2], stacked=True)["model"]
    torch.testing.assert_close((kept - ask()["model"]).double().sum(0), sums, rtol=1e-5, atol=1e-6)


@both
def test_losses_are_private_and_come_back_only_when_asked(stacked: bool) -> None:
    host = hosted(stacked=stacked)
    assert host.contribute(ask(), everyone(), EXACT, chunk=0).losses == ()
    losses = host.contribute(ask(), everyone(), EXACT, chunk=0, record=True).losses
    assert [math.isnan(loss) for loss in losses] == [size == 0 for size in SIZES]
    assert host.contribute(ask(), everyone(), EXACT, chunk=0).losses == ()  # Nor do earlier ones stay behind.


@both
def test_a_round_repeats_and_another_round_draws_other_batches(stacked: bool) -> None:
    first, again, later = (
        hosted(stacked=stacked).contribute(ask(round_), [0, 2], EXACT, chunk=0).sums["delta"] for round_ in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


@both
def test_every_fit_of_a_round_has_batches_of_its_own(stacked: bool) -> None:
    session, start = Session(hosted(stacked=stacked), [2], 1, record=False), ask()["model"]
    first, second = session.fit(start), session.fit(start)
    assert not torch.equal(first, second)
    assert torch.equal(Session(hosted(stacked=stacked), [2], 1, record=False).fit(start), first)


@both
def test_examples_are_counted_as_the_shape_of_the_session_says(stacked: bool) -> None:
    host = hosted(stacked=stacked)
    counted = Session(host, [2], 1, record=False).examples
    assert counted.tolist() == ([9.0] if stacked else 9.0)
    weighted = hosted(stacked=stacked, strategy=FedAvg(weighting="examples"))
    assert weighted.contribute(ask(), everyone(), EXACT, chunk=0).weight == sum(SIZES)


@both
def test_a_chunk_of_nobody_contributes_nothing(stacked: bool) -> None:
    found = hosted(stacked=stacked).contribute(ask(), [], EXACT, chunk=0, record=True)
    assert (found.arrived, found.weight, found.payload, found.failures, found.losses) == (0, 0.0, 0, (), ())
    assert found.sums["delta"].tolist() == [0.0] * SIZE


@both
def test_silos_are_evaluated_on_their_own_held_out_rows(stacked: bool) -> None:
    held_out = federation(seed=2, sizes=[3, 4, 0, 1, 2])
    host = hosted(stacked=stacked, held_out=held_out)
    result = host.evaluate(ask(), [4, 2, 1])
    assert (result.silos, result.rows) == ((4, 1), (2, 4))  # Silo 2 keeps none.
    for silo, loss, score in zip(result.silos, result.loss, result.score):
        rows, single = held_out.silo(silo), host.single
        direct = evaluate(host.task, single.module, single.layout, ask()["model"], rows.features, rows.targets)
        assert (loss, score) == (pytest.approx(direct["loss"]), pytest.approx(direct["accuracy"]))


def test_validation_rows_are_not_test_rows() -> None:
    test, validation = federation(seed=2, sizes=[3, 4, 0, 1, 2]), federation(seed=3, sizes=[1, 2, 3, 0, 5])
    host = hosted(stacked=True, held_out=test, validation=validation)
    assert host.evaluate(ask(), everyone()).rows == (3, 4, 1, 2)
    found = host.evaluate(ask(), everyone(), split="validation")
    assert (found.silos, found.rows) == ((0, 1, 2, 4), (1, 2, 3, 5))
    rows, single = validation.silo(4), host.single
    direct = evaluate(host.task, single.module, single.layout, ask()["model"], rows.features, rows.targets)
    assert found.loss[-1] == pytest.approx(direct["loss"])


def test_without_held_out_rows_there_is_nothing_to_evaluate() -> None:
    host = hosted(stacked=True)
    assert host.evaluate(ask(), everyone()) == Evaluation((), (), (), ())
    with pytest.raises(ValueError, match=r"data\.test: 0 leaves no held-out rows"):
        Session(host, [0], 1, record=False, stacked=False).evaluate(ask()["model"])


@both
def test_nothing_of_an_instruction_is_changed(stacked: bool) -> None:
    instruction, personal = ask(), None
    before: Tensor = instruction["model"].clone()
    hosted(stacked=stacked, personal=personal).contribute(instruction, [2], EXACT, chunk=0)  # A stack of one as well.
    assert torch.equal(instruction["model"], before)
