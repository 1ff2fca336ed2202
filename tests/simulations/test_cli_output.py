"""How numbers are said: bounds stay bounds, tables align, progress is neither silent nor endless."""

import os
import re
import signal
import statistics
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.commands import output
from simulations.commands.doctor import satisfies
from simulations.commands.interrupt import SIGNALS, Interrupt
from simulations.commands.progress import LINES, Lines
from simulations.commands.shared import seeds_of
from simulations.outcomes import spread
from strategies.schema import ConfigError

epsilons = st.floats(min_value=1e-6, max_value=1e6)


@given(epsilons, epsilons)
def test_a_bracket_that_is_printed_contains_the_one_that_was_proved(one, other):
    lower, upper = sorted((one, other))
    said = output.bracket(lower, upper)
    low, _, high = said.partition(" to ")
    assert float(high or low) >= upper
    if high:
        assert float(low) <= lower


@given(epsilons)
def test_rounding_outwards_costs_at_most_a_thousandth(value):
    assert value <= float(output.at_most(value)) <= value * 1.001


def test_infinite_epsilon_is_said_in_words():
    assert output.bracket(None, None) == "infinite"
    assert output.at_most(None) == "infinite"


@given(st.lists(st.tuples(st.text("abc def", min_size=1, max_size=8), st.integers(0, 10**9)), min_size=1))
def test_numbers_of_a_table_end_in_one_column(rows):
    lines = output.table(["name", "value"], [[name, str(value)] for name, value in rows]).splitlines()
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_facts_keep_to_the_width(columns):
    said = output.facts([("name", "word " * 60), ("longer name", "short")], columns=columns)
    assert max(map(len, said.splitlines())) <= columns


def rounds_said(rounds, capsys, done=0):
    lines = Lines(rounds, done)
    for number in range(done + 1, rounds + 1):
        lines.show(SimpleNamespace(round=number, row={"accuracy": 0.5, "epsilon": 1.0}))
    said = capsys.readouterr()
    assert said.out == ""
    return [int(re.match(r"round +(\d+)/", line)[1]) for line in said.err.splitlines()]


@pytest.mark.parametrize(("rounds", "done"), [(1, 0), (7, 0), (60, 0), (61, 0), (10_000, 0), (60, 59), (500, 250)])
def test_progress_has_the_first_the_last_and_about_fifteen_lines(rounds, done, capsys):
    said = rounds_said(rounds, capsys, done)
    assert said[0] == done + 1
    assert said[-1] == rounds
    assert len(said) == len(set(said)) <= LINES + 2
    assert len(said) >= min(rounds - done, LINES // 2)


@pytest.mark.parametrize(
    ("text", "seeds"), [("0..4", [0, 1, 2, 3, 4]), ("3..3", [3]), ("0,3,7", [0, 3, 7]), ("5", [5])]
)
def test_seeds(text, seeds):
    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "..", "1..", "a", "1,,2", "-1", "2..1", "0..9999999999", "1 2", "1.5"])
def test_seeds_that_are_none(text):
    with pytest.raises(ConfigError, match="--seeds"):
        seeds_of(text)


def result(accuracy, epsilon):
    claimed = None if epsilon is None else {"epsilon_upper": epsilon}
    return {
        "metrics": {"accuracy": accuracy, "loss": 1.0, "per_silo": None},
        "privacy": {"silo": claimed, "measured": None},
        "communication": {"bytes_up": 10, "bytes_down": 20},
        "seconds": 2.0,
    }


def test_mean_and_sample_deviation_over_seeds():
    mean, std = spread([result(0.5, 1.0), result(0.6, 1.0), result(0.9, 1.0)])
    assert mean["accuracy"] == pytest.approx(2 / 3)
    assert std["accuracy"] == pytest.approx(statistics.stdev([0.5, 0.6, 0.9]))
    assert (mean["epsilon"], std["epsilon"]) == (1.0, 0.0)


def test_what_some_runs_lack_has_no_mean():
    mean, std = spread([result(0.5, 1.0), result(0.6, None)])
    assert "epsilon" not in mean
    assert "epsilon" not in std


def test_one_run_has_no_deviation():
    assert spread([result(0.5, 1.0)])[1]["accuracy"] is None


@pytest.mark.parametrize(
    ("found", "wanted", "ok"),
    [
        ("2.13.0+cpu", ">=2.10,<3", True),
        ("2.9.1", ">=2.10,<3", False),  # As text, 2.9 would come after 2.10.
        ("3.0", ">=2.10,<3", False),
        ("3", ">=3.0", True),
        ("0.6.0", ">=0.6,<0.7", True),
        ("1.0", "", True),
        ("1.0", "~=1.0", False),  # Unknown bounds are refused, not passed.
    ],
)
def test_versions_against_bounds(found, wanted, ok):
    assert satisfies(found, wanted) is ok


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_the_second_raises_and_handlers_come_back(number, capfd):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.asked()
        os.kill(os.getpid(), number)
        assert interrupt.asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.pause()
    assert signal.getsignal(number) is before
    assert "stopping after the round in flight" in capfd.readouterr().err
