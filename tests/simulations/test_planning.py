from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from privacy.accountant import Unpriceable, epsilon
from privacy.events import Capped, Gaussian, NonPrivate, Poisson, Repeated, Sampled
from privacy.mechanism import ExactSum, GaussianSum, joint_event
from server.sampler import CappedCohort, FixedCohort, FullCohort, PoissonCohort
from simulations.planning import make_sampler, plan
from strategies.base import Strategy
from strategies.experiment import Audit, Cohort, Experiment
from strategies.loading import parse
from strategies.schema import ConfigError

POISSON = {"sampling": "poisson", "rate": 0.1}
FIXED = {"sampling": "fixed", "size": 10}
NOISE = {"clip_norm": 0.5, "noise_multiplier": 1.5, "delta": 1e-4}


def experiment(cohort: Mapping[str, Any], silo: Mapping[str, Any] | None, *, rounds: int = 20) -> Experiment:
    return parse(
        {
            "rounds": rounds,
            "task": "logistic",
            "data": {"name": "digits", "partition": "column"},  # As many silos as the data names: `plan` is told.
            "cohort": cohort,
            "privacy": {"silo": silo},
        }
    )


@dataclass(frozen=True)
class Three(Strategy):
    """Sends three vectors."""

    def channels(self, size: int) -> Mapping[str, int]:
        return {"delta": size, "control": size, "loss": 1}


@dataclass(frozen=True)
class Seeing(Strategy):
    """Sees single updates."""

    reveals = True


def test_each_cohort_has_its_sampler() -> None:
    assert make_sampler(Cohort(sampling="poisson", rate=0.25), 8) == PoissonCohort(0.25, 8)
    assert make_sampler(Cohort(sampling="poisson", rate=0.25, cap=2), 8) == CappedCohort(0.25, 2, 8)
    assert make_sampler(Cohort(sampling="poisson", rate=0.25, cap=8), 8) == PoissonCohort(0.25, 8)
    assert make_sampler(Cohort(sampling="fixed", size=2), 8) == FixedCohort(2, 8)
    assert make_sampler(Cohort(sampling="all"), 8) == FullCohort(8)


def test_a_cohort_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cohort\.size: must be <= the 8 silos of the data, got 10"):
        make_sampler(Cohort(sampling="fixed", size=10), 8)


def test_without_privacy_sums_are_exact_and_nothing_is_claimed() -> None:
    planned = plan(experiment(POISSON, None), 100)
    assert planned.mechanisms == {"delta": ExactSum()}
    assert (planned.noise_multiplier, planned.delta, planned.cost) == (None, None, None)
    assert isinstance(planned.event, NonPrivate)


def test_a_given_noise_is_what_is_added_and_what_is_priced() -> None:
    planned = plan(experiment(POISSON, NOISE), 100)
    assert planned.mechanisms == {"delta": GaussianSum(0.5, 1.5)}
    assert planned.noise_multiplier == 1.5
    assert planned.event == Sampled(Poisson(0.1), Gaussian(1.5))
    assert planned.cost == epsilon(Repeated(planned.event, 20), 1e-4)


@pytest.mark.parametrize(
    ("cohort", "neighbours", "target"),
    [
        (POISSON, "add_remove", 2.0),
        (POISSON, "replace", 0.5),
        (FIXED, "replace", 2.0),
        ({"sampling": "all"}, "zero_out", 0.5),
        ({"sampling": "all"}, "add_remove", 8.0),
    ],
)
def test_noise_for_a_target_keeps_it_and_wastes_little(
    cohort: Mapping[str, Any], neighbours: str, target: float
) -> None:
    silo = {"clip_norm": 0.5, "epsilon": target, "delta": 1e-4, "neighbours": neighbours}
    planned = plan(experiment(cohort, silo, rounds=5), 100)
    assert planned.cost is not None
    assert planned.neighbours == planned.cost.neighbours == neighbours
    assert target * 0.995 <= planned.cost.upper <= target
    assert planned.mechanisms == {"delta": GaussianSum(0.5, planned.noise_multiplier or 0.0)}


@pytest.mark.parametrize("silo", [NOISE, {"clip_norm": 0.5, "epsilon": 2.0, "delta": 1e-4}])
def test_several_channels_cost_what_one_would(silo: Mapping[str, Any]) -> None:
    one = plan(experiment({"sampling": "all"}, silo), 100)
    three = plan(replace(experiment({"sampling": "all"}, silo), strategy=Three()), 100)
    assert set(three.mechanisms) == {"delta", "control", "loss"}
    assert three.noise_multiplier == one.noise_multiplier
    # Sum of 1 / z^2 over the channels is 1 / z^2 of the configured noise.
    shares = [1 / mechanism.noise_multiplier**2 for mechanism in three.mechanisms.values()]  # type: ignore[union-attr]
    assert one.noise_multiplier is not None
    assert sum(shares) == pytest.approx(1 / one.noise_multiplier**2, rel=1e-12)
    assert three.cost is not None
    assert one.cost is not None
    assert three.cost.upper == pytest.approx(one.cost.upper, rel=1e-9)
    assert epsilon(joint_event(three.mechanisms), 1e-4).upper == pytest.approx(
        epsilon(joint_event(one.mechanisms), 1e-4).upper, rel=1e-9
    )


def test_a_strategy_that_sees_updates_has_no_price() -> None:
    planned = plan(replace(experiment(POISSON, NOISE), strategy=Seeing()), 100)
    assert isinstance(planned.event, NonPrivate)
    assert planned.cost is not None
    assert planned.cost.lower == planned.cost.upper == float("inf")


@pytest.mark.parametrize(("silos", "refused"), [(9_999, False), (10_000, True), (20_000, True)])
def test_delta_must_be_below_one_over_the_silos(silos: int, refused: bool) -> None:
    if not refused:
        assert plan(experiment(POISSON, NOISE), silos).delta == 1e-4
        return
    with pytest.raises(ConfigError, match=f"privacy.silo.delta: must be < 1 / silos = {1 / silos:.4g}, got 0.0001"):
        plan(experiment(POISSON, NOISE), silos)
    allowed = NOISE | {"allow_large_delta": True}
    assert plan(experiment(POISSON, allowed), silos).delta == 1e-4


def test_a_pairing_without_a_price_is_refused_whatever_the_rules_say() -> None:
    config = experiment(FIXED, NOISE | {"neighbours": "replace"})
    assert config.privacy.silo is not None
    changed = replace(config.privacy, silo=replace(config.privacy.silo, neighbours="add_remove"))
    with pytest.raises(Unpriceable, match="use neighbours: replace"):
        plan(replace(config, privacy=changed), 100)


@dataclass(frozen=True)
class Elsewhere(Strategy):
    """Sends its model under another name, or a part of it."""

    name = "elsewhere"
    channel: str = "update"
    part: int = 0

    def channels(self, size: int) -> Mapping[str, int]:
        return {self.channel: size - self.part}


@pytest.mark.parametrize("strategy", [Elsewhere("update"), Elsewhere("delta", part=1)])
def test_canaries_need_a_channel_that_the_model_follows(strategy: Strategy) -> None:
    config = replace(experiment(POISSON, NOISE), strategy=strategy)
    assert plan(config, 100).cost is not None
    audited = replace(config, privacy=replace(config.privacy, audit=Audit(canaries=10)))
    with pytest.raises(ConfigError, match=r"privacy\.audit\.canaries: strategy 'elsewhere' sends no 'delta'"):
        plan(audited, 100)


@pytest.mark.parametrize("neighbours", ["add_remove", "zero_out", "replace"])
def test_a_cap_is_priced_under_every_relation_and_costs_more(neighbours: str) -> None:
    silo = {**NOISE, "neighbours": neighbours}
    free, capped = (plan(experiment({**POISSON, **more}, silo), 100) for more in ({}, {"cap": 14}))
    assert capped.event == Sampled(Capped(0.1, 14, 100), Gaussian(1.5))
    assert free.cost is not None
    assert capped.cost is not None
    assert capped.cost.lower <= free.cost.upper < capped.cost.upper
