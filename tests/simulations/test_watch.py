"""The live view: what it draws follows from the folder alone, fits its width, and touches nothing."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from privacy.accountant import upper_epsilon
from privacy.events import Gaussian, Poisson, Repeated, Sampled
from privacy.ledger import Ledger
from server import exchange
from simulations.cli import main
from simulations.running import run
from simulations.watching import course as course_module
from simulations.watching import live
from simulations.watching.bars import Glyphs, needs_ascii
from simulations.watching.course import GONE, LATE, SPARE, Course
from simulations.watching.frame import Frame
from simulations.watching.live import Watched
from simulations.watching.pricing import appraise
from strategies.loading import parse

SILO = {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}


def experiment(**changes: Any) -> Any:
    config = {
        "name": "watched",
        "rounds": 6,
        "task": "logistic",
        "data": {"name": "digits", "silos": 10, "limit": 300},
        "cohort": {"rate": 0.5},
        "privacy": {"silo": SILO},
    }
    return parse(config | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    run(experiment(), out=folder / "private")
    run(experiment(privacy={}), out=folder / "open")
    run(experiment(privacy={"local": SILO}), out=folder / "local")
    return folder


def half(source: Path, folder: Path, rounds: int = 3, **changes: Any) -> Path:
    """A run as it was after some rounds, its lines changed."""
    folder.mkdir(parents=True)
    shutil.copy(source / "lock", folder)
    budget = "budget:\n  epsilon: 50.0\n  delta: 0.001\n"  # Of the view alone: no account is opened.
    text = (source / "experiment.yaml").read_text()
    assert "budget: null\n" in text
    (folder / "experiment.yaml").write_text(text.replace("budget: null\n", budget))
    ledger = [json.loads(line) for line in (source / "ledger.jsonl").read_text().splitlines()]
    kept = [line for line in ledger if line["round"] <= rounds]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))
    rows = (source / "rounds.jsonl").read_text().splitlines()[:rounds]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(json.loads(row) | changes) + "\n" for row in rows))
    return folder


def frame(folder: Path, width: int = 80, *, ascii: bool = False) -> list[str]:  # noqa: A002
    console = Console(width=width, record=True, file=io.StringIO(), markup=False, highlight=False)
    live.once(Watched(folder), console, Glyphs(ascii=ascii))
    return console.export_text().splitlines()


def value(lines: Sequence[str], label: str) -> str:
    (found,) = (line for line in lines if line[:10].rstrip() == label)
    return found[10:]


def test_a_frame_says_what_the_last_line_of_the_run_holds(store: Path, tmp_path: Path) -> None:
    reasons = {LATE: 2, "update is not finite": 1, GONE[0]: 3}
    numbers = {"cohort": 9, "arrived": 3, "failures": 6, "failure_reasons": reasons, "bytes_up": 1500, "bytes_down": 0}
    lines = frame(half(store / "private", tmp_path / "half", **numbers))
    last = json.loads((tmp_path / "half" / "rounds.jsonl").read_text().splitlines()[-1])
    assert lines[0] == "watched: fedavg, logistic on digits, local engine"
    assert " 3/6  " in value(lines, "round")
    assert value(lines, "round").count("━") == 22  # Half of 44 columns: 80 less labels and numbers.
    assert f"{last['accuracy']:.4f}  best " in value(lines, "accuracy")
    assert "          asked 9, answered 3, late 2, refused 1, failed 3" in lines
    assert value(lines, "cohort") == "━" * 70
    assert value(lines, "failures") == "18 in all rounds"  # Six in each of three.
    assert [line.strip() for line in lines if " x " in line] == [
        "9 x silo is not connected",
        "6 x no answer by the deadline",
        "3 x update is not finite",
    ]
    assert value(lines, "bytes") == "4.5 kB up, 0 bytes down"


def test_the_end_that_is_shown_is_the_price_of_all_rounds(store: Path, tmp_path: Path) -> None:
    folder = half(store / "private", tmp_path / "half")
    event = Sampled(Poisson(0.5), Gaussian(1.0))
    end = upper_epsilon(Repeated(event, 6), 1e-3, neighbours="add_remove")
    assert appraise(folder, 6, 1).end == pytest.approx(end)
    spent = json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])["epsilon"]
    assert appraise(folder, 6, 1).spent["silo"] == pytest.approx(
        spent, rel=1e-4
    )  # The run's curve is tight at its end.
    lines = frame(folder)
    assert value(lines, "epsilon").split()[-3:][1:] == ["of", "50"]
    assert any(f"end {end:.3f}"[:8] in line for line in lines)


def test_a_round_that_was_charged_twice_is_in_the_price_of_the_end(store: Path, tmp_path: Path) -> None:
    folder, event = half(store / "private", tmp_path / "half"), Sampled(Poisson(0.5), Gaussian(1.0))
    (folder / "ledger.jsonl").unlink()
    with closing(Ledger(folder / "ledger.jsonl", run="run", dataset="data")) as ledger:
        for round_ in (1, 2, 3, 4, 4, 4):  # Twice broken off.
            ledger.reserve(round_, event, unit="silo", neighbours="add_remove")
    end = upper_epsilon(Repeated(event, 8), 1e-3, neighbours="add_remove")  # Six rounds, and two more attempts.
    assert appraise(folder, 6, 1).end == pytest.approx(end)


def test_turns_pay_once_a_cycle_to_the_end(tmp_path: Path) -> None:
    cyclic = {"sampling": "cyclic", "separation": 2}
    silo = SILO | {"neighbours": "zero_out"}
    run(experiment(cohort=cyclic, privacy={"silo": silo}, rounds=5), out=tmp_path / "run")
    folder = half(tmp_path / "run", tmp_path / "half", 2)
    end = upper_epsilon(Repeated(Gaussian(1.0), 3), 1e-3, neighbours="zero_out")  # Rounds 1, 3 and 5.
    assert appraise(folder, 5, 2).end == pytest.approx(end)
    assert any(f"end {end:.2f}"[:7] in line for line in frame(folder))


def test_the_servers_view_is_priced_while_the_run_goes_on(store: Path, tmp_path: Path) -> None:
    whole = json.loads((store / "local" / "result.json").read_text())["privacy"]["local"]["epsilon_upper"]
    ledger = half(store / "local", tmp_path / "half", 6)
    assert appraise(ledger, 6, 1).spent["silo/local"] == pytest.approx(whole)
    assert f"{whole:.2f}"[:3] in value(frame(ledger), "epsilon s")
    assert f"{whole:.2f}"[:3] in value(frame(store / "local"), "epsilon s")


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("ascii", [False, True])
def test_no_line_is_longer_than_the_width(store: Path, tmp_path: Path, width: int, ascii: bool) -> None:  # noqa: A002
    reasons = {"x" * 500: 99, **{f"reason {number}": number + 1 for number in range(30)}}
    large = {"failures": 500, "failure_reasons": reasons, "bytes_up": 10**15, "bytes_down": 10**15, "cohort": 10**7}
    folder = half(store / "private", tmp_path / "half", **large)
    for run_ in (folder, *store.iterdir()):
        lines = frame(run_, width, ascii=ascii)
        assert max(map(len, lines)) <= width
        watched = Watched(run_)
        course = watched.refresh(wait=True)
        assert course is not None
        drawn = Frame(width, Glyphs(ascii=ascii)).lines(course, watched.pricer.found)
        assert max(line.cell_len for line in drawn) <= width  # Before the console cuts anything off.
        assert not ascii or "".join(lines).isascii()


def test_the_states_are_those_of_the_reasons_that_a_server_gives() -> None:
    assert LATE == exchange.LATE
    assert SPARE == exchange.SPARE
    assert set(GONE) - {"refused: silo_unreachable"} == {exchange.ABSENT, exchange.LOST, exchange.OUTSIDE}


def test_nothing_from_elsewhere_steers_the_terminal(store: Path, tmp_path: Path) -> None:
    reasons = {"\x1b]0;owned\x07\x1b[2J": 1}
    folder = half(store / "private", tmp_path / "half", failures=1, failure_reasons=reasons)
    text = (folder / "experiment.yaml").read_text().replace("name: watched", 'name: "a\\e[31mb"', 1)
    (folder / "experiment.yaml").write_text(text)
    shown = "\n".join(frame(folder))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "?]0;owned??[2J" in shown
    assert "a?[31mb: fedavg" in shown
    row = json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])
    assert "\x1b" not in live.line_of(row, 6)


def test_a_strict_run_shows_no_private_number_even_where_its_lines_hold_one(store: Path, tmp_path: Path) -> None:
    private = {"train_loss": 0.987654, "loss": None, "clip_fraction": 0.876543}
    strict = "\n".join(frame(half(store / "private", tmp_path / "strict", **private)))
    assert "0.98" not in strict
    assert "0.87" not in strict
    assert "withholds private numbers" in strict
    assert "train loss" in "\n".join(frame(half(store / "open", tmp_path / "open", **private)))


def test_watching_writes_nothing_and_locks_nothing(store: Path, tmp_path: Path) -> None:
    folder = half(store / "private", tmp_path / "half")
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
    folder.chmod(0o500)
    with open(folder / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # As the run has it.
        held = Course(folder).held
        frame(folder)
    folder.chmod(0o700)
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()} == before
    assert held is not False  # None where the kernel does not tell.
    assert not Course(folder).held


def test_a_run_that_has_a_result_has_not_ended_while_a_process_goes_on_with_it(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(store / "private", folder)
    watched = Watched(folder)
    assert watched.refresh() is not None
    assert watched.course is not None
    assert watched.course.ended
    if watched.course.held is None:
        pytest.skip("this machine cannot: its kernel does not list locks")
    with open(folder / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not watched.course.ended


def test_a_run_stalls_when_its_next_round_is_long_overdue(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = half(store / "private", tmp_path / "half", seconds={"train": 10.0})
    committed = (folder / "rounds.jsonl").stat().st_mtime
    found = Course(folder)
    found.refresh()
    for later, stalled in ((49, False), (51, True)):  # Five times ten seconds.
        monkeypatch.setattr(course_module.time, "time", lambda later=later: committed + later)
        assert (found.stalled_since == committed) is stalled
    assert "stalled since " in "\n".join(frame(folder))
    assert found.pace_s == 10.0


def test_a_resumed_run_is_followed_and_each_round_is_said_once(store: Path, tmp_path: Path) -> None:
    folder, shown = half(store / "open", tmp_path / "run", 2), list[str]()
    follow = threading.Thread(target=lambda: live.lines(Watched(folder), shown.append, every_s=0.01), daemon=True)
    follow.start()
    await_(lambda: len(shown) == 2)
    rows = (store / "open" / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "new").write_text("".join(rows[:3]))
    (folder / "new").replace(folder / "rounds.jsonl")  # As a resume does.
    await_(lambda: len(shown) == 3)
    with open(folder / "rounds.jsonl", "a") as file:
        file.write("".join(rows[3:])[:-5])
        file.flush()
        await_(lambda: len(shown) == 5)
        file.write("".join(rows[3:])[-5:])
    await_(lambda: len(shown) == 6)
    shutil.copy(store / "open" / "result.json", folder)
    follow.join(timeout=20)
    assert not follow.is_alive()
    assert [line.split()[1] for line in shown] == [f"{number}/6" for number in range(1, 7)]


def await_(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_another_run_in_the_folder_is_begun_anew(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    watched = Watched(folder)
    assert watched.refresh() is None
    half(store / "open", folder, 2)
    first = watched.refresh()
    assert first is not None
    assert first.done == 2
    shutil.rmtree(folder)
    assert watched.refresh() is None
    half(store / "private", folder, 1)
    second = watched.refresh()
    assert second is not None
    assert (second.done, second.private, len(second.series["accuracy"])) == (1, True, 1)


def test_once_prints_a_plain_frame_and_a_pipe_gets_a_line_a_round(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["watch", str(store / "private"), "--once"]) == 0
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    assert value(plain.splitlines(), "state") == "finished, 6 rounds"
    assert main(["watch", str(store / "private")]) == 0
    *rounds, last = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in (store / "private" / "rounds.jsonl").read_text().splitlines()]
    assert [line.split("  ")[0] for line in rounds] == [f"round {number}/6" for number in range(1, 7)]
    assert f"accuracy {rows[2]['accuracy']:.4f}" in rounds[2]
    assert f"{rows[2]['arrived']} of {rows[2]['cohort']} silos" in rounds[2]
    assert last.startswith(f"{store / 'private'}: finished, 6 rounds, accuracy ")


def test_a_folder_of_runs_means_the_newest_and_a_missing_run_is_one_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = time.time()
    for number, name in enumerate(("open", "local", "private")):
        shutil.copytree(store / name, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "rounds.jsonl", (now + number, now + number))
    assert main(["watch", str(tmp_path / "runs")]) == 0
    assert f"{tmp_path / 'runs' / 'private'}: finished" in capsys.readouterr().out
    assert main(["watch", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"confide: {tmp_path / 'none'}: holds no run; ")
    assert error.count("\n") == 1


def test_wait_waits_for_a_run_that_has_not_begun_and_not_for_one_that_is_over(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(store / "open", tmp_path / "runs" / "old")

    def begin() -> None:
        shutil.copytree(store / "private", tmp_path / "late")
        (tmp_path / "late" / "result.json").unlink()
        (tmp_path / "late" / "rounds.jsonl").touch()
        (tmp_path / "late").rename(tmp_path / "runs" / "new")

    timer = threading.Timer(0.3, begin)
    timer.start()
    assert main(["watch", str(tmp_path / "runs"), "--wait", "--once", "--every", "0.05"]) == 0
    timer.join()
    assert "whole silo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("set_", "plain"),
    [
        ({"LANG": "C"}, True),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, True),  # Python's own doing.
        ({"LANG": "en_GB.UTF-8"}, False),
        ({"LANG": "en_GB.UTF-8", "LC_ALL": "POSIX"}, True),
        ({}, False),
    ],
)
def test_a_locale_without_utf_8_gets_ascii(set_: dict[str, str], plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANG", "LC_ALL", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    for name, text in set_.items():
        monkeypatch.setenv(name, text)
    assert needs_ascii() is plain


def test_bars_never_hide_a_first_cost_nor_what_is_left() -> None:
    plain = Glyphs(ascii=True)
    assert plain.bar(1e-9, 10) == "#---------"
    assert plain.bar(0.9999, 10) == "#########-"
    assert plain.bar(1.0, 10) == plain.bar(7.0, 10) == plain.bar(float("inf"), 10) == plain.bar(float("nan"), 10)
    assert plain.bar(1.0, 10) == "##########"
    assert plain.bar(0.0, 10) == "----------"
    assert plain.spark([3.0] * 5, 10) == "::::: "[:5].replace(":", "=")
    assert len(Glyphs().spark([float(number) for number in range(1000)], 33)) == 33
    assert plain.spark(range(1000), 10)[-1] == "#"
