"""The page on reading an epsilon says what the accountant says, and its pictures are those that it draws today."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from privacy.accountant import upper_epsilon
from privacy.events import Gaussian
from privacy.gaussian import epsilon
from privacy.meaning import beyond, caught, posterior, wrong_guesses
from simulations.preparing import prepare
from simulations.shipped import find
from simulations.studies import reading_epsilon as study
from simulations.studies.reading_epsilon_said import said
from strategies.loading import load

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "privacy" / "READING_EPSILON.md"
FIGURES = ROOT / "simulations" / "studies" / "figures"
# Digits that are left once all that was computed is taken out: what the page asks about.
GIVEN = ("ε = 1 ", "ε = 1,", "ε = 4,", "ε = 4.", "ε = 0.1", "δ = 10⁻⁵", "instead of 4", "400 silos", "noise 5")


def prose() -> str:
    """The page on one line, without links and code."""
    text = re.sub(r"\]\([^)]*\)|`[^`]*`", "", PAGE.read_text())
    return " ".join(text.split())


def test_every_number_of_the_page_is_computed() -> None:
    left = prose()
    for subject, words in said().items():
        assert words in left, f"{subject}: the page does not say {words!r}"
        left = left.replace(words, "")
    for words in ("4.192 at its δ", "0 means that", "Below 1 the table", "at 4 the promise", "from 8 on"):
        assert words in left
        left = left.replace(words, "")
    for words in GIVEN:
        left = left.replace(words, "")
    assert re.findall(r".{0,30}\d.{0,30}", left) == []


def test_the_example_is_the_quickstart() -> None:
    experiment = load(find("quickstart"))
    prepared, silo = prepare(experiment), experiment.privacy.silo
    assert silo is not None
    assert silo.delta == study.QUICKSTART_DELTA
    at = upper_epsilon(prepared.plan.after(study.ROUNDS), silo.delta)
    assert at == study.price(study.plan(), study.QUICKSTART_DELTA)
    assert prepared.plan.sampler.population == 400


@pytest.mark.parametrize(
    "draw",
    [
        study.guesses,
        study.beliefs,
        study.accusations,
        study.deltas,
        study.units,
        study.rounds,
        study.spending,
        study.audits,
    ],
)
def test_the_pictures_are_those_of_today_and_stand_in_the_page(draw: object) -> None:
    figure = draw()  # type: ignore[operator]
    kept = (FIGURES / f"{figure.name}.svg").read_text()
    for now, then in zip(curves(figure.svg), curves(kept), strict=True):
        assert now == pytest.approx(then, abs=0.2)  # A coordinate is written to .1 of a pixel.
    for part in ("title", "desc"):
        assert re.findall(f"<{part} .*?</{part}>", figure.svg) == re.findall(f"<{part} .*?</{part}>", kept)
    assert f"figures/{figure.name}.svg)" in PAGE.read_text()


def curves(svg: str) -> list[list[float]]:
    """The points of each curve, in pixels; how a picture looks apart from them may change."""
    return [[float(each) for each in re.split("[ L]", path)] for path in re.findall(r' d="M([\d. L]+)"', svg)]


def test_a_gaussian_release_is_bounded_by_its_pairs_and_they_come_close() -> None:
    # Dong, Roth & Su 2022: of noise z an attacker finds Phi(Phi^-1(x) + 1/z), and all pairs together say just that.
    pairs = [(epsilon(1.0, delta), delta) for delta in (10 ** (-step / 16) for step in range(1, 129))]
    for accused, found in ((0.01, 0.0924), (0.1, 0.3891), (0.5, 0.8413)):
        assert found <= caught(accused, pairs) <= found + 0.005
        assert caught(accused, pairs[64:65]) > found + 0.02


def test_guesses_right_half_of_the_time_at_no_epsilon_and_never_wrong_without_a_limit() -> None:
    assert wrong_guesses(0.0, 0.0) == 0.5
    assert wrong_guesses(math.inf, 0.0) < 1e-300
    assert wrong_guesses(0.0, 0.5) == 0.25  # A mechanism that shows all, half of the time, leaves half of the guesses.
    # The exact error of one Gaussian release is Phi(-1/2z): .3085 at z = 1. The promise lies below at every delta.
    for delta in (1e-9, 1e-5, 1e-2):
        assert wrong_guesses(upper_epsilon(Gaussian(1.0), delta), delta) < 0.3085


def test_odds_grow_by_a_power_of_e() -> None:
    for prior in (0.001, 0.3, 0.9):
        after = posterior(prior, 2.0)
        assert after / (1 - after) == pytest.approx(math.e**2 * prior / (1 - prior), rel=1e-12)
    assert posterior(0.2, 0.0) == pytest.approx(0.2, rel=1e-12)


def test_more_is_told_more_often_than_delta_says() -> None:
    # delta = P[loss > eps] - e^eps Q[loss > eps] (Balle & Wang 2018, theorem 5): the first term alone is larger.
    for noise in (0.5, 1.0, 4.0):
        at = epsilon(noise, 1e-5)
        other = 0.5 * math.erfc((at * noise + 0.5 / noise) / math.sqrt(2))
        assert beyond(noise, at) - math.exp(at) * other == pytest.approx(1e-5, rel=1e-6)


def test_rounds_cost_less_than_as_many_times_one() -> None:
    once, twice = (study.price(study.plan(rounds), 1e-4) for rounds in (60, 120))
    assert once < twice < 2 * once


@pytest.mark.parametrize("bad", [math.nan, -0.1])
def test_what_is_no_epsilon_is_refused(bad: float) -> None:
    for ask in (
        lambda: wrong_guesses(bad, 0.1),
        lambda: posterior(0.1, bad),
        lambda: caught(0.1, [(bad, 0.0)]),
        lambda: beyond(1.0, bad),
        lambda: caught(bad, []),
        lambda: wrong_guesses(1.0, bad),
    ):
        with pytest.raises(ValueError, match="must be"):
            ask()
