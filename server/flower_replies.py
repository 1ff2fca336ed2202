"""Whether a reply of a plain Flower client can be used: its records, arrays, numbers and weight.

Flower's own strategies stop a round on one reply that differs from the first, and average a NaN into the model. Here
such a reply is left out, with a reason of a closed set, and the round goes on with the others.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from server.flower_rounds import Asked
from strategies.base import MOST_ROWS
from strategies.flower_records import NUMPY, Refused

MOST_HEADER = 10_000  # Letters of the head of an array of numpy's.
Form = tuple[object, ...]
_HEADS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def checked(
    asked: Asked,
    replies: Sequence[Message],
    *,
    weight: str,
    arrays: ArrayRecord | None = None,
    heaviest: float = MOST_ROWS,
) -> tuple[list[Message], Counter[str]]:
    """The replies that can be used, one a silo and in the order of silos; and why others cannot.

    Args:
        asked: what they answer.
        replies: of any origin.
        weight: the metric that a reply is weighed by.
        arrays: that were sent, and that each reply must hold in the same form; None: replies hold no arrays.
        heaviest: the largest weight.
    """
    good: dict[int, Message] = {}
    reasons: Counter[str] = Counter()
    for silo, reply, problem in asked.sorted(replies):
        try:
            if problem is not None:
                raise Refused(problem)
            if silo in good:
                raise Refused("silo answered before in this round")
            _require(reply.content, weight, arrays, heaviest)
        except Refused as refused:
            reasons[str(refused)] += 1
        else:
            good[silo] = reply
    # Nobody said which metrics there are; but Flower refuses the whole round where two replies differ in them.
    forms = {silo: _form(reply.content) for silo, reply in good.items()}
    usual = [form for form, _ in Counter(forms.values()).most_common(1)]
    kept = [reply for silo, reply in good.items() if forms[silo] in usual]
    reasons["metrics are not named as those of most replies"] += len(good) - len(kept)
    return kept, +reasons


def _require(content: RecordDict, weight: str, arrays: ArrayRecord | None, heaviest: float) -> None:
    if len(content.metric_records) != 1 or len(content.array_records) != (arrays is not None):
        raise Refused("reply has not one record of metrics, and one of arrays where they were asked")
    metrics = next(iter(content.metric_records.values()))
    _require_metrics(metrics, weight, heaviest)
    if arrays is not None:
        _require_arrays(next(iter(content.array_records.values())), arrays)


def _require_metrics(metrics: MetricRecord, weight: str, heaviest: float) -> None:
    found = metrics.get(weight)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise Refused("weight is missing, or not one number")
    if not 0 < found <= heaviest:  # Written so that NaN fails too.
        raise Refused(f"weight is not in (0, {heaviest:g}]")
    numbers = [number for value in metrics.values() for number in (value if isinstance(value, list) else [value])]
    if not all(abs(number) < 1e300 and math.isfinite(number) for number in numbers):
        raise Refused("a metric is not finite")


def _require_arrays(found: ArrayRecord, sent: ArrayRecord) -> None:
    if found.keys() != sent.keys():
        raise Refused("arrays are not named as those that were sent")
    for name, array in found.items():
        value = _value(array, tuple(sent[name].shape), np.dtype(sent[name].dtype))
        if not bool(np.isfinite(value).all()):
            raise Refused("an array is not finite")


def _value(array: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array of a known form; what its head promises is compared before anything of that size is made."""
    if (array.stype, array.dtype, tuple(array.shape)) != (NUMPY, str(dtype), shape):
        raise Refused("an array has another shape or type than was sent")
    file = io.BytesIO(array.data)
    try:
        version: Any = np.lib.format.read_magic(file)
        head = _HEADS[version](file, max_header_size=MOST_HEADER)
    except (ValueError, KeyError, EOFError, TypeError) as error:
        raise Refused("an array cannot be read") from error
    size = math.prod(shape) * dtype.itemsize
    if (head[0], head[2]) != (shape, dtype) or len(array.data) - file.tell() != size:
        raise Refused("an array has another shape or type than was sent")
    return np.frombuffer(array.data, dtype=dtype, offset=file.tell())


def _form(content: RecordDict) -> Form:
    metrics: Mapping[str, Any] = next(iter(content.metric_records.values()))
    lengths = {name: len(value) if isinstance(value, list) else -1 for name, value in metrics.items()}
    return (*content.array_records, *content.metric_records, *sorted(lengths.items()))
