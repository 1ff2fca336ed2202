"""What may be said of a run's privacy, and must be: the sentences that report and `confide explain` share.

Each is plain text about one run, made from its files alone; nothing here decides what a number is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from simulations.example_audit import share
from simulations.report.run import Run
from simulations.report.words import number, small
from simulations.words import audit as audit_words
from simulations.words.channels import noise_words

NO_PRIVACY = "This run had no privacy: updates were neither clipped nor noised, so ε is infinite for every silo."
NO_SILO_PRIVACY = "A whole silo had no privacy in this run: its ε is infinite. Single examples had."
READ_MORE = "How to read an ε, with pictures: privacy/READING_EPSILON.md in confide’s source."
NOTHING_CHARGED = "No round was charged: nothing was released, so ε is 0."
STANDARD_ERRORS = 1.96  # Of a 95% interval.
_METHODS = {
    "exact": "by a closed formula",
    "PLD": "by privacy-loss distributions",
    "RDP": "by a general Renyi bound, which is never tight",
}


def claim(run: Run) -> str:
    """The bracket, how it was found, and what it was charged for."""
    claimed = run.claimed
    if claimed is None:
        return NO_PRIVACY
    note = f" {claimed['note'][:1].upper()}{claimed['note'][1:]}." if claimed["note"] else ""
    if claimed["epsilon_upper"] is None:
        return f"Claimed: nothing.{note}"
    lower, upper = number(claimed["epsilon_lower"], 4, "down"), number(claimed["epsilon_upper"], 4, "up")
    noise = noise_words(claimed, f"{claimed['noise_multiplier']:.4g}")
    method = _METHODS.get(claimed["method"], claimed["method"])
    return (
        f"Claimed: ε lies between {lower} and {upper} ({method}); the upper end is what is proved. It covers "
        f"{charged(run)}, with {noise}.{_turns(run)}{note}"
    )


def _turns(run: Run) -> str:
    """How often a silo was in a round, and what its noise has to do with that of other rounds."""
    cohort, silo = run.section("cohort"), run.section("privacy").get("silo") or {}
    if cohort.get("sampling") != "cyclic":
        return ""
    times = -(-len(run.rows) // cohort["separation"])
    words = f" A silo is in at most {times:,} of the rounds, at least {cohort['separation']} apart."
    if silo.get("mechanism") == "banded":
        words += " That noise is what a round adds; it also takes off much of what the rounds before it added."
    return words


def stopped(run: Run) -> list[str]:
    """What a stop by hand makes of the claim; nothing where there was none."""
    claimed = run.claimed
    if claimed is None or claimed.get("epsilon_planned") is None:
        return []
    ran, planned = (number(claimed[name], 4, "up") for name in ("epsilon_upper", "epsilon_planned"))
    return [
        f"The run was stopped by hand. For the rounds that ran, ε is at most {ran}, and that holds only if whoever "
        "stopped it did not do so for what its models or scores had shown. Otherwise the claim is what all planned "
        f"rounds would have cost, ε at most {planned}: stopping earlier is then a part of that release."
    ]


def together(run: Run) -> list[str]:
    """What all runs with a budget on this data cost, and by which rule they were added up."""
    total = run.result["privacy"].get("cumulative")
    if total is None or total["runs"] < 2:
        return []
    spent = f"The {total['runs']:,} runs with a budget on this data cost, together, ε at most {_most(total)}"
    if total["method"] != "filter":
        return [
            f"{spent}: their releases all cost the same or are unsampled Gaussians, so looking between them is free."
        ]
    return [
        f"{spent}. They differ in noise or sampling, which may have been chosen after looking at earlier runs, so they "
        "are added up by a Rényi filter at an order fixed beforehand (Feldman & Zrnic 2021). What it promises is the "
        f"budget of {number(total['budget'], 4)}; the number says how much of that is used."
    ]


def _most(total: Mapping[str, Any]) -> str:
    at = f"at δ = {small(total['delta'])}"
    return f"{number(total['epsilon_upper'], 4, 'up')} {at}" if total["epsilon_upper"] is not None else f"∞ {at}"


def charged(run: Run) -> str:
    """What the ledger charges: rounds, those broken off included, and moments to standardise with."""
    total, rounds = (run.claimed or {"charged_rounds": 0})["charged_rounds"], len(run.rows)
    moments = 1 if total and run.standardized_privately else 0
    parts = [f"{rounds:,} round{'' if rounds == 1 else 's'}"]
    broken = total - moments - rounds
    if broken > 0:
        them = "attempt that was" if broken == 1 else "attempts that were"
        parts.append(f"{broken:,} {them} broken off, which may have been seen and so are paid again")
    if moments:
        parts.append("one release of means and spreads to standardise features with, charged as round 0")
    return " and ".join(parts) if len(parts) < 3 else f"{parts[0]}, {parts[1]}, and {parts[2]}"


def examples(claimed: Mapping[str, Any]) -> str:
    """What is claimed of single examples, beside what is claimed of silos; the two are never added."""
    note = f" {claimed['note'][:1].upper()}{claimed['note'][1:]}." if claimed["note"] else ""
    if claimed["epsilon_upper"] is None:
        return f"Examples: nothing is claimed.{note}"
    lower, upper = number(claimed["epsilon_lower"], 4, "down"), number(claimed["epsilon_upper"], 4, "up")
    spread = claimed["per_silo"]
    half = f" In half of the silos ε is at most {number(spread['p50'], 4, 'up')}." if spread is not None else ""
    method = _METHODS.get(claimed["method"], claimed["method"])
    return (
        f"For adding or removing one example of a silo, ε lies between {lower} and {upper} ({method}) at "
        f"δ = {small(claimed['delta'])} in the silo that spent most, over {claimed['steps']:,} noisy steps.{half} It "
        "holds whatever other silos do; a person with rows in several silos pays for each." + note
    )


def examples_of_all_runs(cumulative: Mapping[str, Any]) -> str:
    """What all runs with a budget of examples have spent on the data."""
    runs, upper = cumulative["runs"], cumulative["epsilon_upper"]
    what = "is infinite" if upper is None else f"is at most {number(upper, 4, 'up')}"
    asked = (
        "Every silo counts as asked in every round, for who was asked is a secret of the claim for whole silos."
        if cumulative["all_silos"]
        else "A silo counts for the rounds that it was asked in."
    )
    return (
        f"Over {runs:,} run{'' if runs == 1 else 's'} with a budget of examples on this data, ε of an example {what} "
        f"at δ = {small(cumulative['delta'])} in the silo that spent most. {asked} Rows that another run dealt to "
        "other silos are charged the most that any silo paid there."
    )


def unmeasured(run: Run) -> str:
    """Why there is no measured epsilon."""
    if run.claimed is None and run.local is not None:
        return "canaries measure privacy.silo, which this run has not"
    if run.claimed is None and run.example is not None:
        return unmeasured_rows(run)
    if run.claimed is None:
        return "nothing to compare with: no privacy is claimed"
    if not run.section("privacy").get("audit", {}).get("canaries"):
        return "no canaries took part (privacy.audit.canaries: 0)"
    return "no round changed the model, so canaries left no trace to measure"


def measurement(run: Run) -> str:
    """What the measured epsilon is, and the least that it could have shown."""
    measured = run.measured
    if measured is None:
        return f"Not measured: {unmeasured(run)}."
    floor = number(least_shown(measured["canaries"], measured["delta"]), 2, "up")
    half = (
        " Canaries are there or not, and move the sum half as far as replaced data may: half the noise would not show."
        if run.claimed is not None and run.claimed["neighbours"] == "replace"
        else ""
    )
    said = f"Measured, from the final model of this one run. {audit_words.sentence(measured)} "
    found = measured["all_iterates"]
    if found is not None and found["quotable"]:
        said += (
            f"From the steps of all rounds, with fitted spreads: ε ≈ {number(found['epsilon'])} "
            f"({number(found['lower'])} to {number(found['upper'])}). "
        )
    return (
        f"{said}{measured['canaries']:,} canaries could not have told an ε below {floor} from none at all. A value "
        f"below the claim does not improve the claim.{half}"
    )


def unmeasured_rows(run: Run) -> str:
    """Why there is no measured epsilon of a row."""
    if not run.section("privacy").get("audit", {}).get("examples", {}).get("canaries"):
        return "no canary examples took part (privacy.audit.examples.canaries: 0)"
    return "no audited silo was asked, so canaries left no trace to measure"


def example_measurements(run: Run) -> list[str]:
    """The measured epsilon of a row, a paragraph per audited silo; why not, where there is none."""
    if not run.measured_examples:
        return [f"Not measured for rows: {unmeasured_rows(run)}."]
    return [_example_measurement(run, measured) for measured in run.measured_examples]


def _example_measurement(run: Run, measured: Mapping[str, Any]) -> str:
    interval = f"{number(measured['lower'])} to {number(measured['upper'])}"
    floor = number(least_shown(measured["canaries"], measured["delta"]), 2, "up")
    train = run.section("train")
    decay = train.get("learning_rate", 0.0) * train.get("weight_decay", 0.0)
    kept = share(train.get("momentum", 0.0), decay, train.get("steps") or 1)
    uneven = (
        f" Momentum and weight decay weigh steps unevenly: canaries show at most {math.ceil(100 * kept)}% of what they "
        "would in plain steps."
        if kept < 0.995
        else ""
    )
    return (
        f"Measured for one row of silo {measured['silo']}, from all that its own steps changed: "
        f"ε ≈ {number(measured['epsilon'])}, 95% interval {interval}, at δ = {small(measured['delta'])}. "
        f"{audit_words.sentence(measured)} {measured['canaries']:,} canary examples could not have told an ε below "
        f"{floor} from none at all.{uneven}"
    )


def least_shown(canaries: int, delta: float) -> float:
    """The epsilon at which the interval of a measurement would just leave 0 behind it.

    The mean of so many canaries has a standard error of canaries^-1/2: Andrew et al. 2024, as in `privacy.audit`.
    """
    from privacy.accountant import epsilon
    from privacy.events import Gaussian

    return epsilon(Gaussian(math.sqrt(canaries) / STANDARD_ERRORS), delta).upper


def warnings(run: Run) -> list[str]:
    """What is wrong with the measurement, or with the claim beside it."""
    return [line for measured in audit_words.every(run.result["privacy"]) for line in _warnings(measured)]


def _warnings(measured: audit_words.Measured) -> list[str]:
    found: list[str] = []
    if measured["alarm"]:
        found.append(f"{audit_words.alarm(measured)}. Do not trust the claim.")
    if audit_words.unsound(measured):
        text = audit_words.unsound(measured)
        found.append(f"{text[0].upper()}{text[1:]}.")
    if not measured["alarm"] and finite(measured["lower"]) > finite(measured["claim"]):
        found.append(
            "The whole interval lies above the claim. Chance does that in at most about one run of forty; if another "
            "seed shows it again, the claim is wrong: please report it."
        )
    return found


def chosen_words(privacy: Mapping[str, Any] | None, spec: Mapping[str, Any]) -> list[str]:
    """What choosing a run by a sweep cost, and why.

    Args:
        privacy: the price of the sweep, as sweep.json and result.json hold it; None without privacy.
        spec: at least `on`, `release` and `score_noise` of the sweep.
    """
    if privacy is None:
        return ["The runs of this sweep had no privacy, so ε is infinite whatever is chosen."]
    upper, one = (number(privacy[name], 4, "up") for name in ("epsilon_upper", "one_run"))
    at = f"at δ = {small(privacy['delta'])}"
    looks = (
        "The choice was made on public rows, which are no silo’s: looking at a private model there is post-processing "
        "and costs that run nothing more."
        if spec["on"] == "public"
        else "The choice was made on the silos’ validation rows, by one noised mean of each run "
        f"(noise {spec['score_noise']:.4g} on the sum), which is part of what a run costs."
    )
    if spec["release"] == "all":
        return [
            f"{looks} But every run was released, so all of them compose.",
            f"All runs together: ε is at most {upper} {at}; the dearest one alone {one}.",
        ]
    return [
        f"{looks} Which run was best depends on all of them, and so does the model that is released.",
        f"The choice included, ε is at most {upper} {at} (Papernot & Steinke 2022); the dearest run alone {one}.",
        "That holds while only the chosen run is seen. The number of runs was drawn before the first one and is part "
        "of the secret: do not publish it, nor anything else of the sweep’s folder. Models, metrics and reports of the "
        "other runs are deleted.",
    ]


def finite(value: float | None) -> float:
    """JSON has no infinity: None stands for it."""
    return math.inf if value is None else float(value)
