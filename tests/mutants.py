"""Plants one-line faults in a copy of the tree and requires the suite to notice each: `make mutants`.

Every guarantee of the code has a mutant here that breaks it. A mutant that survives is a guarantee that no test holds.

    python tests/mutants.py [NAME ...] [--jobs 2]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("privacy", "strategies", "client", "server", "simulations", "tests")
CORE = ("tests/privacy", "tests/strategies", "tests/client", "tests/contracts", "tests/server", "tests/simulations")


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: what it breaks.
        file: where.
        line: the text to replace; it must occur exactly once.
        fault: the text to put there.
    """

    name: str
    file: str
    line: str
    fault: str


MUTANTS = (
    Mutant(
        "noise off",
        "privacy/mechanism.py",
        "return noised(total, self.std, source.normals(total.numel(), *stream))",
        "return total",
    ),
    Mutant(
        "noise halved",
        "privacy/mechanism.py",
        "return noised(total, self.std, source.normals(total.numel(), *stream))",
        "return noised(total, 0.5 * self.std, source.normals(total.numel(), *stream))",
    ),
    Mutant(
        "noise without the clip norm",
        "privacy/mechanism.py",
        "return self.noise_multiplier * self.clip_norm",
        "return self.noise_multiplier",
    ),
    Mutant(
        "event with another noise multiplier",
        "privacy/mechanism.py",
        "return Gaussian(self.noise_multiplier)",
        "return Gaussian(1.05 * self.noise_multiplier)",
    ),
    Mutant(
        "banded: noise off",
        "privacy/banded.py",
        "return noised(total, self.std, self.tail.next(source.normals(total.numel(), *stream), self.band))",
        "return total",
    ),
    Mutant(
        "banded: noise of rounds is independent",
        "privacy/banded.py",
        "alpha=weight)",
        "alpha=0 * weight)",
    ),
    Mutant(
        "banded: columns not normalised",
        "privacy/band.py",
        "return [value / norms[round_ - 1 - back] for",
        "return [value for",
    ),
    Mutant(
        "banded: last columns not normalised",
        "privacy/band.py",
        "return tuple(below[fits - 1].tolist())",
        "return tuple(below[0 * fits - 1].tolist())",
    ),
    Mutant(
        "banded: noise of earlier rounds lost by a restart",
        "server/turns.py",
        'kept[f"noise/{name}"].clone() if under_way else None',
        "None",
    ),
    Mutant(
        "banded: noise of the last rounds stays in the folder",
        "server/turns.py",
        "if round_ < self.rounds:",
        "if True:",
    ),
    Mutant(
        "banded: another matrix goes on",
        "simulations/running.py",
        "return known | self.plan.matrix | self._frozen",
        "return known | self._frozen",
    ),
    Mutant(
        "turns: a silo is back one round too soon",
        "server/turns.py",
        "self._free_from[list(cohort)] = round_ + self.separation",
        "self._free_from[list(cohort)] = round_ + self.separation - 1",
    ),
    Mutant(
        "turns: who was asked is lost by a restart",
        "server/turns.py",
        'kept["free_from"].numpy().copy() if begun else',
        "",
    ),
    Mutant(
        "turns: bands beyond the separation",
        "server/turns.py",
        "if mechanism.band.bands > self.separation:",
        "if False:",
    ),
    Mutant(
        "turns: a round done again is free",
        "server/turns.py",
        "if opens or round_ in self.reserved else",
        "if opens else",
    ),
    Mutant(
        "turns: a cycle pays too late",
        "server/turns.py",
        "(round_ - 1) % self.sampler.separation == 0",
        "round_ % self.sampler.separation == 0",
    ),
    Mutant(
        "flower round that nobody paid",
        "server/flower_strategy.py",
        "            self.ledger.reserve(server_round)  # Paid before anything leaves, so a crash overcounts.",
        "            pass",
    ),
    Mutant(
        "flower cohorts from the seed under secret noise",
        "server/flower_strategy.py",
        "secret = private and self.rounds.noise.secret",
        "secret = False",
    ),
    Mutant(
        "flower evaluation that privacy does not cover",
        "server/flower_strategy.py",
        'metrics == "research" or not self.rounds.private',
        "True",
    ),
    Mutant("flower round asked twice", "server/flower_strategy.py", "if not round_ > self.round:", "if False:"),
    Mutant("flower model of anybody", "server/flower_strategy.py", "elif not _same(", "elif False and not _same("),
    Mutant(
        "flower updates of any weight",
        "server/flower_strategy.py",
        "sizes, reveals=strategy.reveals, heaviest=strategy.heaviest)",
        "sizes, reveals=strategy.reveals)",
    ),
    Mutant(
        "flower noise off",
        "server/flower_settings.py",
        "if clip_norm is not None and noise_multiplier is not None:",
        "if False:",
    ),
    Mutant(
        "flower rules not asked", "server/flower_settings.py", "problems = [*rules.problems(found), ", "problems = ["
    ),
    Mutant(
        "flower single updates under privacy",
        "server/flower_settings.py",
        "if private and strategy.reveals:",
        "if False:",
    ),
    Mutant(
        "flower budget ignored",
        "server/flower_rounds.py",
        "if self.budget is not None and not after <= self.budget:",
        "if False:",
    ),
    Mutant(
        "flower rounds of several prices added up",
        "server/flower_rounds.py",
        "if any(entry.event != self.event or entry.neighbours != self.neighbours for entry in entries):",
        "if False:",
    ),
    Mutant("flower noise drawn again", "server/flower_rounds.py", "if entries and fresh:", "if False:"),
    Mutant(
        "flower places taken from a strategy that remembers", "server/flower_rounds.py", "elif not self.keep:", "else:"
    ),
    Mutant(
        "flower reply to a message without id",
        "server/flower_rounds.py",
        "            if message.metadata.message_id\n",
        "            if True\n",
    ),
    Mutant("flower reply of another node", "server/flower_rounds.py", " or reply.metadata.src_node_id != node:", ":"),
    Mutant("flower silo counts twice", "server/flower_replies.py", "if silo in good:", "if False:"),
    Mutant("flower weight of any size", "server/flower_replies.py", "if not 0 < found <= heaviest:", "if found <= 0:"),
    Mutant(
        "flower array that is not finite",
        "server/flower_replies.py",
        "if not bool(np.isfinite(value).all()):",
        "if False:",
    ),
    Mutant(
        "flower array of another shape inside",
        "server/flower_replies.py",
        "if (head[0], head[2]) != (shape, dtype) or len(array.data)",
        "if len(array.data)",
    ),
    Mutant(
        "flower metric that is not finite",
        "server/flower_replies.py",
        "if not all(abs(number) < 1e300 and math.isfinite(number) for number in numbers):",
        "if False:",
    ),
    Mutant("flower metrics of one silo stop all", "server/flower_replies.py", "if forms[silo] in usual]", "if True]"),
    Mutant(
        "flower round of its own strategies that nobody paid",
        "server/flower_checked.py",
        "        self.ledger.reserve(server_round)\n",
        "",
    ),
    Mutant(
        "flower update of an old round",
        "strategies/flower_records.py",
        'or type(about["round"]) is not int or about["round"] != round_:',
        ":",
    ),
    Mutant(
        "flower update of another run",
        "strategies/flower_records.py",
        'if about["run"] != run or ',
        "if ",
    ),
    Mutant(
        "flower vector of another form",
        "strategies/flower_records.py",
        'if (array.stype, array.dtype, tuple(array.shape)) != (STYPE, "float32", (size,)):',
        "if False:",
    ),
    Mutant(
        "flower strategy that changes gradients",
        "strategies/flower_silo.py",
        "if correct is not None or penalty is not None or reweight is not None:",
        "if False:",
    ),
    Mutant(
        "flower later rounds not tried", "strategies/flower_silo.py", "ROUNDS = (1, 2, 100, 1_000_000)", "ROUNDS = (1,)"
    ),
    Mutant(
        "flower tiers by nodes without numbers",
        "strategies/flower_silo.py",
        "if any(strategy.tier(silo) for silo in range(1000)):",
        "if False:",
    ),
    Mutant("flower client with another model", "strategies/flower_silo.py", "if theirs == ours:", "if True:"),
    Mutant(
        "flower client starts where it was",
        "client/flower_client.py",
        "        layout.load(module, start)\n",
        "",
    ),
    Mutant(
        "turns: one silo more moves the others",
        "server/sampler.py",
        'streams.derive(seed, "groups")',
        'streams.derive(seed, "groups", self.population)',
    ),
    Mutant(
        "turns: amplified by a sample",
        "privacy/terms.py",
        "if _takes_turns(event):",
        "if False:",
    ),
    Mutant(
        "turns: a torn line is free",
        "privacy/torn.py",
        "map(_paying, known)",
        "known",
    ),
    Mutant(
        "turns: canaries by coins",
        "simulations/auditing.py",
        "if isinstance(plan.sampler, CyclicCohort):",
        "if False:",
    ),
    Mutant(
        "turns: a sweep does not pay for rounds done again",
        "simulations/planning.py",
        " + max(0, rounds - self.rounds)",
        "",
    ),
    Mutant(
        "no clip",
        "privacy/mechanism.py",
        "torch.where(norms > self.clip_norm, self.clip_norm / norms, 1.0)",
        "torch.ones_like(norms)",
    ),
    Mutant(
        "clip after the sum",
        "privacy/release.py",
        "self.sums[name] += (factors * weights[good]) @ vectors",
        "self.sums[name] += float(mechanism.factors((weights[good] @ vectors).norm())) * (weights[good] @ vectors)",
    ),
    Mutant(
        "denominator is the arrivals",
        "privacy/release.py",
        "divisors[name] = self.tally.weight if exact else self.expected",
        "divisors[name] = self.tally.weight or self.expected",
    ),
    Mutant(
        "empty cohort without noise",
        "privacy/release.py",
        "mechanism.privatize(self.sums[name], source,",
        "self.sums[name] if not self.tally.arrived else mechanism.privatize(self.sums[name], source,",
    ),
    Mutant(
        "weights above 1 pass",
        "privacy/release.py",
        "heaviest = 1.0 if private",
        "heaviest = 10.0 if private",
    ),
    Mutant(
        "updates that are not finite pass",
        "privacy/release.py",
        "finite &= torch.isfinite(norm)",
        "finite &= True",
    ),
    Mutant(
        "chunks added as they come",
        "privacy/release.py",
        "while (ready := self._waiting.pop(self._next, None)) is not None:",
        "while (ready := self._waiting.pop(partial.chunk, None)) is not None:",
    ),
    Mutant(
        "rate of another draw",
        "server/sampler.py",
        "Sampled(Poisson(self.rate), inner)",
        "Sampled(Poisson(self.rate / 2), inner)",
    ),
    Mutant(
        "cohort from the seed alone",
        "server/sampler.py",
        'coins = streams.keys(streams.derive(seed, "cohort", round_), np.arange(self.population))',
        'coins = streams.keys(streams.derive(seed, "cohort"), np.arange(self.population))',
    ),
    Mutant(
        "reserve not on the disk",
        "privacy/ledger.py",
        'durable=kind == "reserve" and not hold',
        "durable=False",
    ),
    Mutant(
        "only commits are spent",
        "privacy/chain.py",
        "return [entry.event for entry in self._spent.values() if entry.unit == unit and entry.event is not None]",
        "return [e.event for e in self._spent.values() if e.unit == unit and e.event and e.seq not in self._open]",
    ),
    Mutant(
        "hash chain not checked",
        "privacy/chain.py",
        'chained = record["prev_hash"] == self.head.hash and entry.seq == self.head.seq + 1',
        "chained = entry.seq == self.head.seq + 1",
    ),
    Mutant(
        "torn line dropped",
        "privacy/ledger.py",
        "        if torn:\n            self._settle(torn)",
        "        if torn:\n            self._file.truncate(self._end)",
    ),
    Mutant(
        "torn line charged as the cheapest",
        "privacy/torn.py",
        "case Gaussian(less), Gaussian(more):\n            return less <= more",
        "case Gaussian(less), Gaussian(more):\n            return less >= more",
    ),
    Mutant(
        "torn line of nothing known is free",
        "privacy/ledger.py",
        "        if not charges:\n",
        "        if False:\n",
    ),
    Mutant(
        "data set's budget read without its lock",
        "privacy/ledger.py",
        "        self._wait()\n        try:\n            self._held = True",
        "        try:\n            self._held = True",
    ),
    Mutant(
        "data set does not pay",
        "privacy/ledger.py",
        "        if self._first is not None:",
        "        if False:",
    ),
    Mutant(
        "other runs are not counted",
        "privacy/account.py",
        "if entry.unit != self.unit or entry.event is None:",
        "if entry.run != self.run or entry.unit != self.unit or entry.event is None:",
    ),
    Mutant(
        "resumed run not charged elsewhere",
        "simulations/running.py",
        "self.account.settle(self.ledger.spent(loop.UNIT))",
        "self.account.settle([])",
    ),
    Mutant(
        "resumed run charged twice",
        "privacy/account.py",
        "range(times - mine[event])",
        "range(times)",
    ),
    Mutant(
        "relations added up",
        "privacy/account.py",
        "if entry.neighbours != self.neighbours:",
        "if False:",
    ),
    Mutant(
        "other ledger verified",
        "simulations/ledgers.py",
        "return None if chain.holds(seen) else",
        "return None if True else",
    ),
    Mutant(
        "epsilon of result.json not recomputed",
        "simulations/ledger_claims.py",
        "if upper == said or math.isclose(upper, said, rel_tol=CLOSE, abs_tol=CLOSE):",
        "if True:",
    ),
    Mutant(
        "verifier prices fixed size as one clip norm",
        "privacy/verify.py",
        "0.5 if fixed else 1.0",
        "1.0",
    ),
    Mutant(
        "verifier lets unknown keys pass",
        "privacy/verify.py",
        'case [("kind", "gaussian"), ("noise_multiplier", noise)] if',
        'case [("kind", "gaussian"), ("noise_multiplier", noise), *_] if',
    ),
    Mutant(
        "canaries missing in the denominator",
        "simulations/running.py",
        "expected=plan.sampler.expected + canaries",
        "expected=plan.sampler.expected",
    ),
    Mutant(
        "spreads of two Gaussians exchanged",
        "privacy/two_gaussians.py",
        "pairs = ((gap / other_std, std / other_std), (gap / std, other_std / std))",
        "pairs = ((gap / other_std, std / other_std), (gap / std, std / other_std))",
    ),
    Mutant(
        "one direction of two Gaussians",
        "privacy/two_gaussians.py",
        "np.maximum(*(_delta(shift, scale, epsilon) for shift, scale in pairs)) <= delta",
        "_delta(*pairs[0], epsilon) <= delta",
    ),
    Mutant(
        "no union bound over thresholds",
        "privacy/binomial.py",
        "each = chance / (2 * len(THRESHOLDS))",
        "each = chance",
    ),
    Mutant(
        "null of one dimension more",
        "privacy/null.py",
        "a, rest = (dimension - 1) / 2, (1 - cosines) * (1 + cosines)",
        "a, rest = dimension / 2, (1 - cosines) * (1 + cosines)",
    ),
    Mutant(
        "interval half as wide",
        "privacy/audit.py",
        "return max(1.0, spread) / math.sqrt(len(seen))",
        "return max(1.0, spread) / (2 * math.sqrt(len(seen)))",
    ),
    Mutant(
        "alarm without the shared bound",
        "privacy/audit.py",
        "alarm=not max(counted, bound) <= claim",
        "alarm=not counted <= claim",
    ),
    Mutant(
        "alarm on the estimate itself",
        "privacy/audit.py",
        "alarm=not max(counted, bound) <= claim",
        "alarm=not max(counted, estimate.epsilon) <= claim",
    ),
    Mutant(
        "fitted spreads quoted from few canaries",
        "privacy/audit.py",
        "FITTED_LEAST = 1000",
        "FITTED_LEAST = 100",
    ),
    Mutant(
        "schedule compared with the amplified claim",
        "simulations/auditing.py",
        'if settings.participation == "bernoulli" or not isinstance(audited, GaussianSum):',
        "if True:",
    ),
    Mutant(
        "largest cosines lost by a restart",
        "server/loop.py",
        "training.watcher.restore(checkpoint.watched if checkpoint is not None else {})",
        "training.watcher.restore({})",
    ),
    Mutant(
        "last cosines instead of the largest",
        "server/iterates.py",
        "self._maxima = np.maximum(self._maxima, np.stack([found.seen, found.unseen]))",
        "self._maxima = np.stack([found.seen, found.unseen])",
    ),
    Mutant(
        "alarm without an exit code",
        "simulations/commands/run.py",
        'if audit_words.alarms(outcome.result["privacy"]):',
        "if False:",
    ),
    Mutant(
        "same noise every round",
        "server/loop.py",
        'stream=("noise", round_)',
        'stream=("noise",)',
    ),
    Mutant(
        "same noise on every channel",
        "privacy/release.py",
        "stream=(*stream, name)",
        "stream=stream",
    ),
    Mutant(
        "sums not rounded to the grid",
        "privacy/noise.py",
        "noise = (normals * (std / step)).add_(steps - whole).round_()",
        "noise = (normals * (std / step)).add_(steps - whole)",
    ),
    Mutant(
        "noise rounded before it is added",
        "privacy/noise.py",
        "noise = (normals * (std / step)).add_(steps - whole).round_()",
        "noise = (normals * (std / step)).round_().add_(steps - whole)",
    ),
    Mutant(
        "a negative zero tells the sign of the sum",
        "privacy/noise.py",
        ".mul_(step).add_(0.0)",
        ".mul_(step)",
    ),
    Mutant(
        "a large sum shows in the precision of the output",
        "privacy/noise.py",
        "noise.add_(whole).clamp_(-LIMIT, LIMIT)",
        "noise.add_(whole)",
    ),
    Mutant(
        "one key for all system noise",
        "privacy/noise.py",
        "ChaCha20(os.urandom(32), bytes(16))",
        "ChaCha20(bytes(32), bytes(16))",
    ),
    Mutant(
        "system noise can be copied",
        "privacy/noise.py",
        'raise TypeError("system noise cannot be copied',
        'return object.__reduce_ex__(self, 2)\n        raise TypeError("system noise cannot be copied',
    ),
    Mutant(
        "a logarithm of zero",
        "privacy/noise.py",
        ".double().add_(1.0)",
        ".double()",
    ),
    Mutant(
        "cohorts of the seed under system noise",
        "server/loop.py",
        "return self.sampler.draw_secretly() if self.noise.secret else",
        "return",
    ),
    Mutant(
        "secret cohorts from no entropy",
        "server/sampler.py",
        "np.frombuffer(os.urandom(8 * silos), dtype=np.uint64)",
        "np.arange(silos, dtype=np.uint64)",
    ),
    Mutant(
        "simulated noise in a run that asks for the system's",
        "simulations/local_privacy.py",
        "return SystemNoise()",
        "return SimulatedNoise(experiment.seed)",
    ),
    Mutant(
        "moments with system noise released again on resuming",
        "simulations/standardization.py",
        "if kept is None else _read(kept)",
        "if kept is None or not kept.exists() else _read(kept)",
    ),
    Mutant(
        "noise streams of 32 bits",
        "privacy/streams.py",
        "return made.set_state(state)",
        "return made",
    ),
    Mutant(
        "canaries of one length, whatever the clip norm",
        "server/canaries.py",
        "length = LENGTH * (audited.clip_norm if isinstance(audited, GaussianSum) else 1.0)",
        "length = LENGTH",
    ),
    Mutant(
        "moments of other rows under an old charge",
        "simulations/running.py",
        "self.store.cut(self._unchanged())",
        "pass",
    ),
    Mutant(
        "moments paid by any charge",
        "simulations/standardization.py",
        "if any(e.unit == unit and e.round == ROUND and not e.torn for e in ledger.counted()):",
        "if ledger.counted():",
    ),
    Mutant(
        "ledger of another run accepted before the first checkpoint",
        "server/unchanged.py",
        "if not ledger.runs <= {(ledger.run, ledger.dataset)}:",
        "if False:",
    ),
    Mutant(
        "value of a refused weight shown",
        "privacy/release.py",
        "reason = _unusable(bool(finite[place]), heaviest)",
        'reason = f"weight {float(weights[place])!r} is not in [0, 1]"',
    ),
    Mutant(
        "budget looked at after the round",
        "server/loop.py",
        "_afford(training, odometer, charges, round_)",
        "_afford(training, odometer, charges - 1, round_)",
    ),
    Mutant(
        "damaged checkpoint accepted",
        "server/checkpoint.py",
        'if _digest(tensors, labels["confide"]) != labels.get("sha256"):',
        "if False:",
    ),
    Mutant(
        "personal state current before the commit",
        "client/personal.py",
        "self._store.staged[name][self._silos] = value.numpy().reshape(expected)",
        "self._store.current[name][self._silos] = value.numpy().reshape(expected)",
    ),
    Mutant(
        "stacked: padding counts",
        "client/stacked.py",
        "real = torch.arange(batch) < count.unsqueeze(-1)",
        "real = torch.arange(batch) < count.unsqueeze(-1).clamp(min=batch)",
    ),
    Mutant(
        "fixed-size cohorts without the factor 2",
        "privacy/terms.py",
        'Part("fixed_size", size / population, noise / 2, times)',
        'Part("fixed_size", size / population, noise, times)',
    ),
    Mutant(
        "private standardisation free of charge",
        "simulations/planning.py",
        "before = (standardization.cost(standardize),) if isinstance(standardize, Private) else ()",
        "before = ()",
    ),
    Mutant(
        "sampled Gaussians composed one by one",
        "privacy/mechanism.py",
        "return events[0] if len(events) == 1 else Composed(events)",
        "return events[0]",
    ),
    Mutant(
        "examples: noise off",
        "privacy/steps.py",
        ".mul_(std).add_(total)",
        ".mul_(0.0).add_(total)",
    ),
    Mutant(
        "examples: secret noise off",
        "privacy/steps.py",
        "released = noised(total.double(), std, noise.normals(total.numel())).to(total.dtype)",
        "released = total",
    ),
    Mutant(
        "examples: secret batches from the seed",
        "client/dpsgd.py",
        "None if self.secret else keys",
        "keys",
    ),
    Mutant(
        "examples: a torn line is charged to nobody",
        "privacy/chain.py",
        "everyone[entry.event] += entry.silos is None",
        "everyone[entry.event] += 0",
    ),
    Mutant(
        "examples: lost lines of the silos' ledger go unseen",
        "server/unchanged.py",
        """if not other.holds(Head(**checkpoint.meta["ledgers"][other.path.name])):""",
        "if False:",
    ),
    Mutant(
        "examples: statistics of a batch",
        "client/example_sums.py",
        "        if buffers:",
        "        if False:",
    ),
    Mutant(
        "examples: no clip",
        "privacy/steps.py",
        "torch.where(norms > self.clip_norm, self.clip_norm / norms, 1.0)",
        "torch.ones_like(norms)",
    ),
    Mutant(
        "examples: price at another rate than the draw",
        "privacy/steps.py",
        "Sampled(Poisson(self.rate), step)",
        "Sampled(Poisson(self.rate / 2), step)",
    ),
    Mutant(
        "examples: rate from the rows that a silo holds",
        "client/dpsgd.py",
        "[self.silos[silo].rate for silo in silos]",
        "[min(1.0, self.silos[silo].batch / max(int(size), 1)) for silo, size in zip(silos, sizes)]",
    ),
    Mutant(
        "examples: empty batch without noise",
        "client/private.py",
        "descent.step(steps.release(torch.cat([part.reshape(-1) for part in sums]).cpu(), noise))",
        "len(losses) and descent.step(steps.release(torch.cat([part.reshape(-1) for part in sums]).cpu(), noise))",
    ),
    Mutant(
        "examples: bias left out of the norm",
        "client/private_stacked.py",
        "(values[number].square().sum(-1) + 1.0)",
        "values[number].square().sum(-1)",
    ),
    Mutant(
        "examples: norms by hooks are halved",
        "client/example_sums.py",
        "own.flatten(1).norm(dim=1) for own in each",
        "0.5 * own.flatten(1).norm(dim=1) for own in each",
    ),
    Mutant(
        "examples: norms by book-keeping are halved",
        "client/book_keeping.py",
        "norms = self._squares(found, losses).sqrt()",
        "norms = 0.5 * self._squares(found, losses).sqrt()",
    ),
    Mutant(
        "examples: what no hook sees goes unseen",
        "client/book_keeping.py",
        "if not apart <= TOLERANCE * scale + TINY:",
        "if False:",
    ),
    Mutant(
        "examples: only sums of gradients are compared with autograd",
        "client/book_keeping.py",
        "every = [torch.ones_like(losses), *one_row[list(ends(len(losses)))]]",
        "every = [torch.ones_like(losses)]",
    ),
    Mutant(
        "examples: a recurrent layer is trained with another nonlinearity",
        "client/example_sums.py",
        'nn.RNN: ("nonlinearity",)',
        "nn.RNN: ()",
    ),
    Mutant(
        "examples: rows that are mixed go unseen",
        "client/separate_rows.py",
        "if not bool((alone - mine[row]).abs() <= tolerance * mine[row].abs().clamp(min=1.0)):",
        "if False:",
    ),
    Mutant(
        "examples: a batch of equal rows proves that none are mixed",
        "client/separate_rows.py",
        "if bool((features == features[:1]).all()):",
        "if False:",
    ),
    Mutant(
        "local: a budget tells who was in a secret cohort of fixed size",
        "strategies/rules.py",
        'known = cohort.sampling in ("all", "cyclic") or (cohort.sampling == "poisson" and cohort.rate == 1)',
        'known = cohort.sampling == "all" or cohort.rate == 1',
    ),
    Mutant(
        "local: zeros that became noise are priced as zeros",
        "strategies/rules.py",
        'if privacy.silo is not None and privacy.silo.neighbours == "zero_out":',
        "if False:",
    ),
    Mutant(
        "an experiment without a file has no rules",
        "simulations/preparing.py",
        "if lines := problems(experiment):",
        "if (lines := problems(experiment)) and False:",
    ),
    Mutant(
        "sweep: choosing costs examples nothing",
        "simulations/sweep/sweep.py",
        "if any(each.privacy.example is not None for each in (base, *sweep.experiments)):",
        "if False:",
    ),
    Mutant(
        "sweep: only its first settings are looked at for noise of the silos' own",
        "simulations/sweep/sweep.py",
        "if any(each.privacy.local is not None for each in (base, *sweep.experiments)):",
        "if base.privacy.local is not None:",
    ),
    Mutant(
        "examples: pairs of positions left out of the norm",
        "client/layer_gradients.py",
        "total = total + alike.sum((1, 2)).clamp(min=0.0)",
        "total = total + alike.diagonal(dim1=1, dim2=2).sum(1)",
    ),
    Mutant(
        "examples: padding of a stack counts",
        "client/private_stacked.py",
        "factors = steps[0].factors(_squares(values, slopes).sqrt()) * real",
        "factors = steps[0].factors(_squares(values, slopes).sqrt())",
    ),
    Mutant(
        "examples: fixed batches",
        "client/poisson.py",
        "joins[:, step] = present & (coins < np.asarray(rates, dtype=np.float64)[:, None])",
        "joins[:, step] = present & (np.argsort(coins) < (np.asarray(rates) * sizes)[:, None])",
    ),
    Mutant(
        "examples: silos pay after the round",
        "simulations/engines/accounts.py",
        """self.ledger.reserve_each(round_, charges, unit=UNIT, neighbours=NEIGHBOURS)
        yield from self.link.ask(requests, mechanisms, record=record)""",
        """yield from self.link.ask(requests, mechanisms, record=record)
        self.ledger.reserve_each(round_, charges, unit=UNIT, neighbours=NEIGHBOURS)""",
    ),
    Mutant(
        "examples: one fit too many is free",
        "client/dpsgd.py",
        "if not fit < self.fits:",
        "if not fit <= self.fits:",
    ),
    Mutant(
        "examples: all silos get the same noise",
        "client/dpsgd.py",
        'streams.generator(self.seed, "example noise", round_, fit, silo)',
        'streams.generator(self.seed, "example noise", round_, fit)',
    ),
    Mutant(
        "canary examples: no clip",
        "client/planted.py",
        "self.factors(torch.linalg.vector_norm(gradients, dim=1)) @ gradients",
        "gradients.sum(0)",
    ),
    Mutant(
        "canary examples: a clip of their own",
        "client/planted.py",
        "LENGTH * self.clip_norm * units",
        "0.5 * self.clip_norm * units",
    ),
    Mutant(
        "canary examples: in every batch",
        "client/planted.py",
        "[own.rate], steps, keys",
        "[1.0], steps, keys",
    ),
    Mutant(
        "canary examples: secret coins from the seed",
        "client/planted.py",
        "keys = None if self.secret else streams",
        "keys = streams",
    ),
    Mutant(
        "canary examples: no noise beside them",
        "client/planted.py",
        "return super().release(total, noise)",
        "return total / self.batch",
    ),
    Mutant(
        "canary examples: in every silo",
        "client/planted.py",
        "        if silo not in self.silos:\n            return own",
        "        if not self.silos:\n            return own",
    ),
    Mutant(
        "canary examples: the same in every silo",
        "client/planted.py",
        'streams.derive(seed, "example canaries", silo)',
        'streams.derive(seed, "example canaries")',
    ),
    Mutant(
        "canary examples: the last fit alone",
        "client/planted.py",
        "changes[silo] = changes[silo] + moved if silo in changes else moved",
        "changes[silo] = moved",
    ),
    Mutant(
        "canary examples: the last round alone",
        "client/planted.py",
        "own.get(CHANGE, torch.zeros(self.size)) + change",
        "change",
    ),
    Mutant(
        "canary examples: another silo's claim",
        "simulations/example_audit.py",
        "active.silo_ledger, silo).upper",
        "active.silo_ledger, 0).upper",
    ),
    Mutant(
        "canary examples: their alarm is not heard",
        "simulations/words/audit.py",
        "    return [*([silo] if silo is not None else []), *examples]",
        "    return [*([silo] if silo is not None else [])]",
    ),
    Mutant(
        "canary examples: unpriced under silo-level privacy",
        "strategies/rules_audit.py",
        'privacy.silo is not None and metrics.privacy == "strict"',
        'privacy.silo is not None and metrics.privacy == "none"',
    ),
    Mutant(
        "examples: reserves not on the disk",
        "privacy/ledger.py",
        "hold=at < last",
        "hold=True",
    ),
    Mutant(
        "votes on the clip norm free of charge",
        "privacy/adaptive.py",
        "return Composed((Gaussian(self.noise_multiplier), Gaussian(2 * self.count_noise)))",
        "return Gaussian(self.noise_multiplier)",
    ),
    Mutant(
        "votes priced as if they moved half as far",
        "privacy/adaptive.py",
        "return Composed((Gaussian(self.noise_multiplier), Gaussian(2 * self.count_noise)))",
        "return Composed((Gaussian(self.noise_multiplier), Gaussian(4 * self.count_noise)))",
    ),
    Mutant(
        "votes of 0 and 1",
        "privacy/adaptive.py",
        "torch.where(norms <= self.clip_norm, 0.5, -0.5)",
        "torch.where(norms <= self.clip_norm, 1.0, 0.0)",
    ),
    Mutant(
        "an update of zeros votes",
        "privacy/adaptive.py",
        ".double() * (norms > 0)",
        ".double()",
    ),
    Mutant(
        "vectors with the noise of vectors and votes",
        "privacy/adaptive.py",
        "return cls(clip_norm, left**-0.5, quantile",
        "return cls(clip_norm, noise_multiplier, quantile",
    ),
    Mutant(
        "votes with half their noise",
        "privacy/adaptive.py",
        "noised(total, self.count_noise, source",
        "noised(total, 0.5 * self.count_noise, source",
    ),
    Mutant(
        "votes with the noise of the vectors",
        "privacy/release.py",
        'stream=(*stream, name, "votes")',
        "stream=(*stream, name)",
    ),
    Mutant(
        "canaries vote",
        "server/canaries.py",
        "payload=0, bytes=0, votes={})",
        "payload=0, bytes=0)",
    ),
    Mutant(
        "clip norm of round 1 after a restart",
        "server/loop.py",
        'restored(training.mechanisms, checkpoint.meta.get("clip_norms", {}))',
        "training.mechanisms",
    ),
    Mutant(
        "clip norm never adapts",
        "server/loop.py",
        "mechanisms=advanced(training.mechanisms, release)",
        "mechanisms=training.mechanisms",
    ),
    Mutant(
        "shares of channels as parts of the noise",
        "simulations/channels.py",
        "noise / math.sqrt(parts[name])",
        "noise * math.sqrt(1 - parts[name] / 2)",
    ),
    Mutant(
        "shares that do not add up",
        "strategies/clipping.py",
        "left = 1.0 - math.fsum(given.values())",
        "left = 1.0",
    ),
    Mutant(
        "local noise off",
        "privacy/local.py",
        "mechanism.privatize(vector, self.source, stream=(purpose, round_, silo, name))",
        "vector",
    ),
    Mutant(
        "one local noise for all silos",
        "privacy/local.py",
        "stream=(purpose, round_, silo, name)",
        "stream=(purpose, round_, name)",
    ),
    Mutant(
        "canaries take the local noise of silos",
        "server/canaries.py",
        "round_=round_, purpose=CANARY)",
        "round_=round_)",
    ),
    Mutant(
        "no local clip",
        "privacy/local.py",
        "clipped = factors[:, None] * kept",
        "clipped = kept",
    ),
    Mutant(
        "local clip after the noise",
        "privacy/local.py",
        "sent[name] = torch.stack(noised).float()",
        "sent[name] = (torch.stack(noised) * mechanism.factors(torch.stack(noised).norm(dim=-1))[:, None]).float()",
    ),
    Mutant(
        "local noise priced as twice as much",
        "simulations/local_privacy.py",
        "    event = joint_event(mechanisms)\n",
        "    event = Gaussian(2 * noise)\n",
    ),
    Mutant(
        "a broken update shows through local noise",
        "privacy/local.py",
        "kept = torch.where(finite[:, None], rows[name], 0.0)",
        "kept = rows[name]",
    ),
    Mutant(
        "a weight leaves beside local noise",
        "privacy/local.py",
        "if not bool((weights == 1.0).all()):",
        "if False:",
    ),
    Mutant(
        "lines for all silos are free",
        "privacy/local.py",
        "everyone += entry.silos is None",
        "everyone += 0",
    ),
    Mutant(
        "the silo that was asked least is priced",
        "privacy/spending.py",
        "return max(prices, key=lambda found: found.upper",
        "return min(prices, key=lambda found: found.upper",
    ),
    Mutant(
        "updates leave without their local noise",
        "client/host.py",
        """        if self.local is None:
            return channels, []""",
        "        return channels, []",
    ),
    Mutant(
        "canaries without local noise",
        "server/canaries.py",
        "            if self.local is not None:\n",
        "            if False:\n",
    ),
    Mutant(
        "a silo is asked once more than its budget allows",
        "server/local.py",
        "times = 1 + max(",
        "times = max(",
    ),
    Mutant(
        "local noise makes the outside private for free",
        "server/loop.py",
        "any(mechanism.private for mechanism in training.mechanisms.values()):\n        entries",
        "False:\n        entries",
    ),
    Mutant(
        "delta measured from zero",
        "strategies/fedavg.py",
        'Update({"delta": after - start}',
        'Update({"delta": after}',
    ),
    Mutant(
        "sweep: choice for the price of a run",
        "privacy/tuning.py",
        "return one + (1 + self.eta) * lowest + math.log(self.mean) / (ORDERS - 1)",
        "return one",
    ),
    Mutant(
        "sweep: eta is not charged",
        "privacy/tuning.py",
        "one + (1 + self.eta) * lowest",
        "one + lowest",
    ),
    Mutant(
        "sweep: Poisson number without its delta",
        "privacy/tuning.py",
        "one + self.mean * delta + ",
        "one + ",
    ),
    Mutant(
        "sweep: the cheapest setting is charged",
        "privacy/tuning.py",
        "np.exp(scaled - top).mean(axis=0)",
        "np.exp(scaled - top).min(axis=0)",
    ),
    Mutant(
        "sweep: all released for the price of one",
        "simulations/sweep/plan.py",
        'if spec.release == "best":',
        "if True:",
    ),
    Mutant(
        "sweep: scores for free",
        "simulations/sweep/plan.py",
        "return Composed((plan.after(rounds), *score))",
        "return plan.after(rounds)",
    ),
    Mutant(
        "sweep: broken-off attempts for free",
        "simulations/sweep/sweep.py",
        "rounds=max(planned, charged)",
        "rounds=planned",
    ),
    Mutant(
        "sweep: silos dealt anew for every run",
        "simulations/sweep/plan.py",
        "replace(experiment, data=replace(experiment.data, seed=kept))",
        "experiment",
    ),
    Mutant(
        "sweep: losers stay",
        "simulations/sweep/choice.py",
        '            _withhold(folder / run["run"])\n',
        "",
    ),
    Mutant(
        "sweep: runs drawn again on resume",
        "simulations/sweep/memory.py",
        "if listed != [_planned(sweep, run) for run in sweep.drawn] or dataset != sweep.dataset:",
        "if False:",
    ),
    Mutant(
        "sweep: score without noise",
        "simulations/sweep/score.py",
        "GaussianSum(1.0, noise)}",
        "GaussianSum(1.0, 1e-9)}",
    ),
    Mutant(
        "explain: the choice is left out",
        "simulations/report/run.py",
        "if self.claimed is None or self.selection is None:",
        "if True:",
    ),
    Mutant(
        "example budget: a stop after the round",
        "server/loop.py",
        "with training.admit(round_, cohort):",
        "with always(round_, cohort):",
    ),
    Mutant(
        "example budget: nothing charged to the data",
        "privacy/silo_accounts.py",
        "            yield\n            self._reserve(round_, charges)",
        "            yield",
    ),
    Mutant(
        "example budget: charged though the round was refused",
        "privacy/silo_accounts.py",
        "            yield\n            self._reserve(round_, charges)",
        "            self._reserve(round_, charges)\n            yield",
    ),
    Mutant(
        "example budget: the other unit lets the lock go",
        "privacy/ledger.py",
        "        if self._held:",
        "        if False:",
    ),
    Mutant(
        "example budget: rows dealt anew start afresh",
        "privacy/silo_accounts.py",
        "elsewhere = self._spending.elsewhere(self.deal)",
        "elsewhere = Counter[Event]()",
    ),
    Mutant(
        "example budget: every partition is the same deal",
        "simulations/data/federation.py",
        "        digest.update(part.to(torch.int64).contiguous().numpy().data)\n",
        "",
    ),
    Mutant(
        "example budget: who was asked ends a run of secret cohorts",
        "simulations/example_accounts.py",
        "return experiment.privacy.silo is not None and sampler.event(alone) != alone",
        "return False",
    ),
    Mutant(
        "example budget: the refusal names a silo of a secret cohort",
        "simulations/example_accounts.py",
        "names=None if hidden else federation.silo_names",
        "names=federation.silo_names",
    ),
    Mutant(
        "example budget: the largest of any silo",
        "privacy/silo_accounts.py",
        "self._affords(spent, events, self.budgets[silo])",
        "self._affords(spent, events, max(self.budgets))",
    ),
    Mutant(
        "example budget: a resumed run's charges stay elsewhere",
        "simulations/running.py",
        "self.example_accounts.settle(self.ledger, self.silo_ledger)",
        "pass",
    ),
    Mutant(
        "example budget: rounds of secret cohorts settled as asked",
        "simulations/example_accounts.py",
        "begun = own.charges(loop.UNIT)",
        "begun = 0",
    ),
    Mutant(
        "example budget: another run settles this one's debt",
        "privacy/silo_accounts.py",
        "if (each.run, each.unit) == (self.run, self.unit))",
        "if each.unit == self.unit)",
    ),
    Mutant(
        "example budget: relations added up",
        "privacy/silo_accounts.py",
        "if entry.neighbours != self.neighbours:",
        "if False:",
    ),
    Mutant(
        "spending: a line that names no silo is free",
        "privacy/spending.py",
        "            everyone[entry.event] += 1",
        "            pass",
    ),
    Mutant(
        "spending: another deal counts by its last silo",
        "privacy/spending.py",
        "most[entry.event] = max(most[entry.event], own[entry.event])",
        "most[entry.event] = own[entry.event]",
    ),
    Mutant(
        "ledger verify: the silos' ledger is passed over",
        "simulations/ledgers.py",
        "silos = [Place(path / SILOS, path)] if promised or (path / SILOS).exists() else []",
        "silos: list[Place] = []",
    ),
    Mutant(
        "ledger verify: a silos' ledger that is gone is passed over",
        "simulations/ledgers.py",
        "if promised or (path / SILOS).exists()",
        "if (path / SILOS).exists()",
    ),
    Mutant(
        "ledger verify: steps of the result are believed",
        "simulations/ledger_claims.py",
        'if found["steps"] != claimed["steps"]:',
        "if False:",
    ),
    Mutant(
        "explain: the silos' ledger is passed over",
        "simulations/words/statement.py",
        '**run.result.get("ledgers", {})',
        "**{}",
    ),
    Mutant(
        "explain: a ledger that went on passes",
        "simulations/words/statement.py",
        "if late := max(units.values(), default=0):",
        "if late := 0 * max(units.values(), default=0):",
    ),
    Mutant(
        "a cap priced as none",
        "privacy/terms.py",
        "return sampler if crowding(sampler).spill > 0 else _plain(Poisson(rate))",
        "return _plain(Poisson(rate))",
    ),
    Mutant(
        "a cap thought to be reached later",
        "privacy/capped.py",
        "spill = _at_least(cap, population - 1, rate)",
        "spill = _at_least(cap + 1, population - 1, rate)",
    ),
    Mutant(
        "replaced under a cap at one clip norm",
        "privacy/pld.py",
        'Part("poisson_replace", part.kept, part.noise / 2, part.times)',
        'Part("poisson_replace", part.kept, part.noise, part.times)',
    ),
    Mutant(
        "replaced under a cap at one clip norm, by Renyi",
        "privacy/rdp.py",
        'full = _one("poisson_replace", part.kept, part.noise / 2)',
        'full = _one("poisson_replace", part.kept, part.noise)',
    ),
    Mutant(
        "a cap keeps the first silos",
        "server/sampler.py",
        'np.argsort(values[drawn], kind="stable")',
        "np.arange(len(drawn))",
    ),
    Mutant(
        "the mean under a cap divided as without",
        "server/sampler.py",
        "return crowding(self._sampler).rate * self.population",
        "return self.rate * self.population",
    ),
    Mutant(
        "the filter reports less than it charged",
        "privacy/filters.py",
        "return max(0.0, self.spent + self.budget - self.allowance)",
        "return 0.9 * max(0.0, self.spent + self.budget - self.allowance)",
    ),
    Mutant(
        "the filter lets one more through",
        "privacy/filters.py",
        "return self.spent + self._cost(event, times) <= self.allowance",
        "return self.spent <= self.allowance",
    ),
    Mutant(
        "the filter's allowance forgets log(order)",
        "privacy/rdp.py",
        "(math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)\n    return spared",
        "math.log(delta) / (ORDERS - 1)\n    return spared",
    ),
    Mutant(
        "runs that differ priced as if planned together",
        "privacy/filters.py",
        "if len(runs) < 2 or fixed(spent):",
        "if True:",
    ),
    Mutant(
        "any two kinds of rounds taken for fixed",
        "privacy/filters.py",
        "return len(set(events)) < 2 or all(",
        "return len(set(events)) < 3 or all(",
    ),
    Mutant(
        "the filter's order follows the later runs",
        "privacy/account.py",
        "if len(runs) < 2:\n                first.add",
        "if True:\n                first.add",
    ),
    Mutant(
        "a price of a lone run kept for several",
        "privacy/account.py",
        "if wanted.counts <= known.counts and (wanted.runs, wanted.first) == (known.runs, known.first):",
        "if wanted.counts <= known.counts:",
    ),
    Mutant(
        "replaced as cheap as absent",
        "privacy/rdp.py",
        "np.fmin(through, _poisson(rate, noise, ORDERS) + unsampled)",
        "np.fmin(through, _poisson(rate, noise, ORDERS))",
    ),
    Mutant(
        "verifier takes a reserve back that was committed",
        "privacy/verify.py",
        "                still_open.remove(seq)\n",
        "",
    ),
    Mutant(
        "verifier prices a sample of a sample as one",
        "privacy/verify.py",
        "if not parts or {type(part) for part in parts} != {dp.GaussianDpEvent}:",
        "if not parts:",
    ),
    Mutant(
        "verifier forgets the cap",
        "privacy/verify.py",
        "return dp.TruncatedSubsampledGaussianDpEvent(n, p, b, one.noise_multiplier)",
        "return dp.PoissonSampledDpEvent(p, one)",
    ),
    Mutant(
        "many kinds of rounds merged into the quietest",
        "privacy/terms.py",
        "rate, noise = max(part.rate for part in group), min(part.noise for part in group)",
        "rate, noise = max(part.rate for part in group), max(part.noise for part in group)",
    ),
    Mutant(
        "the grid forgives an upper end below the truth",
        "simulations/studies/accountant_grid.py",
        'sum(not row["upper"] >= row["reference_lower"] for row in known)',
        'sum(row["upper"] < 0.5 * row["reference_lower"] for row in known)',
    ),
    Mutant(
        "sparse: noise only where something was sent",
        "privacy/mechanism.py",
        "return noised(total, self.std, source.normals(total.numel(), *stream))",
        "return noised(total, self.std, source.normals(total.numel(), *stream)) * (total != 0)",
    ),
    Mutant(
        "sparse: more numbers than were counted",
        "client/host.py",
        "require_kept(update.channels, self._kept(instruction))",
        "pass",
    ),
    Mutant(
        "sparse: noised updates counted as sparse",
        "client/host.py",
        "return {} if self.local is not None else self._kept(instruction)",
        "return self._kept(instruction)",
    ),
    Mutant(
        "sparse: all tiers are asked as the first",
        "server/link.py",
        "Request(strategy.instruct(state, round_, tier), asked)",
        "Request(strategy.instruct(state, round_), asked)",
    ),
    Mutant(
        "flasc: delta from the server's model",
        "strategies/flasc.py",
        'start = instruction["model"]\n        delta = silo.fit(start) - start',
        'start = instruction["model"]\n        delta = silo.fit(start)',
    ),
    Mutant(
        "flasc: pruned for good",
        "strategies/flasc.py",
        "return {**step(self.server, state, ",
        'return {**step(self.server, {**state, "model": self.predictor(state)}, ',
    ),
    Mutant(
        "flasc: canaries are looked for in what travels",
        "strategies/flasc.py",
        'today may travel tomorrow."""\n        return state["model"]',
        'today may travel tomorrow."""\n        return self.predictor(state)',
    ),
    Mutant(
        "flasc: the smallest numbers travel",
        "strategies/sparse.py",
        "vector.abs().topk(count, dim=-1, sorted=False)",
        "vector.abs().topk(count, dim=-1, sorted=False, largest=False)",
    ),
    Mutant(
        "flasc: signs decide what travels",
        "strategies/sparse.py",
        "vector.abs().topk(count, dim=-1, sorted=False)",
        "vector.topk(count, dim=-1, sorted=False)",
    ),
    Mutant(
        "flasc: one density for both ways",
        "strategies/flasc.py",
        "(own.up, self.decay_up) if up else (own.down, self.decay_down)",
        "(own.up, self.decay_up)",
    ),
    Mutant(
        "pruning: momentum brings back what was pruned",
        "strategies/pruning.py",
        "model = torch.where(start != 0, model, 0.0)",
        "pass",
    ),
    Mutant(
        "pruning: silos train what was pruned",
        "strategies/pruning.py",
        "correct=lambda w, g: g * mask",
        "correct=lambda w, g: g",
    ),
    Mutant(
        "rank tiers: noise fills the higher ranks",
        "strategies/rank_tiers.py",
        "correct=None if bool(mask.all()) else lambda w, g: g * mask",
        "correct=None",
    ),
    Mutant(
        "revealed: without the clip",
        "privacy/release.py",
        "seen[name] = (factors.unsqueeze(-1) * vectors).float()",
        "seen[name] = vectors.float()",
    ),
    Mutant(
        "revealed: everyone may look",
        "client/host.py",
        "reveals=strategy.reveals,",
        "reveals=True,",
    ),
    Mutant(
        "revealed: at the price of a sum",
        "server/loop.py",
        "    if strategy.reveals:\n",
        "    if False:\n",
    ),
    Mutant(
        "lora: B starts away from zero",
        "strategies/lora.py",
        'nn.init.zeros_(out.get_parameter("weight"))',
        'nn.init.ones_(out.get_parameter("weight"))',
    ),
    Mutant(
        "lora: the scale forgets the rank",
        "strategies/lora.py",
        "return self.alpha / self.rank",
        "return self.alpha",
    ),
    Mutant(
        "lora: the base trains too",
        "strategies/lora.py",
        "module.requires_grad_(False)",
        "module.requires_grad_(True)",
    ),
    Mutant(
        "lora: an adapter of another kind is read as a plain one",
        "strategies/adapter_files.py",
        "if (config.get(name) or plain) != plain:",
        "if False:",
    ),
    Mutant(
        "lora: a run goes on with other frozen weights",
        "simulations/running.py",
        "return known | self.plan.matrix | self._frozen",
        "return known | self.plan.matrix",
    ),
    Mutant(
        "lora: a path of this machine is in the digest",
        "strategies/experiment.py",
        'found[name] = "./file"',
        "pass",
    ),
    Mutant(
        "lora: serving needs the weights a run started from",
        "simulations/prediction.py",
        "experiment.task.structure(shape)",
        "experiment.task.module(shape)",
    ),
    Mutant(
        "lora: the turned digits are those of the backbone too",
        "simulations/data/backbones.py",
        "order[DIGITS:].sort().values",
        "order[DIGITS - 1 :].sort().values",
    ),
    Mutant(
        "stacked: silos of uneven lengths come back in another order",
        "client/stacked.py",
        "return vectors[back]",
        "return vectors",
    ),
    Mutant(
        "stacked: a silo with steps left stops",
        "client/stacked.py",
        "active = int((count > 0).sum())",
        "active = max(1, int((count > 0).sum()) - 1)",
    ),
    Mutant(
        "stacked adapters: the signal passes the base alone",
        "client/stacked_adapters.py",
        "return self.base.below(signal).baddbmm_(low, self.into, alpha=self.scaling)",
        "return self.base.below(signal)",
    ),
    Mutant(
        "wire: the length of an entropy code follows from the vector",
        "strategies/wire_entropy.py",
        'return whole.ljust(self.size(numbers, kept), b"\\0")',
        "return whole",
    ),
    Mutant(
        "wire: the longest entropy code is too short",
        "strategies/wire_entropy.py",
        "return (worst + beyond) // (FINE * 32)",
        "return (worst + beyond) // (FINE * 33)",
    ),
    Mutant(
        "wire: an entropy code may end anywhere",
        "strategies/wire_entropy.py",
        "if bool((states != LOW).any()) or bool(words[taken:].any()):",
        "if bool(words[taken:].any()):",
    ),
    Mutant(
        "wire: an entropy code may leave words over",
        "strategies/wire_entropy.py",
        "if bool((states != LOW).any()) or bool(words[taken:].any()):",
        "if bool((states != LOW).any()):",
    ),
    Mutant(
        "wire: a lane may start anywhere",
        "strategies/wire_entropy.py",
        "if not bool(((states >= LOW) & (states < 1 << 63)).all()):",
        "if not bool((states >= LOW).all()):",
    ),
    Mutant(
        "wire: frequencies rounded down",
        "strategies/wire_entropy.py",
        "-(-share // whole)",
        "share // whole",
    ),
    Mutant(
        "wire: indices may come twice",
        "strategies/wire_index.py",
        "if not bool((indices[1:] > indices[:-1]).all()):",
        "if not bool((indices[1:] >= indices[:-1]).all()):",
    ),
    Mutant(
        "wire: an index beyond the last number",
        "strategies/wire_index.py",
        "if len(indices) and not int(indices[-1]) < numbers:",
        "if len(indices) and not int(indices[-1]) <= numbers:",
    ),
    Mutant(
        "wire: a bitmap with any number of ones",
        "strategies/wire_index.py",
        '        raise Malformed(f"wire: found {len(found)} numbers marked where {kept} were declared")',
        "        pass",
    ),
    Mutant(
        "wire: gaps of any number",
        "strategies/wire_index.py",
        '            raise Malformed(f"wire: found {len(ends)} gaps where {kept} were declared")',
        "            ends = np.resize(ends, kept)",
    ),
    Mutant(
        "wire: the header is not looked at",
        "strategies/wire.py",
        "        if found != due:",
        "        if False:",
    ),
    Mutant(
        "wire: bytes after the end",
        "strategies/wire.py",
        "    if len(data) != expected:",
        "    if len(data) < expected:",
    ),
    Mutant(
        "wire: any zero may travel",
        "strategies/wire.py",
        "if len(zeros) and indices[zeros[-1]] != zeros[-1]:",
        "if False:",
    ),
    Mutant(
        "wire: dense messages hold any number",
        "strategies/wire.py",
        "        if not np.count_nonzero(sent) <= kept:",
        "        if False:",
    ),
    Mutant(
        "wire: more numbers than may travel",
        "strategies/wire.py",
        "    if not found <= kept:",
        "    if False:",
    ),
    Mutant(
        "wire: float16 overflows",
        "strategies/wire.py",
        "vector.clamp(-LARGEST, LARGEST)",
        "vector",
    ),
    Mutant(
        "wire: any NaN of float16 is read",
        "strategies/wire.py",
        "    if bool((nans != NAN).any()):",
        "    if False:",
    ),
    Mutant(
        "rounding: updates travel as they are",
        "client/host.py",
        "channels = self.rounding.sent(update.channels, trained.session.state, self.channel_sizes)",
        "channels = update.channels",
    ),
    Mutant(
        "rounding: silos train from what was never sent",
        "client/host.py",
        "        instruction = self.rounding.received(instruction)\n",
        "",
    ),
    Mutant(
        "rounding: silos are evaluated on what was never sent",
        "client/host.py",
        "results, instruction = [], self.rounding.received(instruction)",
        "results = []",
    ),
    Mutant(
        "rounding: residuals make more numbers travel",
        "client/rounding.py",
        "total = torch.where(vector != 0, vector + before, 0.0)",
        "total = vector + before",
    ),
    Mutant(
        "rounding: residuals of numbers that are not sent are lost",
        "client/rounding.py",
        "torch.where(vector != 0, total - sent, before)",
        "(total - sent)",
    ),
    Mutant(
        "rounding: float16 beside local noise",
        "strategies/rules.py",
        'if wire.values != "float32" and privacy.local is not None:',
        "if False:",
    ),
    Mutant(
        "personalisation: the mean is over the cohort",
        "strategies/mr_mtl.py",
        'release.sum("delta") / release.population',
        'release.mean("delta")',
    ),
    Mutant(
        "personalisation: the mean overwrites a silo's model",
        "strategies/mr_mtl.py",
        'before = silo.state.get("model", instruction["initial"])',
        'before = mean.expand_as(silo.state.get("model", instruction["initial"]))',
    ),
    Mutant(
        "personalisation: a late joiner starts from the mean",
        "strategies/mr_mtl.py",
        'before = silo.state.get("model", instruction["initial"])',
        'before = silo.state.get("model", mean)',
    ),
    Mutant(
        "personalisation: the pull is inside of the clip unasked",
        "strategies/mr_mtl.py",
        'elif self.proximal == "inside":',
        "elif True:",
    ),
    Mutant(
        "personalisation: the first silo's pull for all",
        "strategies/mr_mtl.py",
        "return lams[silo.index] if",
        "return lams[0 * silo.index] if",
    ),
    Mutant(
        "personalisation: a silo's own rounds leave it after all",
        "strategies/finetune.py",
        'return Update({"delta": torch.zeros_like(after)})',
        'return Update({"delta": after - start})',
    ),
    Mutant(
        "personal privacy: two models for the price of one",
        "strategies/ditto.py",
        "fits: ClassVar[int] = 2",
        "fits: ClassVar[int] = 1",
    ),
    Mutant(
        "personal privacy: a choice is free",
        "simulations/example_privacy.py",
        "return Composed((steps, *queries)) if queries else steps",
        "return steps",
    ),
    Mutant(
        "personal privacy: noise is solved as if nothing were asked beside steps",
        "simulations/example_privacy.py",
        "*each, steps * experiment.rounds, asked)",
        "*each, steps * experiment.rounds, ())",
    ),
    Mutant(
        "personal privacy: a query is asked again for nothing",
        "client/host.py",
        "or name in self._asked:",
        "or False:",
    ),
    Mutant(
        "personal privacy: a query outside of rounds",
        "client/host.py",
        'if host.dpsgd is not None and not self._training:\n            raise ValueError(f"query',
        'if False:\n            raise ValueError(f"query',
    ),
    Mutant(
        "queries: the choice is not noised",
        "client/queries.py",
        "return query.release(query.total(found), noise).to(found.dtype)",
        "return query.total(found).to(found.dtype)",
    ),
    Mutant(
        "queries: rows are not clipped",
        "privacy/queries.py",
        "torch.where(norms > self.clip_norm, self.clip_norm / norms, 1.0) @ rows",
        "torch.ones_like(norms) @ rows",
    ),
    Mutant(
        "queries: a choice is half as dear",
        "privacy/queries.py",
        "return cls(size, clip_norm, 2.0 / epsilon)",
        "return cls(size, clip_norm, 1.0 / epsilon)",
    ),
    Mutant(
        "queries: noise with another deviation than priced",
        "privacy/queries.py",
        "dtype=total.dtype).mul_(std) + total",
        "dtype=total.dtype).mul_(0.9 * std) + total",
    ),
    Mutant(
        "queries: all silos have the same noise",
        "client/queries.py",
        'f"example query {name}", round_, silo)',
        'f"example query {name}", round_)',
    ),
    Mutant(
        "queries: rows that depend on others",
        "client/queries.py",
        "_require_apart(name, found, columns, rows)",
        "pass",
    ),
    Mutant(
        "penalty: norms without the cross term",
        "client/private_stacked.py",
        "2.0 * torch.stack(inner)",
        "0.0 * torch.stack(inner)",
    ),
    Mutant(
        "penalty: the pull of a batch is not clipped with its rows",
        "client/private_stacked.py",
        "times = factors.sum(1, keepdim=True)",
        "times = real.sum(1, keepdim=True)",
    ),
    Mutant(
        "penalty: norms in single precision",
        "client/private_stacked.py",
        "values, slopes, pull = _wide(values, slopes, pull)",
        "values = list(values)",
    ),
    Mutant(
        "penalty: hooks leave it out",
        "client/example_sums.py",
        "each = [own + part for own, part in zip(each, pull, strict=True)]",
        "each = list(each)",
    ),
    Mutant(
        "evaluation: a new silo has a past",
        "client/personal.py",
        "stacked=False, fresh=True)",
        "stacked=False, fresh=False)",
    ),
    Mutant(
        "evaluation: validation rows are test rows",
        "client/host.py",
        '{"test": held_out, "validation": validation}',
        '{"test": held_out, "validation": held_out}',
    ),
    Mutant(
        "evaluation: every silo counts the same, whatever its rows",
        "simulations/evaluation.py",
        "np.average(found.score, weights=found.rows)",
        "np.average(found.score)",
    ),
    Mutant(
        "spread: the known noise counts as difference of silos",
        "strategies/spread.py",
        "* variance / pair",
        "* 0.0 / pair",
    ),
    Mutant(
        "spread: pulls twice as far as the noise asks for",
        "strategies/spread.py",
        "rate * variance / (both * (2.0 - rate * both))",
        "2.0 * rate * variance / (both * (2.0 - rate * both))",
    ),
    Mutant(
        "mean estimation: noise as the paper's own calibration has it",
        "simulations/studies/mean_estimation.py",
        "return DEVIATION**2 / ROWS + (noise * CLIP / ROWS) ** 2",
        "return DEVIATION**2 / ROWS + (1.0965 * noise * CLIP / ROWS) ** 2",
    ),
    Mutant(
        "tweets standardised",
        "simulations/data/federation.py",
        'if not source.features.is_floating_point() and config.standardize.name != "none":',
        'if source.kind == "sequence" and config.standardize.name != "none":',
    ),
    Mutant(
        "tweets keep their links",
        "simulations/data/tweets.py",
        '_LINK.sub(" ", html.unescape(raw)).split()',
        "html.unescape(raw).split()",
    ),
    Mutant(
        "tweets that give the word away",
        "simulations/data/tweets.py",
        "if _PART.search(masked) or (outlet",
        "if (outlet",
    ),
    Mutant(
        "transformer averages its padding",
        "strategies/tasks/transformer.py",
        "(tokens[:, 1:] != self.padding).long()",
        "torch.ones_like(tokens[:, 1:])",
    ),
    Mutant(
        "transformer reads pickles",
        "strategies/pretrained.py",
        "use_safetensors=True,  # Other",
        "use_safetensors=None,  # Other",
    ),
    Mutant(
        "transformer with a part at random",
        "strategies/pretrained.py",
        'if missing := sorted(name for name in _names(report["missing_keys"]) if not name.startswith(_UNUSED)):',
        "if missing := sorted(name for name in _names([]) if not name.startswith(_UNUSED)):",
    ),
    Mutant(
        "texts of another vocabulary",
        "simulations/preparing.py",
        "if known is not None and most >= known:",
        "if known is not None and most > known:",
    ),
    Mutant(
        "texts taken for numbers",
        "simulations/preparing.py",
        "if experiment.task.tokens == federation.train.rows.features.is_floating_point():",
        "if experiment.task.tokens and federation.train.rows.features.is_floating_point():",
    ),
    Mutant(
        "device keeps its first weights",
        "client/private.py",
        "if weights is not self.weights:",
        "if weights is None:",
    ),
    Mutant(
        "device without the targets",
        "client/single.py",
        "batch.targets.to(self.device)",
        "batch.targets",
    ),
    Mutant(
        "device lets a buffer change",
        "client/example_sums.py",
        "if self.twin.get_buffer(name) is not each or each._version != version:",
        "if self.twin.get_buffer(name) is not each:",
    ),
    Mutant(
        "device lets a buffer be saved",
        "client/example_sums.py",
        "return not saved and not buffer.is_floating_point()",
        "return not buffer.is_floating_point()",
    ),
    Mutant(
        "files with a typo among numbers",
        "client/columns.py",
        "if 0 < len(odd) <= max(1, TYPOS * len(held)) and",
        "if 0 < len(odd) <= TYPOS * len(held) and",
    ),
    Mutant(
        "files with amounts as classes",
        "client/columns.py",
        "if value is not None and value.is_finite() and value != value.to_integral_value():",
        "if value is None:",
    ),
    Mutant(
        "data of one's own dealt at random",
        "strategies/experiment.py",
        'PARTITIONS["iid" if self.silo is None else "column"]()',
        'PARTITIONS["iid"]()',
    ),
    Mutant(
        "data of one's own against its silos",
        "strategies/rules.py",
        "if data.silo is not None and not by_column and not data.named:",
        "if data.silo is not None and by_column and not data.named:",
    ),
    Mutant(
        "study: a criterion without a number passes",
        "simulations/studies/findings.py",
        'return self.measured >= self.threshold if self.relation == ">=" else self.measured <= self.threshold',
        'return not (self.measured < self.threshold if self.relation == ">=" else self.measured > self.threshold)',
    ),
    Mutant(
        "study: one run that failed is passed over",
        "simulations/studies/findings.py",
        "return max(values) if values and not any(map(math.isnan, values)) else math.nan",
        "return max(values) if values else math.nan",
    ),
    Mutant(
        "study: a failing criterion is no failure",
        "simulations/commands/study.py",
        "return OK if findings.passed else FAILED",
        "return OK",
    ),
    Mutant(
        "study: cells of other code",
        "simulations/studies/cells.py",
        '"code": code(),',
        '"code": "",',
    ),
    Mutant(
        "study: test rows choose",
        "simulations/studies/mr_mtl_shown.py",
        "return min(pairs, key=lambda pair: pair[0])",
        "return min(pairs, key=lambda pair: pair[1])",
    ),
    Mutant(
        "study: an end of the path wins",
        "simulations/studies/mr_mtl_shown.py",
        "if not 0 < self.best(data, epsilon) < len(self.lambdas) - 1:",
        "if not 0 <= self.best(data, epsilon) <= len(self.lambdas) - 1:",
    ),
    Mutant(
        "study: dense LoRA may send more",
        "simulations/studies/flasc_shown.py",
        "if sent[index] <= most]",
        "if sent[index] <= 2 * most]",
    ),
    Mutant(
        "another scale of targets is other data",
        "simulations/data/federation.py",
        "fingerprint=identity,",
        "fingerprint=fingerprint(source, official),",
    ),
    Mutant(
        "predictions in the units of the scale",
        "simulations/prediction.py",
        "outputs.squeeze(-1) if units is None else outputs.squeeze(-1) * units.std + units.mean",
        "outputs.squeeze(-1)",
    ),
    Mutant(
        "personalised: a precise silo counts as much as any",
        "strategies/mr_mtl.py",
        "weight = 1.0 / (silo.step_noise.square() + self.apart).unsqueeze(-1)",
        "weight = 1.0 / (0 * silo.step_noise + 1.0).unsqueeze(-1)",
    ),
    Mutant(
        "personalised: weights of those who arrived",
        "strategies/mr_mtl.py",
        'torch.maximum(state["weight"], release.sum("weight"))',
        'release.sum("weight")',
    ),
    Mutant(
        "stopped: served as after all planned rounds",
        "simulations/evaluation.py",
        "state, rounds + 1)",
        "state, active.experiment.rounds + 1)",
    ),
    Mutant(
        "personalised: lengths tell a secret cohort",
        "strategies/suits.py",
        "if tiers < 2 or not secret:",
        "if True:",
    ),
    Mutant(
        "personalised: a clip cuts votes",
        "strategies/suits.py",
        "if not (isinstance(norm, int | float) and norm >= least)",
        "if False",
    ),
    Mutant(
        "roles: a crew forgets where the one before it ends",
        "simulations/attacks/roles.py",
        "sum(most for other, most in largest.items() if other < crew)",
        "sum(most for other, most in largest.items() if other > crew + 9)",
    ),
    Mutant(
        "roles: an attack begins a round late",
        "simulations/attacks/roles.py",
        "if round_ < attack.start:",
        "if round_ <= attack.start:",
    ),
    Mutant(
        "roles: a coin for a silo once and for all",
        "simulations/attacks/roles.py",
        'streams.derive(self.seed, "attackers", round_)',
        'streams.derive(self.seed, "attackers")',
    ),
    Mutant(
        "poisoned rows: drawn from honest silos too",
        "simulations/attacks/poison.py",
        "self._pools[at] = (held & fit).nonzero()[:, 0]",
        "self._pools[at] = fit.nonzero()[:, 0]",
    ),
    Mutant(
        "poisoned rows: everybody's are changed",
        "simulations/attacks/poison.py",
        "features, targets, clean = rows.features.clone(), rows.targets.clone(), clean.clone()",
        "features, targets, clean = rows.features, rows.targets, clean.clone()",
    ),
    Mutant(
        "poisoned rows: one attack over another's",
        "simulations/attacks/poison.py",
        "        clean[own] = False\n",
        "",
    ),
    Mutant(
        "attacked rows: the target's own count as success",
        "simulations/attacks/triggers.py",
        "chosen = targets != attack.target",
        "chosen = targets >= 0",
    ),
    Mutant(
        "attack updates: deviations over one less",
        "simulations/attacks/updates.py",
        "updates.mean(0) - z * updates.std(0, correction=0)",
        "updates.mean(0) - z * updates.std(0)",
    ),
    Mutant(
        "attack updates: half as far as two are apart",
        "simulations/attacks/updates.py",
        "if reach <= apart else (low, middle)",
        "if 2 * reach <= apart else (low, middle)",
    ),
    Mutant(
        "attacks: honest silos are asked twice",
        "simulations/attacks/link.py",
        "silos=[silo for silo in request.silos if silo not in acting]",
        "silos=list(request.silos)",
    ),
    Mutant(
        "attacks: a crew trains no longer",
        "simulations/attacks/link.py",
        "self.host.train = lengthened(self.train, longer)",
        "self.host.train = self.train",
    ),
    Mutant(
        "attacks: more numbers than travel",
        "simulations/attacks/link.py",
        "        whole = self._as_many(instruction, whole)\n",
        "",
    ),
    Mutant(
        "attacks: flags of silos that were not asked",
        "simulations/attacks/measuring.py",
        "self._parts(set(flagged.tolist()) & set(cohort), malicious)",
        "self._parts(set(flagged.tolist()), malicious)",
    ),
    Mutant(
        "attacks: minority silos shown under privacy",
        "simulations/running.py",
        "minority_silos(train, self.federation.classes) if self.records else frozenset()",
        "minority_silos(train, self.federation.classes)",
    ),
    Mutant(
        "experiment: a digest that knows no attack",
        "strategies/experiment.py",
        'if not keys["attacks"]:',
        "if True:",
    ),
    Mutant(
        "robust: krum counts a neighbour too few",
        "strategies/robust_means.py",
        "[:, 1 : count - malicious - 1].sum(1)",
        "[:, 1 : count - malicious - 2].sum(1)",
    ),
    Mutant(
        "robust: krum one update short of its guarantee",
        "strategies/robust_means.py",
        "return count > 2 * malicious + 2",
        "return count >= 2 * malicious + 2",
    ),
    Mutant(
        "robust: the lower middle for the median",
        "strategies/robust_means.py",
        "0.5 * (ordered[(count - 1) // 2] + ordered[count // 2])",
        "ordered[(count - 1) // 2]",
    ),
    Mutant(
        "robust: the trimmed mean keeps the largest",
        "strategies/robust_means.py",
        "values[cut : count - cut].mean(0)",
        "values[cut:].mean(0)",
    ),
    Mutant(
        "robust: the geometric median starts where a hostile update can put it",
        "strategies/robust_means.py",
        "centre = median(wide)",
        "centre = wide.mean(0)",
    ),
    Mutant(
        "robust: foolsgold pardons nobody",
        "strategies/robust_means.py",
        "likeness = torch.where(above, likeness",
        "likeness = torch.where(above & False, likeness",
    ),
    Mutant(
        "robust: foolsgold forgets who was not asked",
        "strategies/robust_filters.py",
        "sums[torch.searchsorted(every, silos)] = history",
        "pass",
    ),
    Mutant(
        "robust: flame shortens nobody",
        "strategies/robust_filters.py",
        "tiny)).clamp(max=1.0)",
        "tiny)).clamp(min=1.0, max=1.0)",
    ),
    Mutant(
        "spectre filter: one silo far out hides its crew",
        "strategies/spectre_filter.py",
        "(rows / (lengths / LONGEST).clamp(min=1.0)).float()",
        "rows.float()",
    ),
    Mutant(
        "spectre filter: a silo far out moves the model",
        "strategies/spectre_filter.py",
        "[ages == 0] | ~(lengths[:, 0] <= REACH)",
        "[ages == 0]",
    ),
    Mutant(
        "spectre filter: every run is blind at the same places",
        "strategies/spectre_filter.py",
        '"sketch": torch.randint(2**62, (), generator=rng)}',
        '"sketch": torch.tensor(0)}',
    ),
    Mutant(
        "spectre filter: sketches without signs",
        "strategies/spectre_filter.py",
        "wide * signs)",
        "wide)",
    ),
    Mutant(
        "spectre filter: rounds are forgotten at once",
        "strategies/spectre_filter.py",
        'recent = state["ages"] + 1 < self.pool',
        'recent = state["ages"] + 1 < 0',
    ),
    Mutant(
        "spectre filter: a round's longest step is the unit",
        "strategies/spectre_filter.py",
        "unit = lengths.median()",
        "unit = lengths.max()",
    ),
    Mutant(
        "spectre filter: the mean of those left out",
        "strategies/spectre_filter.py",
        "updates[~out].double().mean(0)",
        "updates[out].double().mean(0)",
    ),
    Mutant(
        "scoreboard: a run that diverged counts as good",
        "simulations/studies/scoreboard.py",
        "float(sum(math.isnan(value) for value in values))",
        "0.0",
    ),
    Mutant(
        "scoreboard: colours the wrong way round",
        "simulations/report/heat.py",
        "value if high_is_bad else 1.0 - value",
        "1.0 - value if high_is_bad else value",
    ),
    Mutant(
        "robust: bits by the order of arrival",
        "strategies/robust.py",
        "key=lambda place: seen.silos[place])",
        "key=lambda place: 0)",
    ),
    Mutant(
        "hostile strategies: a silo counts as often as it answers",
        "privacy/release.py",
        "elif reason is None and silo in self._answered:",
        "elif False:",
    ),
    Mutant(
        "hostile strategies: any weight without privacy",
        "privacy/release.py",
        "heaviest = 1.0 if private else self.heaviest",
        "heaviest = 1.0 if private else math.inf",
    ),
    Mutant(
        "hostile strategies: more numbers than travel are summed",
        "client/host.py",
        "refused = crowded(update.channels, kept, group)",
        "refused: dict[int, str] = {}",
    ),
    Mutant(
        "hostile strategies: an old round's update counts",
        "client/host.py",
        "if each.round != instruction.round:",
        "if False:",
    ),
    Mutant(
        "commands: refused updates never end a run",
        "server/loop.py",
        'if now == PATIENCE or (last and now == row["round"]):',
        "if False:",
    ),
    Mutant(
        "reweight: rows of a private stack all weigh 1",
        "client/private_stacked.py",
        "signal.mul_(Weigh(reweight, groups, private=True)(losses).unsqueeze(-1))",
        "Weigh(reweight, groups, private=True)(losses)",
    ),
    Mutant(
        "reweight: weighed after the clip",
        "client/book_keeping.py",
        "steps.factors(weights * norms) * weights",
        "steps.factors(norms) * weights",
    ),
    Mutant(
        "reweight: hooks do not weigh",
        "client/example_sums.py",
        "each = [own * weights.view(-1, *[1] * (own.dim() - 1)).to(own.dtype) for own in each]",
        "each = list(each)",
    ),
    Mutant(
        "reweight: a weight may mix private rows",
        "client/reweighting.py",
        "if self.private:",
        "if False:",
    ),
    Mutant(
        "reweight: silos of a stack swap their weights",
        "client/stacked.py",
        "if plan.full or correct is not None or reweight is not None:",
        "if plan.full or correct is not None:",
    ),
    Mutant(
        "groups: sums are clipped at twice what is priced",
        "strategies/groups.py",
        "return NoisyQuery(self.size, self.loss_clip, self.noise_multiplier)",
        "return NoisyQuery(self.size, 2 * self.loss_clip, self.noise_multiplier)",
    ),
    Mutant(
        "groups: the silos' rate is forgotten",
        "strategies/groups.py",
        "total = release.sum(CHANNEL) / release.rate",
        "total = release.sum(CHANNEL)",
    ),
    Mutant(
        "groups: the loop does not tell the rate",
        "server/loop.py",
        "rate=training.sampler.expected / training.sampler.population,",
        "rate=1.0,",
    ),
    Mutant(
        "groups: rows of silos that count alike weigh without their number",
        "strategies/groups.py",
        "return by_group(base + pull * rows)",
        "return by_group(base + pull)",
    ),
    Mutant(
        "groups: noised counts may be negative",
        "strategies/groups.py",
        'return after | {"counts": total.clamp(min=1.0)}',
        'return after | {"counts": total}',
    ),
    Mutant(
        "groups: row counts as weights under silo privacy",
        "strategies/groups.py",
        'if section is not None and self.weighting == "examples":',
        "if False:",
    ),
    Mutant(
        "groups: sums share the updates' clip norm",
        "strategies/groups.py",
        "if privacy.silo is not None and given.get(CHANNEL) is None:",
        "if False:",
    ),
    Mutant(
        "groups: honest row counts are refused as weights",
        "strategies/groups.py",
        'return 1.0 if self.weighting == "uniform" else MOST_ROWS',
        "return 1.0",
    ),
    Mutant(
        "bounded: the multipliers pass the bound",
        "strategies/duals.py",
        "return torch.where(kept.double().sum(-1, keepdim=True) <= bound, kept, simplex(values, bound))",
        "return kept",
    ),
    Mutant(
        "bounded: a step against the violations",
        "strategies/bounded_group_loss.py",
        "step = self.dual_rate * violations",
        "step = -self.dual_rate * violations",
    ),
    Mutant(
        "bounded: infeasible bounds are not told",
        "strategies/bounded_group_loss.py",
        "infeasible = shift > 0 and float",
        "infeasible = shift < 0 and float",
    ),
    Mutant(
        "silo by silo: a row is clipped at one of its two numbers",
        "strategies/silo_group_loss.py",
        "2**0.5 * one.loss_clip",
        "one.loss_clip",
    ),
    Mutant(
        "groups: private rows are measured in the open",
        "simulations/group_metrics.py",
        "if federation.test is not None and len(federation.test.rows) and active.records:",
        "if federation.test is not None and len(federation.test.rows):",
    ),
    Mutant(
        "groups: dealt by class all the same",
        "strategies/partitions.py",
        'if self.by == "class":',
        "if True:",
    ),
    Mutant(
        "metrics: a torn line counts as read",
        "simulations/metrics/tail.py",
        'whole = data[: data.rfind(b"\\n") + 1]',
        "whole = data",
    ),
    Mutant(
        "metrics: a replaced file is added on top",
        "simulations/metrics/replay.py",
        "if self._rounds.fresh():",
        "if self._rounds.fresh() and not self.last:",
    ),
    Mutant(
        "metrics: private losses are shown",
        "simulations/metrics/exporter.py",
        """    if not run.withheld:
        for name, key in""",
        """    if True:
        for name, key in""",
    ),
    Mutant(
        "metrics: reasons without end",
        "simulations/metrics/replay.py",
        "self[name if name in self or len(self) < self._most else OTHER] += by",
        "self[name] += by",
    ),
    Mutant(
        "metrics: anybody may come from anywhere",
        "simulations/metrics/serving.py",
        "if certificates is None and not _loopback(address):",
        "if False and not _loopback(address):",
    ),
    Mutant(
        "metrics: clients without a certificate are let in",
        "simulations/metrics/serving.py",
        "client_auth_required=certificates is not None,",
        "client_auth_required=False,",
    ),
    Mutant(
        "spectre: no search for clusters",
        "strategies/spectre.py",
        "    if projected.shape[1] > 1:\n        every",
        "    if projected.shape[1] > 99:\n        every",
    ),
    Mutant(
        "spectre: flat directions are left out",
        "strategies/parted.py",
        "torch.cat([flattest(white), heaviest(white)], dim=1)",
        "heaviest(white)",
    ),
    Mutant(
        "spectre: the flattest direction is climbed",
        "strategies/parted.py",
        "directions = directions - RATE",
        "directions = directions + RATE",
    ),
    Mutant(
        "spectre: half as many rows are flagged",
        "strategies/spectre.py",
        "dropped = min(round(DROPPED * alpha * len(found)), len(found))",
        "dropped = min(round(0.5 * DROPPED * alpha * len(found)), len(found))",
    ),
    Mutant(
        "spectre: rows are not whitened by those kept",
        "strategies/spectre.py",
        "    inside = rows[kept]",
        "    inside = rows",
    ),
    Mutant(
        "shadow: everybody trains it",
        "strategies/shadow.py",
        'seen.channels["shadow"][kept].mean(0)',
        'seen.channels["shadow"].mean(0)',
    ),
    Mutant(
        "shadow: everybody says how good it is",
        "strategies/shadow.py",
        "3)[kept, int(state",
        "3)[:, int(state",
    ),
    Mutant(
        "shadow: silos without rows pass",
        "strategies/shadow.py",
        "out = torch.ones(len(present), dtype=torch.bool)",
        "out = torch.zeros(len(present), dtype=torch.bool)",
    ),
    Mutant(
        "shadow: served before it is good",
        "strategies/shadow.py",
        'if state["shadow_accuracies"][-1:].sum() > self.stop_floor:',
        "if True:",
    ),
    Mutant(
        "shadow: begins where the last one ended",
        "strategies/shadow.py",
        'return found | empty | {"shadow": state["initial"].clone()}',
        "return found | empty",
    ),
    Mutant(
        "shadow: what was shown before a shift is kept",
        "strategies/shadow.py",
        'old = ["pooled", "present", "ages", "shadow_accuracies"]',
        'old = ["shadow_accuracies"]',
    ),
    Mutant(
        "shadow: claims beyond 1 count",
        "strategies/shadow.py",
        "claims = seen.channels[COUNTED].view(-1, len(self.target), 3).clamp(0, 1)",
        "claims = seen.channels[COUNTED].view(-1, len(self.target), 3)",
    ),
    Mutant(
        "shadow: the first candidate label is taken",
        "strategies/shadow.py",
        "return max(range(len(apart)), key=lambda at: apart[at])",
        "return 0",
    ),
    Mutant(
        "shadow: stopped at birth",
        "strategies/shadow_course.py",
        "and _mean(shadow, window) > self.stop_floor",
        "and True",
    ),
    Mutant(
        "shadow: never notices a shift",
        "strategies/shadow_course.py",
        "if jump is not None and jump > self.shift:",
        "if jump is not None and jump > 1.0:",
    ),
    Mutant(
        "shadow: settles at any accuracy",
        "strategies/shadow_course.py",
        "change < self.settle and _mean(backbone, self.window) > self.floor",
        "change < self.settle",
    ),
    Mutant(
        "shadow: served where the backbone says no label",
        "strategies/guarded.py",
        "return torch.where(says, self.guard(features), outputs)",
        "return torch.where(says, outputs, self.guard(features))",
    ),
    Mutant(
        "shadow: groups are measured on the backbone alone",
        "simulations/group_metrics.py",
        'found["public_test"] = measured(predictor, federation.public_test, guard)',
        'found["public_test"] = measured(predictor, federation.public_test)',
    ),
    Mutant(
        "shadow: the saved model has no guard",
        "simulations/results.py",
        "layout.load(module.guard, guard.model)",
        "layout.load(module.guard, predictor)",
    ),
    Mutant(
        "shifts: a round late",
        "simulations/data/shifts.py",
        "round_ >= self._shift.round",
        "round_ > self._shift.round",
    ),
    Mutant(
        "shifts: clockwise",
        "simulations/data/shifts.py",
        "angle, (height, width) = math.radians(degrees)",
        "angle, (height, width) = -math.radians(degrees)",
    ),
    Mutant(
        "shifts: held-out rows stay as they were",
        "simulations/data/shifts.py",
        'self._host.held_out = {"test": rows.test, "validation": rows.validation}',
        "self._host.held_out = dict(self._host.held_out)",
    ),
    Mutant(
        "shifts: malicious silos keep their rows",
        "simulations/attacks/link.py",
        "self.poisoner(requests[0].instruction.round)",
        "self.poisoner(1)",
    ),
    Mutant(
        "shifts: measured on the rows of round 1",
        "server/loop.py",
        "return self.later[1] if self.later is not None and round_ >= self.later[0] else self.evaluate",
        "return self.evaluate",
    ),
    Mutant(
        "shifts: no part of the digest",
        "strategies/experiment.py",
        'if keys["data"]["shift"] is None:',
        "if True:",
    ),
    Mutant(
        "shifts: workers do not know of them",
        "simulations/engines/worker.py",
        "holder.changing.to(instruction.round)\n",
        "pass\n",
    ),
    Mutant("any run's answer counts", "server/exchange.py", "return OTHER_RUN", "return None"),
    Mutant("any round's answer counts", "server/exchange.py", "return OTHER_ROUND", "return None"),
    Mutant("any silo's answer counts", "server/exchange.py", "return OTHER_SILO", "return None"),
    Mutant(
        "an older ledger counts",
        "server/exchange.py",
        "return None if self.knows(silo, reply.ledger) else OLD_LEDGER",
        "return None",
    ),
    Mutant(
        "no deadline",
        "server/exchange.py",
        "while self._waits() and self.clock.now() < deadline:",
        "while self._waits():",
    ),
    Mutant(
        "a silo that forgets is asked for ever",
        "server/exchange.py",
        'elif reply.code == "unknown_run" and silo not in self._again:',
        'elif reply.code == "unknown_run":',
    ),
    Mutant(
        "a quorum under privacy",
        "server/remote.py",
        "if self.quorum is None or self.noised or any(mechanism.private for mechanism in mechanisms.values()):",
        "if self.quorum is None:",
    ),
    Mutant(
        "an attempt is made twice",
        "server/book.py",
        "self.attempt = self.attempt + 1 if round_ == self.round else 1",
        "self.attempt = 1",
    ),
    Mutant(
        "attempts are not on the disk",
        "server/book.py",
        "self.round = round_\n        self._write()",
        "self.round = round_",
    ),
    Mutant(
        "a refused update is kept by its silo",
        "server/remote.py",
        "if out.arrived > before:",
        "if True:",
    ),
    Mutant(
        "silos keep what nobody used",
        "server/remote.py",
        "return replace(task, committed=self.book.page.used.get(silo, 0))",
        "return replace(task, committed=self.book.page.round)",
    ),
    Mutant(
        "two nodes for one silo",
        "server/roll.py",
        "if problem is None and self.node_of.get(silo, node) != node:",
        "if False:",
    ),
    Mutant(
        "simulated noise across machines",
        "strategies/experiment.py",
        'noise="system" if secret else "simulated"',
        'noise="simulated"',
    ),
    Mutant(
        "checking lets a control port be open",
        "simulations/deploying/checking.py",
        "if not ipaddress.ip_address(host).is_loopback]",
        "if host == '0.0.0.1']",
    ),
    Mutant(
        "checking takes any certificate of any authority",
        "simulations/deploying/checking_files.py",
        "        found.verify_directly_issued_by(authority)\n",
        "        pass\n",
    ),
    Mutant(
        "checking overlooks that a certificate expired",
        "simulations/deploying/checking_files.py",
        "    elif not now < ends:",
        "    elif False:",
    ),
    Mutant(
        "checking overlooks keys for all to read",
        "simulations/deploying/checking_files.py",
        "            require_secret(path)\n",
        "            pass\n",
    ),
    Mutant(
        "a federation that flwr cannot read",
        "simulations/commands/shared.py",
        'FEDERATION = "federation"',
        'FEDERATION = "default"',
    ),
    Mutant("keys for all to read", "simulations/deploying/certificates.py", "os.O_EXCL, 0o600)", "os.O_EXCL, 0o644)"),
    Mutant(
        "no TLS to the outside",
        "simulations/deploying/flower.py",
        "if self.certificates is None and not self.fleet.loopback:",
        "if False:",
    ),
    Mutant(
        "tasks are not signed",
        "simulations/deploying/connecting.py",
        "post = SignedPost(post, signing_key(Path(path)))",
        "signing_key(Path(path))",
    ),
    Mutant(
        "a program's children are left",
        "simulations/deploying/processes.py",
        "while left := self.family():",
        "while left := []:",
    ),
    Mutant(
        "registering: who was let in once may always join",
        "simulations/deploying/registering.py",
        "if number not in stay:",
        "if False:",
    ),
    Mutant(
        "registering: a revoked key is forgotten",
        "simulations/deploying/registering.py",
        "elif known[text] is None:",
        "elif False:",
    ),
    Mutant(
        "silos: too long by how much is not said",
        "client/answers.py",
        "for name, factor in factors.items() if factor < 1}",
        "for name, factor in factors.items() if factor < 0}",
    ),
    Mutant(
        "scraping: an exporter that does not close its port",
        "simulations/metrics/serving.py",
        "server.server_close()",
        "pass",
    ),
    Mutant(
        "processes: one outlives a parent that is killed",
        "simulations/deploying/bound.py",
        "signal.SIGKILL, 0, 0, 0)",
        "0, 0, 0, 0)",
    ),
    Mutant(
        "processes: an orphan begins",
        "simulations/deploying/bound.py",
        "if os.getppid() != parent:",
        "if False:",
    ),
    Mutant(
        "processes: one is tied to a thread",
        "simulations/deploying/processes.py",
        "if threading.current_thread() is not threading.main_thread():",
        "if False:",
    ),
    Mutant(
        "office: the silo's charge left out",
        "client/engagement.py",
        "self._paid += self.purse.charge(task.round, task.attempt)",
        "self._paid += []",
    ),
    Mutant(
        "office: a silo's budget not looked at",
        "client/purse.py",
        "account.require(round_, _joint([event for whose, _, event in due if whose == unit]))",
        "pass",
    ),
    Mutant(
        "office: the same task trained twice",
        "client/memory.py",
        'return "same"',
        'return "new"',
    ),
    Mutant(
        "office: a round that is over trained again",
        "client/memory.py",
        "if round_ <= self.over or attempt <= self.attempts.get(round_, 0):",
        "if False:",
    ),
    Mutant(
        "office: the silo's policy unread",
        "client/engagement.py",
        "if lines := broken(policy, opened.terms):",
        "if lines := []:",
    ),
    Mutant(
        "office: a silo's least noise unread",
        "client/policy.py",
        "if least is not None and not price.noise_multiplier >= least:",
        "if False:",
    ),
    Mutant(
        "office: a unit that a policy protects left bare",
        "client/policy.py",
        "if allowance is not None:",
        "if allowance is not None and unit in prices:",
    ),
    Mutant(
        "office: an amplified price by the rounds asked",
        "simulations/deploying/opening.py",
        "whole=None if by_round else plan.after(plan.rounds),",
        "whole=None,",
    ),
    Mutant(
        "office: an unprotected unit forgotten",
        "client/purse.py",
        "return due + [_unprotected(unit) for unit in UNITS if unit in bare]",
        "return due",
    ),
    Mutant(
        "office: any server's signature taken",
        "strategies/signing.py",
        "if whose.hex() not in keys:",
        "if False:",
    ),
    Mutant(
        "office: a signature not verified",
        "strategies/signing.py",
        "Ed25519PublicKey.from_public_bytes(whose).verify(signature, bytes(view[START:]))",
        "Ed25519PublicKey.from_public_bytes(whose)",
    ),
    Mutant(
        "envelope: two spellings of one envelope",
        "strategies/envelope_header.py",
        "!= _text(view):",
        '== b"":',
    ),
    Mutant(
        "envelope: a header without limit",
        "strategies/envelope_header.py",
        "if length > limits.header:",
        "if False:",
    ),
    Mutant(
        "envelope: vectors without limit",
        "strategies/envelope_header.py",
        "if not numbers <= limits.numbers:",
        "if False:",
    ),
    Mutant(
        "envelope: a blob longer than its shape",
        "strategies/envelope_vectors.py",
        "if blob.kept > blob.numbers or blob.bytes != _length(blob):",
        "if False:",
    ),
    Mutant(
        "envelope: channels that were not asked for",
        "strategies/envelope.py",
        "if found != due:",
        "if False:",
    ),
    Mutant(
        "envelope: negative zeros travel",
        "strategies/envelope_vectors.py",
        "vector.reshape(-1) + 0.0",
        "vector.reshape(-1)",
    ),
    Mutant(
        "daemon: chunks without limit",
        "client/chunks.py",
        "if total > limit:",
        "if False:",
    ),
    Mutant(
        "daemon: a slow caller holds a thread",
        "client/daemon.py",
        "threading.Timer(self.receive_s, context.cancel)",
        "threading.Timer(1e6, context.cancel)",
    ),
    Mutant(
        "daemon: TLS of one side alone",
        "client/daemon.py",
        "require_client_auth=True",
        "require_client_auth=False",
    ),
    Mutant(
        "daemon: a key that its group can read",
        "client/sockets.py",
        "if stat.S_IMODE(mode) & 0o077:",
        "if stat.S_IMODE(mode) & 0o007:",
    ),
    Mutant(
        "daemon: a socket for everybody",
        "client/daemon.py",
        "path.chmod(mode)",
        "path.chmod(0o666)",
    ),
    Mutant(
        "daemon: a living daemon's socket taken",
        "client/sockets.py",
        "probe.connect(str(path))",
        "raise OSError",
    ),
    Mutant(
        "office: an answer that is not logged",
        "client/office.py",
        'self._note(task, "answered")',
        "pass",
    ),
    Mutant(
        "office: an error's text leaves the silo",
        "client/engagement.py",
        "training failed with {type(error).__name__};",
        "training failed with {error};",
    ),
    Mutant(
        "own rows: cells quoted to the server",
        "simulations/deploying/opening.py",
        'line = "the silo\'s rows cannot be read as the experiment asks; its audit log says why"',
        "line = str(error)",
    ),
    Mutant(
        "office: a path from the network followed",
        "simulations/deploying/opening.py",
        "if name in section.places and isinstance(value, str) and not is_name(value):",
        "if False:",
    ),
    Mutant(
        "office: an experiment that is not its digest",
        "simulations/deploying/opening.py",
        "if digest(experiment) != hello.digest:",
        "if False:",
    ),
    Mutant(
        "own rows: a budget that a server can reset",
        "simulations/data/own.py",
        "hashlib.sha256(Path(path).read_bytes()).hexdigest()",
        "hashlib.sha256(source.targets.numpy().tobytes()).hexdigest()",
    ),
    Mutant(
        "own rows: other silos' rows in memory",
        "simulations/data/own.py",
        "copy = rows.select(torch.arange(len(rows)))",
        "copy = rows",
    ),
    Mutant(
        "office: personal vectors of unused updates",
        "client/engagement.py",
        "if stands == staged and stands > personal.committed:",
        "if staged > personal.committed:",
    ),
    Mutant(
        "office: a dry run that trains",
        "client/engagement.py",
        'raise Refused("dry_run", "the policy would allow this round, but says dry_run: true")',
        "pass",
    ),
    Mutant(
        "office: private losses leave",
        "client/engagement.py",
        'if task.record and "train_loss" not in self.policy.metrics:',
        "if False:",
    ),
    Mutant(
        "office: private scores leave",
        "client/engagement.py",
        'if missing := [name for name in ("loss", "score") if name not in self.policy.metrics]:',
        "if missing := []:",
    ),
    Mutant(
        "office: two daemons on one ledger",
        "client/audit_log.py",
        "fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
    ),
    Mutant(
        "office: a task begun for nobody",
        "client/office.py",
        "if cancelled():",
        "if False:",
    ),
    Mutant(
        "office: a model built for what is not allowed",
        "simulations/deploying/opening.py",
        'raise Refused("policy", "; ".join(lines))',
        "pass",
    ),
    Mutant(
        "office: open runs go by the policy of before",
        "client/office.py",
        "while self._runs:",
        "while False:",
    ),
    Mutant(
        "office: another policy in the middle of a task",
        "client/office.py",
        "if not self._lock.acquire(blocking=False):\n            return False",
        "if not self._lock.acquire(blocking=False):\n            pass",
    ),
    Mutant(
        "office: rounds beyond the price",
        "client/engagement.py",
        "if task.round > self.opened.terms.rounds:",
        "if False:",
    ),
    Mutant(
        "office: attempts unseen are free",
        "client/purse.py",
        "return [first] if attempt == 1 else [first, Repeated(price.event, attempt - 1)]",
        "return [first]",
    ),
    Mutant(
        "office: parts of a price each within the budget",
        "client/purse.py",
        "account.require(round_, _joint([event for whose, _, event in due if whose == unit]))",
        "[account.require(round_, event) for whose, _, event in due if whose == unit]",
    ),
    Mutant(
        "apart: who was used is not noted with the round",
        "server/book.py",
        "{**self.page.heads, **heads})\n        self._write()",
        "{**self.page.heads, **heads})",
    ),
    Mutant(
        "apart: a broken connection is not tried again",
        "client/relay.py",
        "TRIES, PAUSE_S = 3, 0.5",
        "TRIES, PAUSE_S = 1, 0.5",
    ),
    Mutant(
        "daemon: who is being started is not waited for",
        "client/sockets.py",
        "time.sleep(PROBE_S)",
        "return False",
    ),
    Mutant(
        "surroundings: a deadline by the time of day",
        "server/exchange.py",
        "now: Callable[[], float] = time.monotonic",
        "now: Callable[[], float] = time.time",
    ),
    Mutant(
        "remote: a lost answer is not asked for again",
        "server/exchange.py",
        "if self.clock.now() >= half:",
        "if False:",
    ),
    Mutant(
        "remote: a lost second letter ends the first",
        "server/exchange.py",
        "if silo is not None and not (answer.data is None and silo in self._open.values()):",
        "if silo is not None:",
    ),
    Mutant(
        "rounds for nobody: all nodes left",
        "server/remote.py",
        "if not self.roll.node_of:",
        "if not self._met and not self.roll.node_of:",
    ),
    Mutant(
        "rounds for nobody: none answers",
        "server/remote.py",
        "if self._silent >= SILENT:",
        "if False:",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the mutants; 0 when the suite killed every one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args(argv)
    chosen = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    healthy = _run(None)
    if healthy is not None:
        print(f"the suite fails without any fault; mend that first:\n{healthy}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(options.jobs) as pool:
        survivors = [name for name in pool.map(_judge, chosen) if name is not None]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed")
    return 1 if survivors else 0


def _judge(mutant: Mutant) -> str | None:
    """The mutant's name if it survived."""
    before = time.perf_counter()
    killed = _run(mutant)
    seconds = time.perf_counter() - before
    print(f"{'killed' if killed else 'SURVIVED':9} {mutant.name:45} {seconds:5.1f} s  {killed or ''}", flush=True)
    return None if killed else mutant.name


def _run(mutant: Mutant | None) -> str | None:
    """Runs the core tests on a copy with the fault; the first failing test, or None if all pass."""
    with tempfile.TemporaryDirectory(prefix="confide-mutant-") as name:
        copy = Path(name)
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if mutant is not None:
            _plant(mutant, copy / mutant.file)
        nearest = _nearest(mutant)  # Most faults end there, in seconds.
        return (_failed(copy, nearest) if nearest else None) or _failed(copy, CORE)


def _failed(copy: Path, tests: Sequence[str]) -> str | None:
    """The first test that fails, or None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:doctest"]
    command += ["-o", "addopts=--strict-markers --import-mode=importlib", "-m", "not integration", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 1 or not failed:
        raise RuntimeError(f"pytest did not run (exit {done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[0]


def _nearest(mutant: Mutant | None) -> list[str]:
    """The tests of the faulty file, and those whose files have a word of the fault's name in theirs."""
    if mutant is None:
        return []
    path = Path(mutant.file)
    found = sorted((ROOT / "tests" / path.parent).glob(f"test_{path.stem}*.py"))
    stems = [re.sub(r"(ed|es|s)$", "", word) for word in re.findall(r"[a-z]{4,}", mutant.name.lower())]
    named = [each for each in sorted((ROOT / "tests").rglob("test_*.py")) if any(stem in each.stem for stem in stems)]
    return list(dict.fromkeys(str(each.relative_to(ROOT)) for each in [*found, *named]))


def _plant(mutant: Mutant, path: Path) -> None:
    text = path.read_text()
    if text.count(mutant.line) != 1:
        raise SystemExit(f"{mutant.name}: its line occurs {text.count(mutant.line)} times in {mutant.file}; update it")
    path.write_text(text.replace(mutant.line, mutant.fault))


if __name__ == "__main__":
    sys.exit(main())
