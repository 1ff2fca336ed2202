"""The privacy statement of a run in plain words: who is promised what, by which proof, and what is left out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.report.run import Run
from simulations.report.words import NEIGHBOURS, number, promise, small
from simulations.words import local as local_words
from simulations.words import privacy as privacy_words

NO_EXAMPLES = (
    "It says nothing about a single row inside a silo beyond what it says about the whole silo, and protects no silo "
    "from itself."
)


@dataclass(frozen=True)
class Topic:
    """A heading and the sentences below it."""

    title: str
    sentences: tuple[str, ...]


def statement(run: Run) -> list[Topic]:
    """All that a reader must know before relying on a run's privacy."""
    if run.claimed is None and run.local is not None:
        return _local_statement(run, run.local)
    example = () if run.example is None else (Topic("Single examples", tuple(_examples(run, run.example))),)
    if run.claimed is None:
        return [
            Topic("In short", (privacy_words.NO_SILO_PRIVACY if example else privacy_words.NO_PRIVACY,)),
            *example,
            Topic("Who may learn what", tuple(_who(run))),
            Topic("What would change that", (_REMEDY,)),
        ]
    return [
        Topic("In short", (_short(run),)),
        Topic("What is protected", tuple(_unit(run))),
        *example,
        Topic("Who may learn what", tuple(_who(run))),
        Topic("Claimed", tuple(_claimed(run))),
        Topic("Measured", tuple(_measured(run))),
        Topic("Covered by the claim", tuple(_covered(run))),
        Topic("Not covered", tuple(_not_covered(run))),
    ]


def _local_statement(run: Run, local: Mapping[str, Any]) -> list[Topic]:
    """Of a run whose only noise is the silos' own."""
    return [
        Topic("In short", (local_words.short(local, alone=True),)),
        Topic("What is protected", tuple(_unit(run))),
        Topic("Who may learn what", (local_words.NO_BETTER, local_words.server(local), _FOLDER)),
        Topic("Claimed", (promise(local), *local_words.details(local))),
        Topic("Covered by the claim", (_MODELS, "Every single update, as the server gets it.")),
        Topic("Not covered", tuple(_not_covered(run))),
    ]


_REMEDY = (
    "A privacy.silo section clips every silo’s update, adds noise to their sum and keeps a ledger of the price: "
    "confide plan says what that would cost before anything runs."
)


_FOLDER = "Whoever holds the run’s folder: not kept from anything either; see below on simulated noise."
_MODELS = "The final model and the models of all rounds, to everybody, together and for ever."


def _short(run: Run) -> str:
    claimed = run.promised or {}
    if not claimed["charged_rounds"]:
        return privacy_words.NOTHING_CHARGED
    upper = claimed["epsilon_upper"]
    if upper is None:
        return "No finite ε is proved for this run."
    what = "" if run.selection is None else ", the sweep that it comes from included"
    if run.claimed is not None and run.claimed.get("epsilon_planned") is not None:
        planned = number(run.claimed["epsilon_planned"], 4, "up")
        what += f"; at most {planned} if it was stopped for what it had shown"
    return (
        f"ε (epsilon) is at most {number(upper, 4, 'up')} at δ (delta) = {small(claimed['delta'])}, for "
        f"{NEIGHBOURS[claimed['neighbours']]}{what}."
    )


def _unit(run: Run) -> Iterator[str]:
    claimed = run.claimed or run.local or {}
    yield (
        f"The unit is a silo: a participating organisation or device with all of its data; there were "
        f"{run.result['silos']:,}. Two federations are neighbours if one becomes the other by "
        f"{NEIGHBOURS[claimed['neighbours']]}."
    )
    if run.example is None:
        yield NO_EXAMPLES


def _examples(run: Run, claimed: Mapping[str, Any]) -> Iterator[str]:
    yield privacy_words.examples(claimed)
    if run.cumulative_example is not None:
        yield privacy_words.examples_of_all_runs(run.cumulative_example)
    yield from privacy_words.example_measurements(run)
    if run.claimed is None:  # Otherwise they stand under what was measured of silos.
        yield from privacy_words.warnings(run)
    yield (
        "The noise is added inside the silo, step by step, so this holds against the server too, and against whoever "
        "sees single updates. It is another promise than the one for whole silos: the two are never added."
    )
    yield (
        "The proof counts on nobody learning which examples were in a batch, and takes the nominal number of rows of a "
        "silo for public. What all rows of a silo have in common is not hidden."
    )


def _who(run: Run) -> Iterator[str]:
    """The adversaries, from the farthest to the nearest."""
    if run.claimed is None:
        proved = run.example is not None and run.example["epsilon_upper"] is not None
        row = " About one of its rows they learn no more than the claim for rows allows." if proved else ""
        yield f"Outside: whoever gets the models may learn anything about a silo that they hold.{row}"
        yield "Another silo: the same, from the models that it is sent."
        too = " The claim for rows holds against it, too." if proved else ""
        yield f"The server: sees the update of every silo.{too}"
        return
    if run.claimed["epsilon_upper"] is None:
        yield "Outside, and another silo: nothing is proved against whoever gets the models."
    else:
        yield (
            "Outside: whoever gets the models of all rounds and the public metrics learns no more than the claim "
            f"allows, whatever else they know. {_secrecy(run)}"
        )
        yield "Another silo, or several that join forces: as outside, from the models that they are sent."
    if run.local is not None:
        yield local_words.server(run.local)
        yield _FOLDER
        return
    yield (
        "The server: not kept from anything. It sees the update of every silo before they are summed, and is trusted "
        "to clip, sum, add noise and forget."
    )
    yield _FOLDER


def _secrecy(run: Run) -> str:
    cohort = run.section("cohort")
    if cohort.get("sampling") == "fixed":
        return (
            f"The proof counts on nobody learning which {cohort.get('size')} of the {run.result['silos']:,} silos were "
            "in a round."
        )
    if cohort.get("sampling") == "cyclic":
        return (
            f"Silos take turns {cohort.get('separation')} rounds apart, so no cohort has to stay secret; the proof "
            "counts on the server asking nobody sooner, which it refuses to do."
        )
    if cohort.get("sampling") == "all" or cohort.get("rate") == 1:
        return "Every silo is in every round, so no cohort has to stay secret."
    capped = "" if cohort.get("cap") is None else f", and of more than {cohort['cap']} only a random choice of so many"
    return (
        f"The proof counts on nobody learning which silos were in a round (each was with probability "
        f"{cohort.get('rate', 1):g}{capped})."
    )


def _claimed(run: Run) -> Iterator[str]:
    claimed, chosen = run.claimed or {}, run.selection
    if not claimed["charged_rounds"]:
        yield privacy_words.NOTHING_CHARGED
        return
    yield promise(run.promised or claimed)
    if chosen is not None:
        yield from privacy_words.chosen_words(chosen, chosen)
        yield "What follows is about this run alone, without the choice."
    yield privacy_words.claim(run)
    if run.local is not None:
        yield local_words.not_added(run.local)
        yield from local_words.details(run.local)
    if claimed["neighbours"] == "replace":
        yield (
            "Replacing a silo moves a sum by up to two clip norms and is priced so; the number does not compare with "
            "those for adding or removing one."
        )
    yield from privacy_words.stopped(run)
    yield from privacy_words.together(run)
    if str(run.result["stopped"]).startswith("budget"):
        yield (
            "The run stopped before a round that would have passed its budget. That decision looks at prices only, so "
            "it tells nothing about any silo."
        )


def _measured(run: Run) -> Iterator[str]:
    measured = run.measured
    if measured is not None:
        interval = f"{number(measured['lower'])} to {number(measured['upper'])}"
        yield f"ε ≈ {number(measured['epsilon'])}, 95% interval {interval}, at δ = {small(measured['delta'])}."
    yield privacy_words.measurement(run)
    if measured is not None:
        yield "It is there to catch noise that is missing or mis-scaled, and looks at the final model alone."
    yield from privacy_words.warnings(run)


def _covered(run: Run) -> Iterator[str]:
    if not (run.claimed or {})["charged_rounds"]:
        yield "Nothing was released."
        return
    yield _MODELS
    if run.section("data").get("public_test"):
        yield "Loss and score on the public test rows, which are no silo’s: computed from released models alone."
    if run.standardized_privately:
        yield (
            "The means and spreads that features were standardised with: silos released them once, with noise, before "
            "round 1, and the ledger charges it."
        )


def _not_covered(run: Run) -> Iterator[str]:
    if run.section("metrics").get("privacy") == "research":
        yield (
            "Metrics: metrics.privacy is research, so the run’s files and report show numbers computed on private rows "
            "(training loss, clip fraction, scores of silos). They have no price; do not publish them."
        )
    else:
        yield "Metrics computed on private rows: none were recorded (metrics.privacy: strict)."
    yield (
        "Cohort counts: rounds.jsonl and the report show how many silos were asked and answered, and why others failed."
    )
    if run.local is not None:
        yield "Who was asked: the ledger names the silos of each round, so it is as private as the rest of the folder."
    yield (
        "Tuning: other runs on the same silos, made to choose this one’s settings, are further releases."
        if run.selection is None
        else "Tuning beyond the sweep: other runs or sweeps on the same silos are further releases."
    )
    if run.section("privacy").get("noise") == "system":
        yield (
            "Files of this run: noise and cohorts came from the operating system and cannot be drawn again, but "
            "batches, canaries and the initial model follow from the seed in experiment.yaml."
        )
        if (run.section("privacy").get("silo") or {}).get("mechanism") == "banded":
            yield (
                "The checkpoint, until the last round: the next round’s noise needs that of the last ones, so it is in "
                "there, and takes the noise off their models. Delete the checkpoint of a run that will not go on."
            )
    else:
        yield (
            "Simulated noise: cohorts and noise are drawn from the seed in experiment.yaml, so whoever knows it can "
            "take the noise off again. The number says what the method costs, not that these files are safe to publish."
        )
    yield (
        "Floating point: the proof is about real numbers. Released sums are rounded to a grid, so that their low-order "
        "bits say nothing by themselves (Mironov 2012), but the noise is no exact discrete Gaussian."
    )


def ledger_remarks(run: Run, folder: Path) -> list[str]:
    """Whether the run's ledgers are those that the result was written with, and hold no more than it."""
    heads = {"ledger.jsonl": run.result["ledger"], **run.result.get("ledgers", {})}
    return [remark for name, head in heads.items() for remark in _remarks(folder / name, head)]


def _remarks(path: Path, head: Mapping[str, Any]) -> Iterator[str]:
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        yield f"{path.name} is missing: nothing shows what was charged."
        return
    seq = head["seq"]
    if seq and (len(lines) < seq or hashlib.sha256(lines[seq - 1]).hexdigest() != head["hash"]):
        yield f"{path.name} is not the ledger that this result was written with: do not rely on either."
        return
    try:
        records = [json.loads(line) for line in lines[seq:]]
        units = Counter(record["unit"] for record in records if record["kind"] == "reserve")
    except (ValueError, KeyError, TypeError):
        yield f"{path.name} is damaged after line {seq}: do not rely on it."
        return
    if late := max(units.values(), default=0):  # Each view of a round has a line.
        s = "" if late == 1 else "s"
        what = (
            f"The ledger charges {late:,} round{s}"
            if path.name == "ledger.jsonl"
            else f"{path.name} has {late:,} line{s}"
        )
        yield (
            f"{what} more than this result knows of: the run went on after it, and costs more than is said here. To "
            "end it, in its folder: confide run --resume ."
        )
