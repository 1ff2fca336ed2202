"""What a data holder allows: the site's policy.yaml, and what a run asks, compared before anything is computed.

The policy is the data holder's own file. Nothing that a server sends can change it, and what it does not allow is
refused with the line that says why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from privacy.events import Event, Gaussian
from privacy.local import LOCAL
from privacy.terms import Neighbours
from strategies.codec import decode
from strategies.schema import ConfigError, key
from strategies.yaml_text import read_yaml

SILO, EXAMPLE = "silo", "example"
UNITS: Mapping[str, str] = {SILO: SILO, LOCAL: "server", EXAMPLE: EXAMPLE}
"""Units of a ledger, and the policy's sections about them."""
METRICS = ("train_loss", "loss", "score")


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What a unit of protection must be given, over all runs on one data set."""

    epsilon: float = key(above=0, help="largest epsilon, of all runs on the data together")
    delta: float = key(above=0, below=1, help="its delta")
    least_noise: float | None = key(
        None, above=0, help="least noise multiplier of a run; null: whatever epsilon allows"
    )
    most_clip_norm: float | None = key(None, above=0, help="largest clip norm of a run; null: any")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """All that a data holder allows; a section says that its unit has to be protected."""

    silo: Allowance | None = key(None, help="the whole silo, against all but the server, which is trusted to add noise")
    server: Allowance | None = key(None, help="the whole silo, against the server too (privacy.local)")
    example: Allowance | None = key(None, help="single rows, against everybody (privacy.example)")
    unprotected: bool = key(False, help="true: runs without any privacy are allowed; then no section may be given")
    strategies: tuple[str, ...] = key(help="names of the strategies that may run")
    tasks: tuple[str, ...] = key(help="names of the tasks that may run")
    metrics: tuple[str, ...] = key((), choices=METRICS, help="private numbers that may leave beside the update")
    least_examples: int = key(1, at_least=1, help="training rows below which nothing is trained")
    simulated_noise: bool = key(False, help="true: noise from a seed, which the server knows, is allowed")
    server_keys: tuple[str, ...] = key((), help="Ed25519 public keys (hexadecimal) of servers; empty: tasks unsigned")
    dry_run: bool = key(False, help="true: everything is checked and logged, and nothing is trained or leaves")

    def __post_init__(self) -> None:
        given = [name for name in UNITS.values() if getattr(self, name) is not None]
        if not given and not self.unprotected:
            raise ValueError("policy: protects nothing; give silo, server or example, or say unprotected: true")
        if given and self.unprotected:
            raise ValueError(f"policy: unprotected: true contradicts the section {given[0]}; remove one of them")
        for name in self.server_keys:
            if not re.fullmatch(r"[0-9a-f]{64}", name):
                raise ValueError(f"server_keys: found {name[:20]!r}, an Ed25519 public key has 64 hexadecimal digits")

    def allowance(self, unit: str) -> Allowance | None:
        """The section about a unit of the ledger, or None."""
        found: Allowance | None = getattr(self, UNITS[unit])
        return found


@dataclass(frozen=True)
class Price:
    """What a run costs one unit of the silo.

    Attributes:
        unit: of the ledger.
        neighbours: the relation that the price is for.
        event: of one round, or of one more attempt at a round.
        whole: of all rounds of the run, asked or not, where a round's price counts on nobody knowing who is asked;
            charged once, before the first. None where every round that the silo is asked in pays for itself.
        noise_multiplier: of the noise.
        clip_norm: of what is noised; None where it changes while the run goes on.
        before: of moments to standardise with, which every silo releases once, in round 0; None where a run does not.
    """

    unit: str
    neighbours: Neighbours
    event: Event
    whole: Event | None
    noise_multiplier: float
    clip_norm: float | None
    before: Gaussian | None = None


@dataclass(frozen=True)
class Terms:
    """What a run would do at this silo, derived by the silo from the experiment.

    Attributes:
        strategy: its name.
        task: its name.
        simulated: whether noise follows from a seed that the server knows.
        prices: of the units that it protects.
        rows: training rows here.
        rounds: of the run.
    """

    strategy: str
    task: str
    simulated: bool
    prices: tuple[Price, ...]
    rows: int
    rounds: int


def read_policy(path: str | Path) -> Policy:
    """The policy in a YAML file.

    Raises:
        ConfigError: every problem, one line each.
    """
    try:
        return decode(Policy, read_yaml(path))
    except ConfigError as error:
        named = [line if line.startswith(str(path)) else f"{path}: {line}" for line in error.problems]
        raise ConfigError(named) from error


def unnamed(policy: Policy, strategy: str, task: str) -> list[str]:
    """What of a strategy and a task the policy does not name, a line each."""
    asked = (("strategy", strategy, policy.strategies), ("task", task, policy.tasks))
    return [
        f"{what} {name!r} is not allowed here; allowed: {', '.join(allowed) or 'none'}"
        for what, name, allowed in asked
        if name not in allowed
    ]


def broken(policy: Policy, terms: Terms) -> list[str]:
    """What in a run the policy does not allow, a line each: what was found, and what would fit."""
    lines = unnamed(policy, terms.strategy, terms.task)
    if terms.prices and terms.simulated and not policy.simulated_noise:
        lines.append("noise from a seed is not allowed here; use privacy.noise: system")
    if not terms.rows >= policy.least_examples:  # How many there are is nobody's business.
        lines.append(f"the silo has fewer training rows than the {policy.least_examples} that its policy asks for")
    prices = {price.unit: price for price in terms.prices}
    for unit, section in UNITS.items():
        allowance = policy.allowance(unit)
        if allowance is not None:
            lines += _unmet(section, allowance, prices.get(unit))
    return lines


def _unmet(section: str, allowance: Allowance, price: Price | None) -> list[str]:
    remedy = {"silo": "privacy.silo", "server": "privacy.local", "example": "privacy.example"}[section]
    if price is None:
        return [f"{section}: the run does not protect it, and has to here; give it {remedy}"]
    lines = []
    least, most = allowance.least_noise, allowance.most_clip_norm
    if least is not None and not price.noise_multiplier >= least:
        lines.append(f"{section}: noise multiplier {price.noise_multiplier:.4g} is below {least:g}; raise {remedy}'s")
    if least is not None and price.before is not None and not price.before.noise_multiplier >= least:
        found = f"{price.before.noise_multiplier:.4g} of moments is below {least:g}"
        lines.append(f"{section}: noise multiplier {found}; raise data.standardize.noise_multiplier")
    if most is not None and price.clip_norm is None:
        lines.append(f"{section}: a clip norm that adapts has no limit, here it is {most:g}; give a number")
    elif most is not None and price.clip_norm is not None and not price.clip_norm <= most:
        lines.append(f"{section}: clip norm {price.clip_norm:.4g} is above {most:g}; lower {remedy}.clip_norm")
    return lines
