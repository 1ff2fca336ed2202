"""Tweets of the health desks of 16 news outlets, as a cloze test: which of twelve health words is masked.

The data (UCI "Health News in Twitter", 2011 to 2015) comes without labels, and none are invented here: the label is a
word that the outlet itself wrote. An outlet is a silo, and outlets differ in what they write about: half of one's
rows ask for "ebola", another has none.
"""

from __future__ import annotations

import csv
import html
import io
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.errors import DataError
from client.tables import Table
from simulations.data.carriers import locate

LENGTH = 48  # Tokens; 3 in 1,000 of the tweets below are longer.
WORDS = (
    *("brain", "cancer", "diabetes", "drug", "ebola", "flu"),
    *("food", "heart", "hospital", "insurance", "vaccine", "weight"),
)  # Chosen once, for being frequent in many outlets; public, so nothing is read off the rows.
MASK = "[MASK]"
TOKENIZER = "tokenizer.json"

# Links go: they carry the outlet's name, and often the headline with the very word that is masked.
_LINK = re.compile(r"https?://\S*|\bwww\.\S+|\bpic\.twitter\S+", re.IGNORECASE)
_WORD = {word: re.compile(rf"\b{word}s?\b", re.IGNORECASE) for word in WORDS}
_PART = re.compile("|".join(WORDS), re.IGNORECASE)


@dataclass(frozen=True)
class Cloze:
    """A tweet with one of the words masked.

    Attributes:
        outlet: who wrote it.
        text: with `MASK` wherever the word stood, in the singular or with an s.
        word: its place in `WORDS`.
    """

    outlet: str
    text: str
    word: int


def load() -> Table:
    """Tokens of every tweet that holds exactly one of the words, `(rows, 48)` int64; silos are outlets."""
    tweets = list(read())
    rows = list(clozes(tweets))
    outlets = tuple(sorted({row.outlet for row in rows}))
    place = {outlet: index for index, outlet in enumerate(outlets)}
    return Table(
        kind="classification",
        features=tokens([row.text for row in rows]),
        targets=torch.tensor([row.word for row in rows], dtype=torch.int64),
        classes=len(WORDS),
        silo=torch.tensor([place[row.outlet] for row in rows], dtype=torch.int64),
        silo_names=outlets,
        class_names=WORDS,
        notes=(
            f"{len(rows)} of {len(tweets)} tweets, those with one of the words {', '.join(WORDS)}, which is masked; "
            "links and an outlet's repeats left out",
        ),
    )


def read() -> Iterator[tuple[str, str]]:
    """Outlet and text of every tweet."""
    with zipfile.ZipFile(locate("healthtweets") / "healthtweets.zip") as archive:
        lines = io.StringIO(archive.read("healthtweets.csv").decode("utf-8"), newline="")
    for row in csv.DictReader(lines):
        yield row["source_id"].rpartition("-")[0], row["text"]


def clozes(tweets: Sequence[tuple[str, str]]) -> Iterator[Cloze]:
    """The tweets that hold exactly one of the words, with that word masked.

    Left out are tweets in which a word also stands inside another one (#breastcancer), which would give it away, and
    what an outlet wrote before, word for word: a repeat in the test set would have been trained on.
    """
    seen: set[tuple[str, str]] = set()
    for outlet, raw in tweets:
        text = " ".join(_LINK.sub(" ", html.unescape(raw)).split())
        found = [index for index, word in enumerate(WORDS) if _WORD[word].search(text)]
        if len(found) != 1:
            continue
        masked = _WORD[WORDS[found[0]]].sub(MASK, text)
        if _PART.search(masked) or (outlet, masked.lower()) in seen:
            continue
        seen.add((outlet, masked.lower()))
        yield Cloze(outlet, masked, found[0])


def tokens(texts: Sequence[str]) -> Tensor:
    """Tokens of texts by MiniLM's own tokenizer, `(rows, 48)` int64: cut at the end, or filled up with its padding.

    Raises:
        DataError: the carrier of MiniLM or the package `tokenizers` is missing.
    """
    # One thread per process is the rule here; and its threads would warn at every process started after them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError("healthtweets: needs the package tokenizers; pip install 'confide[hf]'") from error
    tokenizer = Tokenizer.from_file(str(locate("minilm") / TOKENIZER))
    tokenizer.enable_truncation(LENGTH)
    own = tokenizer.padding or {}  # Its own padding token, to a length of ours.
    tokenizer.enable_padding(length=LENGTH, pad_id=own.get("pad_id", 0), pad_token=own.get("pad_token", "[PAD]"))
    return torch.tensor([each.ids for each in tokenizer.encode_batch(list(texts))], dtype=torch.int64)
