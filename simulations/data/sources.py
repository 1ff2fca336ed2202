"""The data sets that confide knows by name.

`digits` comes inside scikit-learn; the others come in carriers (`simulations.data.carriers`). A loader imports torch
when it is called, so that listing the sources is instant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from client.errors import DataError

if TYPE_CHECKING:
    from client.tables import Table

Loader = Callable[[str | None], "tuple[Table, Table | None]"]


@dataclass(frozen=True)
class Source:
    """A data set by name.

    Attributes:
        about: one line for people: rows, what is predicted, which silos it names.
        load: group column (or None) to all rows and, where the data has an official test set, that.
        groups: the columns that may be asked for as groups.
        carrier: whether it must be fetched first.
        needs: carriers beside its own.
    """

    about: str
    load: Loader
    groups: tuple[str, ...] = ()
    carrier: bool = True
    needs: tuple[str, ...] = ()


def digits(group: str | None) -> tuple[Table, None]:
    """scikit-learn's digits: images `(1, 8, 8)` in [0, 1]."""
    import torch
    from sklearn.datasets import load_digits

    from client.tables import Table

    data = load_digits()
    features = torch.from_numpy(data.images).to(torch.float32).div(16).unsqueeze(1)
    return Table("classification", features, torch.from_numpy(data.target).to(torch.int64), classes=10), None


def digits_rotated(group: str | None) -> tuple[Table, None]:
    """The digits that the backbone `digits_upright` never saw, a quarter turn counter-clockwise."""
    from simulations.data.backbones import digits_parts, turned

    table, _ = digits(group)
    return turned(table, digits_parts(table.targets)[1]), None


def mnist5k(group: str | None) -> tuple[Table, None]:
    """5,000 images of MNIST, 500 per digit, `(1, 28, 28)` in [0, 1]."""
    import numpy as np
    import torch

    from client.tables import Table
    from simulations.data.carriers import locate

    cells = np.loadtxt(locate("mnist5k") / "mnist_5k.csv.gz", delimiter=",", dtype=np.float32)
    features = torch.from_numpy(cells[:, :-1].copy()).div(255).view(-1, 1, 28, 28)
    return Table("classification", features, torch.from_numpy(cells[:, -1].astype(np.int64)), classes=10), None


def fashion_mnist(group: str | None) -> tuple[Table, Table]:
    """Fashion-MNIST (Xiao et al. 2017): images `(1, 28, 28)` in [0, 1], and its official test set."""
    import gzip

    import numpy as np
    import torch

    from client.tables import Table
    from simulations.data.carriers import locate

    folder = locate("fashion_mnist")

    def read(part: str) -> Table:
        # The IDX format: a header of 16 bytes (images) or 8 (labels), then one byte per number.
        images = np.frombuffer(gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
        labels = np.frombuffer(gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
        features = torch.from_numpy(images.astype(np.float32)).div_(255).view(-1, 1, 28, 28)
        return Table("classification", features, torch.from_numpy(labels.astype(np.int64)), classes=10)

    return read("train"), read("t10k")


def fashion_small(group: str | None) -> tuple[Table, Table]:
    """Fashion-MNIST with each 2 x 2 pixels averaged: images `(1, 14, 14)`."""
    from dataclasses import replace

    from torch.nn.functional import avg_pool2d

    table, official = fashion_mnist(group)
    return replace(table, features=avg_pool2d(table.features, 2)), replace(
        official, features=avg_pool2d(official.features, 2)
    )


def fashion_shifted(group: str | None) -> tuple[Table, Table]:
    """The garments that the backbone `fashion_upright` never saw and the official test set, a quarter turn."""
    from simulations.data.backbones import GARMENTS, turned

    table, official = fashion_mnist(group)
    return turned(table, slice(GARMENTS, None)), turned(official)


def adult(group: str | None) -> tuple[Table, Table]:
    """Loads UCI Adult; see `simulations.data.tabular`."""
    from simulations.data import tabular

    return tabular.adult(group)


def schools(item: str, group: str | None) -> tuple[Table, None]:
    """Loads one of the school data sets; see `simulations.data.tabular`."""
    from simulations.data import tabular

    return tabular.schools(item, group), None


def shakespeare(group: str | None) -> tuple[Table, None]:
    """Loads the plays by role; see `simulations.data.plays`."""
    from simulations.data import plays

    return plays.load(), None


def healthtweets(group: str | None) -> tuple[Table, None]:
    """Loads the tweets of health desks; see `simulations.data.tweets`."""
    from simulations.data import tweets

    return tweets.load(), None


SOURCES: dict[str, Source] = {
    "digits": Source("1,797 digits of 8 x 8 pixels, 10 classes; nothing to fetch", digits, carrier=False),
    "digits:rotated": Source(
        "1,397 digits turned by 90 degrees, none of backbone digits_upright; nothing to fetch",
        digits_rotated,
        carrier=False,
    ),
    "mnist5k": Source("5,000 MNIST digits of 28 x 28 pixels, 10 classes", mnist5k),
    "fashion_mnist": Source("60,000 + 10,000 garments of 28 x 28 pixels, 10 classes; own test set", fashion_mnist),
    "fashion_mnist:small": Source(
        "60,000 + 10,000 garments of 14 x 14 pixels, 10 classes; own test set", fashion_small
    ),
    "fashion_mnist:shifted": Source(
        "30,000 + 10,000 garments turned by 90 degrees, none of backbone fashion_upright; own test set", fashion_shifted
    ),
    "adult": Source(
        "32,561 + 16,281 people of a US census, income above 50,000 or not; own test set", adult, ("sex", "race", "age")
    ),
    "shakespeare": Source("next characters in plays, windows of 80; silos: the large roles", shakespeare),
    "healthtweets": Source(
        "14,306 tweets as 48 tokens, which of 12 health words is masked; silos: 16 news outlets",
        healthtweets,
        needs=("minilm",),
    ),
    "schools:exam": Source(
        "4,059 pupils, exam score from intake; silos: 65 London schools", partial(schools, "exam"), ("sex", "type")
    ),
    "schools:hsb82": Source(
        "7,185 pupils, mathematics score from background; silos: 160 US schools",
        partial(schools, "hsb82"),
        ("sx", "minrty", "sector"),
    ),
    "schools:chem97": Source(
        "31,022 pupils, chemistry score from earlier grades; silos: 131 English authorities",
        partial(schools, "chem97"),
        ("gender",),
    ),
}


def load(name: str, *, group: str | None = None) -> tuple[Table, Table | None]:
    """All rows of a source, and its official test set where it has one.

    Raises:
        DataError: no such source or group, or a carrier that was not fetched.
    """
    if name not in SOURCES:
        raise DataError(f"data.name: no data set {name!r}; there are: {', '.join(SOURCES)}")
    source = SOURCES[name]
    if group is not None and group not in source.groups:
        remedy = f"use one of: {', '.join(source.groups)}" if source.groups else "leave it out"
        raise DataError(f"data.group: {name} has no group {group!r}; {remedy}")
    return source.load(group)
