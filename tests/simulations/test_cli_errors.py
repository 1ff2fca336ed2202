"""What a user can get wrong: one line each, exit code 2, and nothing left behind."""

import pytest

from simulations.cli import main

EPSILON = ["epsilon", "--noise-multiplier", "1", "--rounds", "10", "--delta", "1e-5"]
QUICK = ["run", "quickstart", "--quiet", "--out", "out"]

ERRORS = [
    ([], "the following arguments are required: COMMAND; see: confide --help"),
    (["run", "--frob"], "unrecognized arguments: --frob; see: confide --help"),
    (["run", "--format", "xml"], "argument --format: invalid choice: 'xml' (choose from 'table', 'json')"),
    (["run"], "run: CONFIG is missing; for example: confide run quickstart"),
    (["run", "nothing"], "nothing: no such file, and no shipped config of that name; there are: adult_logistic, "),
    (["run", "nothing.yaml"], "nothing.yaml: cannot be read: No such file or directory"),
    (["run", "--resume", "nothing"], "nothing: holds no run (experiment.yaml is missing); give the folder of a run"),
    (["run", "--resume", "a", "--out", "b", "--set", "rounds=2"], "--resume: goes on with the experiment of its folder;"
     " remove --set, --out"),
    ([*QUICK, "--set", "rounds"], "--set rounds: write KEY=VALUE, for example train.learning_rate=0.1"),
    ([*QUICK, "--set", "train.learning_rte=1"], "train.learning_rte: unknown key, did you mean 'learning_rate'?"),
    ([*QUICK, "--set", "task=linear"], "task: linear is for regression, but the data is classification"),
    ([*QUICK, "--set", "data.silos=2000"], "data.partition iid: 1438 rows cannot fill 2000 silos; use fewer silos"),
    ([*QUICK, "--set", "data.standardize.mean=[1, 2]"], "data.standardize.mean: 2 numbers for 1 features;"),
    ([*QUICK, "--set", "data.name=nothing"], "data.name: no data set 'nothing'; there are: digits, "),
    ([*QUICK, "--workers", "2"], "engine.workers: found 2, but only kind: pool uses it; remove it or use kind: pool"),
    ([*QUICK, "--workers", "many"], "engine.workers: expected an integer, found the text 'many'"),
    ([*QUICK, "--seeds", "4..0"], "--seeds: write 0..4 or 0,3,7 (up to 1000 different seeds), found '4..0'"),
    ([*QUICK, "--seeds", "1,1"], "--seeds: write 0..4 or 0,3,7 (up to 1000 different seeds), found '1,1'"),
    ([*QUICK, "--plugin", "no.such"], "--plugin no.such: ModuleNotFoundError: No module named 'no'; install it"),
    ([*QUICK, "--dataset", "a:b"], "--dataset: the config's data.name is digits; set data.name: dataset"),
    (["plan", "quickstart", "--set", "privacy.silo.delta=0.5"], "privacy.silo.delta: must be < 1 / silos = 0.0025"),
    (EPSILON, "--rate: missing, give the chance that a silo is in a round"),
    ([*EPSILON, "--rate", "1.5"], "--rate: must be > 0 and <= 1, got 1.5"),
    ([*EPSILON, "--rate", "nan"], "--rate: must be > 0 and <= 1, got nan"),
    ([*EPSILON, "--rate", "0.1", "--size", "3"], "--size: only --sampling fixed uses it; remove it"),
    ([*EPSILON, "--rate", "0.1", "--cap", "3"], "--silos: missing or below 1, a cap needs it"),
    ([*EPSILON, "--rate", "0.1", "--cap", "0", "--silos", "9"], "--cap: missing or below 1, a cap needs it"),
    ([*EPSILON, "--rate", "0.1", "--silos", "9"], "--silos: only --sampling fixed or --cap uses it; remove it"),
    ([*EPSILON, "--sampling", "fixed", "--silos", "10", "--size", "3", "--cap", "2"], "--cap: only --sampling poisson"),
    ([*EPSILON, "--sampling", "none", "--rate", "0.1"], "--rate: every silo is in every round with --sampling none"),
    ([*EPSILON, "--sampling", "fixed", "--rate", "0.1"], "--silos: missing, --sampling fixed needs the number of"),
    ([*EPSILON, "--sampling", "fixed", "--silos", "10"], "--size: give one of --size and --rate with --sampling fixed"),
    ([*EPSILON, "--sampling", "fixed", "--silos", "10", "--size", "11"], "--size: must be between 1 and the 10 silos"),
    ([*EPSILON, "--sampling", "fixed", "--silos", "10", "--rate", "0.33"], "--rate: 0.33 of 10 silos is 3.3, no whole"),
    ([*EPSILON, "--sampling", "fixed", "--silos", "10", "--size", "3", "--neighbours", "add_remove"],
     "fixed-size cohorts have no add/remove price; use neighbours: replace"),
    (["compare", "nothing"], "nothing: holds no run (result.json is missing); give the folder of a run"),
    (["report", "nothing"], "nothing: holds no run (result.json is missing); give the folder of a run"),
    (["predict", "nothing", "--input", "x.csv"], "nothing: holds no run (result.json is missing);"),
    (["data", "fetch", "nothing"], "nothing: no data set of that name; there are: digits, "),
    (["init", "no/such/folder.yaml"], "no/such/folder.yaml: No such file or directory"),
    (["config", "show", "nothing"], "nothing: no such file, and no shipped config of that name"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "line"), ERRORS, ids=[" ".join(argv) for argv, _ in ERRORS])
def test_a_mistake_is_one_line_exit_code_2_and_no_folder(argv, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"confide: {line}")
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_three_mistakes_in_a_config_are_three_lines(capsys):
    argv = ["run", "quickstart", "--set", "rounds=0", "--set", "train.steps=x", "--set", "cohort.rate=2"]
    assert main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["rounds", "cohort.rate", "train.steps"]


def test_three_mistakes_in_a_price_are_three_lines(capsys):
    assert main(["epsilon", "--noise-multiplier", "nan", "--rounds", "0", "--delta", "1"]) == 2
    names = [line.split(":")[1].strip() for line in capsys.readouterr().err.splitlines()]
    assert names == ["--noise-multiplier", "--rounds", "--delta"]


def test_a_disk_without_room_is_refused_before_anything_is_written(capsys, tmp_path, monkeypatch):
    from shutil import disk_usage

    monkeypatch.setattr("simulations.folders.shutil.disk_usage", lambda path: disk_usage(path)._replace(free=1_000_000))
    out = tmp_path / "out"
    assert main(["run", "quickstart", "--quiet", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"confide: {out}: 1 MB free on its disk, a run of this model needs about")
    assert not out.exists()


def test_a_file_where_the_folder_should_be(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["run", "quickstart", "--quiet", "--out", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_model_that_diverges_is_exit_code_1_and_one_line(capsys, tmp_path):
    steps = ["--set", "train.epochs=null", "--set", "train.steps=1", "--set", "train.learning_rate=1e6"]
    server = ["--set", "strategy.server={name: sgd, learning_rate: 3e38}"]  # Beyond float32 at the first step.
    assert main(["run", "mlp_dirichlet", "--quiet", "--out", str(tmp_path / "run"), *steps, *server]) == 1
    said = capsys.readouterr().err
    assert said.startswith("confide: round 1: the model is no longer finite; lower train.learning_rate")
    assert said.count("\n") == 1


def test_a_mistake_in_confide_itself_keeps_its_traceback(monkeypatch):
    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr("simulations.commands.listing.choices", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["list"])
