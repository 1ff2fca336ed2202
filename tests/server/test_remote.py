"""Rounds with silos elsewhere: who counts, who is waited for, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from privacy.chain import Head
from privacy.contributions import Partial
from privacy.events import Gaussian
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from server import exchange
from server.book import Book
from server.exchange import PATIENT_S
from server.link import Request
from server.post import Answer
from server.remote import SILENT, RemoteLink, Unreachable
from server.store import StoreError
from server.terms import Terms
from strategies.base import Instruction, Strategy
from strategies.envelope import Columns, Reply, Schema, Task, decode_task, encode, refusal
from strategies.layout import Layout
from tests.server.posts import FakePost, Silo, Time, silo

SIZE, SILOS, DEADLINE = 4, 3, 60.0
EXACT: dict[str, Mechanism] = {"delta": ExactSum()}
PRIVATE: dict[str, Mechanism] = {"delta": GaussianSum(clip_norm=1.0, noise_multiplier=1.0)}
LAYOUT = Layout.of(torch.nn.Linear(SIZE, 1, bias=False))
TERMS = Terms(
    strategy=Strategy(),
    layout=LAYOUT,
    digest="d" * 64,
    experiment="rounds: 1\n",
    schema=Schema(kind="classification", shape=(SIZE,), classes=2),
    population=SILOS,
    chunk=2,
    deadline_s=DEADLINE,
)


def adds(number: int) -> Callable[[Task], Reply]:
    """The work of a silo whose update is `number + 1` on every coordinate, from whatever model."""
    head = Head(7, "a" * 64)

    def work(task: Task) -> Reply:
        if task.kind == "evaluate":
            return Reply(evaluation=Columns(rows=10 + number, loss=0.5, score=None), ledger=head)
        losses = (0.25,) if task.record else ()
        return Reply(channels={"delta": torch.full((SIZE,), number + 1.0)}, losses=losses, ledger=head)

    return work


def federation(folder: Path, terms: Terms = TERMS, **silos: Silo) -> tuple[RemoteLink, FakePost, Time]:
    """Node 10 + k speaks for silo k; `s1=...` puts another silo at node 11."""
    time = Time()
    post = FakePost(time, {10 + number: silo(number, adds(number)) for number in range(SILOS)})
    post.silos |= {10 + int(name[1:]): each for name, each in silos.items()}
    return RemoteLink(post, Book(folder / "federation.json"), terms, clock=time.clock), post, time


def ask(
    link: RemoteLink, round_: int = 1, mechanisms: dict[str, Mechanism] = EXACT, record: bool = False
) -> list[Partial]:
    instruction = Instruction(round_, {"model": torch.zeros(SIZE)})
    return list(link.ask([Request(instruction, list(range(SILOS)))], mechanisms, record=record))


def total(partials: list[Partial]) -> float:
    return float(sum(partial.sums["delta"][0] for partial in partials))


def reasons(partials: list[Partial]) -> dict[int, str]:
    return {failure.silo: failure.reason for partial in partials for failure in partial.failures}


def test_chunks_are_those_of_every_engine(tmp_path: Path) -> None:
    """Silos 0 and 1 make 1 + 2, silo 2 alone makes 3."""
    link, post, time = federation(tmp_path)
    partials = ask(link, record=True)
    assert [float(partial.sums["delta"][0]) for partial in partials] == [3.0, 3.0]
    assert [partial.chunk for partial in partials] == [0, 1]
    assert [partial.losses for partial in partials] == [(0.25, 0.25), (0.25,)]
    assert time.now < 1.0  # All answered: nobody waits for the deadline.
    assert {task.experiment for _, task in post.asked("hello")} == {"rounds: 1\n"}


def test_updates_are_clipped_on_arrival(tmp_path: Path) -> None:
    """Norms 2, 4 and 6, clipped to 1: each coordinate of each is 1/2."""
    link, _, _ = federation(tmp_path)
    assert total(ask(link, mechanisms=PRIVATE)) == pytest.approx(1.5, abs=1e-12)


def test_a_late_silo_is_counted_and_never_summed(tmp_path: Path) -> None:
    link, post, time = federation(tmp_path)
    ask(link)
    post.delays[12] = DEADLINE + 5.0
    before = time.now
    late = ask(link, round_=2)
    assert reasons(late) == {2: exchange.LATE}
    assert total(late) == 3.0
    assert DEADLINE <= time.now - before < DEADLINE + 1.0
    post.delays[12] = 0.0
    time.now += 60.0  # The answer of round 2 lies ready now.
    assert total(ask(link, round_=3)) == 6.0
    assert [task.round for node, task in post.asked("train") if node == 12] == [1, 2, 3]


def test_a_silo_that_left_is_not_waited_for(tmp_path: Path) -> None:
    link, post, time = federation(tmp_path)
    ask(link)
    gone = post.silos.pop(11)
    before = time.now
    assert reasons(ask(link, round_=2)) == {1: exchange.ABSENT}
    assert time.now - before < 1.0
    post.silos[99] = gone  # It is back, through another node.
    ask(link, round_=3)
    assert reasons(ask(link, round_=4)) == {}


@pytest.mark.parametrize("mechanisms", [PRIVATE, EXACT], ids=["private", "exact"])
def test_a_round_ends_on_a_count_only_without_privacy(tmp_path: Path, mechanisms: dict[str, Mechanism]) -> None:
    """A quorum of 2 of 3: silo 2 takes 30 s."""
    link, post, time = federation(tmp_path, replace(TERMS, quorum=0.6))
    ask(link)
    post.delays[12] = 30.0
    before = time.now
    found = reasons(ask(link, round_=2, mechanisms=mechanisms))
    if mechanisms is PRIVATE:
        assert found == {}
        assert time.now - before >= 30.0
    else:
        assert found == {2: exchange.SPARE}
        assert time.now - before < 1.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run": "0" * 32}, exchange.OTHER_RUN),
        ({"digest": "0" * 64}, exchange.OTHER_RUN),
        ({"round": 2}, exchange.OTHER_ROUND),
        ({"attempt": 2}, exchange.OTHER_ROUND),
        ({"silo": 0}, exchange.OTHER_SILO),
        ({"channels": {"delta": torch.ones(SIZE + 1)}}, exchange.UNREADABLE),
        ({"channels": {"other": torch.ones(SIZE)}}, exchange.UNREADABLE),
        ({"channels": {"delta": torch.ones(SIZE, dtype=torch.float64)}}, exchange.UNREADABLE),
        ({"channels": {"delta": torch.ones(1, SIZE)}}, exchange.UNREADABLE),
        ({"channels": {}}, exchange.UNREADABLE),
        ({"channels": {"delta": torch.full((SIZE,), math.nan)}}, "update is not finite"),
        ({"weight": None}, "weight is not in [0, 1]"),
        ({"weight": 2.0}, "weight is not in [0, 1]"),
    ],
)
def test_what_is_not_of_the_question_is_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    """Silo 1 spoils its reply; 1 + 3 remain."""
    spoilt = silo(1, adds(1), wrong=lambda reply: replace(reply, **change))  # type: ignore[arg-type]
    link, _, _ = federation(tmp_path, s1=spoilt)
    partials = ask(link)
    assert reasons(partials) == {1: reason}
    assert total(partials) == 4.0


@pytest.mark.parametrize(
    "data", [None, b"", b"cfde" * 4, b"\x80\x05cos\nsystem\n"], ids=["lost", "none", "no", "pickle"]
)
def test_bytes_of_any_origin_are_refused(tmp_path: Path, data: bytes | None) -> None:
    good, joined = silo(1, adds(1)), []

    def spoilt(letter: bytes) -> bytes | None:
        if not joined:
            joined.append(True)
            return good(letter)
        return data

    link, _, _ = federation(tmp_path, s1=spoilt)
    partials = ask(link)
    assert reasons(partials) == {1: exchange.LOST if data is None else exchange.UNREADABLE}
    assert total(partials) == 4.0


def test_a_silo_that_may_not_join_again_is_not_waited_for(tmp_path: Path) -> None:
    link, post, time = federation(tmp_path)
    ask(link)
    post.silos[11] = lambda letter: encode(
        refusal("unknown_run" if decode_task(letter).kind == "train" else "policy", "not any more", silo=1)
    )
    assert reasons(ask(link, round_=2)) == {1: exchange.OUTSIDE}
    assert time.now < 1.0


def test_a_replayed_reply_is_of_another_round(tmp_path: Path) -> None:
    kept: list[bytes] = []
    good = silo(1, adds(1))

    def replays(letter: bytes) -> bytes | None:
        reply = good(letter)
        assert reply is not None
        kept.append(reply)
        return reply if len(kept) < 3 else kept[1]  # Hello, round 1, then round 1 again.

    link, _, _ = federation(tmp_path, s1=replays)
    assert reasons(ask(link)) == {}
    assert reasons(ask(link, round_=2)) == {1: exchange.OTHER_ROUND}


def test_a_second_answer_to_a_letter_counts_once(tmp_path: Path) -> None:
    link, post, _ = federation(tmp_path)
    post.twice = True
    assert total(ask(link)) == 6.0


@pytest.mark.parametrize("deadline", [PATIENT_S, PATIENT_S - 1])
def test_an_answer_that_was_lost_is_asked_for_again_at_half_time(tmp_path: Path, deadline: float) -> None:
    """Where the question is open for long enough; the silo itself gives the same answer to the same letter."""
    link, post, time = federation(tmp_path, replace(TERMS, deadline_s=deadline))
    ask(link)
    post.delays[12] = None
    sent, true = [], post.note

    def note(node: int, data: bytes) -> None:
        true(node, data)
        if node == 12 and decode_task(data).kind == "train":
            sent.append(time.now)
            post.delays[12] = None if len(sent) == 1 else 0.0

    post.note = note  # type: ignore[method-assign]
    before = time.now
    partials = ask(link, round_=2)
    if deadline < PATIENT_S:
        assert (len(sent), reasons(partials)) == (1, {2: exchange.LATE})
        return
    assert (total(partials), reasons(partials)) == (6.0, {})
    assert sent[1] - before == pytest.approx(deadline / 2, abs=0.2)
    again = [task for node, task in post.asked("train") if node == 12][1:]
    assert [(task.round, task.attempt) for task in again] == [(2, 1), (2, 1)]
    assert [node for node, task in post.asked("train") if task.round == 2] == [10, 11, 12, 12]  # Nobody else.


def test_who_works_for_longer_than_half_the_time_counts_once_whatever_becomes_of_the_second_letter(
    tmp_path: Path,
) -> None:
    """The second letter is lost by its relay; the answer to the first one comes later, and is the silo's."""
    link, post, time = federation(tmp_path, replace(TERMS, deadline_s=PATIENT_S))
    ask(link)
    calls: list[bytes] = []
    true = post.silos[12]

    def works(data: bytes) -> bytes | None:
        if decode_task(data).kind == "train":
            calls.append(data)
            post.delays[12] = 1.0  # Of the next letter.
        return true(data) if len(calls) < 2 else None

    post.silos[12], post.delays[12] = works, 0.8 * PATIENT_S
    before = time.now
    partials = ask(link, round_=2)
    assert (total(partials), reasons(partials), len(calls)) == (6.0, {}, 2)
    assert time.now - before == pytest.approx(0.8 * PATIENT_S, abs=0.3)


def test_a_refusal_says_why_by_its_code(tmp_path: Path) -> None:
    def budget(task: Task) -> Reply:
        return refusal("budget", "epsilon 3.2 would pass 3.0")

    refuses = silo(1, budget)
    link, _, _ = federation(tmp_path, s1=refuses)
    assert reasons(ask(link)) == {1: "refused: budget"}


def test_a_silo_that_forgot_the_run_is_told_it_again_within_the_round(tmp_path: Path) -> None:
    link, post, _ = federation(tmp_path)
    ask(link)
    post.silos[11] = silo(1, adds(1))  # Started again: it knows no run.
    partials = ask(link, round_=2)
    assert total(partials) == 6.0
    assert len(post.asked("hello")) == SILOS + 1


def test_a_silo_that_forgets_at_once_is_asked_twice_and_no_more(tmp_path: Path) -> None:
    def forgets(letter: bytes) -> bytes | None:
        return silo(1, adds(1))(letter)

    link, post, time = federation(tmp_path, s1=forgets)
    assert reasons(ask(link)) == {1: "refused: unknown_run"}
    assert len([task for node, task in post.asked("train") if node == 11]) == 2
    assert time.now < 1.0


def test_two_nodes_cannot_speak_for_one_silo(tmp_path: Path) -> None:
    link, post, _ = federation(tmp_path)
    post.silos[50] = silo(1, lambda task: Reply(channels={"delta": torch.full((SIZE,), 100.0)}))
    assert total(ask(link)) == 6.0
    assert [node for node, _ in post.asked("train")] == [10, 11, 12]
    assert "speaks through another node" in link.roll.refused[50]


def test_nobody_there_is_a_bounded_wait_and_one_line(tmp_path: Path) -> None:
    link, post, time = federation(tmp_path)
    post.silos.clear()
    with pytest.raises(Unreachable, match="no node is connected"):
        ask(link)
    assert DEADLINE <= time.now < DEADLINE + 1.0


def test_when_all_silos_leave_a_run_waits_for_one_and_then_stops(tmp_path: Path) -> None:
    """Else the rounds that are left would run through in a moment, all paid, and add noise alone."""
    link, post, time = federation(tmp_path)
    ask(link, mechanisms=PRIVATE)
    silos, post.silos = post.silos, {}
    before = time.now
    with pytest.raises(Unreachable, match="no node is connected"):
        ask(link, round_=2, mechanisms=PRIVATE)
    assert DEADLINE <= time.now - before < DEADLINE + 1.0
    assert link.evaluate(Instruction(2, {}), [0, 1]).silos == ()  # Which costs nothing, and loses no round.
    post.silos = {11: silos[11]}
    assert reasons(ask(link, round_=2, mechanisms=PRIVATE)) == {0: exchange.ABSENT, 2: exchange.ABSENT}


@pytest.mark.parametrize("answered", [False, True])
def test_when_nobody_answers_a_run_stops_after_a_few_rounds(tmp_path: Path, answered: bool) -> None:
    """Their nodes are there, the silos behind them are not; one answer in between begins the count anew."""
    link, post, _ = federation(tmp_path)
    ask(link)
    silos = dict(post.silos)
    gone = {node: lambda data: encode(refusal("silo_unreachable", "x", task=decode_task(data))) for node in silos}
    post.silos |= gone
    for round_ in range(2, 2 + SILENT - 1):
        assert set(reasons(ask(link, round_=round_)).values()) == {"refused: silo_unreachable"}
    if answered:
        post.silos[12] = silos[12]
        assert set(reasons(ask(link, round_=8))) == {0, 1}
        post.silos |= gone
        assert len(reasons(ask(link, round_=9))) == SILOS
        return
    with pytest.raises(Unreachable, match="in 3 rounds in a row: refused: silo_unreachable; look at the silos"):
        ask(link, round_=8)


def test_who_refuses_the_run_is_told_with_the_reason(tmp_path: Path) -> None:
    link, post, _ = federation(tmp_path)
    post.silos = {10: lambda letter: encode(refusal("policy", "no"))}
    with pytest.raises(Unreachable, match="policy: no"):
        ask(link)


def test_an_older_copy_of_a_ledger_is_refused(tmp_path: Path) -> None:
    link, post, _ = federation(tmp_path)
    ask(link)
    link.stage()
    link.commit(1)
    for seq, hash_, reason in ((6, "b", exchange.OLD_LEDGER), (7, "b", exchange.OLD_LEDGER), (8, "b", None)):
        head = Head(seq, hash_ * 64)
        post.silos[11] = silo(1, adds(1), wrong=lambda reply, head=head: replace(reply, ledger=head))  # type: ignore[misc]
        found = reasons(ask(link, round_=2))
        assert found.get(1) == reason, seq
    post.silos[11] = silo(1, adds(1), wrong=lambda reply: replace(reply, ledger=None))
    assert reasons(ask(link, round_=2)) == {1: exchange.OLD_LEDGER}


def test_silos_learn_the_last_round_that_used_their_update(tmp_path: Path) -> None:
    """Silo 1 is late in round 2: what it staged there must not become current."""
    link, post, _ = federation(tmp_path)
    link.recover(0)
    for round_ in (1, 2):
        post.delays[11] = None if round_ == 2 else 0.0
        ask(link, round_=round_)
        link.stage()
        link.commit(round_)
    post.delays[11] = 0.0
    ask(link, round_=3)
    told = {node: task.committed for node, task in post.asked("train") if task.round == 3}
    assert told == {10: 2, 11: 1, 12: 2}


def test_silos_that_are_asked_alike_get_one_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is written down once for all of them, whoever joins when."""
    link, post, _ = federation(tmp_path)
    sent: list[Mapping[int, bytes]] = []
    true = post.send

    def send(letters: Mapping[int, bytes], *, ttl_s: float) -> Mapping[str, int]:
        sent.append(letters)
        return true(letters, ttl_s=ttl_s)

    monkeypatch.setattr(post, "send", send)
    ask(link)
    link.book.page.used[1] = 1
    ask(link, round_=2)
    train = [letters for letters in sent if decode_task(letters[10]).kind == "train"]
    assert [len({id(data) for data in letters.values()}) for letters in train] == [1, 2]
    assert train[1][10] is train[1][12]


def test_answers_of_large_models_are_fetched_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer takes 28 bytes, 12 of them for its header, so two fit into 60."""
    monkeypatch.setattr(exchange, "FETCHED", 60)
    link, post, _ = federation(tmp_path)
    fetched: list[int] = []
    true = post.fetch

    def fetch(letters: Collection[str]) -> Sequence[Answer]:
        fetched.append(len(letters))
        return true(letters)

    monkeypatch.setattr(post, "fetch", fetch)
    link.roll.look()
    link.roll.hear()
    fetched.clear()
    assert total(ask(link)) == 6.0
    assert fetched[-2:] == [2, 1]


def test_a_refused_update_does_not_stand_at_its_silo(tmp_path: Path) -> None:
    """Silo 1's update of round 2 is not finite: the sum leaves it out, so its silo must forget that round."""
    bad = torch.full((SIZE,), math.inf)
    spoilt = silo(
        1, adds(1), wrong=lambda reply: replace(reply, channels={"delta": bad}) if reply.round == 2 else reply
    )
    link, post, _ = federation(tmp_path, s1=spoilt)
    link.recover(0)
    for round_ in (1, 2, 3):
        ask(link, round_=round_)
        link.stage()
        link.commit(round_)
    told = {node: task.committed for node, task in post.asked("train") if task.round == 3}
    assert told == {10: 2, 11: 1, 12: 2}


def test_a_server_killed_while_it_waits_makes_no_attempt_twice(tmp_path: Path) -> None:
    """Nothing but the asking itself wrote anything down."""
    for attempt in (1, 2, 3):
        link, post, _ = federation(tmp_path)
        link.recover(0)
        ask(link)
        assert {task.attempt for _, task in post.asked("train")} == {attempt}


def test_a_restart_begins_the_round_anew_as_another_attempt(tmp_path: Path) -> None:
    link, _, _ = federation(tmp_path)
    link.recover(0)
    ask(link)
    link.stage()
    link.commit(1)
    ask(link, round_=2)
    link.stage()  # Killed here, before the checkpoint of round 2.
    again, newer, _ = federation(tmp_path)
    again.recover(1)
    assert again.book.run == link.book.run
    ask(again, round_=2)
    assert {(task.round, task.attempt, task.committed) for _, task in newer.asked("train")} == {(2, 2, 1)}
    again.stage()
    later, last, _ = federation(tmp_path)
    later.recover(2)  # Killed after the checkpoint of round 2, before anything else.
    ask(later, round_=3)
    assert {(task.round, task.attempt, task.committed) for _, task in last.asked("train")} == {(3, 1, 2)}


def test_a_run_without_its_book_goes_on_only_where_silos_keep_nothing(tmp_path: Path) -> None:
    link, _, _ = federation(tmp_path)
    link.recover(4)
    keeping, _, _ = federation(tmp_path / "other", replace(TERMS, keeps=True))
    with pytest.raises(StoreError, match="is missing"):
        keeping.recover(4)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": "x", "round": 0, "attempt": 0, "pages": []}'])
def test_a_damaged_book_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "federation.json").write_text(text)
    with pytest.raises(StoreError, match="damaged"):
        Book(tmp_path / "federation.json")


def test_evaluation_leaves_out_who_is_away(tmp_path: Path) -> None:
    link, post, _ = federation(tmp_path)
    ask(link)
    del post.silos[11]
    found = link.evaluate(Instruction(2, {"model": torch.zeros(SIZE)}), [0, 1, 2], split="validation", fresh=True)
    assert (found.silos, found.rows) == ((0, 2), (10, 12))
    assert all(math.isnan(score) for score in found.score)
    assert {(task.split, task.fresh) for _, task in post.asked("evaluate")} == {("validation", True)}


def test_closing_tells_who_is_there_and_waits_little(tmp_path: Path) -> None:
    link, post, time = federation(tmp_path)
    ask(link)
    link.stage()
    link.commit(1)
    post.delays |= dict.fromkeys(post.silos, None)
    before = time.now
    link.close()
    assert [(task.kind, task.committed) for _, task in post.sent[-SILOS:]] == [("close", 1)] * SILOS
    assert time.now - before < 16.0


def test_the_price_does_not_ask_who_answered() -> None:
    """The mechanism's event is of clip norm and noise alone."""
    assert PRIVATE["delta"].event == Gaussian(1.0)
