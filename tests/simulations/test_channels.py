"""Several channels on one sample, and clip norms that adapt, through whole runs: price, noise, engines, restarts."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from privacy.accountant import epsilon
from privacy.adaptive import AdaptiveSum
from privacy.chain import load
from privacy.events import Composed, Gaussian, Poisson, Sampled, gaussian_composed
from privacy.mechanism import GaussianSum
from privacy.noise import SimulatedNoise
from server.canaries import CanaryLink
from simulations import ledgers
from simulations.cli import main
from simulations.planning import plan
from simulations.running import ActiveRun, Outcome, train
from strategies.clipping import ChannelPrivacy
from strategies.experiment import Experiment
from strategies.loading import parse
from strategies.plugins import load_plugins
from strategies.schema import ConfigError

torch.set_num_threads(1)

FALSE_ALARM = 1e-6  # Probability that a statistical test here fails although the code is right, for a fresh seed.
SILOS, RATE, DELTA = 12, 0.5, 1e-3
ADAPTIVE = {"start": 0.5, "quantile": 0.5, "rate": 0.5, "count_noise": 2.5}

PLUGIN = '''
"""A strategy of two channels that remembers what was released, and one whose process dies in the middle."""

import os
import signal
from dataclasses import dataclass

import torch

from strategies.base import Strategy, Update
from strategies.registry import strategy


@strategy("two_channels")
@dataclass(frozen=True)
class TwoChannels(Strategy):
    """Sends its delta, and three numbers about it; `quiet`: only zeros, so that what is released is noise."""

    quiet: bool = False

    def channels(self, size):
        return {"delta": size, "drift": 3}

    def init(self, model, rng, layout):
        return {"model": model, "squares": torch.zeros(2, dtype=torch.float64)}

    def local(self, silo, instruction):
        delta = silo.fit(instruction["model"]) - instruction["model"]
        drift = torch.stack([delta.mean(-1), delta.norm(dim=-1), delta.abs().amax(-1)], dim=-1)
        return Update({"delta": 0 * delta, "drift": 0 * drift} if self.quiet else {"delta": delta, "drift": drift})

    def aggregate(self, state, release, rng):
        squares = torch.stack([release.sums[name].square().sum() for name in ("delta", "drift")])
        step = 0 * release.mean("delta") if self.quiet else release.mean("delta") + 0.01 * release.mean("drift").sum()
        return {"model": state["model"] + step, "squares": state["squares"] + squares}


@strategy("dies_once")
@dataclass(frozen=True)
class DiesOnce(Strategy):
    """Its process is killed in round 3 while a file says so."""

    def local(self, silo, instruction):
        if instruction.round == 3 and os.path.exists(os.environ.get("DIES_WHILE", "")):
            os.kill(os.getpid(), signal.SIGKILL)
        return Update({"delta": silo.fit(instruction["model"]) - instruction["model"]})

    def aggregate(self, state, release, rng):
        return {"model": state["model"] + release.mean("delta")}
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with rows, and with the plugin, which is loaded."""
    folder = tmp_path_factory.mktemp("channels")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.normal(size=(120, 4)), y=rng.integers(0, 3, size=120))
    (folder / "channel_plugin.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        load_plugins(["channel_plugin"])
        yield folder


def mapping(place: Path, silo: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    protect: dict[str, Any] = {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": DELTA}
    return {
        "rounds": 5,
        "task": "logistic",
        "data": {"path": str(place / "data.npz"), "silos": SILOS},
        "cohort": {"sampling": "poisson", "rate": RATE},
        "train": {"epochs": 1, "learning_rate": 0.3},
        "privacy": {"silo": protect | (silo or {})},
        "engine": {"chunk": 3},
    } | changes


def experiment(place: Path, silo: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    return parse(mapping(place, silo, **changes))


def two(place: Path, *, quiet: bool = False, silo: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    return experiment(place, silo, strategy={"name": "two_channels", "quiet": quiet}, **changes)


def go(config: Experiment, folder: Path, *, rounds: int | None = None, resume: bool = False) -> Outcome:
    with ActiveRun(config, folder, plugins=["channel_plugin"], resume=resume) as active:
        done: list[int] = []
        train(active, lambda result: done.append(result.round), stop=lambda: bool(done) and done[-1] == rounds)
        return active.finish()


def state(folder: Path) -> dict[str, Tensor]:
    from server.checkpoint import read

    return dict(read(folder / "checkpoint.safetensors").state)


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


# The split of a price


@pytest.mark.parametrize(
    ("channels", "noises"),
    [
        ([], {"delta": 2 * math.sqrt(2), "drift": 2 * math.sqrt(2)}),
        ([{"name": "drift", "share": 0.2}], {"delta": 2 / math.sqrt(0.8), "drift": 2 / math.sqrt(0.2)}),
        (
            [{"name": "delta", "share": 0.9}, {"name": "drift", "share": 0.1}],
            {"delta": 2 / math.sqrt(0.9), "drift": 2 / math.sqrt(0.1)},
        ),
    ],
)
def test_shares_split_the_price_and_nothing_of_it_is_lost(place: Path, channels: Any, noises: dict[str, float]) -> None:
    planned = plan(two(place, silo={"channels": channels}), SILOS)
    found = {name: each.noise_multiplier for name, each in planned.mechanisms.items() if isinstance(each, GaussianSum)}
    assert found == pytest.approx(noises, rel=1e-12)
    assert gaussian_composed(*found.values()) == pytest.approx(2.0, rel=1e-12)
    assert planned.event == Sampled(Poisson(RATE), Composed((Gaussian(found["delta"]), Gaussian(found["drift"]))))


def test_every_channel_has_its_own_clip_norm_and_may_adapt_it(place: Path) -> None:
    own = [{"name": "drift", "share": 0.25, "clip_norm": ADAPTIVE}]
    planned = plan(two(place, silo={"channels": own}), SILOS)
    delta, drift = planned.mechanisms["delta"], planned.mechanisms["drift"]
    assert delta == GaussianSum(0.5, 2 / math.sqrt(0.75))
    assert isinstance(drift, AdaptiveSum)
    assert (drift.clip_norm, drift.count_noise, drift.voters) == (0.5, 2.5, RATE * SILOS)
    assert gaussian_composed(drift.noise_multiplier, 5.0) == pytest.approx(2 / math.sqrt(0.25), rel=1e-12)
    assert gaussian_composed(delta.noise_multiplier, drift.noise_multiplier, 5.0) == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([{"name": "bias"}], "privacy.silo.channels: the strategy has no channel 'bias', choose from delta, drift"),
        ([{"name": "drift"}, {"name": "drift"}], "privacy.silo.channels: 'drift' is here 2 times, keep one"),
        (
            [{"name": "delta", "share": 0.5}, {"name": "drift", "share": 0.4}],
            "privacy.silo.channels: the shares must add up to 1, got 0.9; leave one out to give it the rest",
        ),
        (
            [{"name": "delta", "share": 1.0}],
            "privacy.silo.channels: shares of 1 leave nothing for the other channels; give each a share, or lower them",
        ),
        ([{"name": "drift", "share": 0}], "privacy.silo.channels[0].share: must be > 0 and <= 1, got 0.0"),
        (
            [{"name": "drift", "clip_norm": "1e-5"}],
            "privacy.silo.channels[0].clip_norm: expected a number or a section of keys, found the text '1e-5', "
            "write 1.0e-5",
        ),
        (
            [{"name": "drift", "clip_norm": {"start": 0}}],
            "privacy.silo.channels[0].clip_norm.start: must be >= 1.0e-09",
        ),
    ],
)
def test_settings_of_channels_that_cannot_be_are_one_line(place: Path, channels: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        two(place, silo={"channels": channels})
    [line] = caught.value.problems
    assert line.startswith(message)


def test_settings_of_channels_are_looked_at_again_before_they_are_used(place: Path) -> None:
    config = two(place)
    assert config.privacy.silo is not None
    silo = replace(config.privacy.silo, channels=(ChannelPrivacy(name="delta", share=1.0),))
    with pytest.raises(ConfigError, match="leave nothing for the other channels"):
        plan(replace(config, privacy=replace(config.privacy, silo=silo)), SILOS)


def test_a_count_that_costs_as_much_as_all_may_cost_is_one_line(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"clip_norm\.count_noise: must be > half the channel's .* = 1, got 1"):
        plan(experiment(place, {"clip_norm": ADAPTIVE | {"count_noise": 1.0}}), SILOS)
    with pytest.raises(ConfigError, match=r"left out it is 0\.3, expected cohort / 20"):
        plan(experiment(place, {"clip_norm": {"start": 1.0}}), SILOS)
    planned = plan(experiment(place, {"clip_norm": {"start": 1.0}}), 900)
    assert isinstance(planned.mechanisms["delta"], AdaptiveSum)
    assert planned.mechanisms["delta"].count_noise == RATE * 900 / 20


# Whole runs


def test_two_channels_cost_what_one_costs_and_the_ledger_shows_both(place: Path, tmp_path: Path) -> None:
    own = [{"name": "drift", "share": 0.2, "clip_norm": 2.0}]
    one = go(experiment(place), tmp_path / "one").result["privacy"]["silo"]
    both = go(two(place, silo={"channels": own}), tmp_path / "two").result["privacy"]["silo"]
    assert both["epsilon_upper"] == pytest.approx(one["epsilon_upper"], rel=1e-9)
    assert both["epsilon_lower"] == pytest.approx(one["epsilon_lower"], rel=1e-9)
    assert (one["clip_norm"], both["clip_norm"]) == (0.5, None)
    assert {name: each["clip_norm"] for name, each in both["channels"].items()} == {"delta": 0.5, "drift": 2.0}
    events = {entry.event for entry in load(tmp_path / "two" / "ledger.jsonl").chain.counted()}
    assert events == {Sampled(Poisson(RATE), Composed((Gaussian(2 / math.sqrt(0.8)), Gaussian(2 / math.sqrt(0.2)))))}


def verified(folder: Path) -> float:
    """Epsilon by `confide ledger verify`, which found nothing wrong; privacy/verify.py says the same."""
    verdict = ledgers.verify(*ledgers.find(folder))
    assert verdict.problems == ()
    assert {"chain", "checkpoint", "result.json", "epsilon"} <= set(verdict.checked)
    path = Path(ledgers.__file__).parent.parent / "privacy" / "verify.py"
    command = [sys.executable, str(path), str(folder / "ledger.jsonl"), "--delta", str(DELTA)]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert verdict.epsilon is not None
    assert said["epsilon"] == pytest.approx(verdict.epsilon["silo/add_remove"], rel=0.01)
    return verdict.epsilon["silo/add_remove"]


def test_the_ledger_of_two_channels_of_which_one_adapts_is_verified(place: Path, tmp_path: Path) -> None:
    own = [{"name": "delta", "clip_norm": ADAPTIVE | {"count_noise": 4.0}}]
    found = go(two(place, silo={"channels": own}), tmp_path / "run").result["privacy"]["silo"]
    assert verified(tmp_path / "run") == pytest.approx(found["epsilon_upper"], rel=1e-9)
    one = go(experiment(place), tmp_path / "one").result["privacy"]["silo"]
    assert found["epsilon_upper"] == pytest.approx(one["epsilon_upper"], rel=1e-9)


@pytest.mark.parametrize("kind", ["local", "pool"])
def test_each_channel_gets_the_noise_that_is_declared(place: Path, tmp_path: Path, kind: str) -> None:
    """Silos send zeros, so squares of what is released, over the declared variance, are chi-squared."""
    own = [{"name": "drift", "share": 0.2, "clip_norm": 2.0}]
    rounds = 60
    engine = {"kind": kind, "chunk": 3} | ({"workers": 2} if kind == "pool" else {})
    go(two(place, quiet=True, silo={"channels": own}, rounds=rounds, engine=engine), tmp_path / "run")
    squares = state(tmp_path / "run")["squares"].tolist()
    declared = [(15, 0.5 * 2 / math.sqrt(0.8)), (3, 2.0 * 2 / math.sqrt(0.2))]  # Numbers (4 x 3 + 3) and std.
    for found, (size, std) in zip(squares, declared):
        low, high = stats.chi2.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4], rounds * size)
        assert low < found / std**2 < high


@pytest.mark.parametrize("name", ["two_channels", "fedavg"])
def test_the_pool_gives_the_same_bits_as_this_process(place: Path, tmp_path: Path, name: str) -> None:
    clip = {"clip_norm": ADAPTIVE | {"count_noise": 5.0}}
    config = experiment(place, clip, strategy=name)
    local = go(config, tmp_path / "local")
    pool = go(replace(config, engine=replace(config.engine, kind="pool", workers=2)), tmp_path / "pool")
    assert rows(tmp_path / "local") == rows(tmp_path / "pool")
    assert local.result["model"]["sha256"] == pool.result["model"]["sha256"]
    assert len({row["clip_norms"]["delta"] for row in rows(tmp_path / "pool")}) == 5  # It did adapt.


def test_canaries_are_on_the_audited_channel_alone_at_its_current_clip_norm_and_do_not_vote(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float, float, dict[str, float]]] = []
    original = CanaryLink._contribute

    def noted(self: CanaryLink, round_: int, mechanisms: Any, chunk: int) -> Any:
        partial = original(self, round_, mechanisms, chunk)
        lengths = [float(torch.linalg.vector_norm(partial.sums[channel])) for channel in ("delta", "drift")]
        seen.append((lengths[0], mechanisms["delta"].clip_norm, lengths[1], dict(partial.votes)))
        return partial

    monkeypatch.setattr(CanaryLink, "_contribute", noted)
    audited = mapping(place, {"clip_norm": ADAPTIVE | {"count_noise": 5.0}}, strategy="two_channels")
    audited["cohort"] = {"sampling": "all"}
    audited["privacy"]["audit"] = {"canaries": 1}
    result = go(parse(audited), tmp_path / "run").result
    assert [clip for _, clip, _, _ in seen] == [row["clip_norms"]["delta"] for row in rows(tmp_path / "run")]
    for length, clip, other, votes in seen:
        assert length == pytest.approx(clip, rel=1e-6)
        assert (other, votes) == (0.0, {})
    assert result["privacy"]["measured"]["canaries"] == 1


def test_the_clip_norm_of_each_round_follows_from_the_votes_of_the_one_before(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C e^(-rate (votes / cohort + 1/2 - quantile)), with the constant expected cohort of 6 real silos."""
    released: list[float] = []
    original = AdaptiveSum.count

    def noted(self: AdaptiveSum, votes: float, source: Any, *, stream: Any) -> float:
        assert stream == ("noise", len(released) + 1, "delta", "votes")
        assert abs(votes) <= SILOS / 2
        drawn = float(SimulatedNoise(0).normals(1, *stream))
        released.append(original(self, votes, source, stream=stream))
        assert released[-1] == pytest.approx(votes + 2.5 * drawn, abs=2.5 * 2**-20)
        return released[-1]

    monkeypatch.setattr(AdaptiveSum, "count", noted)
    config = mapping(place, {"clip_norm": ADAPTIVE})
    config["privacy"]["audit"] = {"canaries": 8}
    go(parse(config), tmp_path / "run")
    norm = 0.5
    for row, votes in zip(rows(tmp_path / "run"), released, strict=True):
        assert row["clip_norms"]["delta"] == pytest.approx(norm, rel=1e-12)
        norm *= math.exp(-0.5 * (votes / 6 + 0.5 - 0.5))


def test_a_run_that_was_stopped_goes_on_with_the_clip_norm_it_had(place: Path, tmp_path: Path) -> None:
    config = experiment(place, {"clip_norm": ADAPTIVE})
    whole = go(config, tmp_path / "whole")
    go(config, tmp_path / "cut", rounds=2)
    cut = go(config, tmp_path / "cut", resume=True)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert cut.result["model"]["sha256"] == whole.result["model"]["sha256"]
    assert cut.result["privacy"] == whole.result["privacy"]


def test_a_run_that_was_killed_goes_on_with_the_clip_norm_it_had(place: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    content = mapping(place, {"clip_norm": ADAPTIVE}, strategy="dies_once")
    config.write_text(json.dumps(content))
    (tmp_path / "mark").touch()
    command = [sys.executable, "-m", "simulations", "run", str(config), "--plugin", "channel_plugin"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(place), *filter(None, sys.path)]),
        "DIES_WHILE": str(tmp_path / "mark"),
    }
    killed = subprocess.run([*command, "--out", str(tmp_path / "cut")], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [row["round"] for row in rows(tmp_path / "cut")] == [1, 2]
    go(parse(content), tmp_path / "whole")
    go(parse(content), tmp_path / "cut", resume=True)
    clips = [[row["clip_norms"] for row in rows(tmp_path / name)] for name in ("cut", "whole")]
    assert clips[0] == clips[1]
    assert torch.equal(state(tmp_path / "cut")["model"], state(tmp_path / "whole")["model"])


# What is said of it


def test_plan_report_and_statement_say_how_channels_are_clipped_and_noised(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    own = [{"name": "drift", "share": 0.2, "clip_norm": 2.0}]
    content = mapping(place, {"clip_norm": ADAPTIVE | {"count_noise": 5.0}, "channels": own}, strategy="two_channels")
    config.write_text(json.dumps(content))
    assert main(["plan", str(config)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "channel drift clip norm 2; noise 4.472 times it" in said
    assert "channel delta clip norm 0.5 in round 1, then by a count with noise of std 5, paid in this price" in said
    assert main(["run", str(config), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    last = rows(tmp_path / "run")[-1]["clip_norms"]["delta"]
    assert main(["explain", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"a clip norm that went from 0.5 to {last:.4g}, and 5 on the count that it follows" in said
    assert "drift: 4.472 times the clip norm of 2" in said
    assert 'id="clip-norm' in (tmp_path / "run" / "report.html").read_text()


def test_a_plan_counts_the_votes_among_the_bytes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(mapping(place, {"clip_norm": ADAPTIVE}, cohort={"sampling": "all"})))
    assert main(["plan", str(config), "--format", "json"]) == 0
    planned = json.loads(capsys.readouterr().out)["bytes_up_per_round"]
    assert main(["run", str(config), "--out", str(tmp_path / "run")]) == 0
    assert planned == SILOS * (12 + 4 * 15 + 4) == rows(tmp_path / "run")[0]["bytes_up"]


def test_a_schedule_of_canaries_is_compared_with_the_noise_of_their_own_channel(place: Path, tmp_path: Path) -> None:
    """Half the price each: noise 2 sqrt(2) on the audited channel, and each canary in one round."""
    config = mapping(place, strategy="two_channels")
    config["privacy"]["audit"] = {"canaries": 4, "participation": "spread"}
    measured = go(parse(config), tmp_path / "run").result["privacy"]["measured"]
    assert measured["claim"] == pytest.approx(epsilon(Gaussian(2 * math.sqrt(2)), DELTA).upper, rel=1e-9)
