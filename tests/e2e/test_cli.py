"""The command line as a person meets it: real processes, signals, pipes and exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIDE = [sys.executable, "-W", "error", "-m", "simulations"]
TIMEOUT_S = 120


def start(folder, *argv, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([*CONFIDE, *map(str, argv)], cwd=folder, env=environment, **pipes)


def confide(folder, *argv):
    process = start(folder, *argv)
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err


def test_help_and_mistakes_load_neither_torch_nor_accounting(tmp_path):
    program = (
        "import sys; from simulations.cli import main; codes = [main(['--help']), main(['run', '--frob'])]; "
        "slow = {'torch', 'numpy', 'scipy', 'sklearn', 'dp_accounting', 'rich'} & set(sys.modules); "
        "sys.exit(f'{codes} {slow}')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[0, 2] set()"
    assert "run an experiment, or go on with one" in done.stdout


def test_importing_the_package_does_not_import_torch():
    program = "import sys, simulations; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=60).returncode == 0


@pytest.mark.integration
def test_json_alone_is_on_stdout_and_progress_on_stderr(tmp_path):
    code, out, err = confide(tmp_path, "run", "quickstart", "--out", "run", "--format", "json")
    assert code == 0
    result = json.loads(out)
    assert result["rounds"] == 60
    assert result["metrics"]["accuracy"] > 0.85
    lines = err.splitlines()
    assert lines[0].startswith("round  1/60  accuracy ")
    assert lines[-1].startswith("round 60/60  accuracy ")
    assert 10 <= len(lines) <= 20


@pytest.mark.integration
def test_the_default_folder_and_a_second_run(tmp_path):
    for _ in range(2):
        code, _, err = confide(tmp_path, "run", "quickstart", "--set", "rounds=1", "--quiet")
        assert (code, err) == (0, "")
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("quickstart-") for folder in folders)


def interrupted(folder, number, *argv):
    """Starts a long run and sends a signal after its first round; returns process and what it said so far."""
    process = start(folder, "run", "quickstart", "--out", "run", "--set", "rounds=100000", *argv)
    assert process.stderr.readline().startswith("round      1/100000")
    process.send_signal(number)
    return process


@pytest.mark.integration
@pytest.mark.parametrize(
    ("number", "engine"), [(signal.SIGINT, "local"), (signal.SIGTERM, "local"), (signal.SIGINT, "pool")]
)
def test_a_signal_ends_the_round_writes_the_result_and_says_how_to_go_on(tmp_path, number, engine):
    process = interrupted(tmp_path, number, "--engine", engine)
    out, err = process.communicate(timeout=TIMEOUT_S)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert process.returncode == 130
    assert result["stopped"] == "interrupted"
    assert f"interrupted after round {result['rounds']}; go on with: confide run --resume run" in err
    assert "epsilon claimed" in out
    assert "Traceback" not in err
    rows = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(row)["round"] for row in rows] == list(range(1, result["rounds"] + 1))
    assert result["privacy"]["silo"]["charged_rounds"] == result["rounds"]


@pytest.mark.integration
def test_a_killed_run_goes_on(tmp_path):
    process = start(tmp_path, "run", "quickstart", "--out", "run", "--set", "rounds=300")
    for line in process.stderr:
        if line.startswith("round  20/300"):
            process.kill()
            break
    process.communicate(timeout=TIMEOUT_S)
    code, out, _ = confide(tmp_path, "run", "--resume", "run", "--format", "json")
    resumed = json.loads(out)
    assert (code, resumed["rounds"], resumed["stopped"]) == (0, 300, None)
    assert resumed["privacy"]["silo"]["charged_rounds"] in (300, 301)  # The round in flight may be paid twice.
    code, out, _ = confide(tmp_path, "run", "quickstart", "--set", "rounds=300", "--format", "json", "--quiet")
    assert json.loads(out)["model"]["sha256"] == resumed["model"]["sha256"]


@pytest.mark.integration
def test_a_second_signal_aborts_and_the_run_can_still_go_on(tmp_path):
    # A round of this run takes long enough for two signals to meet it.
    slow = ["--set", "train.steps=4000", "--set", "rounds=2", "--stacked", "off"]
    process = start(tmp_path, "run", "quickstart", "--out", "run", *slow)
    ledger = tmp_path / "run" / "ledger.jsonl"
    while process.poll() is None and not (ledger.exists() and b"reserve" in ledger.read_bytes()):
        pass
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline().startswith("confide: stopping after the round in flight")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert err == "confide: aborted; go on with: confide run --resume run\n"
    assert not (tmp_path / "run" / "result.json").exists()
    code, _, err = confide(tmp_path, "compare", "run")
    assert (code, err) == (2, "confide: run: has no result yet; end it with: confide run --resume run\n")


@pytest.mark.integration
def test_two_processes_cannot_have_one_folder(tmp_path):
    process = interrupted(tmp_path, 0)
    try:
        code, _, err = confide(tmp_path, "run", "--resume", "run")
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
    assert code == 2
    assert err == "confide: run: another process runs here; wait for it or stop it\n"


@pytest.mark.integration
def test_engines_give_the_same_model(tmp_path):
    hashes = set()
    for name, engine in (("a", ["local"]), ("b", ["pool", "--workers", "3"])):
        argv = ["--set", "rounds=3", "--engine", *engine, "--out", name, "--format", "json", "--quiet"]
        code, out, _ = confide(tmp_path, "run", "quickstart", *argv)
        assert code == 0
        hashes.add(json.loads(out)["model"]["sha256"])
    assert len(hashes) == 1


@pytest.mark.integration
def test_a_live_bar_in_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    process = start(tmp_path, "run", "quickstart", "--out", "run", "--set", "rounds=40", stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed.
            break
        if not part:
            break
        shown += part
    os.close(ours)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert b"round 40/40" in shown
    assert b"accuracy" in shown
    assert "epsilon claimed" in out


@pytest.mark.integration
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)
    process = start(tmp_path, "config", "schema", stdout=theirs)
    os.close(theirs)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (0, "")


@pytest.mark.integration
def test_a_sweep_that_a_signal_stopped_goes_on_and_its_choice_explains_itself(tmp_path):
    argv = ["--over", "train.learning_rate=0.1,0.5", "--runs", "3", "--set", "rounds=20", "--out", "sweep"]
    process = start(tmp_path, "sweep", "quickstart", *argv)
    assert process.stderr.readline().startswith("run-1 of ")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "go on with: confide sweep --resume sweep" in err
    drawn = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["runs"]
    code, out, err = confide(tmp_path, "sweep", "--resume", "sweep", "--format", "json")
    assert code == 0, err
    memory = json.loads(out)
    assert [run["seed"] for run in memory["runs"]] == [run["seed"] for run in drawn]
    code, out, err = confide(tmp_path, "explain", Path("sweep") / memory["chosen"]["run"])
    assert (code, err) == (0, "")
    assert "the sweep that it comes from included" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
