"""What examples of silos have spent: their own silo's charges, and the most of any silo elsewhere."""

from __future__ import annotations

import random
from collections import Counter

from privacy.accountant import epsilon
from privacy.chain import Entry
from privacy.events import Event, Gaussian, Repeated
from privacy.spending import UNNAMED, Spending, worst

A, B = Gaussian(1.0), Gaussian(2.0)
DELTA = 1e-5


def line(event: Event, *silos: int, deal: str = "") -> Entry:
    return Entry(1, "reserve", 1, "example", "add_remove", event, None, silos=silos or None, deal=deal)


def test_a_silo_pays_for_its_own_lines_and_for_those_that_name_nobody() -> None:
    spending = Spending([line(A, 0, 1), line(A, 1), line(B)])
    assert spending.of(0) == Counter({A: 1, B: 1})
    assert spending.of(1) == Counter({A: 2, B: 1})
    assert spending.of(7) == Counter({B: 1})


def test_another_deal_counts_by_the_most_that_one_of_its_silos_paid() -> None:
    """Rows of silo 0 here may all have been in silo 5 there, or in 6, but never in both."""
    there = [line(A, 5, deal="x"), line(A, 5, deal="x"), line(A, 6, deal="x"), line(B, deal="x")]
    spending = Spending([line(A, 0, deal="y"), *there, line(B, 1, deal="z")])
    assert spending.within(0, "y") == Counter({A: 1})
    assert spending.elsewhere("y") == Counter({A: 2, B: 2})
    assert spending.of(0, "y") == Counter({A: 3, B: 2})
    assert spending.of(3, "new") == Counter({A: 3, B: 2})


def test_no_row_ever_pays_less_than_what_its_own_silos_were_charged() -> None:
    """Every deal gives every row a silo; the bound must hold for each way that rows can lie."""
    draw = random.Random(0)
    for _ in range(200):
        entries = [
            line(draw.choice([A, B]), *draw.sample(range(4), draw.randint(0, 4)), deal=draw.choice("xyz"))
            for _ in range(draw.randint(1, 12))
        ]
        spending = Spending(entries)
        row = {deal: draw.randrange(4) for deal in "xyz"}
        paid = Counter(each.event for each in entries if not each.silos or row[each.deal] in each.silos)
        for deal, silo in row.items():
            assert paid <= spending.of(silo, deal)


def test_silos_that_spent_the_same_share_a_history() -> None:
    histories = Spending([line(A, 0, 1), line(B, 2), line(A, 3), line(B)]).histories()
    assert [silos for _, silos in histories] == [[("", 0), ("", 1), ("", 3)], [("", 2)], [("", UNNAMED)]]
    assert [sorted(spent.values()) for spent, _ in histories] == [[1, 1], [2], [1]]


def test_the_worst_silo_is_the_price_of_all() -> None:
    spending = Spending([line(A, 0), *[line(B, 1)] * 5, line(B, 2)])
    assert worst(spending, DELTA, neighbours="add_remove").upper == epsilon(Repeated(B, 5), DELTA).upper
    assert worst(Spending(), DELTA, neighbours="add_remove").upper == 0.0


def test_a_silo_named_twice_on_a_line_pays_once() -> None:
    assert Spending([line(A, 0, 0)]).of(0) == Counter({A: 1})
