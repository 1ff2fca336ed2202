"""What a strategy of ours and its silo half say to each other in a Flower project: records of a message, both ways.

    instruction -> `task` ... `read_task` -> terms, instruction        update -> `answer` ... `read_answer` -> update

Vectors are arrays of a type of our own, in the form of `strategies.wire`; everything else is one line of JSON that the
strict codec of experiments decodes. Nothing in a message names code, and nothing is unpickled. A model is to the user
what it was: named arrays (`layout_of`, `vector_of`, `arrays_of`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor, nn

from strategies import wire
from strategies.base import Instruction, Update
from strategies.codec import decode, encode
from strategies.layout import Layout
from strategies.schema import ConfigError, key

if TYPE_CHECKING:
    from strategies.base import Strategy

TERMS, VECTORS, UPDATE = "confide.terms", "confide.vectors", "confide.update"
STYPE = "confide.wire"
NUMPY = "numpy.ndarray"  # Flower's own type of arrays.
VERSION = 1
MOST_TERMS = 4_000_000  # Letters; the names of a hundred thousand parameters.


class Refused(ValueError):
    """A reply that is not used; its text is of a closed set, and says nothing of what the reply holds."""


def _strategies() -> Mapping[str, type[Any]]:
    from strategies.registry import STRATEGIES

    return STRATEGIES


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One array of the user's model."""

    name: str = key(help="as the model calls it")
    shape: tuple[int, ...] = key(at_least=0, help="of the array")


@dataclass(frozen=True, kw_only=True)
class Vector:
    """One vector of an instruction."""

    name: str = key(help="as the strategy calls it")
    size: int = key(at_least=0, at_most=wire.MOST, help="its numbers")
    kept: int = key(at_least=0, at_most=wire.MOST, help="how many of them travel")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a silo is told beside vectors."""

    version: int = key(at_least=VERSION, at_most=VERSION, help="of this form")
    run: str = key(help="which run of the server's strategy it is")
    round: int = key(at_least=1, help="from 1")
    strategy: Strategy = key(variants=_strategies, help="the federated algorithm")
    parameters: tuple[Parameter, ...] = key(help="the model's arrays, in their order")
    vectors: tuple[Vector, ...] = key(help="of the instruction")

    @property
    def layout(self) -> Layout:
        """Which stretch of a vector is which array."""
        return Layout(tuple(each.name for each in self.parameters), tuple(each.shape for each in self.parameters))


def task(strategy: Strategy, instruction: Instruction, layout: Layout, *, run: str) -> RecordDict:
    """The records that tell silos what to do.

    Raises:
        ValueError: a vector that does not travel: not `(N,)` float32.
    """
    kept = {name: instruction.kept.get(name, size) for name, size in instruction.sizes.items()}
    terms = Terms(
        version=VERSION,
        run=run,
        round=instruction.round,
        strategy=strategy,
        parameters=tuple(Parameter(name=name, shape=shape) for name, shape in zip(layout.names, layout.shapes)),
        vectors=tuple(Vector(name=name, size=size, kept=kept[name]) for name, size in instruction.sizes.items()),
    )
    arrays = {name: _array(vector, kept[name]) for name, vector in instruction.vectors.items()}
    text = json.dumps(encode(terms), allow_nan=False)
    return RecordDict({TERMS: ConfigRecord({"terms": text}), VECTORS: ArrayRecord(arrays)})


def read_task(content: RecordDict) -> tuple[Terms, Instruction]:
    """The inverse of `task`.

    Raises:
        ValueError: the message was not made by `task`; one line.
    """
    config, arrays = content.config_records.get(TERMS), content.array_records.get(VECTORS)
    text = config.get("terms") if config is not None else None
    if arrays is None or not isinstance(text, str) or not len(text) <= MOST_TERMS:
        raise ValueError("message: it has no instruction of confide; does the server use server.flower_strategy?")
    try:
        terms = decode(Terms, json.loads(text, object_pairs_hook=_once, parse_constant=_no_number))
    except (ConfigError, ValueError, RecursionError) as error:
        line = error.problems[0] if isinstance(error, ConfigError) else " ".join(str(error).split())
        raise ValueError(
            f"message: terms that cannot be read ({line}); use one version of confide on both sides"
        ) from (error)
    kept = {each.name: each.kept for each in terms.vectors}
    vectors = _vectors(arrays, {each.name: each.size for each in terms.vectors}, kept)
    return terms, Instruction(terms.round, vectors, kept=kept)


def answer(update: Update, terms: Terms, kept: Mapping[str, int]) -> RecordDict:
    """The records that an update travels in; `kept` is how many numbers of each channel do, where not all of them.

    Raises:
        ValueError: more numbers than may travel.
    """
    arrays = {name: _array(vector, kept.get(name, vector.numel())) for name, vector in update.channels.items()}
    about = {"run": terms.run, "round": terms.round, "weight": float(torch.as_tensor(update.weight))}
    return RecordDict({UPDATE: ArrayRecord(arrays), TERMS: ConfigRecord(about)})  # type: ignore[arg-type]


def read_answer(
    content: RecordDict, *, run: str, round_: int, sizes: Mapping[str, int], kept: Mapping[str, int]
) -> Update:
    """The update of a reply of any origin; `sizes` and `kept` are what is expected of its channels.

    Raises:
        Refused: `answer` writes no such reply to this round's instruction.
    """
    about, arrays = content.config_records.get(TERMS), content.array_records.get(UPDATE)
    if about is None or arrays is None or len(content) != 2 or set(about) != {"run", "round", "weight"}:
        raise Refused("reply has not the records of an update")
    if about["run"] != run or type(about["round"]) is not int or about["round"] != round_:
        raise Refused("reply is of another round or run")
    weight = about["weight"]
    if type(weight) not in (int, float):
        raise Refused("weight is not a number")
    if set(arrays) != set(sizes):
        raise Refused("reply has other channels than were asked")
    try:
        channels = _vectors(arrays, sizes, kept)
    except ValueError as error:
        raise Refused("a vector is not as it was asked") from error
    return Update(channels, float(weight) if abs(weight) < 1e300 else math.inf)  # type: ignore[arg-type]


def layout_of(arrays: ArrayRecord) -> Layout:
    """The layout of a user's model, in the order of its arrays.

    Raises:
        ValueError: no array, or one that is not a float32 of numpy's; one line.
    """
    if not arrays:
        raise ValueError("initial_arrays: holds no array; give those of the model, for example trainable(model)")
    for name, array in arrays.items():
        if array.stype != NUMPY or array.dtype != "float32":
            raise ValueError(
                f"initial_arrays: {name!r} is {array.dtype} of type {array.stype!r}, not float32; give the trained "
                "parameters alone: strategies.flower_records.trainable(model)"
            )
    return Layout(tuple(arrays), tuple(tuple(array.shape) for array in arrays.values()))


def vector_of(arrays: ArrayRecord) -> Tensor:
    """A user's arrays as one vector, `(N,)` float32; errors as of `layout_of`."""
    layout_of(arrays)
    return torch.cat([torch.from_numpy(array.numpy().astype(np.float32)).reshape(-1) for array in arrays.values()])


def arrays_of(layout: Layout, vector: Tensor) -> ArrayRecord:
    """A vector as the user's arrays, with their names and shapes."""
    return ArrayRecord({name: Array(part.numpy()) for name, part in layout.unflatten(vector.cpu()).items()})


def trainable(module: nn.Module) -> ArrayRecord:
    """What `Strategy.start` takes as `initial_arrays`: a model's parameters that are trained, without its buffers."""
    layout = Layout.of(module)
    return arrays_of(layout, layout.flatten(module))


def _array(vector: Tensor, kept: int) -> Array:
    return Array("float32", tuple(vector.shape), STYPE, wire.encode(vector.detach().cpu(), kept=kept))


def _vectors(arrays: ArrayRecord, sizes: Mapping[str, int], kept: Mapping[str, int]) -> dict[str, Tensor]:
    if set(arrays) != set(sizes):
        raise ValueError(f"message: found arrays {sorted(arrays)[:9]} where {sorted(sizes)[:9]} were expected")
    found = {}
    for name, size in sizes.items():
        array = arrays[name]
        if (array.stype, array.dtype, tuple(array.shape)) != (STYPE, "float32", (size,)):
            raise ValueError(f"message: array {name!r} is not a vector of {size} numbers in the form {STYPE}")
        found[name] = wire.decode(array.data, size=size, kept=kept.get(name, size))
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")
