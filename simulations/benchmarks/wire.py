"""How short and how fast the wire format is, form by form, against the entropy bound.

    python -m simulations.benchmarks.wire [--numbers 1000000] [--repeats 5] [--values float16] [--format json]

One in so many numbers of a vector travels, at random places. The bound is the values and log2 C(N, k) bits to say where
they go; the form that is sent is marked. Times are medians in this process, on one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strategies import wire

ONE_IN = (4, 10, 16, 64)


def bound(numbers: int, kept: int, values: wire.Values) -> float:
    """Bytes that no code of all choices of `kept` numbers goes below: values and log2 C(numbers, kept) bits."""
    choices = math.lgamma(numbers + 1) - math.lgamma(kept + 1) - math.lgamma(numbers - kept + 1)
    return (2 if values == "float16" else 4) * kept + choices / math.log(2) / 8


def measure(numbers: int, kept: int, values: wire.Values, *, repeats: int) -> list[dict[str, Any]]:
    """Every form of one vector, each written and read `repeats` times after a warm-up."""
    rng = torch.Generator().manual_seed(0)
    vector = torch.zeros(numbers)
    vector[torch.randperm(numbers, generator=rng)[:kept]] = 1.0 + torch.rand(kept, generator=rng)
    chosen, dense, least = (
        wire.form(numbers, kept, values),
        wire.size(numbers, numbers, values),
        bound(numbers, kept, values),
    )
    found = []
    for form in wire.FORMS:
        encode, decode = zip(*(_timed(form, vector, kept, values) for _ in range(repeats + 1)), strict=True)
        size = wire.HEADER.size + wire.body(form, numbers, kept, values)
        found.append(
            {
                "form": form,
                "chosen": form == chosen,
                "bytes": size,
                "over_bound": size / least - 1,
                "smaller_than_dense": dense / size,
                "encode_s_per_million": statistics.median(encode[1:]) * 1e6 / numbers,
                "decode_s_per_million": statistics.median(decode[1:]) * 1e6 / numbers,
            }
        )
    return found


def _timed(form: str, vector: Tensor, kept: int, values: wire.Values) -> tuple[float, float]:
    """Seconds to write and to read a vector in a form; looks that it came back."""
    bits = wire.bits(vector, values)
    before = time.perf_counter()
    message = wire.pack(form, bits, kept)
    between = time.perf_counter()
    back = wire.unpack(form, np.frombuffer(message, dtype=np.uint8), len(vector), kept, values)
    after = time.perf_counter()
    if not bool((back == bits).all()):  # A codec that errs looks fast.
        raise RuntimeError(f"{form}: a vector did not come back as it was")
    return between - before, after - between


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The results as lines of text."""
    for result in results:
        yield f"{result['kept']:,} of {result['numbers']:,} numbers, 1 in {result['one_in']}, {result['values']}"
        for each in result["forms"]:
            encode, decode, mark = 1000 * each["encode_s_per_million"], 1000 * each["decode_s_per_million"], "  <- sent"
            yield (
                f"  {each['form']:8} {each['bytes']:>10,} bytes  bound {100 * each['over_bound']:+9.2f}%"
                f"  dense / {each['smaller_than_dense']:6.2f}"
                f"  per million: encode {encode:6.1f} ms, decode {decode:6.1f} ms{mark if each['chosen'] else ''}"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; prints a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.wire", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--numbers", type=int, default=1_000_000)
    parser.add_argument("--one-in", type=int, nargs="*", default=list(ONE_IN))
    parser.add_argument("--values", choices=("float32", "float16"), default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = []
    for one_in in options.one_in:
        numbers, kept = options.numbers, options.numbers // one_in
        forms = measure(numbers, kept, options.values, repeats=options.repeats)
        results.append({"numbers": numbers, "kept": kept, "one_in": one_in, "values": options.values, "forms": forms})
    print(json.dumps(results, indent=2) if options.format == "json" else "\n".join(table(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
