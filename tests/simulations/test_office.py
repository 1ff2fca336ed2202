"""A silo's office, from bytes to bytes: what it refuses and why, what it charges and when, what it says twice."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client import engagement
from client.errors import DataError
from client.host import SiloHost
from client.office import MOST_RUNS, Office
from client.policy import Policy
from privacy.accountant import epsilon
from privacy.chain import Entry, load
from privacy.events import Composed, Event, Gaussian, Poisson, Repeated, Sampled
from privacy.ledger import Ledger, LedgerError
from simulations.deploying.opening import Opener
from simulations.preparing import prepare
from strategies.base import Update
from strategies.envelope import decode_task
from strategies.fedavg import FedAvg
from strategies.signing import signed
from tests.simulations.silos import OPEN, RUN, SILO, asked, experiment, hello, office, policy, said

PRIVATE = {"silo": SILO, "noise": "simulated"}
GUARDED: dict[str, Any] = {"unprotected": False, "simulated_noise": True, "silo": {"epsilon": 50.0, "delta": 1e-2}}
Make = Callable[..., Office]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Opens offices in one folder, and closes them at the end; one that is opened takes the place of the one before."""
    with ExitStack() as opened:
        last: list[Office] = []

        def opening(rules: Policy | None = None, **facts: Any) -> Office:
            for before in last:
                before.close()
            last[:] = [office(tmp_path / "silo", rules or policy(), **facts)]
            opened.enter_context(closing(last[0]))
            return last[0]

        yield opening


def entries(folder: Path, unit: str | None = None) -> list[Entry]:
    found = [entry for path in (folder / "silo" / "ledgers").glob("*.jsonl") for entry in load(path).chain.counted()]
    return [entry for entry in found if unit is None or entry.unit == unit]


def events(folder: Path, unit: str = "silo") -> list[Event]:
    return [entry.event for entry in entries(folder, unit) if entry.event is not None]


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "silo" / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds in which the silo half ran."""
    rounds: list[int] = []
    true = SiloHost.trained

    def noted(self: SiloHost, instruction: Any, silos: Any, **facts: Any) -> Any:
        rounds.append(instruction.round)
        return true(self, instruction, silos, **facts)

    monkeypatch.setattr(SiloHost, "trained", noted)
    return rounds


# Who is talked to, and about what.


def test_a_silo_says_its_number_and_trains_only_what_it_was_introduced_to(make: Make) -> None:
    run, silo = experiment(), make(number=2)
    assert said(silo.handle(asked(run))).code == "unknown_run"
    answer = said(silo.handle(hello(run)))
    assert (answer.status, answer.silo, answer.run) == ("ok", 2, RUN)
    update = said(silo.handle(asked(run)), run)
    assert (update.status, update.round, update.silo) == ("ok", 1, 2)
    assert float(update.channels["delta"].norm()) > 0


def test_an_experiment_that_is_not_its_digest_is_refused(make: Make) -> None:
    run, other, silo = experiment(), experiment(seed=7), make()
    text = decode_task(hello(other)).experiment
    assert said(silo.handle(hello(run, experiment=text))).code == "wrong_experiment"
    silo.handle(hello(run))
    assert said(silo.handle(hello(other))).code == "wrong_experiment"  # The same run, with another experiment.
    assert said(silo.handle(asked(other))).code == "wrong_experiment"


def test_a_silo_forgets_the_models_of_old_runs_and_nothing_else(make: Make, trained: list[int]) -> None:
    run, silo = experiment(), make()
    first = silo.handle(hello(run)) and silo.handle(asked(run))
    for number in range(MOST_RUNS):
        silo.handle(hello(run, id_=f"{number:032x}"))
    assert said(silo.handle(asked(run))).code == "unknown_run"
    silo.handle(hello(run))
    assert silo.handle(asked(run)) == first
    assert trained == [1]


# The policy.


@pytest.mark.parametrize(
    ("changes", "rules", "reason"),
    [
        ({"strategy": "mr_mtl"}, {}, "strategy 'mr_mtl' is not allowed here; allowed: fedavg"),
        ({"task": "mlp"}, {}, "task 'mlp' is not allowed here; allowed: logistic"),
        ({}, GUARDED, "silo: the run does not protect it"),
        ({"privacy": PRIVATE}, {**GUARDED, "simulated_noise": False}, "noise from a seed is not allowed here"),
        ({"privacy": PRIVATE}, {**GUARDED, "example": {"epsilon": 9.0, "delta": 1e-4}}, "example: the run does not"),
        ({"privacy": PRIVATE}, {**GUARDED, "server": {"epsilon": 9.0, "delta": 1e-4}}, "server: the run does not"),
        (
            {"privacy": PRIVATE},
            {**GUARDED, "silo": {"epsilon": 50.0, "delta": 1e-2, "least_noise": 2.01}},
            "silo: noise multiplier 2 is below 2.01",
        ),
        (
            {"privacy": PRIVATE},
            {**GUARDED, "silo": {"epsilon": 50.0, "delta": 1e-2, "most_clip_norm": 0.49}},
            "silo: clip norm 0.5 is above 0.49",
        ),
        (
            {"privacy": {"silo": {**SILO, "clip_norm": {"start": 0.5, "count_noise": 2.0}}, "noise": "simulated"}},
            {**GUARDED, "silo": {"epsilon": 50.0, "delta": 1e-2, "most_clip_norm": 9.0}},
            "silo: a clip norm that adapts has no limit",
        ),
        ({}, {"least_examples": 400}, "fewer training rows than the 400"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_with_the_reason_on_both_sides(
    changes: dict[str, Any], rules: dict[str, Any], reason: str, make: Make, tmp_path: Path
) -> None:
    run, silo = experiment(**changes), make(policy(**rules))
    answer = said(silo.handle(hello(run)))
    assert answer.code == "policy"
    assert reason in answer.reason
    assert [(line["what"], line["code"]) for line in log(tmp_path)] == [("refused", "policy")]
    assert reason in log(tmp_path)[0]["reason"]
    assert said(silo.handle(asked(run))).code == "unknown_run"
    assert entries(tmp_path) == []


def test_no_model_is_built_for_what_the_policy_does_not_name(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that may not train a task cannot make the silo load rows or take memory for it either."""
    data = hello(experiment(task={"name": "mlp", "hidden": [64]}))
    monkeypatch.setattr("simulations.deploying.opening.prepare", None)
    monkeypatch.setattr("simulations.deploying.opening.own.named", None)
    assert said(make().handle(data)).code == "policy"


def test_limits_are_kept_exactly(make: Make) -> None:
    allowance = {"epsilon": 50.0, "delta": 1e-2, "least_noise": 2.0, "most_clip_norm": 0.5}
    silo = make(policy(**{**GUARDED, "silo": allowance}))
    assert said(silo.handle(hello(experiment(privacy=PRIVATE)))).status == "ok"


def test_private_numbers_leave_only_by_name(make: Make) -> None:
    run = experiment()
    silo = make()
    silo.handle(hello(run))
    assert said(silo.handle(asked(run, record=True))).code == "policy"
    answer = said(silo.handle(asked(run, "evaluate")))
    assert (answer.code, answer.reason) == ("policy", "loss and score may not leave this silo")
    silo = make(policy(metrics=["train_loss", "loss", "score"]))
    silo.handle(hello(run))
    assert len(said(silo.handle(asked(run, record=True)), run).losses) == 1
    assert said(silo.handle(asked(run, round_=2)), run).losses == ()  # Allowed, and not asked for.
    evaluation = said(silo.handle(asked(run, "evaluate"))).evaluation
    assert evaluation is not None
    assert 0 <= (evaluation.score or 0.0) <= 1


def test_a_dry_run_checks_everything_and_trains_nothing(make: Make, tmp_path: Path, trained: list[int]) -> None:
    run, silo = experiment(), make(policy(dry_run=True, metrics=["loss", "score"]))
    assert said(silo.handle(hello(run))).status == "ok"
    for kind in ("train", "evaluate"):
        assert said(silo.handle(asked(run, kind))).code == "dry_run"
    assert (trained, entries(tmp_path)) == ([], [])


# What is charged, and when.


def test_a_round_is_on_the_disk_before_the_first_step(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Event]] = []

    def spied(*args: Any, **facts: Any) -> Any:
        seen.append(events(tmp_path))
        raise RuntimeError("row 17 says 3.5")

    monkeypatch.setattr(engagement, "answer", spied)
    run, silo = experiment(privacy=PRIVATE), make(policy(**GUARDED))
    silo.handle(hello(run))
    answer = said(silo.handle(asked(run)))
    assert seen == [[Gaussian(2.0)]]
    assert (answer.code, "3.5" in answer.reason) == ("training_failed", False)  # An error may quote a row.
    assert "row 17 says 3.5" in log(tmp_path)[-1]["private"]
    assert events(tmp_path) == [Gaussian(2.0)]  # Something may have been seen: it counts.


def test_an_update_that_the_server_would_refuse_does_not_leave(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words of whoever sums; so the silo knows at once, and forgets what it staged."""
    run, silo = experiment(), make()
    silo.handle(hello(run))
    size = prepare(run).model.start.numel()
    monkeypatch.setattr(
        FedAvg, "local", lambda self, silo, instruction: Update({"delta": torch.full((size,), math.inf)})
    )
    answer = said(silo.handle(asked(run)), run)
    assert (answer.status, answer.code, answer.reason) == ("refused", "training_failed", "update is not finite")


def test_where_the_ledger_cannot_be_written_nothing_is_trained(
    make: Make, monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    run, silo = experiment(privacy=PRIVATE), make(policy(**GUARDED))
    silo.handle(hello(run))

    def full(self: Ledger, data: bytes, *, durable: bool) -> None:
        raise LedgerError("/secret/place/of/ledgers: write failed (No space left on device)")

    monkeypatch.setattr(Ledger, "_write", full)
    answer = said(silo.handle(asked(run)))
    assert (answer.code, answer.reason, trained) == ("ledger", "the silo's ledger cannot be used", [])


def test_who_asks_the_same_again_gets_the_same_bytes_for_nothing(
    make: Make, tmp_path: Path, trained: list[int]
) -> None:
    run = experiment(privacy={"silo": SILO, "noise": "system"})
    silo = make(policy(**GUARDED))
    silo.handle(hello(run))
    first, spent = silo.handle(asked(run)), entries(tmp_path)
    assert said(first, run).status == "ok"
    assert silo.handle(asked(run)) == first
    silo = make(policy(**GUARDED))  # A restart.
    assert said(silo.handle(asked(run))).code == "unknown_run"
    silo.handle(hello(run))
    assert silo.handle(asked(run)) == first
    assert (trained, entries(tmp_path)) == ([1], spent)


def test_another_attempt_is_trained_and_charged_again_and_older_ones_are_over(
    make: Make, tmp_path: Path, trained: list[int]
) -> None:
    run, silo = experiment(privacy=PRIVATE), make(policy(**GUARDED))
    silo.handle(hello(run))
    for round_, attempt in ((1, 1), (1, 2), (3, 1), (2, 5)):
        assert said(silo.handle(asked(run, round_=round_, attempt=attempt)), run).status == "ok"
    assert events(tmp_path) == [Gaussian(2.0)] * 4
    for _ in range(2):
        for round_, attempt in ((1, 1), (1, 2), (2, 4), (3, 1)):
            assert said(silo.handle(asked(run, round_=round_, attempt=attempt))).code == "stale"
        silo = make(policy(**GUARDED))  # Nor after a restart.
        silo.handle(hello(run))
    assert trained == [1, 1, 3, 2]
    assert len(events(tmp_path)) == 4


def test_no_round_passes_the_budget_of_the_rows_whatever_the_run(
    make: Make, tmp_path: Path, trained: list[int]
) -> None:
    """A budget for three Gaussians: two in one run, one in another, then none in any, also after a restart."""
    budget = epsilon(Repeated(Gaussian(2.0), 3), 1e-2).upper * 1.0001
    rules = policy(**{**GUARDED, "silo": {"epsilon": budget, "delta": 1e-2}})
    run, silo, other = experiment(privacy=PRIVATE), make(rules), "f" * 32
    codes = []
    for id_, round_ in ((RUN, 1), (RUN, 2), (other, 1), (other, 2), (RUN, 3)):
        silo.handle(hello(run, id_=id_))
        codes.append(said(silo.handle(asked(run, id_=id_, round_=round_)), run).code)
    assert codes == [None, None, None, "budget", "budget"]
    silo = make(rules)
    silo.handle(hello(run))
    assert said(silo.handle(asked(run, round_=3))).code == "budget"
    assert trained == [1, 2, 1]
    assert epsilon(Composed(tuple(events(tmp_path))), 1e-2).upper <= budget
    private = log(tmp_path)[-1]
    assert "above the budget" in private["private"]  # What other runs spent is for the data holder alone.
    assert "above the budget" not in private["reason"]


def test_equal_rounds_of_two_runs_have_the_price_of_one_run(make: Make, tmp_path: Path) -> None:
    """What looks at the budget knows them as equal; with a filter for unequal ones the fourth would not fit."""
    example = {"clip_norm": 1.0, "noise_multiplier": 1.5, "delta": 1e-4, "batch": 20, "rows": 80}
    run = experiment(privacy={"example": example, "noise": "simulated"})
    due = prepare(run).plan.example
    assert due is not None
    budget = epsilon(Repeated(due.events[0], 4), 1e-4).upper * 1.0001
    rules = policy(unprotected=False, simulated_noise=True, example={"epsilon": budget, "delta": 1e-4})
    silo = make(rules)
    codes = []
    for id_, round_ in ((RUN, 1), (RUN, 2), ("f" * 32, 1), ("f" * 32, 2), ("f" * 32, 3)):
        silo.handle(hello(run, id_=id_))
        codes.append(said(silo.handle(asked(run, id_=id_, round_=round_)), run).code)
    assert codes == [None, None, None, None, "budget"]


def test_a_price_that_counts_on_secret_cohorts_is_paid_for_all_rounds_at_once(make: Make, tmp_path: Path) -> None:
    """A silo does not see the rounds that it is not asked in; they cost it too."""
    run = experiment(privacy=PRIVATE, cohort={"sampling": "poisson", "rate": 0.5})
    once = Sampled(Poisson(0.5), Gaussian(2.0))
    silo = make(policy(**GUARDED))
    silo.handle(hello(run))
    silo.handle(asked(run, round_=2))
    assert epsilon(Composed(tuple(events(tmp_path))), 1e-2).upper == epsilon(Repeated(once, 3), 1e-2).upper
    silo.handle(asked(run, round_=3))
    assert epsilon(Composed(tuple(events(tmp_path))), 1e-2).upper == epsilon(Repeated(once, 3), 1e-2).upper
    silo.handle(asked(run, round_=3, attempt=2))
    assert epsilon(Composed(tuple(events(tmp_path))), 1e-2).upper == epsilon(Repeated(once, 4), 1e-2).upper


def test_attempts_that_a_silo_was_not_asked_in_are_paid_where_rounds_are(make: Make, tmp_path: Path) -> None:
    """Asked in the third attempt at round 1 and the fifth at round 2, it pays for 3 rounds and 2 + 4 attempts more."""
    run = experiment(privacy=PRIVATE, cohort={"sampling": "poisson", "rate": 0.5})
    once = Sampled(Poisson(0.5), Gaussian(2.0))
    silo = make(policy(**GUARDED))
    silo.handle(hello(run))
    for round_, attempt in ((1, 3), (2, 4), (2, 5)):
        assert said(silo.handle(asked(run, round_=round_, attempt=attempt)), run).status == "ok"
    assert epsilon(Composed(tuple(events(tmp_path))), 1e-2).upper == epsilon(Repeated(once, 9), 1e-2).upper


def test_all_that_an_attempt_costs_is_held_against_the_budget_together(make: Make, tmp_path: Path) -> None:
    """A budget for 3 rounds and 2 attempts more: the third attempt fits, the fourth would not, and charges nothing."""
    run = experiment(privacy=PRIVATE, cohort={"sampling": "poisson", "rate": 0.5})
    budget = epsilon(Repeated(Sampled(Poisson(0.5), Gaussian(2.0)), 5), 1e-2).upper * 1.0001
    silo = make(policy(**{**GUARDED, "silo": {"epsilon": budget, "delta": 1e-2}}))
    silo.handle(hello(run))
    assert said(silo.handle(asked(run, attempt=4))).code == "budget"
    assert entries(tmp_path) == []
    assert said(silo.handle(asked(run, attempt=3)), run).status == "ok"


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_no_price_covers_more_rounds_than_the_experiment_has(rate: float, make: Make, trained: list[int]) -> None:
    run = experiment(privacy=PRIVATE, cohort={"sampling": "poisson", "rate": rate})
    silo = make(policy(**GUARDED))
    silo.handle(hello(run))
    assert said(silo.handle(asked(run, round_=3)), run).status == "ok"
    answer = said(silo.handle(asked(run, round_=4)))
    assert (answer.code, answer.reason, trained) == ("stale", "round 4: the run has 3 rounds", [3])


def test_what_a_run_did_not_protect_cannot_be_protected_later(make: Make, tmp_path: Path) -> None:
    run, open_ = experiment(privacy=PRIVATE), experiment()
    silo = make()
    silo.handle(hello(open_, id_="a" * 32))
    silo.handle(asked(open_, id_="a" * 32))
    assert {entry.unit for entry in entries(tmp_path)} == {"silo", "silo/local", "example"}
    silo = make(policy(**GUARDED))  # The policy changed.
    silo.handle(hello(run))
    assert said(silo.handle(asked(run))).code == "budget"


# What a silo keeps for itself.


def personal(folder: Path, id_: str = RUN) -> float:
    table = folder / "silo" / "runs" / id_ / "personal" / "model.current"
    return float(torch.frombuffer(bytearray(table.read_bytes()), dtype=torch.float32).norm())


def test_personal_vectors_stand_only_when_the_server_used_the_update(make: Make, tmp_path: Path) -> None:
    run, rules = experiment(strategy="mr_mtl"), policy(strategies=["mr_mtl"])
    silo = make(rules)
    silo.handle(hello(run))

    def train(round_: int, committed: int, attempt: int = 1) -> str | None:
        vectors = run.strategy.instruct(run.strategy.init(start, torch.Generator(), layout), round_).vectors
        task = replace(decode_task(asked(run, round_=round_, attempt=attempt, committed=committed)), vectors=vectors)
        from strategies.envelope import encode

        return said(silo.handle(encode(task)), run).code

    from simulations.engines import setup

    built = prepare(run).model
    start, layout = built.start, setup.layout(built)
    assert train(1, committed=0) is None
    assert personal(tmp_path) == 0.0
    assert train(2, committed=0) is None  # Round 1 came too late, or was done again without this silo.
    assert personal(tmp_path) == 0.0
    silo = make(rules)  # What was staged is on the disk.
    silo.handle(hello(run))
    assert train(3, committed=2) is None
    assert personal(tmp_path) > 0
    assert train(4, committed=1) == "stale"  # The server went back behind what stands here.
    assert train(4, committed=9) == "stale"  # The silo's folder is an older copy.


# What is not done across machines.


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attacks": [{"name": "sign_flip", "fraction": 0.25}]}, "attacks"),
        (
            {"task": {"name": "lora", "base": "logistic", "weights": "/etc/shadow"}},
            "task.weights: a path means nothing",
        ),
    ],
)
def test_what_silos_cannot_do_is_refused_in_a_line(
    changes: dict[str, Any], reason: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = experiment(**changes)
    shown = decode_task(hello(experiment())).schema
    silo = make(policy(tasks=["logistic", "lora"]))
    answer = said(silo.handle(hello(run, schema=shown)))
    assert answer.code == "unsupported"
    assert reason in answer.reason


def test_another_data_set_another_number_and_another_form_of_rows_are_refused(make: Make) -> None:
    run = experiment()
    assert said(make(data="mnist5k").handle(hello(run))).code == "data"
    assert said(make(number=4).handle(hello(run))).reason == "this is silo 4, the experiment has silos 0 to 3"
    shown = decode_task(hello(run)).schema
    assert shown is not None
    answer = said(make().handle(hello(run, schema=replace(shown, classes=11))))
    assert (answer.code, answer.reason) == ("schema", "classes: the server's rows have 11")


# Signatures.


def test_a_silo_that_names_its_servers_trains_for_nobody_else(make: Make) -> None:
    mine, other, run = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), experiment()
    silo = make(policy(server_keys=[mine.public_key().public_bytes_raw().hex()]))
    said_hello, good = hello(run), signed(hello(run), mine)
    changed = good[:-1] + bytes([good[-1] ^ 1])
    stranger = signed(said_hello, other)
    posing = stranger[:4] + good[4:36] + stranger[36:]
    for data in (said_hello, stranger, changed, posing, good[:50]):
        assert said(silo.handle(data)).code == "signature"
    assert said(silo.handle(good)).status == "ok"
    assert said(silo.handle(asked(run))).code == "signature"
    assert said(silo.handle(signed(asked(run), mine)), run).status == "ok"


def test_a_silo_that_names_nobody_reads_signed_tasks_too(make: Make) -> None:
    assert said(make().handle(signed(hello(experiment()), Ed25519PrivateKey.generate()))).status == "ok"


# One at a time, and never an exception.


def test_a_task_that_waits_too_long_or_for_nobody_is_not_begun(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    run, silo = experiment(), make()
    silo.handle(hello(run))
    begun, go = threading.Event(), threading.Event()

    def slow(*args: Any, **facts: Any) -> Any:
        begun.set()
        go.wait(20)
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(engagement, "answer", slow)
        worker = threading.Thread(target=silo.handle, args=(asked(run),))
        worker.start()
        begun.wait(20)
        assert said(silo.handle(asked(run, round_=2, deadline_s=0.05))).code == "busy"
        assert not silo.close(wait_s=0.05)
        go.set()
        worker.join()
    spent = entries(tmp_path)
    assert said(silo.handle(asked(run, round_=2), cancelled=lambda: True)).code == "deadline"
    assert (trained, entries(tmp_path)) == ([], spent)


def test_two_processes_cannot_share_a_folder(make: Make, tmp_path: Path) -> None:
    make()
    with pytest.raises(DataError, match="another daemon uses this folder"):
        office(tmp_path / "silo", policy())


class Full:
    """A file on a disk that is full."""

    def write(self, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    def close(self) -> None: ...


def test_an_answer_that_cannot_be_logged_does_not_leave(
    make: Make, monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    run, silo = experiment(), make()
    silo.handle(hello(run))
    with monkeypatch.context() as patch:
        patch.setattr(silo._log, "_file", Full())
        answer = said(silo.handle(asked(run)))
        assert (answer.code, answer.channels) == ("ledger", {})
    assert said(silo.handle(asked(run)), run).status == "ok"  # The answer was kept, and can be logged now.
    assert trained == [1]


def test_whatever_bytes_come_the_answer_is_a_refusal_in_words(tmp_path: Path) -> None:
    run = experiment()
    good = [hello(run), asked(run)]

    with closing(office(tmp_path / "silo", Policy(**{**OPEN, "strategies": ("a",), "tasks": ("b",)}))) as silo:

        @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(st.sampled_from(good), st.integers(0, 400), st.binary(min_size=1, max_size=8), st.booleans())
        def check(data: bytes, place: int, bytes_: bytes, cut: bool) -> None:
            spoilt = data[:place] + bytes_ + (b"" if cut else data[place + len(bytes_) :])
            answer = said(silo.handle(spoilt))
            assert answer.status == "refused"
            assert answer.reason.isprintable()

        check()


# Another policy.


def test_a_policy_that_is_read_again_holds_for_the_runs_that_are_open(tmp_path: Path, make: Make) -> None:
    """Every run has to be introduced again; what was paid and answered stays."""
    run, silo = experiment(), make()
    silo.handle(hello(run))
    first = silo.handle(asked(run))
    strict = policy(strategies=["mr_mtl"])
    assert silo.govern(strict, Opener("digits", 0, "cpu", strict))
    assert said(silo.handle(asked(run, round_=2))).code == "unknown_run"
    assert said(silo.handle(hello(run))).code == "policy"
    wide = policy()
    assert silo.govern(wide, Opener("digits", 0, "cpu", wide))
    assert said(silo.handle(hello(run))).status == "ok"
    assert silo.handle(asked(run)) == first
    assert [row["what"] for row in log(tmp_path)].count("policy read") == 2


def test_a_policy_does_not_change_in_the_middle_of_a_task(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run, silo, strict = experiment(), make(), policy(dry_run=True)
    silo.handle(hello(run))
    found: list[bool] = []
    true = SiloHost.trained

    def trained(self: SiloHost, *given: Any, **facts: Any) -> Any:
        found.append(silo.govern(strict, Opener("digits", 0, "cpu", strict)))
        return true(self, *given, **facts)

    monkeypatch.setattr(SiloHost, "trained", trained)
    assert said(silo.handle(asked(run)), run).status == "ok"
    assert found == [False]
    assert not silo.policy.dry_run
