"""The commands, in this process."""

import csv
import io
import json

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from simulations import ActiveRun, load, run, train
from simulations.cli import main
from simulations.shipped import CONFIGS, shipped

SMALL = ["--set", "rounds=4", "--set", "data.silos=40", "--set", "privacy.silo.delta=1e-3", "--quiet"]


def said(capsys, *argv):
    assert main([*map(str, argv)]) == 0
    return capsys.readouterr().out


def said_json(capsys, *argv):
    return json.loads(said(capsys, *argv, "--format", "json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(["run", "quickstart", "--out", str(path), *SMALL, "--format", "json"]) == 0
    return path


def test_run_prints_exactly_the_result(capsys, tmp_path):
    out = tmp_path / "run"
    assert said_json(capsys, "run", "quickstart", "--out", out, *SMALL) == json.loads((out / "result.json").read_text())


def test_the_summary_names_what_a_reader_must_know(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = said(capsys, "run", "quickstart", "--out", tmp_path / "run", *SMALL)
    assert max(map(len, text.splitlines())) <= 80 or str(tmp_path) in max(text.splitlines(), key=len)
    words = " ".join(text.split())
    for part in (
        "on the public test set",
        "at delta 0.001, for adding or removing one whole silo",
        "95% interval",
        "from 64 canaries. An estimate, neither an upper nor a lower bound",
        "simulated noise",
        str(tmp_path / "run" / "report.html"),
    ):
        assert part in words


def test_without_privacy_epsilon_is_infinite(capsys, tmp_path):
    argv = ["--quiet", "--set", "rounds=1", "--out", tmp_path / "run"]
    text = said(capsys, "run", "mlp_dirichlet", *argv)
    assert "no privacy: epsilon is infinite" in text
    plan = said(capsys, "plan", "mlp_dirichlet")
    assert "no privacy: epsilon is infinite" in plan


def test_a_round_whose_every_update_is_refused_ends_the_run_with_the_reason(capsys, tmp_path):
    argv = ["--quiet", "--set", "rounds=2", "--set", "train.learning_rate=1e30", "--out", str(tmp_path / "run")]
    assert main(["run", "mlp_dirichlet", *argv]) == 1
    assert "round 1: all 10 updates were refused: update is not finite" in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(capsys, tmp_path, folder):
    experiment = load(folder / "experiment.yaml")
    half = tmp_path / "half"
    rounds = []
    with ActiveRun(experiment, half) as active:
        train(active, lambda result: rounds.append(result.round), stop=lambda: len(rounds) == 2)
        assert active.finish().result["stopped"] == "interrupted"
    assert rounds == [1, 2]
    resumed = said_json(capsys, "run", "--resume", half, "--quiet")
    whole = json.loads((folder / "result.json").read_text())
    assert resumed["model"] == whole["model"]
    assert resumed["privacy"] == whole["privacy"]
    assert (resumed["rounds"], resumed["stopped"]) == (4, None)


def test_a_signal_before_the_first_round_leaves_a_run_of_no_rounds(tmp_path, folder):
    with ActiveRun(load(folder / "experiment.yaml"), tmp_path / "none") as active:
        train(active, stop=lambda: True)
        result = active.finish().result
    assert (result["rounds"], result["stopped"]) == (0, "interrupted")
    assert result["privacy"]["silo"]["epsilon_upper"] == 0


def test_a_finished_run_is_not_resumed(capsys, folder):
    assert main(["run", "--resume", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"confide: {folder}: all 4 rounds are done; nothing to resume")


def test_a_folder_is_not_written_over(capsys, folder):
    assert main(["run", "quickstart", "--out", str(folder), *SMALL]) == 2
    assert capsys.readouterr().err == (
        f"confide: {folder}: holds a run already; choose another --out, or --resume {folder}\n"
    )


def test_a_spent_budget_is_exit_code_3_and_the_model_is_kept(capsys, tmp_path):
    out = tmp_path / "run"
    budget = ["--set", "budget={epsilon: 1.0, delta: 1.0e-4}"]
    assert main(["run", "quickstart", "--out", str(out), "--quiet", "--format", "json", *budget]) == 3
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert 0 < result["privacy"]["silo"]["epsilon_upper"] <= 1.0
    assert 0 < result["rounds"] < 60
    assert (out / "model.safetensors").stat().st_size > 650 * 4
    assert "above the budget of 1.0" in said.err
    plan = said_json(capsys, "plan", "quickstart", *budget)
    assert plan["privacy"]["rounds_within_budget"] == result["rounds"]


def test_seeds_give_each_run_their_mean_and_deviation(capsys, tmp_path):
    out = tmp_path / "seeds"
    found = said_json(capsys, "run", "quickstart", "--out", out, *SMALL, "--seeds", "3,5")
    assert [result["seed"] for result in found["runs"]] == [3, 5]
    scores = [result["metrics"]["accuracy"] for result in found["runs"]]
    assert found["mean"]["accuracy"] == pytest.approx(np.mean(scores))
    assert found["std"]["accuracy"] == pytest.approx(np.std(scores, ddof=1))
    assert sorted(path.name for path in out.iterdir()) == ["seed-3", "seed-5"]
    compared = said_json(capsys, "compare", out)
    assert [row["seed"] for row in compared["runs"]] == [3, 5]
    assert compared["differences"] == {"seed": [3, 5]}
    assert main(["run", "quickstart", "--out", str(out), *SMALL, "--seeds", "5..6"]) == 2
    assert "holds runs of seed 5 already" in capsys.readouterr().err


def test_compare_says_when_numbers_do_not_compare(capsys, tmp_path, folder):
    other = tmp_path / "other"
    said(capsys, "run", "quickstart", "--out", other, *SMALL, "--set", "privacy.silo.delta=1e-4")
    text = said(capsys, "compare", folder, other)
    assert "privacy.silo.delta  0.001 | 0.0001" in text
    assert "different deltas and do not compare" in text


def test_epsilon_of_the_gaussian_mechanism(capsys):
    # Balle & Wang 2018, theorem 8: 4.377 for noise 1 at delta 1e-5; rounds of noise z cost like one of z / sqrt(T).
    common = ["epsilon", "--delta", "1e-5", "--sampling", "none"]
    one = said_json(capsys, *common, "--noise-multiplier", "1", "--rounds", "1")
    many = said_json(capsys, *common, "--noise-multiplier", "10", "--rounds", "100")
    assert one["upper"] == pytest.approx(4.3771, abs=1e-3)
    assert many["upper"] == pytest.approx(one["upper"], rel=1e-6)
    assert (one["method"], one["neighbours"]) == ("exact", "add_remove")


def test_epsilon_of_poisson_and_fixed_samples(capsys):
    common = ["epsilon", "--noise-multiplier", "1", "--rounds", "1000", "--delta", "1e-5", "--rate", "0.01"]
    poisson = said_json(capsys, *common)
    assert 1.80 <= poisson["lower"] <= poisson["upper"] <= 1.86
    fixed = said_json(capsys, *common, "--sampling", "fixed", "--silos", "1000")
    assert fixed["neighbours"] == "replace"
    assert fixed["upper"] >= poisson["upper"]
    capped = said_json(capsys, *common, "--cap", "20", "--silos", "1000")
    assert 3.825 <= capped["upper"] <= 1.01 * 3.83  # The known price is 3.83; without the cap it is 1.83.
    text = said(capsys, *common)
    assert "adding or removing one whole silo" in text


def test_a_plan_is_what_the_run_then_costs(capsys, folder):
    result = json.loads((folder / "result.json").read_text())
    plan = said_json(capsys, "plan", folder / "experiment.yaml")
    assert plan["privacy"]["epsilon"][-1]["upper"] == result["privacy"]["silo"]["epsilon_upper"]
    assert plan["parameters"] == 650
    assert plan["expected_cohort"] == 10
    # 2 x 0.5 on the sum, divided by 10 expected silos and 16 expected canaries.
    assert plan["privacy"]["noise_std_of_mean"] == pytest.approx(2 * 0.5 / (10 + 16))
    assert plan["bytes_up_per_round"] == plan["bytes_down_per_round"] == 10 * (12 + 650 * 4)


def test_a_plan_solves_noise_for_epsilon(capsys):
    change = ["--set", "privacy.silo.noise_multiplier=null", "--set", "privacy.silo.epsilon=3.0"]
    plan = said_json(capsys, "plan", "quickstart", *change)
    assert 2.9 <= plan["privacy"]["epsilon"][-1]["upper"] <= 3.0
    assert "the least that keeps epsilon 3" in said(capsys, "plan", "quickstart", *change)


@pytest.mark.parametrize("name", [*shipped(), "starter"])
def test_shipped_configs_resolve_and_say_what_they_are(name, capsys, tmp_path):
    path = CONFIGS / f"{name}.yaml"
    assert path.read_text().startswith("# ")
    text = said(capsys, "config", "show", path)
    (tmp_path / "again.yaml").write_text(text)
    assert load(tmp_path / "again.yaml") == load(path)


def test_schema_documents_every_key_of_a_resolved_config(capsys):
    rows = said_json(capsys, "config", "schema")
    paths = {row["path"] for row in rows}
    assert all(row["help"] for row in rows)
    shown = yaml.safe_load(said(capsys, "config", "show", "quickstart"))
    assert {f"train.{key}" for key in shown["train"]} <= paths
    assert "strategy[fedavg].server[sgd].momentum" in paths
    text = said(capsys, "config", "schema")
    assert all(path in text for path in paths)


def test_list_names_every_choice(capsys):
    found = said_json(capsys, "list")
    titles = {"strategies", "tasks", "data", "backbones", "partitions", "standardize", "server optimizers", "configs"}
    assert set(found) == titles | {"studies"}
    assert all(about for entries in found.values() for about in entries.values())
    text = said(capsys, "list")
    assert all(name in text for entries in found.values() for name in entries)


def test_what_init_writes_runs_and_is_not_written_over(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "confide run experiment.yaml" in said(capsys, "init")
    assert said_json(capsys, "run", "experiment.yaml", "--quiet", "--out", "run")["metrics"]["accuracy"] > 0.5
    assert main(["init"]) == 2
    assert capsys.readouterr().err == "confide: experiment.yaml: is there already; give another name\n"


def test_report_is_written_again(capsys, folder):
    (folder / "report.html").unlink()
    assert said(capsys, "report", folder).strip() == str(folder / "report.html")
    assert (folder / "report.html").stat().st_size > 1000


def test_predictions_of_images_are_those_of_the_evaluation(capsys, tmp_path, folder):
    digits = load_digits()
    np.savez(tmp_path / "rows.npz", x=digits.images / 16)
    found = said_json(capsys, "predict", folder, "--input", tmp_path / "rows.npz")
    right = np.mean([row["prediction"] == target for row, target in zip(found, digits.target)])
    accuracy = json.loads((folder / "result.json").read_text())["metrics"]["accuracy"]
    assert right == pytest.approx(accuracy, abs=0.08)  # A fifth of these rows is the public test.
    assert all(0.1 <= row["probability"] <= 1 for row in found)


def test_predict_says_how_many_features_it_takes(capsys, tmp_path, folder):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    assert main(["predict", str(folder), "--input", str(tmp_path / "rows.csv")]) == 2
    assert capsys.readouterr().err == (
        f"confide: {tmp_path}/rows.csv: 2 features a row, the model takes 64 (1 x 8 x 8); correct the file\n"
    )


def test_predict_refuses_a_model_that_was_changed(capsys, tmp_path, folder):
    (tmp_path / "rows.csv").write_text("a\n1\n")
    model = folder / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert main(["predict", str(folder), "--input", str(tmp_path / "rows.csv")]) == 2
    finally:
        model.write_bytes(whole)
    assert "not the model that the run left" in capsys.readouterr().err


ROWS = "hospital,colour,size,outcome\n" + "".join(
    f"h{row % 3},{'red' if row % 2 else 'blue'},{row % 5},{'yes' if row % 2 else 'no'}\n" for row in range(60)
)
OWN = """
rounds: 20
task: logistic
data: {path: PATH, target: outcome, silo: hospital, partition: column, public_test: 0}
train: {learning_rate: 1.0}
"""


def test_a_table_of_words_is_predicted_by_its_column_names(capsys, tmp_path):
    (tmp_path / "rows.csv").write_text(ROWS)
    (tmp_path / "own.yaml").write_text(OWN.replace("PATH", str(tmp_path / "rows.csv")))
    text = said(capsys, "run", tmp_path / "own.yaml", "--quiet", "--out", tmp_path / "run")
    assert "not measured: there is no public test set" in text
    # Other order, one colour only, no target: columns are found by name, words coded as in training.
    (tmp_path / "new.csv").write_text("size,colour\n3,red\n0,red\n")
    text = said(capsys, "predict", tmp_path / "run", "--input", tmp_path / "new.csv")
    assert [row["prediction"] for row in csv.DictReader(io.StringIO(text))] == ["yes", "yes"]
    (tmp_path / "bad.csv").write_text("size,colour\n3,green\n")
    assert main(["predict", str(tmp_path / "run"), "--input", str(tmp_path / "bad.csv")]) == 2
    assert "'green' is none of the declared categories" in capsys.readouterr().err
    (tmp_path / "less.csv").write_text("size\n3\n")
    assert main(["predict", str(tmp_path / "run"), "--input", str(tmp_path / "less.csv")]) == 2
    assert "no column 'colour', which the model was trained on; add it" in capsys.readouterr().err


class Rows(torch.utils.data.Dataset):
    """Twenty rows that one number tells apart."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index >= 20:
            raise IndexError(index)
        return torch.tensor([index / 10 - 1.0, 1.0]), index // 10


def test_rows_of_a_torch_dataset(capsys, tmp_path, monkeypatch):
    import sys
    import types

    monkeypatch.setitem(sys.modules, "my_rows", types.SimpleNamespace(rows=Rows()))
    (tmp_path / "own.yaml").write_text("rounds: 2\ntask: logistic\ndata: {name: dataset, silos: 4, public_test: 0.2}\n")
    argv = ["run", tmp_path / "own.yaml", "--quiet", "--out", tmp_path / "run", "--dataset", "my_rows:rows"]
    assert said_json(capsys, *argv)["silos"] == 4


def test_the_function_run_is_what_the_package_exports(tmp_path):
    import simulations
    import simulations.running

    assert simulations.run is run is simulations.running.run
    outcome = run(CONFIGS / "quickstart.yaml", out=tmp_path / "run", overrides=["rounds=1"])
    assert outcome.folder == tmp_path / "run"
    assert outcome.result["rounds"] == 1


def test_doctor_passes_and_fails_by_what_is_required(capsys, monkeypatch):
    monkeypatch.setattr("simulations.commands.doctor.requires", lambda _: ["numpy>=2,<3", "absent>=1; extra == 'x'"])
    assert main(["doctor"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("simulations.commands.doctor.requires", lambda _: ["numpy>=99", "no-such-package>=1"])
    assert main(["doctor", "--format", "json"]) == 1
    wrong = [finding for finding in json.loads(capsys.readouterr().out) if finding["required"] and not finding["ok"]]
    assert [finding["what"] for finding in wrong] == ["numpy", "no-such-package"]


def test_data_list_and_a_source_with_nothing_to_fetch(capsys):
    found = {row["name"]: row for row in said_json(capsys, "data", "list")}
    assert found["digits"]["here"] is True
    assert "nothing to fetch" in said(capsys, "data", "fetch", "digits")


def test_predictions_are_in_the_units_of_the_file_not_of_the_scale(capsys, tmp_path):
    rows = [(f"c{k % 4}", k % 5, 100 + 10 * (k % 5)) for k in range(80)]
    (tmp_path / "rows.csv").write_text("clinic,x,score\n" + "".join(f"{c},{x},{y}\n" for c, x, y in rows))
    config = {
        "name": "units",
        "rounds": 60,
        "task": "linear",
        "data": {
            **{"path": str(tmp_path / "rows.csv"), "target": "score", "silo": "clinic", "kind": "regression"},
            **{"partition": "column", "target_scale": {"mean": 120.0, "std": 10.0}},
        },
        "train": {"steps": 10, "learning_rate": 0.1},
    }
    (tmp_path / "units.yaml").write_text(yaml.safe_dump(config))
    result = said_json(capsys, "run", tmp_path / "units.yaml", "--out", tmp_path / "run", "--quiet")
    assert result["metrics"]["mse"] < 1e-4  # In tens: the line y = x - 2 fits exactly.
    (tmp_path / "new.csv").write_text("x\n0\n4\n")
    found = said_json(capsys, "predict", tmp_path / "run", "--input", tmp_path / "new.csv")
    assert [row["prediction"] for row in found] == pytest.approx([100.0, 140.0], abs=0.5)
