"""`confide plan`: what an experiment will ask, add as noise, send and cost, before it runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from simulations.channel_words import channel_lines
from simulations.commands import OK, output
from simulations.commands.shared import config_argument, dataset_argument, format_argument, read, read_rows

if TYPE_CHECKING:
    from privacy.mechanism import Mechanism
    from simulations.running import Prepared
    from strategies.experiment import Experiment

NAME = "plan"
HELP = "say what an experiment will cost, without running it"
PERCENT = (1, 10, 25, 50, 100)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    config_argument(parser)
    dataset_argument(parser)
    format_argument(parser)


def execute(args: argparse.Namespace) -> int:
    """Prints the plan."""
    experiment = read(args)
    from simulations.running import prepare

    prepared = prepare(experiment, table=read_rows(args.dataset, experiment))
    plan = size(experiment, prepared) | privacy(experiment, prepared) | local(experiment, prepared)
    print(output.document(plan) if args.format == "json" else describe(plan))
    return OK


def size(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """Silos, rounds, parameters and bytes."""
    from privacy import streams
    from simulations.channels import adaptive

    strategy, start = experiment.strategy, prepared.model.start
    cohort, votes = prepared.plan.sampler.expected, adaptive(prepared.plan.mechanisms)
    state = strategy.init(start, streams.generator(experiment.seed, "init"))
    return {
        "name": experiment.name,
        "silos": prepared.plan.sampler.population,
        "expected_cohort": cohort,
        "rounds": experiment.rounds,
        "parameters": start.numel(),
        "bytes_up_per_round": round(4 * cohort * (sum(strategy.channels(start.numel()).values()) + votes)),
        "bytes_down_per_round": round(4 * cohort * strategy.instruct(state, 1).payload),
    }


def privacy(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """Noise, and epsilon as rounds go by; without privacy only that there is none."""
    plan, silo = prepared.plan, experiment.privacy.silo
    if silo is None or plan.noise_multiplier is None:
        return {"privacy": None}
    from privacy.accountant import epsilon
    from privacy.binomial import detectable
    from simulations import auditing, channels

    audit = experiment.privacy.audit
    marks = sorted({max(1, round(experiment.rounds * percent / 100)) for percent in PERCENT})
    brackets = [(mark, epsilon(plan.after(mark), silo.delta, neighbours=plan.neighbours)) for mark in marks]
    canaries = auditing.participation(experiment, plan).expected
    found = {
        "noise_multiplier": plan.noise_multiplier,
        "noise_follows_from_epsilon": silo.epsilon,
        **channels.described(plan.mechanisms, last={}),
        "noise_std_of_mean": _noise(plan.mechanisms, plan.sampler.expected + canaries),
        "expected_canaries": canaries,
        "canaries": audit.canaries,
        "detectable": detectable(audit.canaries, silo.delta) if audit.canaries else None,
        "delta": silo.delta,
        "neighbours": plan.neighbours,
        "method": brackets[-1][1].method,
        "note": brackets[-1][1].note,
        "epsilon": [
            {"rounds": mark, "lower": output.finite(bracket.lower), "upper": output.finite(bracket.upper)}
            for mark, bracket in brackets
        ],
    }
    return {"privacy": found | budget(experiment, prepared)}


def local(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """Noise of the silos' own, and what it costs one that is asked in every round."""
    planned, section = prepared.plan.local, experiment.privacy.local
    if planned is None or section is None:
        return {"local": None}
    found = {
        "noise_multiplier": planned.noise_multiplier,
        "noise_follows_from_epsilon": section.epsilon,
        "clip_norm": section.clip_norm,
        "delta": planned.delta,
        "neighbours": planned.neighbours,
        "epsilon_if_always_asked": output.finite(planned.cost.upper),
    }
    if planned.budget is not None:
        found |= {"budget": planned.budget, "asked_within_budget": int(planned.charge.limit)}
    return {"local": found}


def _local_lines(local: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    noise, clip = output.short(local["noise_multiplier"]), output.short(local["clip_norm"])
    yield "silos' own noise", f"{noise} times the clip norm of {clip}, on every single update"
    value = output.at_most(local["epsilon_if_always_asked"])
    yield (
        "epsilon server",
        f"{value} for {output.RELATIONS[local['neighbours']]}, at delta {output.short(local['delta'])}, "
        "of a silo that is asked in every round",
    )
    if "budget" in local:
        yield "budget of a silo", f"epsilon {output.short(local['budget'])}: asked {local['asked_within_budget']} times"


def _noise(mechanisms: Mapping[str, Mechanism], divisor: float) -> float | None:
    """Noise on each number of a mean in round 1, where all channels have the same."""
    from privacy.mechanism import GaussianSum

    stds = {each.std for each in mechanisms.values() if isinstance(each, GaussianSum)}
    return stds.pop() / divisor if len(stds) == 1 else None


def budget(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """How many rounds a budget lasts, by the same odometer that the round loop asks."""
    plan, limit = prepared.plan, experiment.budget
    if limit is None:
        return {}
    from server.odometer import Odometer

    odometer = Odometer(plan.event, plan.neighbours, limit.delta, experiment.rounds, limit.epsilon, plan.before)
    within = sum(odometer.affords(charges) for charges in range(1, experiment.rounds + 1))
    return {"budget": limit.epsilon, "rounds_within_budget": within}


def _noises(private: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if private["noise_std_of_mean"] is not None:
        first = "" if private["clip_norm"] is not None else " in round 1"
        yield "noise on the mean", f"std {output.short(private['noise_std_of_mean'])} per coordinate{first}"
    if private["clip_norm"] is None:
        yield from channel_lines(private["channels"])


def describe(plan: dict[str, Any]) -> str:
    """The plan in words."""
    pairs = [
        ("silos", str(plan["silos"])),
        ("expected cohort", f"{output.short(plan['expected_cohort'])} silos a round"),
        ("rounds", str(plan["rounds"])),
        ("parameters", str(plan["parameters"])),
        ("bytes", f"{output.size(plan['bytes_up_per_round'])} up and "
                  f"{output.size(plan['bytes_down_per_round'])} down, expected per round"),
    ]  # fmt: skip
    private = plan["privacy"]
    if plan["local"] is not None:
        pairs += _local_lines(plan["local"])
        if private is None:
            return output.facts([*pairs, ("epsilon outside", "at most that of the server, who sees more")])
    if private is None:
        return output.facts([*pairs, ("privacy", "no privacy: epsilon is infinite")])
    solved = private["noise_follows_from_epsilon"]
    follows = f", the least that keeps epsilon {output.short(solved)}" if solved is not None else ""
    pairs += [
        ("noise multiplier", f"{output.short(private['noise_multiplier'])}{follows}"),
        *_noises(private),
        ("epsilon of", f"{output.RELATIONS[private['neighbours']]}, at delta {output.short(private['delta'])}"),
    ]
    if private["canaries"]:
        shown = f"{private['canaries']} canaries can show epsilon {output.short(private['detectable'])} at most"
        pairs.append(("audit", f"{shown} by counting; a larger claim they can hardly contradict"))
    if private["note"]:
        pairs.append(("note", private["note"]))
    if "budget" in private:
        lasts = f"{private['rounds_within_budget']} of {plan['rounds']} rounds"
        pairs.append(("budget", f"epsilon {output.short(private['budget'])} lasts for {lasts}"))
    lines = [[str(row["rounds"]), output.bracket(row["lower"], row["upper"])] for row in private["epsilon"]]
    return f"{output.facts(pairs)}\n\n{output.table(['after round', 'epsilon'], lines, left=0)}"
