from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from strategies.describe import Row, describe
from strategies.schema import key


@dataclass(frozen=True)
class Iid:
    pass


@dataclass(frozen=True)
class Dirichlet:
    alpha: float = key(above=0, help="skew")


@dataclass(frozen=True)
class Nested:
    inner: Any = key(Iid(), variants=lambda: SPLITS, help="one more split")


SPLITS: dict[str, type[Any]] = {"iid": Iid, "dirichlet": Dirichlet, "nested": Nested}


@dataclass(frozen=True)
class Train:
    momentum: float = key(0.0, at_least=0, below=1, help="momentum")
    nesterov: bool = key(False, help="look ahead")
    widths: tuple[int, ...] = key((8,), at_least=1, help="layers")
    mode: Literal["fast", "exact"] = key("fast", help="how")
    device: str = key("cpu", choices=("cpu", "cuda"), help="where")
    limit: int | None = key(None, at_least=1, help="at most")


@dataclass(frozen=True)
class Config:
    rounds: int = key(at_least=1, help="rounds")
    train: Train = key(Train(), help="local training")
    split: Any = key("iid", variants=lambda: SPLITS, help="split")
    other: Any = key(None, variants=lambda: SPLITS, help="another split")
    limits: Train | None = key(None, help="range")


def test_describe_has_a_row_for_every_key() -> None:
    rows = {row.path: row for row in describe(Config)}
    assert rows["rounds"] == Row("rounds", "integer", "required", ">= 1", "rounds")
    assert rows["train.momentum"] == Row("train.momentum", "number", "0.0", ">= 0 and < 1", "momentum")
    assert rows["train.widths"] == Row("train.widths", "list of integers", "[8]", ">= 1", "layers")
    assert rows["train.mode"] == Row("train.mode", "choice", "fast", "fast, exact", "how")
    assert rows["train.device"] == Row("train.device", "choice", "cpu", "cpu, cuda", "where")
    assert rows["train.nesterov"] == Row("train.nesterov", "true or false", "false", "", "look ahead")
    assert rows["train.limit"] == Row("train.limit", "integer or null", "null", ">= 1", "at most")
    assert rows["split"] == Row("split", "variant", "iid", "dirichlet, iid, nested", "split")
    assert rows["split[dirichlet].alpha"] == Row("split[dirichlet].alpha", "number", "required", "> 0", "skew")
    assert rows["split[nested].inner"].default == "iid"
    assert rows["other"].default == "null"
    assert rows["limits"] == Row("limits", "section of keys or null", "null", "", "range")
    assert {f"train.{field.name}" for field in dataclasses.fields(Train)} <= set(rows)


def test_describe_leaves_registries_alone_when_asked() -> None:
    def explode() -> dict[str, type[Any]]:
        raise AssertionError("loaded")

    slow = dataclasses.make_dataclass("Slow", [("x", Any, key("a", variants=explode, help="slow"))])
    assert describe(slow, open_variants=False) == [Row("x", "variant", "a", "", "slow")]
