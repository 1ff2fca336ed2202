"""`confide plan`: what an experiment will ask, add as noise, send and cost, before it runs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from simulations.commands import OK, output
from simulations.commands.shared import config_argument, dataset_argument, format_argument, read, read_rows
from simulations.words.channels import channel_lines

if TYPE_CHECKING:
    from privacy.mechanism import Mechanism
    from simulations.preparing import Prepared
    from strategies.base import State
    from strategies.experiment import Experiment
    from strategies.layout import Layout

NAME = "plan"
HELP = "say what an experiment will cost, without running it"
PERCENT = (1, 10, 25, 50, 100)
MEANING = "of what noise adds to sums of rounds: root mean square over all rounds, per coordinate and clip norm"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    config_argument(parser)
    dataset_argument(parser)
    format_argument(parser)


def execute(args: argparse.Namespace) -> int:
    """Prints the plan."""
    experiment = read(args)
    from simulations.preparing import prepare

    prepared = prepare(experiment, table=read_rows(args.dataset, experiment))
    plan = size(experiment, prepared) | privacy(experiment, prepared)
    plan |= local(experiment, prepared) | examples(experiment, prepared)
    print(output.document(plan) if args.format == "json" else describe(plan))
    return OK


def size(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """Silos, rounds, parameters and bytes."""
    from privacy import streams
    from simulations.channels import adaptive
    from simulations.engines import setup

    population, model = prepared.plan.sampler.population, prepared.model
    cohort, votes = prepared.plan.sampler.expected, adaptive(prepared.plan.mechanisms)
    state = experiment.strategy.init(model.start, streams.generator(experiment.seed, "init"), setup.layout(model))
    up, down = _bytes(experiment, state, setup.layout(model), population)
    return {
        "name": experiment.name,
        "silos": population,
        "expected_cohort": cohort,
        "rounds": experiment.rounds,
        "parameters": model.start.numel(),
        "bytes_up_per_round": round(cohort * (up + 4 * votes)),
        "bytes_down_per_round": round(cohort * down),
    }


def _bytes(experiment: Experiment, state: State, layout: Layout, population: int) -> tuple[float, float]:
    """Bytes of a message up and down in round 1, in the mean over silos of all tiers."""
    from strategies.traffic import message

    strategy, values, up, down = experiment.strategy, experiment.wire.values, 0, 0
    noised = experiment.privacy.local is not None  # Noise leaves no number at zero.
    for tier, silos in Counter(strategy.tier(silo) for silo in range(population)).items():
        kept = {} if noised else strategy.kept(layout, 1, tier)
        up += silos * message(strategy.channels(layout.size), kept, values).bytes
        instruction = strategy.instruct(state, 1, tier)
        down += silos * message(instruction.sizes, instruction.kept, values).bytes
    return up / population, down / population


def privacy(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """Noise, and epsilon as rounds go by; without privacy only that there is none."""
    plan, silo = prepared.plan, experiment.privacy.silo
    if silo is None or plan.noise_multiplier is None:
        return {"privacy": None}
    from privacy.accountant import epsilon
    from privacy.binomial import detectable
    from simulations import auditing, channels
    from simulations.noise_choice import choices, recommended

    audit = experiment.privacy.audit
    marks = sorted({max(1, round(experiment.rounds * percent / 100)) for percent in PERCENT})
    brackets = [(mark, epsilon(plan.after(mark), silo.delta, neighbours=plan.neighbours)) for mark in marks]
    canaries = auditing.participation(experiment, plan).expected
    compared = choices(plan)
    found = {
        "noise_multiplier": plan.noise_multiplier,
        "noise_follows_from_epsilon": None if experiment.strategy.reveals else silo.epsilon,
        **channels.described(plan.mechanisms, last={}),
        "mechanism": silo.mechanism,
        # The noise of one round says little where rounds are correlated: see the comparison.
        "noise_std_of_mean": None
        if silo.mechanism == "banded"
        else _noise(plan.mechanisms, plan.sampler.expected + canaries),
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
        "comparison": [vars(choice) for choice in compared],
        "recommended": recommended(compared),
    }
    return {"privacy": found | budget(experiment, prepared)}


def examples(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """Noise inside the silos and its price, for a silo that is asked in every round."""
    plan = prepared.plan.example
    if plan is None:
        return {"example": None}
    from privacy.binomial import detectable

    canaries = experiment.privacy.audit.examples.canaries
    marks = sorted({max(1, round(plan.rounds * percent / 100)) for percent in PERCENT})
    brackets = [(mark, plan.after(mark)) for mark in marks]
    return {
        "example": {
            "noise_multiplier": {"least": min(plan.noise), "most": max(plan.noise)},
            "clip_norm": plan.silos[0].clip_norm,
            "batch": plan.silos[0].batch,
            "steps_per_round": plan.steps,
            "canaries": canaries,
            "detectable": detectable(canaries, plan.delta) if canaries else None,
            "delta": plan.delta,
            "neighbours": brackets[-1][1].neighbours,
            "method": brackets[-1][1].method,
            "note": brackets[-1][1].note,
            "epsilon": [
                {"rounds": mark, "lower": output.finite(bracket.lower), "upper": output.finite(bracket.upper)}
                for mark, bracket in brackets
            ],
            **({"queries_per_round": len(plan.queries)} if plan.queries else {}),
            **({"budget": list(plan.budgets), "rounds_within_budget": plan.lasts} if plan.budgets else {}),
        }
    }


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
    if limit is None or limit.epsilon is None:
        return {}
    from server.odometer import Odometer
    from server.turns import charged

    most = charged(plan.sampler, experiment.rounds)
    odometer = Odometer(plan.event, plan.neighbours, plan.delta, most, limit.epsilon, plan.before)
    within = sum(odometer.affords(charged(plan.sampler, round_)) for round_ in range(1, experiment.rounds + 1))
    return {"budget": limit.epsilon, "rounds_within_budget": within}


def _noises(private: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if private["mechanism"] == "banded":
        yield "mechanism", "banded: noise that is correlated over rounds, so that it cancels in their sum"
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
    inside = "" if plan["example"] is None else f"\n\n{describe_examples(plan['example'])}"
    private = plan["privacy"]
    if plan["local"] is not None:
        pairs += _local_lines(plan["local"])
        if private is None:
            return output.facts([*pairs, ("epsilon outside", "at most that of the server, who sees more")])
    if private is None:
        none = "no privacy: epsilon is infinite"
        return output.facts([*pairs, ("silo privacy" if inside else "privacy", none)]) + inside
    solved = private["noise_follows_from_epsilon"]
    follows = f", the least that keeps epsilon {output.short(solved)}" if solved is not None else ""
    pairs += [
        ("noise multiplier", f"{output.short(private['noise_multiplier'])}{follows}"),
        *_noises(private),
        ("epsilon of", f"{output.RELATIONS[private['neighbours']]}, at delta {output.short(private['delta'])}"),
    ]
    pairs += _audit(private, "canaries")
    if private["note"]:
        pairs.append(("note", private["note"]))
    if "budget" in private:
        lasts = f"{private['rounds_within_budget']} of {plan['rounds']} rounds"
        pairs.append(("budget", f"epsilon {output.short(private['budget'])} lasts for {lasts}"))
    lines = [[str(row["rounds"]), output.bracket(row["lower"], row["upper"])] for row in private["epsilon"]]
    told = f"{output.facts(pairs)}\n\n{output.table(['after round', 'epsilon'], lines, left=0)}"
    return told + _comparison(private) + inside


def _comparison(private: dict[str, Any]) -> str:
    """What other noise would do at the same epsilon; empty where every silo is in every round."""
    choices = private["comparison"]
    if not choices:
        return ""
    rows = [
        [each["name"], *("-" if each[key] is None else output.short(each[key]) for key in ("noise_multiplier", "rmse"))]
        for each in choices
    ]
    table = output.table(["at this epsilon", "noise multiplier", "error"], rows, left=1)
    pairs = [(f"{each['name']} needs", each["needs"]) for each in choices]
    facts = output.facts([*pairs, ("least error", str(private["recommended"])), ("error", MEANING)])
    return f"\n\n{table}\n\n{facts}"


def _audit(plan: dict[str, Any], canaries: str) -> list[tuple[str, str]]:
    if not plan["canaries"]:
        return []
    shown = f"{plan['canaries']} {canaries} can show epsilon {output.short(plan['detectable'])} at most"
    return [("audit", f"{shown} by counting; a larger claim they can hardly contradict")]


def describe_examples(plan: dict[str, Any]) -> str:
    """The example-level part of a plan in words."""
    least, most = plan["noise_multiplier"]["least"], plan["noise_multiplier"]["most"]
    noise = output.short(least) if least == most else f"{output.short(least)} to {output.short(most)}, by silo"
    queries = plan.get("queries_per_round")
    asked = f"; {queries} noised {'answer' if queries == 1 else 'answers'} about all rows" if queries else ""
    pairs = [
        (
            "inside a silo",
            f"{plan['steps_per_round']} noisy steps a round, {output.short(plan['batch'])} rows expected{asked}",
        ),
        ("noise multiplier", noise),
        ("epsilon of", f"adding or removing one row of the worst silo, at delta {output.short(plan['delta'])}"),
        *_audit(plan, "canary examples"),
        *([("note", plan["note"])] if plan["note"] else []),
    ]
    if "budget" in plan:
        lowest, highest = (output.short(choose(plan["budget"])) for choose in (min, max))
        limit = lowest if lowest == highest else f"{lowest} to {highest}, by silo,"
        lasts = f"lasts for {plan['rounds_within_budget']} of {plan['epsilon'][-1]['rounds']} rounds"
        pairs.append(("budget of a row", f"epsilon {limit} {lasts}, if every silo is asked in all"))
    lines = [[str(row["rounds"]), output.bracket(row["lower"], row["upper"])] for row in plan["epsilon"]]
    return f"{output.facts(pairs)}\n\n{output.table(['rounds asked', 'epsilon'], lines, left=0)}"
