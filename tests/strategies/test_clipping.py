"""Clip norms and channels in the experiment's file: a number or a section, written, read back and described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from privacy.adaptive import LEAST, MOST
from strategies.base import Strategy
from strategies.clipping import AdaptiveClip, ChannelPrivacy, channel_problems, shares
from strategies.codec import decode, encode
from strategies.describe import describe
from strategies.experiment import Experiment, Privacy, SiloPrivacy
from strategies.rules import broken
from strategies.schema import ConfigError
from strategies.yaml_text import override

BASE = {"noise_multiplier": 1.0, "delta": 1e-5}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (0.5, 0.5),
        (2, 2.0),
        ({"start": 1.0}, AdaptiveClip(start=1.0, quantile=0.5, rate=0.2, count_noise=None)),
        (
            {"start": 3, "quantile": 0.9, "rate": 1, "count_noise": 4},
            AdaptiveClip(start=3.0, quantile=0.9, rate=1.0, count_noise=4.0),
        ),
    ],
)
def test_a_clip_norm_is_a_number_or_a_section_and_is_written_as_it_was_read(written: Any, read: Any) -> None:
    silo = decode(SiloPrivacy, {"clip_norm": written, **BASE})
    assert silo.clip_norm == read
    assert decode(SiloPrivacy, encode(silo)) == silo


def test_channels_are_written_as_they_were_read() -> None:
    channels = [{"name": "a"}, {"name": "b", "share": 0.25, "clip_norm": {"start": 2.0}}]
    silo = decode(SiloPrivacy, {"clip_norm": 1.0, "channels": channels, **BASE})
    assert silo.channels == (
        ChannelPrivacy(name="a"),
        ChannelPrivacy(name="b", share=0.25, clip_norm=AdaptiveClip(start=2.0)),
    )
    assert decode(SiloPrivacy, encode(silo)) == silo


@pytest.mark.parametrize(
    ("clip_norm", "problem"),
    [
        (0, "privacy.silo.clip_norm: must be > 0, got 0.0"),
        (None, "privacy.silo.clip_norm: expected a number or a section of keys, found null"),
        ([1.0], "privacy.silo.clip_norm: expected a number or a section of keys, found a list"),
        ("1e-5", "privacy.silo.clip_norm: expected a number or a section of keys, found the text '1e-5', write 1.0e-5"),
        ({}, "privacy.silo.clip_norm.start: missing, give a number"),
        ({"start": 0}, "privacy.silo.clip_norm.start: must be >= 1.0e-09 and <= 1000000000.0, got 0.0"),
        ({"start": 1, "quantile": 1}, "privacy.silo.clip_norm.quantile: must be > 0 and < 1, got 1.0"),
        ({"start": 1, "quantil": 0.5}, "privacy.silo.clip_norm.quantil: unknown key, did you mean 'quantile'?"),
    ],
)
def test_what_a_clip_norm_cannot_be_is_one_line(clip_norm: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(SiloPrivacy, {"clip_norm": clip_norm, **BASE}, path="privacy.silo")
    [line] = caught.value.problems
    assert line.startswith(problem)


def test_a_missing_clip_norm_says_what_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"^clip_norm: missing, give a number > 0 or a section of keys \("):
        decode(SiloPrivacy, BASE)


def test_the_command_line_can_turn_a_number_into_a_section() -> None:
    changed = override({"clip_norm": 0.5, **BASE}, "clip_norm.start=1e-2")
    assert decode(SiloPrivacy, changed).clip_norm == AdaptiveClip(start=0.01)


def test_the_bounds_of_the_file_are_those_of_the_mechanism() -> None:
    for bound in (LEAST, MOST):
        assert decode(AdaptiveClip, {"start": bound}).start == bound
    for beyond in (LEAST * 0.99, MOST * 1.01):
        with pytest.raises(ConfigError, match="start: must be"):
            decode(AdaptiveClip, {"start": beyond})


def test_the_table_of_keys_has_the_section_and_the_list() -> None:
    found = {row.path: row for row in describe(Experiment, open_variants=False)}
    assert (found["privacy.silo.clip_norm"].kind, found["privacy.silo.clip_norm"].allowed) == (
        "number or a section of keys",
        "> 0",
    )
    assert found["privacy.silo.clip_norm.quantile"].default == "0.5"
    assert found["privacy.silo.channels"].kind == "list of sections of keys"
    assert found["privacy.silo.channels[].share"].allowed == "> 0 and <= 1"
    assert found["privacy.silo.channels[].clip_norm.start"].default == "required"


def test_shares_that_are_left_out_split_the_rest_evenly() -> None:
    given = (ChannelPrivacy(name="b", share=0.4), ChannelPrivacy(name="c"))
    assert shares(given, ["a", "b", "c"]) == pytest.approx({"a": 0.3, "b": 0.4, "c": 0.3}, rel=1e-12)
    assert shares((), ["a"]) == {"a": 1.0}


def test_shares_of_a_third_are_taken_for_all() -> None:
    thirds = tuple(ChannelPrivacy(name=name, share=0.3333333) for name in "abc")
    assert list(channel_problems(thirds, ["a", "b", "c"])) == []
    assert sum(shares(thirds, ["a", "b", "c"]).values()) == pytest.approx(1.0, rel=1e-12)


@dataclass(frozen=True)
class Odd(Strategy):
    """Has a channel whose name could be that of another channel's votes."""

    name = "odd"

    def channels(self, size: int) -> Mapping[str, int]:
        return {"delta": size, "delta/str:votes": 1}


def test_a_channel_cannot_have_the_name_of_another_ones_stream() -> None:
    [line] = broken({"strategy": Odd(), "privacy": Privacy()})
    assert line == "strategy: odd has a channel 'delta/str:votes'; name it by letters, digits and _"
