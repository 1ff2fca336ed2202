"""The numbers of privacy/READING_EPSILON.md in the words that stand there; a test finds each in the page, and no other.

Bounds are rounded up, unless what they bound is a comfort, which is rounded down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from privacy.events import Composed, Gaussian
from privacy.meaning import beyond, caught, posterior, wrong_guesses
from simulations.report.words import number
from simulations.studies.reading_epsilon import (
    DELTA,
    NOISE,
    QUICKSTART_DELTA,
    RATE,
    ROUNDS,
    group,
    noise_at,
    normal,
    parts,
    plan,
    price,
    proved,
    reading,
)

TABLE = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)


def said() -> dict[str, str]:
    """A piece of the page's text per subject; what is not computed in them is a plan's own number."""
    return dict([*_table(), *_promise(), *_delta(), *_scope(), *_spent(), *_measured()])


def _up(value: float, digits: int = 3) -> str:
    return number(value, digits, "up")


def _share(part: float, digits: int = 3) -> str:
    """A probability in percent, rounded up, but never to all."""
    return f"{number(100 * part, digits, 'up')}%" if part < 0.9995 else "almost 100%"


def _table() -> Iterator[tuple[str, str]]:
    for each in TABLE:
        after = " | ".join(_share(posterior(prior, each)) for prior in (0.001, 0.01, 0.5))
        yield f"suspicion at {each:g}", f"| {each:g} | {after} | {_up(math.exp(each))} |"
    yield "heads", "| ε | of 1 in 1,000 becomes | of 1% becomes | of 50% becomes | odds grow, times |"


def _promise() -> Iterator[tuple[str, str]]:
    at = price(plan(), QUICKSTART_DELTA)
    yield "the run", f"ε = {_up(at, 4)} at δ = 10⁻⁴"
    yield (
        "the plan",
        f"400 silos, {ROUNDS} rounds, each silo asked with chance {RATE:g}, noise of {NOISE:g} clip norms",
    )
    right = [_share(1 - wrong_guesses(each, DELTA)) for each in (1.0, 4.0)]
    yield "guesses", f"At ε = 1 at most {right[0]} of the guesses are right, at ε = 4 at most {right[1]}"
    seen = _share(normal(0.5 / noise_at(4.0)))
    yield "one release", f"with one Gaussian release of ε = 4, {seen} of them"
    alone = caught(0.01, [(at, QUICKSTART_DELTA)])
    every = caught(0.01, proved(plan()))
    yield "accused", f"falsely accuses 1 silo in 100 may find {_share(alone)} of the members"
    yield "accused, every delta", f"taken at every δ, the same run allows {_share(every)}"


def _delta() -> Iterator[tuple[str, str]]:
    strict = price(plan(), 1e-9)
    yield "small delta", f"At δ = 10⁻⁹ it is {_up(strict)}, and at δ = 10⁻² it is {_up(price(plan(), 1e-2))}"
    yield "one in all", "1/400"
    one = price(Gaussian(1.0), DELTA)
    times = 100_000 * beyond(1.0, one)
    yield (
        "beyond",
        f"noise of one clip norm, ε = {_up(one)} at δ = 10⁻⁵, that happens {_up(times, 2)} times in 100,000",
    )


def _scope() -> Iterator[tuple[str, str]]:
    yield "two rows", f"Where one row costs ε = 1, two cost {_up(group(1.0, 2))} and ten {_up(group(1.0, 10))}"
    yield "many rows", f"with ε = 0.1 for a row, ten rows cost {_up(group(0.1, 10))}"
    from privacy.accountant import upper_epsilon

    replaced = upper_epsilon(plan(), QUICKSTART_DELTA, neighbours="replace")
    yield "replace", f"the quickstart's {_up(price(plan(), QUICKSTART_DELTA), 4)} is {_up(replaced)} that way"
    known = price(plan(rate=1.0), QUICKSTART_DELTA)
    yield "known", f"it would be {_up(known)} if anybody could learn who was in which round"
    yield "rare", f"a secret hundredth in place of a quarter: {_up(price(plan(rate=0.01), QUICKSTART_DELTA))}"
    twice, four = (price(plan(times * ROUNDS), QUICKSTART_DELTA) for times in (2, 4))
    yield "rounds", f"Twice the rounds make {_up(twice)} of it, and four times the rounds {_up(four)}"
    half, double = (price(plan(noise=NOISE * times), QUICKSTART_DELTA) for times in (0.5, 2))
    yield "noise", f"Half the noise makes {_up(half)} of it, twice the noise {_up(double)}"


def _spent() -> Iterator[tuple[str, str]]:
    events = [event for _, event in parts()]
    so_far = [price(Composed(tuple(events[: n + 1])), QUICKSTART_DELTA) for n in range(len(events))]
    names = ("moments", "first run", "again", "second run", "half the noise")
    words = (
        "one release of means and spreads, with noise 5",
        "a run of 60 rounds",
        "a round that broke off and is done again",
        "another run of 60 rounds",
        "20 rounds with half the noise",
    )
    for name, word, spent in zip(names, words, so_far):
        yield name, f"| {word} | {_up(spent)} |"


def _measured() -> Iterator[tuple[str, str]]:
    from privacy.binomial import detectable

    for canaries in (64, 1000):
        low, high = (reading(noise_at(4.0), canaries, side) for side in (-1, 1))
        yield f"{canaries} canaries", f"{canaries:,} canaries read between {number(low)} and {number(high)}"
    yield "missing", f"With half of the noise missing they read {number(reading(noise_at(4.0) / 2, 1000))} instead of 4"
    shown = [number(detectable(canaries, DELTA), 3, "down") for canaries in (64, 1000)]
    yield "counted", f"64 canaries can show {shown[0]} at most, and 1,000 can show {shown[1]}"
    yield "how often", "19 of 20 times"
