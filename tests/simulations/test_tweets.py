from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from client.errors import DataError
from simulations.commands import OK, data
from simulations.data import carriers, sources
from simulations.data.federation import build
from simulations.data.tweets import LENGTH, WORDS, clozes
from strategies.experiment import Data
from strategies.partitions import Column
from strategies.standardize import OwnSilo

DRUG, EBOLA, FLU, HEART = (WORDS.index(word) for word in ("drug", "ebola", "flu", "heart"))


def masked(*texts: str, outlet: str = "a") -> list[tuple[str, int]]:
    return [(row.text, row.word) for row in clozes([(outlet, text) for text in texts])]


@pytest.mark.parametrize(
    ("raw", "text", "word"),
    [
        ("Ebola: what to know http://bbc.in/ebola-1", "[MASK]: what to know", EBOLA),
        ("Two drugs &amp; one DRUG", "Two [MASK] & one [MASK]", DRUG),  # Plural, capitals and entities.
        ("#flu season\nis here", "#[MASK] season is here", FLU),
    ],
)
def test_the_word_is_masked_wherever_it_stands_and_links_are_gone(raw: str, text: str, word: int) -> None:
    assert masked(raw) == [(text, word)]


@pytest.mark.parametrize(
    "raw",
    [
        "Nothing of the kind",
        "Flu or ebola?",  # Two words: neither is the answer.
        "Heart attack? #heartdisease",  # The hashtag would give it away.
        "Under the influence",  # `flu` inside another word is no flu.
        "See www.heart.org",  # The word in a link alone.
    ],
)
def test_what_is_no_fair_question_is_left_out(raw: str) -> None:
    assert masked(raw) == []


def test_an_outlets_repeats_are_left_out_and_anothers_are_not() -> None:
    same = ["Flu is here http://a/1", "FLU is here http://a/2"]
    assert masked(*same) == [("[MASK] is here", FLU)]
    assert len(list(clozes([("a", same[0]), ("b", same[0])]))) == 2


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a few tweets and a tokenizer of a few words, in the carriers' own formats."""
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    tweets = {"who-1": "Flu here", "cnn_x-22": "More drugs now", "who-3": "Flu there", "cnn_x-4": "Nothing"}
    rows = "".join(f"{key},{text}\n" for key, text in tweets.items())
    (tmp_path / "healthtweets").mkdir()
    with zipfile.ZipFile(tmp_path / "healthtweets" / "healthtweets.zip", "w") as archive:
        archive.writestr("healthtweets.csv", "source_id,text\n" + rows)
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[MASK]", "here", "more", "now", "there"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[PAD]", "[MASK]"])
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=7, pad_id=0, pad_token="[PAD]")
    (tmp_path / "minilm").mkdir()
    tokenizer.save(str(tmp_path / "minilm" / "tokenizer.json"))
    return tmp_path


def test_rows_are_padded_tokens_and_silos_are_outlets(cached: Path) -> None:
    table, official = sources.load("healthtweets")
    assert official is None
    assert (table.kind, table.classes, table.class_names) == ("classification", len(WORDS), WORDS)
    assert (table.features.dtype, tuple(table.features.shape)) == (torch.int64, (3, LENGTH))
    assert table.features[:, :4].tolist() == [[2, 3, 0, 0], [4, 2, 5, 0], [2, 6, 0, 0]]
    assert int(table.features[:, 4:].sum()) == 0
    assert table.targets.tolist() == [FLU, DRUG, FLU]
    assert table.silo is not None
    assert [table.silo_names[silo] for silo in table.silo] == ["who", "cnn_x", "who"]
    assert table.notes[0].startswith("3 of 4 tweets, those with one of the words brain, cancer, ")


def test_a_long_tweet_is_cut_at_its_end(cached: Path) -> None:
    from simulations.data.tweets import tokens

    assert tokens(["here " * 60]).tolist() == [[3] * LENGTH]


def test_tokens_are_dealt_as_they_are_and_never_standardised(cached: Path) -> None:
    config = Data(name="healthtweets", partition=Column(), public_test=0.0)
    made = build(config, seed=0)
    assert made.silo_names == ("cnn_x", "who")
    assert made.train.sizes.tolist() == [1, 2]
    assert made.train.rows.features.dtype == torch.int64
    with pytest.raises(DataError, match=r"^data\.standardize: tokens are no quantities; use standardize: none$"):
        build(Data(name="healthtweets", partition=Column(), public_test=0.0, standardize=OwnSilo()), seed=0)


def test_a_missing_carrier_names_its_own_command(cached: Path) -> None:
    (cached / "minilm" / "tokenizer.json").unlink()
    (cached / "minilm").rmdir()
    with pytest.raises(DataError, match=r"^minilm: not in .*; bring it with: confide data fetch minilm$"):
        sources.load("healthtweets")


def test_fetching_the_tweets_brings_the_tokenizer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    asked: list[str] = []
    monkeypatch.setattr(carriers, "fetch", lambda name: asked.append(name) or tmp_path / name)
    assert data.fetch("healthtweets") == OK
    assert asked == ["minilm", "healthtweets"]
    (tmp_path / "healthtweets").mkdir()
    capsys.readouterr()
    assert data.listing("json") == OK  # One of two carriers: not usable yet.
    listed = {row["name"]: row["here"] for row in json.loads(capsys.readouterr().out)}
    assert not listed["healthtweets"]
    (tmp_path / "minilm").mkdir()
    assert data.listing("json") == OK
    assert {row["name"]: row["here"] for row in json.loads(capsys.readouterr().out)}["healthtweets"]
