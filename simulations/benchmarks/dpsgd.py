"""How fast DP-SGD inside silos is: our trainers against Opacus' own optimizers, in one run.

    python -m simulations.benchmarks.dpsgd [--workload mlp cnn] [--rounds 9] [--format json]

Twenty silos of 1,000 rows take one epoch's worth of Poisson batches at rate .064. All contestants run in turn in this
process, on one thread, so ratios are paired. Opacus is given its best case: one wrapped model and one optimizer for the
whole run, the batches drawn once, and no accountant.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from client.batches import Plan
from client.dpsgd import DPSGD
from client.example_sums import traced
from client.examples import Examples, Shards
from client.poisson import poisson
from privacy import streams
from privacy.steps import NoisySteps
from strategies.experiment import Train
from strategies.tasks import Shape, Task, initial
from strategies.tasks.cnn import CNN
from strategies.tasks.dense import MLP

SILOS, ROWS, BATCH, STEPS, CLIP_NORM, NOISE = 20, 1000, 64.0, 16, 1.0, 1.0
WORKLOADS: dict[str, tuple[Task, Shape]] = {
    "mlp": (MLP((128, 64)), Shape((100,), 2)),
    "cnn": (CNN((8, 16), 64), Shape((1, 28, 28), 10)),
}


@dataclass(frozen=True)
class Bench:
    """A workload's model and rows."""

    task: Task
    shape: Shape

    def shards(self) -> Shards:
        """Random rows, the same on every call."""
        rng, count = torch.Generator().manual_seed(0), SILOS * ROWS
        features = torch.randn(count, *self.shape.features, generator=rng)
        targets = torch.randint(self.shape.outputs, (count,), generator=rng)
        return Shards(Examples(features, targets), torch.arange(SILOS + 1) * ROWS)

    def ours(self) -> Callable[[int], None]:
        """Our trainer as a run uses it: batches drawn, losses left out."""
        shards, (module, start) = self.shards(), initial(self.task, self.shape, seed=0)
        chain, train = self.task.stack(self.shape), Train(steps=STEPS, learning_rate=0.1)
        steps = [NoisySteps(CLIP_NORM, NOISE, BATCH, ROWS)] * SILOS
        dpsgd = DPSGD(steps, module=module, task=self.task, train=train, chain=chain, fits=1, seed=0, secret=False)
        starts, sizes = shards.offsets[:-1].numpy(), shards.sizes.numpy()
        groups = [list(range(SILOS))] if chain is not None else [[silo] for silo in range(SILOS)]

        def round_(number: int) -> None:
            for group in groups:
                moved, _ = dpsgd.fit(
                    start,
                    shards.rows,
                    starts[group],
                    sizes[group],
                    silos=group,
                    round_=number,
                    fit=0,
                    correct=None,
                    record=False,
                )
                _moved(moved, start)

        return round_

    def opacus(self, *, ghost: bool) -> Callable[[int], None]:
        """Opacus' wrapped model and optimizer, kept for the whole run."""
        shards, (module, start) = self.shards(), initial(self.task, self.shape, seed=0)
        step, parameters = _step(module, ghost=ghost)
        starts, sizes = shards.offsets[:-1].numpy(), shards.sizes.numpy()
        keys, rates = streams.keys(0, range(SILOS)), [BATCH / ROWS] * SILOS
        plan: Plan = poisson(starts, sizes, rates, STEPS, keys)

        def round_(number: int) -> None:
            for silo in range(SILOS):
                with torch.no_grad():
                    nn.utils.vector_to_parameters(start.clone(), parameters)
                for index in range(STEPS):
                    batch = shards.rows.select(plan.rows[silo, index, : int(plan.counts[silo, index])])
                    step(batch)
                _moved(nn.utils.parameters_to_vector(parameters).detach(), start)

        return round_


def _step(module: nn.Module, *, ghost: bool) -> tuple[Callable[[Examples], None], list[nn.Parameter]]:
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    inner = torch.optim.SGD(module.parameters(), lr=0.1)
    noise = {"noise_multiplier": NOISE, "max_grad_norm": CLIP_NORM, "expected_batch_size": int(BATCH)}
    if not ghost:
        wrapped: Any = GradSampleModule(module)
        optimizer: Any = DPOptimizer(inner, **noise)
        loss: Any = nn.CrossEntropyLoss()
    else:
        wrapped = GradSampleModuleFastGradientClipping(module, max_grad_norm=CLIP_NORM)
        optimizer = DPOptimizerFastGradientClipping(inner, **noise)
        loss = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss())

    def step(batch: Examples) -> None:
        optimizer.zero_grad()
        with traced():
            loss(wrapped(batch.features), batch.targets).backward()
        optimizer.step()

    return step, list(module.parameters())


def _moved(after: Tensor, start: Tensor) -> None:
    """An engine that errs looks fast."""
    if not bool(after.isfinite().all()) or bool((after == start).all()):
        raise RuntimeError("a silo did not train")


def measure(name: str, *, rounds: int) -> dict[str, Any]:
    """Times rounds in turn after one warm-up each; medians in seconds, ratios paired."""
    bench = Bench(*WORKLOADS[name])
    calls = {"ours": bench.ours(), "opacus hooks": bench.opacus(ghost=False), "opacus ghost": bench.opacus(ghost=True)}
    times: dict[str, list[float]] = {each: [] for each in calls}
    for number in range(rounds + 1):
        for each, call in calls.items():
            before = time.perf_counter()
            call(number)
            if number:
                times[each].append(time.perf_counter() - before)
    ratios = {
        each: statistics.median(theirs / own for theirs, own in zip(values, times["ours"]))
        for each, values in times.items()
        if each != "ours"
    }
    seconds = {each: statistics.median(values) for each, values in times.items()}
    return {"workload": name, "rounds": rounds, "seconds": seconds, "slower_than_ours": ratios}


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The results as lines of text."""
    for result in results:
        size = f"{SILOS} silos x {ROWS}, {STEPS} steps"
        yield f"{result['workload']}: {size} (median of {result['rounds']} paired rounds)"
        for name, seconds in result["seconds"].items():
            ratio = result["slower_than_ours"].get(name)
            yield f"  {name:14} {seconds * 1000:9.1f} ms" + ("" if ratio is None else f"  {ratio:6.2f}x ours")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; prints a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.dpsgd", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workload", nargs="*", choices=tuple(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = [measure(name, rounds=options.rounds) for name in options.workload]
    print(json.dumps(results, indent=2) if options.format == "json" else "\n".join(table(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
