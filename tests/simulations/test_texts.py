"""Texts in classes, from rows of tokens to a run: a tiny random BERT, and MiniLM where its carrier is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from client.batches import plan  # noqa: E402
from client.errors import DataError  # noqa: E402
from client.single import SingleTrainer  # noqa: E402
from client.tables import Table  # noqa: E402
from privacy import streams  # noqa: E402
from server.store import StoreError  # noqa: E402
from simulations.data import carriers  # noqa: E402
from simulations.data.federation import build  # noqa: E402
from simulations.prediction import Predictor  # noqa: E402
from simulations.preparing import prepare  # noqa: E402
from simulations.running import ActiveRun, Outcome, train  # noqa: E402
from simulations.shipped import find  # noqa: E402
from strategies.experiment import Experiment, Train  # noqa: E402
from strategies.layout import Layout  # noqa: E402
from strategies.loading import load, parse  # noqa: E402
from strategies.tasks import initial  # noqa: E402

torch.set_num_threads(1)

VOCABULARY = 20


def saved(place: Path, *, seed: int = 0, vocabulary: int = VOCABULARY) -> str:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=vocabulary, max_position_embeddings=8, pad_token_id=0, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.BertModel(config).save_pretrained(place)
    return str(place)


def texts(rows: int = 80) -> Table:
    """Texts of six tokens; the class is whether the first one is of the upper half."""
    tokens = torch.randint(2, VOCABULARY, (rows, 6), generator=torch.Generator().manual_seed(3))
    tokens[::3, 4:] = 0
    silo = torch.arange(rows) % 4
    names = tuple(f"s{index}" for index in range(4))
    return Table("classification", tokens, (tokens[:, 0] >= 11).long(), classes=2, silo=silo, silo_names=names)


def experiment(weights: str, **changes: Any) -> Experiment:
    sections: dict[str, Any] = {
        "rounds": 2,
        "task": {"name": "transformer", "weights": weights, "rank": 2, "dropout": 0.0},
        "data": {"name": "dataset", "partition": "column", "public_test": 0.2},
        "cohort": {"sampling": "all"},
        "train": {"steps": 2, "batch_size": 8},
    }
    return parse(sections | changes)


def run(config: Experiment, folder: Path, *, resume: bool = False, stop: int | None = None) -> Outcome:
    with ActiveRun(config, folder, table=texts(), resume=resume) as active:
        done: list[int] = []
        train(active, lambda result: done.append(result.round), stop=lambda: stop is not None and len(done) >= stop)
        return active.finish()


@pytest.fixture
def bert(tmp_path: Path) -> str:
    return saved(tmp_path / "bert")


def test_a_run_over_texts_goes_from_tokens_to_predictions(bert: str, tmp_path: Path) -> None:
    # Query and value of one layer: A 2 x 8, B 8 x 2; a head of 2 x 8 and 2.
    assert prepare(experiment(bert), table=texts()).model.start.numel() == 4 * 2 * 8 + 2 * 8 + 2
    outcome = run(experiment(bert), tmp_path / "run")
    assert 0 <= outcome.result["metrics"]["accuracy"] <= 1
    predictor = Predictor.load(outcome.folder, outcome.result)
    np.savez(tmp_path / "new.npz", x=texts(5).features.numpy())
    found = predictor.predict(predictor.read(tmp_path / "new.npz"))
    assert [each["prediction"] in (0, 1) for each in found] == [True] * 5
    np.savez(tmp_path / "odd.npz", x=np.full((2, 6), VOCABULARY))
    with pytest.raises(DataError, match=r"tokens must be integers from 0 to 19; correct the file$"):
        predictor.read(tmp_path / "odd.npz")


def test_a_run_goes_on_with_its_own_frozen_weights_alone(bert: str, tmp_path: Path) -> None:
    config, folder = experiment(bert), tmp_path / "run"
    run(config, folder, stop=1)
    saved(tmp_path / "bert", seed=1)
    with pytest.raises((StoreError, ValueError), match="frozen weights"):
        run(config, folder, resume=True)


def test_a_worker_process_trains_the_same_model(bert: str, tmp_path: Path) -> None:
    here = run(experiment(bert), tmp_path / "here")
    there = run(experiment(bert, engine={"kind": "pool", "workers": 1, "device": "cpu"}), tmp_path / "there")
    one, other = (load_file(outcome.folder / "model.safetensors") for outcome in (here, there))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_rows_of_a_text_are_trained_privately(bert: str, tmp_path: Path) -> None:
    noisy = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3, "rows": 16, "batch": 4}
    config = experiment(bert, train={"steps": 2}, privacy={"example": noisy})
    outcome = run(config, tmp_path / "run")
    assert outcome.result["privacy"]["example"] is not None


def test_what_does_not_fit_the_rows_is_one_line(bert: str, tmp_path: Path) -> None:
    for name in ("mlp", "logistic"):
        with pytest.raises(ValueError, match=rf"^task: {name} takes numbers, but the rows of dataset are tokens "):
            prepare(experiment(bert, task=name), table=texts())
    digits = {"name": "digits", "silos": 4}
    with pytest.raises(ValueError, match=r"^task: transformer takes tokens, but the rows of digits are numbers; "):
        prepare(experiment(bert, data=digits))
    small = saved(tmp_path / "small", vocabulary=19)
    with pytest.raises(ValueError, match=r"^task\.weights: the model knows tokens 0 to 18, dataset holds 19; give "):
        prepare(experiment(small), table=texts())


@pytest.mark.carrier
def test_a_step_of_lora_on_minilm_over_tweets_lowers_the_loss_of_its_rows() -> None:
    for name in ("minilm", "healthtweets"):
        try:
            carriers.locate(name)
        except DataError as error:
            pytest.skip(str(error))
    shipped = load(find("flasc_tweets"))
    federation = build(shipped.data, seed=0)
    assert len(federation.train) == 16
    assert int(federation.train.sizes.sum()) + len(federation.public_test or ()) == 14_306
    task = shipped.task
    prepared = prepare(shipped, federation=federation)
    module, start = initial(task, prepared.model.shape, seed=shipped.seed)
    # Six layers, a query and a value each: A 16 x 384, B 384 x 16. A head of 12 x 384 and 12.
    assert start.numel() == 6 * 2 * 2 * 16 * 384 + 12 * 384 + 12 == 152_076
    sizes = federation.train.sizes.numpy()
    batch = plan(np.array([0]), sizes[:1], Train(steps=1, batch_size=16), streams.keys(1, [0]))
    rows = federation.train.rows.select(batch.rows[0, 0])
    after = SingleTrainer(module, task, shipped.train).fit(start, federation.train.rows, batch)
    module.eval()
    losses = []
    for vector in (start, after):
        Layout.of(module).load(module, vector)
        with torch.no_grad():
            losses.append(float(task.losses(module(rows.features), rows.targets).mean()))
    assert losses[1] < losses[0]
