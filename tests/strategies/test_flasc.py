"""FLASC against its algorithm, step by step, and the strategies it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from privacy.contributions import Contributions
from privacy.mechanism import GaussianSum, Mechanism
from privacy.noise import SimulatedNoise
from privacy.release import Collector, Release
from strategies.base import Correction, State, Strategy, Update
from strategies.flasc import FLASC, Tier
from strategies.layout import Layout
from strategies.optimizers import SGD, Adam
from strategies.pruning import FixedMask, Pruning
from strategies.rank_tiers import RankTiers, first_ranks
from strategies.sparse import largest, portion
from strategies.tasks import Shape, initial
from strategies.tasks.dense import MLP
from strategies.tasks.lora import LoRA

RNG = torch.Generator()
FLAT = Layout(("weight",), ((6,),))
START = {"round": torch.zeros((), dtype=torch.int64)}
DENSITIES = [(1.0, 1.0), (0.5, 0.5), (1.0, 0.25), (0.25, 1.0), (0.1, 0.1)]


@dataclass
class One:
    """A silo whose training is a function of where it starts."""

    train: Callable[[Tensor, Correction | None], Tensor]
    layout: Layout = FLAT
    examples: Tensor = field(default_factory=lambda: torch.tensor(1.0))
    state: MutableMapping[str, Tensor] = field(default_factory=dict)

    def fit(self, start: Tensor, *, correct: Correction | None = None) -> Tensor:
        return self.train(start, correct)

    def evaluate(self, model: Tensor) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class Exact:
    """The mean of some updates as they are, in their own precision."""

    updates: list[Update]

    def mean(self, channel: str) -> Tensor:
        return torch.stack([update.channels[channel] for update in self.updates]).mean(0)


def still(start: Tensor, correct: Correction | None) -> Tensor:
    return start.clone()


def to(target: Tensor) -> Callable[[Tensor, Correction | None], Tensor]:
    """One full step of rate 1 on 0.5 * ||w - target||^2, which ends at the target."""

    def train(start: Tensor, correct: Correction | None) -> Tensor:
        gradient = start - target
        return start - (gradient if correct is None else correct(start, gradient))

    return train


def turn(strategy: Strategy, state: State, round_: int, silos: list[One], tiers: list[int] | None = None) -> State:
    asked = [strategy.instruct(state, round_, tier) for tier in tiers or [0] * len(silos)]
    updates = [strategy.local(silo, instruction) for silo, instruction in zip(silos, asked)]
    return strategy.aggregate(state, Exact(updates), RNG)  # type: ignore[arg-type]


def adapters(seed: int) -> tuple[Tensor, Callable[[Tensor, int], Tensor]]:
    """A dense layer 5 -> 4 with LoRA of rank 3 in float64, flat: the start, and the gradient at (w, silo)."""
    rng = torch.Generator().manual_seed(seed)
    frozen = torch.randn(4, 5, generator=rng, dtype=torch.float64)
    rows = torch.randn(7, 8, 5, generator=rng, dtype=torch.float64)
    goals = torch.randn(7, 8, 4, generator=rng, dtype=torch.float64)
    low = torch.rand(3, 5, generator=rng, dtype=torch.float64) - 0.5

    def slope(flat: Tensor, silo: int) -> Tensor:
        leaf = flat.detach().clone().requires_grad_()
        a, b = leaf[:15].view(3, 5), leaf[15:].view(4, 3)
        loss = 0.5 * ((rows[silo] @ (frozen + b @ a).T - goals[silo]) ** 2).sum(1).mean()
        return torch.autograd.grad(loss, leaf)[0]

    return torch.cat([low.flatten(), torch.zeros(12, dtype=torch.float64)]), slope


def test_f1_dense_is_plain_federated_adam_on_lora() -> None:
    start, slope = adapters(1)

    def train(silo: int) -> Callable[[Tensor, Correction | None], Tensor]:
        def steps(w: Tensor, correct: Correction | None) -> Tensor:
            w, momentum = w.clone(), torch.zeros_like(w)
            for _ in range(4):
                momentum = 0.9 * momentum + slope(w, silo)
                w = w - 0.05 * momentum
            return w

        return steps

    strategy = FLASC(density_down=1.0, density_up=1.0, server=Adam(learning_rate=0.005))
    state = strategy.init(start, RNG, FLAT)
    plain = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([plain], lr=0.005, betas=(0.9, 0.99), eps=1e-3)
    for round_ in range(1, 21):
        cohort = [(round_ + k) % 7 for k in range(3)]
        state = turn(strategy, state, round_, [One(train(silo)) for silo in cohort])
        received = plain.detach().clone()
        plain.grad = -sum((train(silo)(received, None) - received for silo in cohort), torch.zeros(27)) / 3
        adam.step()
    assert float((state["model"] - plain.detach()).abs().max()) <= 1e-12
    assert float((state["model"] - start).abs().max()) > 0.01


@given(
    st.lists(st.floats(-1024, 1024, width=32), min_size=1, max_size=60),
    st.floats(0.01, 1.0),
)
def test_f2_exactly_floor_n_d_of_the_largest_are_kept(values: list[float], density: float) -> None:
    vector, size = torch.tensor(values), len(values)
    count = portion(size, density)
    assert count == max(1, math.floor(size * density + 1e-9))
    kept = largest(vector, count)
    taken = kept != 0
    assert int(taken.sum()) <= count
    assert torch.equal(kept[taken], vector[taken])
    dropped = vector[~taken].abs()
    if bool(taken.any()) and dropped.numel():
        assert float(vector[taken].abs().min()) >= float(dropped.max())
    if bool((vector != 0).all()):
        assert int(taken.sum()) == min(count, size)


def test_f2_the_threshold_is_over_the_whole_vector_and_for_each_silo_of_a_stack() -> None:
    stack = torch.tensor([[1.0, -9.0, 0.5, 8.0], [4.0, 3.0, -2.0, 1.0]])
    assert largest(stack, 2).tolist() == [[0.0, -9.0, 0.0, 8.0], [4.0, 3.0, 0.0, 0.0]]


@pytest.mark.parametrize(("down", "up"), DENSITIES)
def test_f3_a_silo_that_learns_nothing_uploads_zeros_and_moves_nothing(down: float, up: float) -> None:
    """Fails where the delta is taken from the server's model instead of from what was sent."""
    model = torch.tensor([3.0, -2.0, 5.0, 1.0, -4.0, 6.0])
    strategy = FLASC(density_down=down, density_up=up)
    instruction = strategy.instruct({"model": model}, 1)
    update = strategy.local(One(still), instruction)
    assert not update.channels["delta"].any()
    assert torch.equal(turn(strategy, strategy.init(model, RNG, FLAT), 1, [One(still)])["model"], model)


def test_f4_kept_numbers_become_what_was_trained_and_dropped_ones_are_added_to() -> None:
    model = torch.tensor([3.0, -2.0, 5.0, 1.0, -4.0, 6.0])
    trained = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    after = turn(FLASC(density_down=0.5, density_up=1.0), START | {"model": model}, 1, [One(to(trained))])["model"]
    # 5, -4 and 6 were sent; the others began at zero in the silo and stay in the server.
    assert after.tolist() == [13.0, 18.0, 30.0, 41.0, 50.0, 60.0]


def test_f5_quadratic_silos_have_a_closed_form() -> None:
    model = torch.tensor([3.0, -2.0, 5.0, 1.0, -4.0, 6.0])
    goals = [torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), torch.tensor([0.0, -8.0, 5.0, 2.0, -4.0, 1.0])]
    sent = torch.tensor([0.0, 0.0, 5.0, 0.0, -4.0, 6.0])
    silos = [One(to(goal)) for goal in goals]
    dense = turn(FLASC(density_down=0.5, density_up=1.0), START | {"model": model}, 1, silos)["model"]
    assert torch.allclose(dense, model + (goals[0] + goals[1]) / 2 - sent)
    strategy = FLASC(density_down=0.5, density_up=1 / 6)
    first, second = (strategy.local(silo, strategy.instruct({"model": model}, 1)).channels["delta"] for silo in silos)
    assert first.tolist() == [0.0, 0.0, 0.0, 0.0, 9.0, 0.0]  # 5 - (-4)
    assert second.tolist() == [0.0, -8.0, 0.0, 0.0, 0.0, 0.0]  # -8 - 0
    after = turn(strategy, START | {"model": model}, 1, silos)["model"]
    assert after.tolist() == [3.0, -6.0, 5.0, 1.0, 0.5, 6.0]


def test_the_server_keeps_what_it_did_not_send_and_sends_it_when_it_has_grown() -> None:
    strategy = FLASC(density_down=1 / 6, density_up=1.0)
    state = strategy.init(torch.tensor([3.0, -2.0, 5.0, 1.0, -4.0, 6.0]), RNG, FLAT)
    assert strategy.instruct(state, 1)["model"].tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, 6.0]
    state = turn(strategy, state, 1, [One(to(torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0, 0.0])))])
    assert state["model"].tolist() == [3.0, -2.0, 7.0, 1.0, -4.0, 0.0]
    assert strategy.instruct(state, 2)["model"].tolist() == [0.0, 0.0, 7.0, 0.0, 0.0, 0.0]
    assert strategy.predictor(state).tolist() == [0.0, 0.0, 7.0, 0.0, 0.0, 0.0]
    assert strategy.variants(state, 1)["dense"].tolist() == strategy.audited(state).tolist() == state["model"].tolist()


def test_densities_decay_each_on_its_own() -> None:
    strategy = FLASC(density_down=0.8, density_up=0.4, decay_down=0.5, decay_up=1.0, every=10)
    layout = Layout(("weight",), ((1000,),))
    state = {"model": torch.arange(1.0, 1001.0)}
    for round_, down in ((1, 800), (10, 800), (11, 400), (20, 400), (21, 200), (111, 1)):
        instruction = strategy.instruct(state, round_)
        assert instruction.kept == {"model": down}
        assert int((instruction["model"] != 0).sum()) == down
        assert strategy.kept(layout, round_, 0) == {"delta": 400}


def test_tiers_have_densities_of_their_own() -> None:
    strategy = FLASC(tiers=(Tier(down=1 / 16, up=1 / 4), Tier(down=1.0, up=1.0)), tier_of=(1, 0, 1))
    layout, state = Layout(("weight",), ((32,),)), {"model": torch.arange(1.0, 33.0)}
    assert [strategy.tier(silo) for silo in range(4)] == [1, 0, 1, 0]
    assert [strategy.instruct(state, 1, tier).kept["model"] for tier in (0, 1)] == [2, 32]
    assert [strategy.kept(layout, 1, tier)["delta"] for tier in (0, 1)] == [8, 32]
    assert [FLASC(tiers=strategy.tiers).tier(silo) for silo in range(4)] == [0, 1, 0, 1]
    assert FLASC().tier(5) == 0
    weak = strategy.local(One(to(torch.zeros(32))), strategy.instruct(state, 1, 0)).channels["delta"]
    assert int((weak != 0).sum()) == 2  # 31 and 32 were sent, and only they had anything to lose.
    assert FLASC(tier_of=(0, 1)).problems(private=False)
    assert not strategy.problems(private=True)


def sums(silos: list[int], mechanism: Mechanism, *, scale: float = 100.0) -> Contributions:
    """Sparse updates of some silos, longer than the clip norm, through the summing side."""
    out, strategy = Contributions({"delta": mechanism}, {"delta": 6}), FLASC(density_down=0.5, density_up=0.5)
    for silo in silos:
        goal = scale * torch.randn(6, generator=torch.Generator().manual_seed(silo))
        instruction = strategy.instruct({"model": torch.tensor([3.0, -2.0, 5.0, 1.0, -4.0, 6.0])}, 1)
        out.add(strategy.local(One(to(goal)), instruction).channels, 1.0, [silo])
    return out


def test_f9_the_sparse_update_is_clipped_as_a_whole_and_one_silo_moves_the_sum_by_no_more() -> None:
    clip = GaussianSum(0.5, 2.0)
    for silo in range(20):
        assert float(sums([silo], clip).sums["delta"].norm()) == pytest.approx(0.5, rel=1e-6)
        assert int((sums([silo], clip).sums["delta"] != 0).sum()) == 3
        everyone, others = sums(list(range(20)), clip), sums([k for k in range(20) if k != silo], clip)
        assert float((everyone.sums["delta"] - others.sums["delta"]).norm()) <= 0.5 * (1 + 1e-6)


def test_f9_noise_of_full_size_lies_on_every_number_also_where_nobody_sent_one() -> None:
    """100,000 draws; the standard error of a standard deviation is 0.22%, so 1% is wrong once in 10^5."""
    mechanism, size = GaussianSum(0.5, 2.0), 100_000
    delta = torch.zeros(size)
    delta[:3] = 7.0
    out = Contributions({"delta": mechanism}, {"delta": size})
    out.add({"delta": largest(delta, 3)}, 1.0, [0])
    collector = Collector({"delta": mechanism}, {"delta": size}, expected=4.0, population=9)
    collector.add(out.partial(0))
    release: Release = collector.release(SimulatedNoise(1), stream=("noise", 1))
    noise = release.sums["delta"][3:]
    assert bool((noise != 0).all())
    assert float(noise.std()) == pytest.approx(1.0, rel=0.01)
    moved = FLASC(density_up=0.01).aggregate(START | {"model": torch.zeros(size)}, release, RNG)["model"]
    assert float(moved[3:].std()) == pytest.approx(0.25, rel=0.01)  # Divided by the expected cohort, and used.


LORA = Layout(("0.lora_A.weight", "0.lora_B.weight", "head.bias"), ((4, 3), (2, 4), (2,)))


def lora_slope(goal: Tensor) -> Callable[[Tensor, Correction | None], Tensor]:
    def train(start: Tensor, correct: Correction | None) -> Tensor:
        w = start
        for _ in range(3):
            leaf = w.detach().clone().requires_grad_()
            parts = LORA.unflatten(leaf)
            loss = (parts["0.lora_B.weight"] @ parts["0.lora_A.weight"] - goal).square().sum()
            gradient = torch.autograd.grad(loss + (parts["head.bias"] - 1).square().sum(), leaf)[0]
            w = w - 0.1 * (gradient if correct is None else correct(w, gradient))
        return w

    return train


def test_f6_ranks_above_a_tier_stay_zero_and_the_top_tier_is_dense() -> None:
    start = torch.randn(LORA.size, generator=torch.Generator().manual_seed(2))
    silo = One(lora_slope(torch.ones(2, 3)), LORA)
    strategy = RankTiers(ranks=(1, 2, 4))
    state = strategy.init(start, RNG, LORA)
    for tier, rank in enumerate(strategy.ranks):
        instruction = strategy.instruct(state, 1, tier)
        trained = LORA.unflatten(instruction["model"] + strategy.local(silo, instruction).channels["delta"])
        a, b = trained["0.lora_A.weight"], trained["0.lora_B.weight"]
        assert not a[rank:].any()
        assert not b[:, rank:].any()
        assert bool((a[:rank] != 0).all()) and bool((b[:, :rank] != 0).all())  # noqa: PT018
        assert bool((trained["head.bias"] != LORA.unflatten(start)["head.bias"]).all())
        assert strategy.kept(LORA, 1, tier) == {"delta": rank * 5 + 2} == {"delta": instruction.kept["model"]}
    dense = FLASC(density_down=1.0, density_up=1.0)
    top = turn(strategy, state, 1, [silo], [2])["model"]
    assert torch.equal(top, turn(dense, START | {"model": start}, 1, [silo])["model"])


def test_f6_noise_does_not_fill_the_ranks_above_a_tier() -> None:
    def noisy(start: Tensor, correct: Correction | None) -> Tensor:
        return start - (torch.ones(start.shape) if correct is None else correct(start, torch.ones(start.shape)))

    strategy = RankTiers(ranks=(1, 4))
    state = strategy.init(torch.ones(LORA.size), RNG, LORA)
    delta = strategy.local(One(noisy, LORA), strategy.instruct(state, 1, 0)).channels["delta"]
    assert torch.equal(delta, -first_ranks(LORA, 1))


def test_rank_tiers_need_adapters() -> None:
    with pytest.raises(ValueError, match="needs LoRA adapters"):
        RankTiers().init(torch.zeros(6), RNG, FLAT)
    assert RankTiers(ranks=()).problems(private=False)
    assert RankTiers(ranks=(1, 2), tier_of=(0, 2)).problems(private=False)


def supports(strategy: Strategy, rounds: int) -> list[set[int]]:
    """Where the model that silos get is not zero, round by round, with silos that want something new in each."""
    start, found = torch.tensor([3.0, -2.0, 5.0, 1.0, -4.0, 6.0, 0.0, 0.0]), []
    layout = Layout(("weight",), ((8,),))
    state = strategy.init(start, RNG, layout)
    for round_ in range(1, rounds + 1):
        goal = 10 * torch.randn(8, generator=torch.Generator().manual_seed(round_))
        instruction = strategy.instruct(state, round_)
        found.append(set(instruction["model"].nonzero()[:, 0].tolist()))
        update = strategy.local(One(to(goal), layout), instruction)
        assert int((update.channels["delta"] != 0).sum()) <= strategy.kept(layout, round_, 0)["delta"]
        state = strategy.aggregate(state, Exact([update]), RNG)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("server", [SGD(), SGD(momentum=0.9), Adam(learning_rate=0.5)], ids=lambda rule: str(rule))
def test_f12_a_mask_never_grows_where_flascs_does(server: Adam | SGD) -> None:
    fixed = supports(FixedMask(density=0.5, server=server), 12)
    assert all(later <= earlier for earlier, later in pairwise(fixed[1:]))
    assert len(fixed[1]) == 4
    pruned = supports(Pruning(decay=0.5, every=2, density=0.2, server=server), 12)
    assert all(later <= earlier for earlier, later in pairwise(pruned[2:]))
    assert [len(mask) for mask in pruned[2:]] == [4, 4, 2, 2, 1, 1, 1, 1, 1, 1]
    free = supports(FLASC(density_down=0.5, density_up=0.5), 12)
    assert any(not later <= earlier for earlier, later in pairwise(free))


def test_the_first_round_of_a_mask_is_dense_although_b_is_zero() -> None:
    start = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    for strategy in (FixedMask(density=0.5), Pruning(decay=0.5, every=1, density=0.5)):
        state = strategy.init(start, RNG, FLAT)
        assert strategy.instruct(state, 1).kept == {"model": 6}
        state = turn(strategy, state, 1, [One(to(torch.tensor([1.0, 0.0, 9.0, 8.0, 0.0, 0.0])))])
        assert state["model"].tolist() == [1.0, 0.0, 9.0, 8.0, 0.0, 0.0]
        assert strategy.instruct(state, 2).kept == {"model": 3}


def test_f10_with_a_frozen_the_mean_of_products_is_the_product_of_means() -> None:
    shape, rng = Shape((5,), 3), torch.Generator().manual_seed(3)
    for freeze, exact in (("a", True), ("none", False)):
        module, start = initial(LoRA(base=MLP((7,)), rank=2, alpha=2.0, dropout=0.0, freeze=freeze), shape, seed=1)  # type: ignore[arg-type]
        layout = Layout.of(module)
        assert any("lora_A" in name for name in layout.names) != exact
        silos = [start + torch.randn(start.shape, generator=rng) for _ in range(4)]

        def product(vector: Tensor, module: torch.nn.Module = module, layout: Layout = layout) -> Tensor:
            layout.load(module, vector)
            parts = dict(module.named_parameters())
            (a,), (b,) = (
                [part.detach() for name, part in parts.items() if key in name] for key in ("lora_A", "lora_B")
            )
            return b @ a

        mean = torch.stack([product(silo) for silo in silos]).mean(0)
        error = float((product(torch.stack(silos).mean(0)) - mean).abs().max())
        assert error <= 1e-6 if exact else error > 1e-2
